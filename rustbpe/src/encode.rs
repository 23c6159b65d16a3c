//! Encoding: each word's bytes are merged, the pair of lowest rank first.
//!
//! Most words of a text have been seen before, so what words became is remembered, in tables of
//! bounded size. A new word is merged in time that grows with its length only.

use crate::error::Error;
use crate::known::{fetch, Few, OtherWords, ShortWords, MAX_FEW, NO_ID};
use crate::merge::NUM_BYTES;
use crate::split::{Splitter, Taker, MAX_TAKEN};
use crate::word::{Key, Word};
use rustc_hash::FxHashMap;
use std::array::from_fn;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, PoisonError};

/// Up to this length the lowest rank is found by looking at all pairs.
const MAX_PLAIN: usize = 64;
/// The rank of a pair that is no token.
const NONE: u32 = NO_ID;
/// Tokens that are looked for among the whole ones, and places to look at.
const NUM_KEYS: usize = 1 << 16;
const NUM_PLACES: usize = 1 << 17;

/// A number type that ids are given out in.
pub trait Id: Copy + Default + Send {
    /// The id in this type; the caller knows that it fits.
    fn from_u32(id: u32) -> Self;
    /// The id as a place in a table.
    fn index(self) -> usize;
}

impl Id for u32 {
    #[inline(always)]
    fn from_u32(id: u32) -> Self {
        id
    }

    #[inline(always)]
    fn index(self) -> usize {
        self as usize
    }
}

impl Id for u16 {
    #[inline(always)]
    fn from_u32(id: u32) -> Self {
        id as u16
    }

    #[inline(always)]
    fn index(self) -> usize {
        self.into()
    }
}

/// A vocabulary ready to encode with, to be shared by threads.
pub struct Encoder {
    splitter: Splitter,
    ids: FxHashMap<Box<[u8]>, u32>,
    /// Every token comes about by merging its bytes.
    has_all_parts: bool,
    bytes: [u32; NUM_BYTES],
    /// Words that are tokens.
    whole: Whole,
    /// The token that a pair becomes.
    pairs: FxHashMap<(u32, u32), u32>,
    /// The same for the first 256 x 256 pairs, which every new word asks for.
    byte_pairs: Vec<u32>,
    /// What workers know together, and what each one knows, between two uses.
    short: Mutex<Arc<ShortWords>>,
    others: Mutex<Vec<OtherWords>>,
}

impl Encoder {
    /// From the bytes of every token in the order of ids, the lowest ids being merged first.
    ///
    /// A pair of tokens becomes a token whenever one has just their bytes, as in tiktoken.
    pub fn new(tokens: &[Vec<u8>], splitter: Splitter) -> Result<Self, Error> {
        let mut ids = FxHashMap::default();
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() || ids.insert(token[..].into(), id as u32).is_some() {
                let why = format!("token {id} is empty or stands twice");
                return Err(Error::Vocabulary(why));
            }
        }
        let mut bytes = [NONE; NUM_BYTES];
        for (byte, id) in (0..=u8::MAX).zip(&mut bytes) {
            match ids.get(&[byte][..]) {
                Some(&found) => *id = found,
                None => return Err(Error::Vocabulary(format!("byte {byte} has no token"))),
            }
        }
        let mut encoder = Self {
            splitter,
            has_all_parts: false,
            ids,
            bytes,
            whole: Whole::new(tokens),
            pairs: FxHashMap::default(),
            byte_pairs: vec![NONE; NUM_BYTES * NUM_BYTES],
            short: Mutex::default(),
            others: Mutex::default(),
        };
        encoder.has_all_parts = encoder.add_parts(tokens);
        if !encoder.has_all_parts {
            encoder.add_all_pairs(tokens);
        }
        Ok(encoder)
    }

    /// Where every token comes about by one merge of what the merges before it leave of its bytes,
    /// as in all that were trained, no other pair with its bytes ever meets: these pairs will do,
    /// and a small table is a fast one. False when a token does not.
    fn add_parts(&mut self, tokens: &[Vec<u8>]) -> bool {
        for (token, id) in tokens.iter().zip(0..) {
            match self.merge(token, id)[..] {
                [_] if token.len() == 1 => {}
                [left, right] => self.add_pair(left, right, id),
                _ => return false,
            }
        }
        true
    }

    fn add_all_pairs(&mut self, tokens: &[Vec<u8>]) {
        for (token, id) in tokens.iter().zip(0..) {
            for middle in 1..token.len() {
                let (left, right) = token.split_at(middle);
                if let (Some(&left), Some(&right)) = (self.ids.get(left), self.ids.get(right)) {
                    self.add_pair(left, right, id);
                }
            }
        }
    }

    fn add_pair(&mut self, left: u32, right: u32, id: u32) {
        match self.byte_pair(left, right) {
            Some(place) => self.byte_pairs[place] = id,
            None => {
                self.pairs.insert((left, right), id);
            }
        }
    }

    /// The place of a pair of ids below 256.
    #[inline(always)]
    fn byte_pair(&self, left: u32, right: u32) -> Option<usize> {
        (left | right < NUM_BYTES as u32).then_some((left as usize) << 8 | right as usize)
    }

    #[inline(always)]
    fn rank(&self, left: u32, right: u32) -> u32 {
        match self.byte_pair(left, right) {
            Some(place) => self.byte_pairs[place],
            None => self.pairs.get(&(left, right)).copied().unwrap_or(NONE),
        }
    }

    /// A worker, with what others before it have learned.
    pub fn worker(&self) -> Worker<'_> {
        let short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        Worker {
            encoder: self,
            short: Arc::clone(&short),
            others: others.pop().unwrap_or_default(),
        }
    }

    /// What to go on with when a table is crowded: that itself while somebody else makes a new one.
    fn successor(&self, crowded: &Arc<ShortWords>) -> Arc<ShortWords> {
        let Ok(mut short) = self.short.try_lock() else {
            return Arc::clone(crowded);
        };
        if Arc::ptr_eq(&short, crowded) {
            *short = Arc::new(crowded.successor());
        }
        Arc::clone(&short)
    }

    /// Ids of a word that is not remembered.
    fn encode_word(&self, word: &[u8]) -> Vec<u32> {
        let whole = match self.has_all_parts {
            true => None,
            false => self.ids.get(word),
        };
        match whole {
            Some(&id) => vec![id],
            None => self.merge(word, NONE),
        }
    }

    /// The two tokens that a token is made of, by the merges before its own; none of a byte.
    pub fn parts(&self, token: &[u8]) -> Option<(u32, u32)> {
        let &id = self.ids.get(token)?;
        match self.merge(token, id)[..] {
            [left, right] => Some((left, right)),
            _ => None,
        }
    }

    /// Merge the bytes of a word by the ranks below a limit.
    fn merge(&self, word: &[u8], limit: u32) -> Vec<u32> {
        if word.len() <= MAX_PLAIN {
            return self.merge_plainly(word, limit);
        }
        let ids = word.iter().map(|&byte| self.bytes[usize::from(byte)]);
        Chain::new(self, ids.collect(), limit).merged()
    }

    /// The time grows with the square of the number of bytes.
    fn merge_plainly(&self, word: &[u8], limit: u32) -> Vec<u32> {
        let mut room = [Part::default(); MAX_PLAIN];
        let mut parts = &mut room[..word.len()];
        for (part, &byte) in parts.iter_mut().zip(word) {
            part.token = self.bytes[usize::from(byte)];
        }
        for at in 1..parts.len() {
            parts[at - 1].rank = self.rank(parts[at - 1].token, parts[at].token);
        }
        loop {
            let (at, token) = lowest(parts);
            if token >= limit {
                break;
            }
            let last = parts.len() - 1;
            parts.copy_within(at + 2.., at + 1);
            parts = &mut parts[..last];
            let rank = match parts.get(at + 1) {
                Some(next) => self.rank(token, next.token),
                None => NONE,
            };
            parts[at] = Part { token, rank };
            if at > 0 {
                parts[at - 1].rank = self.rank(parts[at - 1].token, token);
            }
        }
        parts.iter().map(|part| part.token).collect()
    }
}

/// A token of a word, and the rank of the pair that it begins.
#[derive(Clone, Copy)]
struct Part {
    token: u32,
    rank: u32,
}

impl Default for Part {
    fn default() -> Self {
        let rank = NONE;
        Self { token: 0, rank }
    }
}

/// Finds short words that are tokens: nine of ten words of a text. A table that is written once,
/// small enough for a core's own cache, since its places are narrow and the keys of frequent tokens
/// stand together.
struct Whole {
    /// The token that may be at each place; where places collide, the one of the lowest id.
    places: Box<[u16; NUM_PLACES]>,
    /// Key of each short token, by id.
    keys: Box<[Key; NUM_KEYS]>,
}

impl Whole {
    fn new(tokens: &[Vec<u8>]) -> Self {
        // Any token will do for a free place: its key is compared, and no word has the default.
        let (mut places, mut keys) = (boxed(), boxed::<Key, NUM_KEYS>());
        let first = tokens.iter().zip(0..=u16::MAX);
        // The lowest id is written last.
        for (token, id) in first.rev() {
            let key = Word::new(token).key();
            if key.is_short() {
                keys[usize::from(id)] = key;
                places[key.place(NUM_PLACES)] = id;
            }
        }
        Self { places, keys }
    }
}

/// Defaults, none of which has been on the stack: there may be little of it.
fn boxed<T: Clone + Default, const N: usize>() -> Box<[T; N]> {
    match vec![T::default(); N].into_boxed_slice().try_into() {
        Ok(boxed) => boxed,
        Err(_) => unreachable!("the vector has N values"),
    }
}

/// The first of the lowest ranks, and its place.
#[inline(always)]
fn lowest(parts: &[Part]) -> (usize, u32) {
    let mut found = (0, NONE);
    for (at, part) in parts.iter().enumerate() {
        if part.rank < found.1 {
            found = (at, part.rank);
        }
    }
    found
}

/// A long word as a chain of tokens, and a heap of the pairs that can be merged.
struct Chain<'a> {
    encoder: &'a Encoder,
    limit: u32,
    tokens: Vec<u32>,
    /// Rank of the pair that a token begins; NONE as well for a token that was merged away.
    ranks: Vec<u32>,
    next: Vec<u32>,
    before: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

impl<'a> Chain<'a> {
    fn new(encoder: &'a Encoder, tokens: Vec<u32>, limit: u32) -> Self {
        let number = tokens.len() as u32;
        let pairs = tokens.windows(2);
        let mut ranks: Vec<u32> = pairs.map(|pair| encoder.rank(pair[0], pair[1])).collect();
        ranks.push(NONE);
        let places = ranks.iter().zip(0..);
        let known = places.filter(|(&rank, _)| rank < limit);
        Self {
            encoder,
            limit,
            tokens,
            heap: known.map(|(&rank, at)| Reverse((rank, at))).collect(),
            ranks,
            next: (1..=number).collect(),
            before: (0..number).map(|at| at.wrapping_sub(1)).collect(),
        }
    }

    fn merged(mut self) -> Vec<u32> {
        while let Some(Reverse((rank, at))) = self.heap.pop() {
            if self.ranks[at as usize] == rank {
                self.merge(at, rank);
            }
        }
        let mut ids = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            ids.push(self.tokens[at]);
            at = self.next[at] as usize;
        }
        ids
    }

    /// Join the token at `at` with the next one.
    fn merge(&mut self, at: u32, token: u32) {
        let gone = self.next[at as usize];
        let next = self.next[gone as usize];
        self.tokens[at as usize] = token;
        self.next[at as usize] = next;
        self.ranks[gone as usize] = NONE;
        if let Some(before) = self.before.get_mut(next as usize) {
            *before = at;
        }
        self.rank(at);
        let before = self.before[at as usize];
        if before != u32::MAX {
            self.rank(before);
        }
    }

    /// Find the rank of the pair that the token at `at` begins.
    fn rank(&mut self, at: u32) {
        let next = self.next[at as usize] as usize;
        let rank = match self.tokens.get(next) {
            Some(&next) => self.encoder.rank(self.tokens[at as usize], next),
            None => NONE,
        };
        self.ranks[at as usize] = rank;
        if rank < self.limit {
            self.heap.push(Reverse((rank, at)));
        }
    }
}

/// One thread's way to encode.
pub struct Worker<'a> {
    encoder: &'a Encoder,
    short: Arc<ShortWords>,
    others: OtherWords,
}

impl Worker<'_> {
    /// Add the ids of a text to `ids`.
    pub fn encode<T: Id>(&mut self, text: &str, ids: &mut Vec<T>) -> Result<(), Error> {
        let (mut filling, mut waiting) = (Run::new(), Run::new());
        let splitter = &self.encoder.splitter;
        let mut runs = Runs {
            worker: self,
            text: text.as_bytes(),
            ids,
            filling: &mut filling,
            waiting: &mut waiting,
        };
        splitter.split(text, &mut runs)?;
        runs.turn();
        runs.turn();
        Ok(())
    }

    /// Add the ids of a word that does not stand at its place.
    #[cold]
    fn encode_unseen<T: Id>(&mut self, key: Key, word: &[u8], to: &mut Vec<T>) {
        if let Some(ids) = self.short.get_beside(key) {
            return add_few(ids, to);
        }
        let mut add = |ids: &[u32]| to.extend(ids.iter().map(|&id| T::from_u32(id)));
        if let Some(ids) = self.others.get(word) {
            return add(ids);
        }
        let ids = self.encoder.encode_word(word);
        add(&ids);
        if key.is_short() && ids.len() <= MAX_FEW {
            let few = from_fn(|at| ids.get(at).copied().unwrap_or(NO_ID));
            self.short.put(key, few);
            if self.short.is_crowded() {
                self.short = self.encoder.successor(&self.short);
            }
        } else {
            self.others.put(word, &ids);
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let others = self.encoder.others.lock();
        let mut others = others.unwrap_or_else(PoisonError::into_inner);
        others.push(std::mem::take(&mut self.others));
    }
}

/// A run of words is looked up as soon as it has so many.
const RUN: usize = 64;
/// Words that it may have by then.
const MAX_RUN: usize = RUN + MAX_TAKEN;
/// Ids that are written at once.
const BLOCK: usize = 16;

/// A run of words and what is known of them. The tables are larger than the caches near the core:
/// where words are looked up one by one, the time goes into waiting for memory.
struct Run<T> {
    keys: [Key; MAX_RUN],
    /// Where each word begins.
    firsts: [usize; MAX_RUN],
    number: usize,
    /// The token that each word may be.
    candidates: [T; MAX_RUN + BLOCK],
    /// Places of the words that are no tokens.
    others: [u8; MAX_RUN + 1],
    num_others: usize,
}

impl<T: Id> Run<T> {
    fn new() -> Self {
        Self {
            keys: [Key::default(); MAX_RUN],
            firsts: [0; MAX_RUN],
            number: 0,
            candidates: [T::default(); MAX_RUN + BLOCK],
            others: [0; MAX_RUN + 1],
            num_others: 0,
        }
    }

    /// Find the tokens, and have the slots of the other words fetched.
    #[inline(always)]
    fn find(&mut self, whole: &Whole, short: &ShortWords) {
        let Whole { places, keys } = whole;
        let words = &self.keys[..self.number];
        for (id, &key) in self.candidates.iter_mut().zip(words) {
            let candidate = places[key.place(NUM_PLACES)];
            fetch(&keys[usize::from(candidate)]);
            *id = T::from_u32(candidate.into());
        }
        let mut number = 0;
        for (at, (&id, &key)) in self.candidates.iter().zip(words).enumerate() {
            self.others[number] = at as u8;
            number += usize::from(keys[id.index() % NUM_KEYS] != key);
        }
        self.num_others = number;
        for &at in &self.others[..self.num_others] {
            short.fetch(self.keys[at as usize]);
        }
    }

    #[inline(always)]
    fn give_out(&mut self, worker: &mut Worker, text: &[u8], to: &mut Vec<T>) {
        let mut first = 0;
        for &at in &self.others[..self.num_others] {
            let at = at as usize;
            extend(to, &self.candidates, first, at);
            first = at + 1;
            let (key, begin) = (self.keys[at], self.firsts[at]);
            match worker.short.get(key) {
                Some(ids) => add_few(ids, to),
                None => worker.encode_unseen(key, &text[begin..begin + key.length()], to),
            }
        }
        extend(to, &self.candidates, first, self.number);
        (self.number, self.num_others) = (0, 0);
    }
}

/// Two runs: while words are cut for one, memory brings what the other one needs.
struct Runs<'m, 'e, T: Id> {
    worker: &'m mut Worker<'e>,
    text: &'m [u8],
    ids: &'m mut Vec<T>,
    filling: &'m mut Run<T>,
    waiting: &'m mut Run<T>,
}

impl<T: Id> Taker<'_> for Runs<'_, '_, T> {
    #[inline(always)]
    fn take(&mut self, word: Word) {
        let run = &mut self.filling;
        // The remainder is the number itself; it spares a check.
        let at = run.number % MAX_RUN;
        (run.keys[at], run.firsts[at]) = (word.key(), word.first());
        run.number += 1;
    }

    #[inline(always)]
    fn rest(&mut self) {
        if self.filling.number >= RUN {
            self.turn();
        }
    }
}

impl<T: Id> Runs<'_, '_, T> {
    #[inline(never)]
    fn turn(&mut self) {
        let worker = &mut *self.worker;
        self.filling.find(&worker.encoder.whole, &worker.short);
        self.waiting.give_out(worker, self.text, self.ids);
        std::mem::swap(&mut self.filling, &mut self.waiting);
    }
}

/// Add the ids of a short word.
#[inline(always)]
fn add_few<T: Id>(ids: Few, to: &mut Vec<T>) {
    let number = ids
        .iter()
        .map(|&id| usize::from(id != NO_ID))
        .sum::<usize>();
    let length = to.len() + number;
    to.extend(ids.map(T::from_u32));
    to.truncate(length);
}

/// Add `ids[first..end]`, behind which a block can be read: whole blocks are written and shortened,
/// since how many ids stand between two words that are no tokens nobody can guess.
#[inline(always)]
fn extend<T: Id>(to: &mut Vec<T>, ids: &[T; MAX_RUN + BLOCK], first: usize, end: usize) {
    let length = to.len() + end - first;
    let number = (end - first).div_ceil(BLOCK);
    for block in ids[first..].chunks_exact(BLOCK).take(number) {
        to.extend_from_slice(block);
    }
    to.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::token_bytes;
    use crate::split::DEFAULT_PATTERN;

    fn encoder(merges: &[(u32, u32)]) -> Encoder {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        Encoder::new(&token_bytes(merges), splitter).unwrap()
    }

    fn encode(encoder: &Encoder, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        encoder.worker().encode(text, &mut ids).unwrap();
        ids
    }

    /// Merges of "a" to runs of 2, 4, ... 64, of "b" and "c" to "bc", of that and "a" to "bca".
    const MERGES: [(u32, u32); 8] = [
        (97, 97),
        (256, 256),
        (98, 99),
        (258, 97),
        (257, 257),
        (260, 260),
        (261, 261),
        (262, 262),
    ];

    #[test]
    fn the_lowest_rank_is_merged_first() {
        let encoder = encoder(&[(98, 99), (97, 98), (97, 256)]);
        assert_eq!(encode(&encoder, "abc ab"), [258, 32, 257]);
        assert_eq!(encode(&encoder, "ab"), [257]);
    }

    #[test]
    fn a_word_seen_again_gives_the_same_ids() {
        let encoder = encoder(&MERGES);
        let words: Vec<String> = (0..5000)
            .map(|i| format!("{i}abc{} ", "a".repeat(i % 99)))
            .collect();
        let alone: Vec<u32> = words
            .iter()
            .flat_map(|word| encode(&self::encoder(&MERGES), word))
            .collect();
        for _ in 0..2 {
            assert_eq!(encode(&encoder, &words.concat()), alone);
        }
    }

    #[test]
    fn long_words_are_merged_as_short_ones_are() {
        let encoder = encoder(&MERGES);
        let mut state = 1_u64;
        for length in (0..MAX_PLAIN).chain([100, 1000]) {
            let word: Vec<u8> = (0..length)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    b"aaaabc"[(state >> 33) as usize % 6]
                })
                .collect();
            let ids: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
            let chained = Chain::new(&encoder, ids.clone(), NONE).merged();
            assert_eq!(chained, slowly(&MERGES, ids), "{length}");
            assert_eq!(chained, encoder.merge(&word, NONE));
        }
    }

    /// The definition: the merges one after another, each from the left.
    fn slowly(merges: &[(u32, u32)], mut ids: Vec<u32>) -> Vec<u32> {
        for (&(left, right), token) in merges.iter().zip(NUM_BYTES as u32..) {
            let mut at = 0;
            while at + 1 < ids.len() {
                if (ids[at], ids[at + 1]) == (left, right) {
                    ids[at] = token;
                    ids.remove(at + 1);
                }
                at += 1;
            }
        }
        ids
    }

    #[test]
    fn tokens_beyond_the_first_65536_are_found() {
        let pairs = (0..=u16::MAX).map(|pair| (u32::from(pair >> 8), u32::from(pair & 0xFF)));
        let last = (97, 98);
        let merges: Vec<_> = pairs.filter(|&pair| pair != last).chain([last]).collect();
        let encoder = encoder(&merges);
        assert_eq!(encode(&encoder, "ab"), [65_791]);
        assert_eq!(encode(&encoder, "ba"), [256 + 98 * 256 + 97 - 1]);
    }

    #[test]
    fn a_long_word_is_not_the_long_token_of_the_lowest_id() {
        let tokens = [vec![vec![b'x'; 16]], token_bytes(&[])].concat();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let encoder = Encoder::new(&tokens, splitter).unwrap();
        assert_eq!(encode(&encoder, &"y".repeat(20)), [1 + u32::from(b'y'); 20]);
        assert_eq!(encode(&encoder, &"x".repeat(16)), [0]);
    }

    #[test]
    fn a_token_has_the_parts_that_it_was_merged_from() {
        let encoder = encoder(&MERGES);
        let tokens = token_bytes(&MERGES);
        for (token, &parts) in tokens[NUM_BYTES..].iter().zip(&MERGES) {
            assert_eq!(encoder.parts(token), Some(parts));
        }
        assert_eq!(encoder.parts(b"a"), None);
        assert_eq!(encoder.parts(b"zz"), None);
    }

    #[test]
    fn a_megabyte_of_one_letter_is_one_word_and_no_trouble() {
        let encoder = encoder(&MERGES);
        let ids = encode(&encoder, &"a".repeat(1 << 20));
        assert_eq!(ids, vec![263; 1 << 14]);
    }

    #[test]
    fn vocabularies_with_gaps_are_refused() {
        let splitter = || Splitter::new(DEFAULT_PATTERN).unwrap();
        let refused = |tokens: &[Vec<u8>]| {
            let found = Encoder::new(tokens, splitter());
            assert!(matches!(found, Err(Error::Vocabulary(_))));
        };
        let bytes = token_bytes(&[]);
        refused(&bytes[1..]);
        refused(&[bytes.clone(), vec![vec![]]].concat());
        refused(&[bytes.clone(), vec![vec![7]]].concat());
        assert!(Encoder::new(&bytes, splitter()).is_ok());
    }
}
