//! The encoder against its definition, on text of all planes and vocabularies of any bytes.

use rustbpe::count::WordCounts;
use rustbpe::encode::Encoder;
use rustbpe::merge::{learn_merges, token_bytes};
use rustbpe::split::{Splitter, Taker, DEFAULT_PATTERN};
use rustbpe::word::Word;
use std::collections::HashMap;

/// Ours and GPT-2's, which are scanned by hand, and one by which a whole text is a word.
const PATTERNS: [&str; 3] = [
    DEFAULT_PATTERN,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?s).+",
];
const NUM_VOCABULARIES: u64 = if cfg!(miri) { 2 } else { 60 };
const TEXTS_OF_EACH: usize = if cfg!(miri) { 3 } else { 20 };

/// Numbers without end, the same for a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Any character, each of the seventeen planes as often as the others.
    fn character(&mut self) -> char {
        let code = self.below(17) << 16 | self.below(1 << 16);
        char::from_u32(code as u32).unwrap_or('\u{D7FF}')
    }

    /// Few characters, so that they meet again, and now and then any other one.
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

/// Tokens that were learned.
fn learned(texts: &[String], pattern: &str, number: usize) -> Vec<Vec<u8>> {
    let counts = WordCounts::default();
    let splitter = Splitter::new(pattern).unwrap();
    counts.count(&splitter, texts).unwrap();
    token_bytes(&learn_merges(counts, 256 + number, |_| true).unwrap())
}

/// All bytes, and pieces of the texts that care for no border of a character, in any order.
fn any_bytes(texts: &[String], dice: &mut Dice, number: usize) -> Vec<Vec<u8>> {
    let all = texts.concat().into_bytes();
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    for _ in 0..number {
        let first = dice.below(all.len() - 12);
        let token = all[first..][..2 + dice.below(10)].to_vec();
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    dice.shuffle(&mut tokens);
    tokens
}

type Ranks = HashMap<Vec<u8>, u32>;

/// The definition: a word that is a token is that; in any other one, of all neighbours that
/// together are a token those of the lowest id are joined, the first ones, until there are none.
fn slowly(ranks: &Ranks, word: &[u8]) -> Vec<u32> {
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

struct Slow<'r> {
    ranks: &'r Ranks,
    ids: Vec<u32>,
}

impl Taker<'_> for Slow<'_> {
    fn take(&mut self, word: Word) {
        self.ids.extend(slowly(self.ranks, word.bytes()));
    }
}

#[test]
fn ids_are_those_of_the_definition() {
    for seed in 1..=NUM_VOCABULARIES {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)); // close ones begin alike
        let mut alphabet: Vec<char> = "aab  c'sS19\n\r\té日🙂!".chars().collect();
        alphabet.extend((0..3).map(|_| dice.character()));
        let texts: Vec<String> = (0..TEXTS_OF_EACH).map(|_| dice.text(&alphabet)).collect();
        let pattern = dice.pick(&PATTERNS);
        let number = dice.below(300);
        let tokens = match dice.below(2) {
            0 => learned(&texts[..1 + TEXTS_OF_EACH / 2], pattern, number),
            _ => any_bytes(&texts, &mut dice, number),
        };
        let ranks: Ranks = tokens.iter().cloned().zip(0..).collect();
        let encoder = Encoder::new(&tokens, Splitter::new(pattern).unwrap()).unwrap();
        let by_regex = Splitter::by_regex(pattern).unwrap();
        let mut worker = encoder.worker();
        for text in &texts {
            let (mut wide, mut narrow) = (Vec::<u32>::new(), Vec::<u16>::new());
            worker.encode(text, &mut wide).unwrap();
            worker.encode(text, &mut narrow).unwrap(); // of words that it has seen
            let mut slow = Slow {
                ranks: &ranks,
                ids: Vec::new(),
            };
            by_regex.split(text, &mut slow).unwrap();
            assert_eq!(wide, slow.ids, "seed {seed}, {pattern} on {text:?}");
            assert!(narrow.iter().map(|&id| u32::from(id)).eq(wide));
        }
    }
}
