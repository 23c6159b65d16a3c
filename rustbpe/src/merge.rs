//! Learning merges: the most frequent pair becomes a token, until the vocabulary is complete.
//!
//! Ties are defined: among pairs of equal count the one with the smallest (left id, right id) is
//! merged first, so that merges depend only on the word counts.
//!
//! Only pairs with at least `min_count` occurrences are candidates, with the words in which they
//! occur. The count of a pair never grows after the merge that created it, so the most frequent
//! pair is a candidate as long as any candidate is left. When none is, the minimum is lowered and
//! all pairs are counted again. This keeps the tables small: most pairs are rare and never become
//! candidates.

use crate::count::WordCounts;
use crate::error::Error;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Ids of two adjacent tokens.
pub type Pair = (u32, u32);

/// Tokens 0 ... 255 are the bytes.
pub const NUM_BYTES: usize = 256;

/// Merges between two calls of `keep_going`.
const MERGES_PER_CALL: usize = 256;
/// Divisor of the minimum count when no candidate is left.
const MIN_COUNT_STEP: u64 = 4;
/// Terminates the tokens of a word.
const END: u32 = u32::MAX;

/// Learn merges until there are `vocab_size` tokens or no pair is left.
///
/// Merge number i creates token 256 + i. `keep_going` is called now and then with the number of
/// merges; false stops.
pub fn learn_merges(
    counts: WordCounts,
    vocab_size: usize,
    mut keep_going: impl FnMut(usize) -> bool,
) -> Result<Vec<Pair>, Error> {
    if !(NUM_BYTES..END as usize).contains(&vocab_size) {
        return Err(Error::VocabularySize(vocab_size));
    }
    let mut words = Words::new(counts)?;
    let mut candidates = Candidates::new(&words);
    let mut merges = Vec::new();
    while merges.len() < vocab_size - NUM_BYTES {
        if merges.len() % MERGES_PER_CALL == 0 && !keep_going(merges.len()) {
            return Err(Error::Stopped);
        }
        let Some((pair, words_with_pair)) = candidates.take_most_frequent(&mut words) else {
            break;
        };
        let token = (NUM_BYTES + merges.len()) as u32;
        for word in words_with_pair {
            candidates.merge(&mut words, word, pair, token);
        }
        candidates.add_new_pairs();
        merges.push(pair);
    }
    Ok(merges)
}

/// All distinct words: their tokens, concatenated, each word terminated by `END`.
struct Words {
    tokens: Vec<u32>,
    starts: Vec<u32>,
    counts: Vec<u64>,
}

impl Words {
    fn new(counts: WordCounts) -> Result<Self, Error> {
        let (num_words, num_bytes) = counts.size();
        if num_words == 0 {
            return Err(Error::NoText);
        }
        let mut tokens = Vec::with_capacity(num_bytes);
        let mut starts = Vec::with_capacity(num_words);
        let mut numbers = Vec::with_capacity(num_words);
        counts.drain(|word, count| {
            if word.len() > 1 {
                starts.push(tokens.len() as u32);
                numbers.push(count);
                tokens.extend(word.iter().map(|&byte| u32::from(byte)));
                tokens.push(END);
            }
        });
        Ok(Self {
            tokens,
            starts,
            counts: numbers,
        })
    }

    /// Close the gaps that merges have left, and remove words that are a single token.
    fn close_gaps(&mut self) {
        let (mut to, mut kept) = (0, 0);
        for word in 0..self.starts.len() {
            let start = self.starts[word] as usize;
            let length = self.of(word as u32).count();
            if length > 1 {
                // Words only move down: `to` is never above `start`.
                self.tokens.copy_within(start..=start + length, to);
                self.starts[kept] = to as u32;
                self.counts[kept] = self.counts[word];
                kept += 1;
                to += length + 1;
            }
        }
        self.tokens.truncate(to);
        self.starts.truncate(kept);
        self.counts.truncate(kept);
    }

    /// The tokens of a word.
    fn of(&self, word: u32) -> impl Iterator<Item = u32> + '_ {
        let rest = &self.tokens[self.starts[word as usize] as usize..];
        rest.iter().copied().take_while(|&token| token != END)
    }

    /// Each adjacent pair, word by word, with the word and its count.
    fn for_each_pair(&self, mut visit: impl FnMut(Pair, u32, u64)) {
        for (word, (&start, &count)) in self.starts.iter().zip(&self.counts).enumerate() {
            let rest = &self.tokens[start as usize..];
            for pair in rest.windows(2).take_while(|pair| pair[1] != END) {
                visit((pair[0], pair[1]), word as u32, count);
            }
        }
    }

    /// The number of occurrences of each pair.
    fn pair_counts(&self) -> FxHashMap<Pair, u64> {
        let mut counts = FxHashMap::default();
        self.for_each_pair(|pair, _, count| *counts.entry(pair).or_insert(0) += count);
        counts
    }
}

/// A pair that may be merged next.
#[derive(Default)]
struct Candidate {
    count: u64,
    /// Words in which it occurs, and some in which it no longer does.
    words: Vec<u32>,
}

impl Candidate {
    fn add_word(&mut self, word: u32) {
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

struct Candidates {
    min_count: u64,
    pairs: FxHashMap<Pair, Candidate>,
    /// Lazily updated: an entry is valid if its count is still that of the pair.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
    /// Pairs that the current merge creates: each occurrence with its word, and their counts.
    new_occurrences: Vec<(Pair, u32)>,
    new_counts: FxHashMap<Pair, u64>,
}

impl Candidates {
    fn new(words: &Words) -> Self {
        let counts = words.pair_counts();
        let most = counts.values().max().copied().unwrap_or(0);
        let mut candidates = Self {
            min_count: (most / MIN_COUNT_STEP).max(1),
            pairs: FxHashMap::default(),
            heap: BinaryHeap::new(),
            new_occurrences: Vec::new(),
            new_counts: FxHashMap::default(),
        };
        candidates.add_frequent_pairs(words, &counts);
        candidates
    }

    /// Add all pairs that are frequent enough.
    fn add_frequent_pairs(&mut self, words: &Words, counts: &FxHashMap<Pair, u64>) {
        let min_count = self.min_count;
        let frequent = counts.iter().filter(|(_, &count)| count >= min_count);
        for (&pair, &count) in frequent {
            let words = Vec::new();
            self.pairs.insert(pair, Candidate { count, words });
            self.heap.push((count, Reverse(pair)));
        }
        words.for_each_pair(|pair, word, _| {
            if let Some(candidate) = self.pairs.get_mut(&pair) {
                candidate.add_word(word);
            }
        });
    }

    /// Remove and return the most frequent pair, with the words to search for it.
    fn take_most_frequent(&mut self, words: &mut Words) -> Option<(Pair, Vec<u32>)> {
        loop {
            while let Some((count, Reverse(pair))) = self.heap.pop() {
                let now = self.pairs.get(&pair).map_or(0, |candidate| candidate.count);
                if now == count {
                    let taken = self.pairs.remove(&pair)?;
                    return Some((pair, taken.words));
                }
                if now >= self.min_count {
                    self.heap.push((now, Reverse(pair)));
                } else {
                    self.pairs.remove(&pair);
                }
            }
            if self.min_count == 1 {
                return None;
            }
            self.lower_min_count(words);
        }
    }

    #[cold]
    fn lower_min_count(&mut self, words: &mut Words) {
        self.min_count = (self.min_count / MIN_COUNT_STEP).max(1);
        self.pairs.clear();
        words.close_gaps();
        self.add_frequent_pairs(words, &words.pair_counts());
    }

    /// Merge a pair in one word, from the left, and update the counts of adjacent pairs.
    fn merge(&mut self, words: &mut Words, word: u32, (left, right): Pair, token: u32) {
        let count = words.counts[word as usize];
        let tokens = &mut words.tokens[words.starts[word as usize] as usize..];
        let (mut from, mut to, mut follows_match) = (0, 0, false);
        while tokens[from] != END {
            let is_match = tokens[from] == left && tokens[from + 1] == right;
            let new = if is_match { token } else { tokens[from] };
            if is_match && from > 0 && !follows_match {
                self.subtract((tokens[from - 1], left), count);
            }
            if is_match && tokens[from + 2] != END {
                self.subtract((right, tokens[from + 2]), count);
            }
            if to > 0 && (is_match || tokens[to - 1] == token) {
                let pair = (tokens[to - 1], new);
                *self.new_counts.entry(pair).or_insert(0) += count;
                self.new_occurrences.push((pair, word));
            }
            tokens[to] = new;
            to += 1;
            from += 1 + usize::from(is_match);
            follows_match = is_match;
        }
        tokens[to] = END;
    }

    fn subtract(&mut self, pair: Pair, count: u64) {
        if let Some(candidate) = self.pairs.get_mut(&pair) {
            candidate.count -= count;
        }
    }

    /// Add the frequent ones of the pairs that the last merge has created.
    fn add_new_pairs(&mut self) {
        let min_count = self.min_count;
        self.new_counts.retain(|_, &mut count| count >= min_count);
        for (&pair, &count) in &self.new_counts {
            let words = Vec::new();
            self.pairs.insert(pair, Candidate { count, words });
            self.heap.push((count, Reverse(pair)));
        }
        for (pair, word) in self.new_occurrences.drain(..) {
            if self.new_counts.contains_key(&pair) {
                if let Some(candidate) = self.pairs.get_mut(&pair) {
                    candidate.add_word(word);
                }
            }
        }
        self.new_counts.clear();
    }
}

/// The bytes of every token: the 256 single bytes, then one token per merge.
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
    use crate::split::Splitter;
    use std::collections::BTreeMap;

    fn counts(words: &[(&str, u64)]) -> WordCounts {
        let splitter = Splitter::by_regex(r"\S+").unwrap();
        let counts = WordCounts::default();
        for &(word, count) in words {
            let texts = vec![word.to_string(); count as usize];
            counts.count(&splitter, &texts).unwrap();
        }
        counts
    }

    /// The reference implementation: all pairs are counted again for each merge.
    fn learn_reference(words: &[(&str, u64)], vocab_size: usize) -> Vec<Pair> {
        let of = |word: &str| word.bytes().map(u32::from).collect();
        let mut words: Vec<(Vec<u32>, u64)> = words.iter().map(|&(w, n)| (of(w), n)).collect();
        let mut merges = Vec::new();
        while merges.len() < vocab_size - NUM_BYTES {
            let mut pairs = BTreeMap::new();
            for (word, count) in &words {
                for pair in word.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_insert(0) += count;
                }
            }
            let best = pairs
                .iter()
                .max_by_key(|(&pair, &count)| (count, Reverse(pair)));
            let Some((&best, _)) = best else { break };
            let token = (NUM_BYTES + merges.len()) as u32;
            merges.push(best);
            for (word, _) in &mut words {
                let mut at = 0;
                while at + 1 < word.len() {
                    if (word[at], word[at + 1]) == best {
                        word[at] = token;
                        word.remove(at + 1);
                    }
                    at += 1;
                }
            }
        }
        merges
    }

    #[test]
    fn the_most_frequent_pair_is_merged_first() {
        let counts = counts(&[("aab", 3), ("ab", 2), ("cd", 4)]);
        let merges = learn_merges(counts, 258, |_| true).unwrap();
        assert_eq!(merges, [(97, 98), (99, 100)]);
    }

    #[test]
    fn ties_go_to_the_smallest_pair() {
        let counts = counts(&[("zy", 5), ("ab", 5), ("ac", 5)]);
        let merges = learn_merges(counts, 259, |_| true).unwrap();
        assert_eq!(merges, [(97, 98), (97, 99), (122, 121)]);
    }

    #[test]
    fn merges_equal_the_reference_implementation() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for letters in 1..4 {
            for _ in 0..100 {
                let mut words = BTreeMap::new();
                for _ in 0..1 + random(20) {
                    let word: String = (0..1 + random(14))
                        .map(|_| char::from(b'a' + random(letters) as u8))
                        .collect();
                    words.insert(word, 1 + random(300));
                }
                let words: Vec<(&str, u64)> = words.iter().map(|(w, &n)| (&w[..], n)).collect();
                let fast = learn_merges(counts(&words), 300, |_| true).unwrap();
                assert_eq!(fast, learn_reference(&words, 300), "{words:?}");
            }
        }
    }

    #[test]
    fn learning_ends_when_no_pair_is_left() {
        let merges = learn_merges(counts(&[("abc", 1)]), 1000, |_| true).unwrap();
        assert_eq!(merges.len(), 2);
        assert_eq!(token_bytes(&merges)[257], b"abc");
    }

    #[test]
    fn words_of_one_letter_have_no_pair() {
        let merges = learn_merges(counts(&[("a", 3)]), 300, |_| true);
        assert_eq!(merges, Ok(Vec::new()));
    }

    #[test]
    fn invalid_requests_are_refused() {
        let learn = |counts, size| learn_merges(counts, size, |_| true);
        for size in [0, 255, u32::MAX as usize] {
            let found = learn(counts(&[("ab", 1)]), size);
            assert_eq!(found, Err(Error::VocabularySize(size)));
        }
        assert_eq!(learn(WordCounts::default(), 300), Err(Error::NoText));
        let stopped = learn_merges(counts(&[("ab", 1)]), 300, |_| false);
        assert_eq!(stopped, Err(Error::Stopped));
    }
}
