//! Learning merges: the most frequent pair becomes a token, again and again.
//!
//! Ties are defined: among pairs of equal count the one with the smallest (left id, right id) is
//! merged first, so merges depend on nothing but the word counts.

use crate::count::WordCounts;
use crate::error::Error;
use rustc_hash::{FxHashMap, FxHashSet};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Ids of the two tokens that are joined.
pub type Pair = (u32, u32);

/// Tokens 0 ... 255 are the bytes.
pub const NUM_BYTES: usize = 256;

/// Merges between two questions whether to go on.
const MERGES_PER_QUESTION: usize = 256;

struct Word {
    tokens: Vec<u32>,
    count: u64,
}

/// Learn merges until there are `vocab_size` tokens or no pair is left.
///
/// Merge number i makes token 256 + i. `go_on` is asked now and then with the number of merges.
pub fn learn_merges(
    counts: &WordCounts,
    vocab_size: usize,
    mut go_on: impl FnMut(usize) -> bool,
) -> Result<Vec<Pair>, Error> {
    if vocab_size < NUM_BYTES {
        return Err(Error::VocabularyTooSmall(vocab_size));
    }
    if counts.is_empty() {
        return Err(Error::NoText);
    }
    let mut state = State::new(counts);
    let mut merges = Vec::with_capacity(vocab_size - NUM_BYTES);
    while merges.len() < vocab_size - NUM_BYTES {
        if merges.len() % MERGES_PER_QUESTION == 0 && !go_on(merges.len()) {
            return Err(Error::Stopped);
        }
        let Some(pair) = state.most_frequent() else {
            break;
        };
        state.merge(pair, (NUM_BYTES + merges.len()) as u32);
        merges.push(pair);
    }
    Ok(merges)
}

/// Words as tokens, and how often and where each pair of neighbours stands.
struct State {
    words: Vec<Word>,
    pair_counts: FxHashMap<Pair, u64>,
    places: FxHashMap<Pair, FxHashSet<u32>>,
    /// Lazy: an entry holds when its count is still the pair's.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl State {
    fn new(counts: &WordCounts) -> Self {
        let words: Vec<Word> = counts
            .iter()
            .filter(|(word, _)| word.len() > 1)
            .map(|(word, &count)| Word {
                tokens: word.bytes().map(u32::from).collect(),
                count,
            })
            .collect();
        let mut state = Self {
            words,
            pair_counts: FxHashMap::default(),
            places: FxHashMap::default(),
            heap: BinaryHeap::new(),
        };
        for index in 0..state.words.len() {
            let word = &state.words[index];
            for pair in word.tokens.windows(2).map(|w| (w[0], w[1])) {
                *state.pair_counts.entry(pair).or_insert(0) += word.count;
                state.places.entry(pair).or_default().insert(index as u32);
            }
        }
        let entries = state.pair_counts.iter();
        state.heap = entries.map(|(&pair, &n)| (n, Reverse(pair))).collect();
        state
    }

    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            let now = self.pair_counts.get(&pair).copied().unwrap_or(0);
            if now == count && count > 0 {
                return Some(pair);
            }
            if now > 0 && now < count {
                self.heap.push((now, Reverse(pair)));
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair, token: u32) {
        let mut grown: FxHashSet<Pair> = FxHashSet::default();
        for index in self.places.remove(&pair).unwrap_or_default() {
            let word = &mut self.words[index as usize];
            let merged = merge_tokens(&word.tokens, pair, token);
            for old in word.tokens.windows(2).map(|w| (w[0], w[1])) {
                if let Some(count) = self.pair_counts.get_mut(&old) {
                    *count -= word.count;
                }
            }
            for new in merged.windows(2).map(|w| (w[0], w[1])) {
                *self.pair_counts.entry(new).or_insert(0) += word.count;
                if new.0 == token || new.1 == token {
                    self.places.entry(new).or_default().insert(index);
                    grown.insert(new);
                }
            }
            word.tokens = merged;
        }
        self.pair_counts.remove(&pair);
        for new in grown {
            self.heap.push((self.pair_counts[&new], Reverse(new)));
        }
    }
}

/// Tokens with each occurrence of `pair`, from the left, replaced by `token`.
fn merge_tokens(tokens: &[u32], pair: Pair, token: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(tokens.len());
    let mut i = 0;
    while i < tokens.len() {
        if i + 1 < tokens.len() && (tokens[i], tokens[i + 1]) == pair {
            merged.push(token);
            i += 2;
        } else {
            merged.push(tokens[i]);
            i += 1;
        }
    }
    merged
}

/// The bytes of every token: 256 bytes, then one for each merge.
pub fn token_bytes(merges: &[Pair]) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    for &(left, right) in merges {
        let joined = [&tokens[left as usize][..], &tokens[right as usize][..]].concat();
        tokens.push(joined);
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(words: &[(&str, u64)]) -> WordCounts {
        words.iter().map(|&(w, n)| (w.into(), n)).collect()
    }

    #[test]
    fn the_most_frequent_pair_is_merged_first() {
        let counts = counts(&[("aab", 3), ("ab", 2), ("cd", 4)]);
        let merges = learn_merges(&counts, 258, |_| true).unwrap();
        assert_eq!(merges, [(97, 98), (99, 100)]);
    }

    #[test]
    fn ties_go_to_the_smallest_pair() {
        let counts = counts(&[("zy", 5), ("ab", 5), ("ac", 5)]);
        let merges = learn_merges(&counts, 259, |_| true).unwrap();
        assert_eq!(merges, [(97, 98), (97, 99), (122, 121)]);
    }

    #[test]
    fn runs_are_merged_from_the_left() {
        assert_eq!(merge_tokens(&[1, 1, 1, 1, 1], (1, 1), 9), [9, 9, 1]);
    }

    #[test]
    fn it_ends_when_no_pair_is_left() {
        let merges = learn_merges(&counts(&[("abc", 1)]), 1000, |_| true).unwrap();
        assert_eq!(merges.len(), 2);
        assert_eq!(token_bytes(&merges)[257], b"abc");
    }

    #[test]
    fn bad_requests_are_refused() {
        let some = counts(&[("ab", 1)]);
        assert_eq!(
            learn_merges(&some, 255, |_| true),
            Err(Error::VocabularyTooSmall(255))
        );
        assert_eq!(
            learn_merges(&WordCounts::default(), 300, |_| true),
            Err(Error::NoText)
        );
        assert_eq!(learn_merges(&some, 300, |_| false), Err(Error::Stopped));
    }
}
