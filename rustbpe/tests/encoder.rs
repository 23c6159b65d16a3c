//! The encoder equals a reference implementation, on text of all planes and arbitrary vocabularies.

use rustbpe::count::WordCounts;
use rustbpe::encode::Encoder;
use rustbpe::merge::{learn_merges, token_bytes};
use rustbpe::split::{Splitter, WordSink, DEFAULT_PATTERN};
use rustbpe::word::Word;
use std::collections::HashMap;

/// The default and GPT-2's, which have a scanner, and one by which a line of text is a word.
const PATTERNS: [&str; 3] = [
    DEFAULT_PATTERN,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?s).+",
];
const NUM_VOCABULARIES: u64 = if cfg!(miri) { 2 } else { 60 };
const TEXTS_OF_EACH: usize = if cfg!(miri) { 3 } else { 20 };

/// An xorshift generator.
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Any character; the seventeen planes are equally likely.
    fn character(&mut self) -> char {
        let code = self.below(17) << 16 | self.below(1 << 16);
        char::from_u32(code as u32).unwrap_or('\u{D7FF}')
    }

    /// Few characters, so that pairs repeat, and now and then any other one.
    fn text(&mut self, alphabet: &[char]) -> String {
        let length = self.below(150);
        let letter = |_| match self.below(20) {
            0 => self.character(),
            _ => self.pick(alphabet),
        };
        (0..length).map(letter).collect()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// The tokens of a trained vocabulary.
fn learned(texts: &[String], pattern: &str, number: usize) -> Vec<Vec<u8>> {
    let counts = WordCounts::default();
    let splitter = Splitter::new(pattern).unwrap();
    counts.count(&splitter, texts).unwrap();
    token_bytes(&learn_merges(counts, 256 + number, |_| true).unwrap())
}

/// All bytes, and pieces of the texts regardless of character boundaries, in any order.
fn any_bytes(texts: &[String], rng: &mut Rng, number: usize) -> Vec<Vec<u8>> {
    let all = texts.concat().into_bytes();
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    for _ in 0..number {
        let first = rng.below(all.len() - 12);
        let token = all[first..][..2 + rng.below(10)].to_vec();
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    rng.shuffle(&mut tokens);
    tokens
}

type Ranks = HashMap<Vec<u8>, u32>;

/// The reference implementation: a word that is a token is its id. In any other word the adjacent
/// parts that form the token of the lowest id are joined, the first ones of equals, until none do.
fn reference_ids(ranks: &Ranks, word: &[u8]) -> Vec<u32> {
    if let Some(&id) = ranks.get(word) {
        return vec![id];
    }
    let mut parts: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
    loop {
        let pairs = parts.windows(2).map(|pair| ranks.get(&pair.concat()));
        let known = pairs.enumerate().filter_map(|(at, id)| Some((id?, at)));
        let Some((_, at)) = known.min() else { break };
        let right = parts.remove(at + 1);
        parts[at].extend(right);
    }
    parts.iter().map(|part| ranks[part]).collect()
}

struct Reference<'r> {
    ranks: &'r Ranks,
    ids: Vec<u32>,
}

impl WordSink<'_> for Reference<'_> {
    fn push(&mut self, word: Word) {
        self.ids.extend(reference_ids(self.ranks, word.bytes()));
    }
}

#[test]
fn ids_equal_the_reference_implementation() {
    for seed in 1..=NUM_VOCABULARIES {
        // Multiplied, because the first numbers of seeds that are close are similar.
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut alphabet: Vec<char> = "aab  c'sS19\n\r\té日🙂!".chars().collect();
        alphabet.extend((0..3).map(|_| rng.character()));
        let texts: Vec<String> = (0..TEXTS_OF_EACH).map(|_| rng.text(&alphabet)).collect();
        let pattern = rng.pick(&PATTERNS);
        let number = rng.below(300);
        let tokens = match rng.below(2) {
            0 => learned(&texts[..1 + TEXTS_OF_EACH / 2], pattern, number),
            _ => any_bytes(&texts, &mut rng, number),
        };
        let ranks: Ranks = tokens.iter().cloned().zip(0..).collect();
        let encoder = Encoder::new(&tokens, Splitter::new(pattern).unwrap()).unwrap();
        let by_regex = Splitter::by_regex(pattern).unwrap();
        let mut worker = encoder.worker();
        for text in &texts {
            let (mut wide, mut narrow) = (Vec::<u32>::new(), Vec::<u16>::new());
            worker.encode(text, &mut wide).unwrap();
            worker.encode(text, &mut narrow).unwrap(); // the words are cached now
            let mut reference = Reference {
                ranks: &ranks,
                ids: Vec::new(),
            };
            by_regex.split(text, &mut reference).unwrap();
            assert_eq!(wide, reference.ids, "seed {seed}, {pattern} on {text:?}");
            assert!(narrow.iter().map(|&id| u32::from(id)).eq(wide));
        }
    }
}
