//! Encoding: each word's bytes are merged, the pair of lowest rank first.
//!
//! Most words of a text have been seen before, so each worker remembers what words became, in
//! tables of bounded size. A new word is merged in time that grows with its length only.

use crate::error::Error;
use crate::memory::in_large_pages;
use crate::merge::NUM_BYTES;
use crate::split::{Splitter, Taker};
use crate::word::{Key, Word};
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, PoisonError};

/// Ids that a short word may have to be remembered beside its key.
const MAX_FEW: usize = 3;
/// Pairs of slots that the table of short words starts with and may grow to: 32 MB.
const MIN_NEAR: usize = 1 << 9;
const MAX_NEAR: usize = 1 << 19;
/// Places, its own and those beside it, where a short word may stand.
const WAYS: usize = 4;
/// Bytes of longer words that are remembered.
const MAX_FAR_BYTES: usize = 8 << 20;
/// Ids of words that have many: 8 MB.
const MAX_MANY: usize = 2 << 20;
/// A longer word is not likely to come again.
const MAX_FAR_WORD: usize = 128;
/// What a remembered longer word costs beside its bytes.
const FAR_COST: usize = 64;
/// Up to this length the lowest rank is found by looking at all pairs.
const MAX_PLAIN: usize = 64;
/// The rank of a pair that is no token.
const NONE: u32 = u32::MAX;

/// A number type that ids are given out in.
pub trait Id: Copy + Send {
    /// The id in this type; the caller knows that it fits.
    fn from_u32(id: u32) -> Self;
}

impl Id for u32 {
    #[inline(always)]
    fn from_u32(id: u32) -> Self {
        id
    }
}

impl Id for u16 {
    #[inline(always)]
    fn from_u32(id: u32) -> Self {
        id as u16
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
    /// What workers remember, between two uses.
    idle: Mutex<Vec<Memory>>,
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
            idle: Mutex::default(),
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

    /// A worker, with what one before it has remembered.
    pub fn worker(&self) -> Worker<'_> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        Worker {
            encoder: self,
            memory: idle.pop().unwrap_or_default(),
        }
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
        let mut ids: Vec<u32> = word.iter().map(|&b| self.bytes[b as usize]).collect();
        if word.len() <= MAX_PLAIN {
            self.merge_plainly(&mut ids, limit);
            ids
        } else {
            Chain::new(self, ids, limit).merged()
        }
    }

    /// The time grows with the square of the number of ids.
    fn merge_plainly(&self, tokens: &mut Vec<u32>, limit: u32) {
        let mut ranks = [NONE; MAX_PLAIN];
        let mut length = tokens.len();
        for at in 1..length {
            ranks[at - 1] = self.rank(tokens[at - 1], tokens[at]);
        }
        while length > 1 {
            let (at, lowest) = lowest(&ranks[..length - 1]);
            if lowest >= limit {
                break;
            }
            tokens[at] = lowest;
            tokens.copy_within(at + 2..length, at + 1);
            ranks.copy_within(at + 1..length, at);
            length -= 1;
            if at + 1 < length {
                ranks[at] = self.rank(tokens[at], tokens[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = self.rank(tokens[at - 1], tokens[at]);
            }
        }
        tokens.truncate(length);
    }
}

/// Finds short words that are tokens: nine of ten words of a text. A table that is written once,
/// small enough for a core's own cache, since the keys of frequent tokens stand together.
struct Whole {
    /// The token that may be at each place; where places collide, the one of the lowest id.
    places: Vec<u32>,
    /// Key of each token, by id.
    keys: Vec<Key>,
}

impl Whole {
    fn new(tokens: &[Vec<u8>]) -> Self {
        let keys: Vec<Key> = tokens.iter().map(|token| Word::new(token).key()).collect();
        let mut places = vec![NONE; 2 * tokens.len().next_power_of_two()];
        for (id, key) in keys.iter().enumerate().filter(|(_, key)| key.is_short()) {
            let place = place(*key, places.len());
            places[place] = places[place].min(id as u32);
        }
        // Any token will do for a free place: its key is compared.
        places
            .iter_mut()
            .for_each(|id| *id = if *id == NONE { 0 } else { *id });
        Self { places, keys }
    }

    /// The only token that a word may be.
    #[inline(always)]
    fn candidate(&self, key: Key) -> u32 {
        self.places[place(key, self.places.len())]
    }

    #[inline(always)]
    fn is(&self, candidate: u32, key: Key) -> bool {
        self.keys[candidate as usize] == key
    }
}

/// The first of the lowest ranks, and its place.
fn lowest(ranks: &[u32]) -> (usize, u32) {
    let mut found = (0, NONE);
    for (at, &rank) in ranks.iter().enumerate() {
        if rank < found.1 {
            found = (at, rank);
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

/// The ids of a word; where they are many, the first number says where they stand in
/// `Memory::many`.
#[derive(Clone, Copy, Default)]
struct Ids {
    few: [u32; MAX_FEW],
    number: u32,
}

impl Ids {
    #[inline(always)]
    fn give_out<T: Id>(&self, many: &[u32], to: &mut Vec<T>) {
        let number = self.number as usize;
        if number <= MAX_FEW {
            let length = to.len() + number;
            to.extend(self.few.map(T::from_u32));
            to.truncate(length);
        } else {
            let many = &many[self.few[0] as usize..][..number];
            to.extend(many.iter().map(|&id| T::from_u32(id)));
        }
    }
}

/// A short word and its ids.
#[derive(Clone, Copy, Default)]
struct Near {
    key: Key,
    ids: Ids,
}

/// Two words of one place, in one line of a cache.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Slots([Near; 2]);

impl Slots {
    /// True when there is no room.
    #[inline(always)]
    fn is_full(&self) -> bool {
        self.0[1].ids.number > 0
    }
}

/// What was learned about words that were seen: never more than about 50 MB.
struct Memory {
    near: Vec<Slots>,
    new_words: usize,
    far: FxHashMap<Box<[u8]>, Ids>,
    far_bytes: usize,
    many: Vec<u32>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            near: vec![Slots::default(); MIN_NEAR],
            new_words: 0,
            far: FxHashMap::default(),
            far_bytes: 0,
            many: Vec::new(),
        }
    }
}

impl Memory {
    #[inline(always)]
    fn slots(&self, key: Key) -> &Slots {
        &self.near[place(key, self.near.len())]
    }

    #[inline(always)]
    fn near(&self, key: Key) -> &Near {
        let Slots(slots) = self.slots(key);
        &slots[usize::from(slots[1].key == key)]
    }

    /// The ids of a word that stands beside its place, as it may where that is full.
    fn beside(&self, key: Key) -> Option<Ids> {
        let first = place(key, self.near.len());
        if !self.near[first].is_full() {
            return None;
        }
        let places = (1..WAYS).map(|step| &self.near[first ^ step]);
        let mut words = places.flat_map(|Slots(slots)| slots);
        words.find(|near| near.key == key).map(|near| near.ids)
    }

    /// Forget everything when there is too much of what only grows.
    fn stay_bounded(&mut self) {
        if self.many.len() > MAX_MANY || self.far_bytes > MAX_FAR_BYTES {
            *self = Self::default();
        }
    }

    fn kept(&mut self, ids: &[u32]) -> Ids {
        let mut found = Ids {
            few: [self.many.len() as u32; MAX_FEW],
            number: ids.len() as u32,
        };
        match found.few.get_mut(..ids.len()) {
            Some(places) => places.copy_from_slice(ids),
            None => self.many.extend(ids),
        }
        found
    }

    fn remember_near(&mut self, near: Near) {
        self.new_words += 1;
        if 2 * self.new_words > self.near.len() && self.near.len() < MAX_NEAR {
            self.grow();
        }
        self.put(near);
    }

    /// Where there is room, at its place or beside it; else instead of one of the words there.
    fn put(&mut self, near: Near) {
        let first = place(near.key, self.near.len());
        for step in 0..WAYS {
            let Slots(slots) = &mut self.near[first ^ step];
            if let Some(free) = slots.iter_mut().find(|near| near.ids.number == 0) {
                *free = near;
                return;
            }
        }
        let Slots(slots) = &mut self.near[first];
        slots[0] = slots[1];
        slots[1] = near;
    }

    fn grow(&mut self) {
        let larger = in_large_pages(Slots::default(), 4 * self.near.len());
        let old = std::mem::replace(&mut self.near, larger);
        let words = old.into_iter().flat_map(|Slots(slots)| slots);
        for near in words.filter(|near| near.ids.number > 0) {
            self.put(near);
        }
    }

    fn remember_far(&mut self, word: &[u8], ids: Ids) {
        self.far_bytes += word.len() + FAR_COST;
        self.far.insert(word.into(), ids);
    }
}

/// Which of `number` places, a power of two above 1, a key has.
#[inline(always)]
fn place(key: Key, number: usize) -> usize {
    (key.mixed() >> (number.leading_zeros() + 1)) as usize
}

/// One thread's way to encode.
pub struct Worker<'a> {
    encoder: &'a Encoder,
    memory: Memory,
}

impl Worker<'_> {
    /// Add the ids of a text to `ids`.
    pub fn encode<T: Id>(&mut self, text: &str, ids: &mut Vec<T>) -> Result<(), Error> {
        let (mut filling, mut waiting) = (Run::new(), Run::new());
        let mut runs = Runs {
            encoder: self.encoder,
            memory: &mut self.memory,
            ids,
            filling: &mut filling,
            waiting: &mut waiting,
        };
        self.encoder.splitter.split(text, &mut runs)?;
        runs.turn();
        runs.turn();
        Ok(())
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let idle = self.encoder.idle.lock();
        let mut idle = idle.unwrap_or_else(PoisonError::into_inner);
        idle.push(std::mem::take(&mut self.memory));
    }
}

/// Words that are looked up together.
const RUN: usize = 64;
/// Ids that are written at once.
const BLOCK: usize = 16;

/// A run of words and what is known of them. The tables are larger than the caches near the core:
/// where words are looked up one by one, the time goes into waiting for memory.
struct Run<'a> {
    words: [(Key, &'a [u8]); RUN],
    number: usize,
    /// The token that each word may be.
    candidates: [u32; RUN + BLOCK],
    /// Places of the words that are no tokens.
    others: [u8; RUN + 1],
    num_others: usize,
}

impl Run<'_> {
    fn new() -> Self {
        Self {
            words: [(Key::LONG, &[]); RUN],
            number: 0,
            candidates: [0; RUN + BLOCK],
            others: [0; RUN + 1],
            num_others: 0,
        }
    }

    /// Find the tokens, and have the slots of the other words fetched.
    #[inline(always)]
    fn find(&mut self, whole: &Whole, memory: &Memory) {
        let words = &self.words[..self.number];
        for (id, &(key, _)) in self.candidates.iter_mut().zip(words) {
            *id = whole.candidate(key);
        }
        self.num_others = 0;
        for (at, (&id, &(key, _))) in self.candidates.iter().zip(words).enumerate() {
            self.others[self.num_others] = at as u8;
            self.num_others += usize::from(!whole.is(id, key));
        }
        for &at in &self.others[..self.num_others] {
            fetch(memory.slots(self.words[at as usize].0));
        }
    }

    #[inline(always)]
    fn give_out<T: Id>(&mut self, encoder: &Encoder, memory: &mut Memory, to: &mut Vec<T>) {
        let mut first = 0;
        for &at in &self.others[..self.num_others] {
            let at = at as usize;
            extend(to, &self.candidates, first, at);
            first = at + 1;
            let (key, word) = self.words[at];
            let near = memory.near(key);
            let found = match near.key == key {
                true => near.ids,
                false => encode_unseen(encoder, memory, key, word),
            };
            found.give_out(&memory.many, to);
        }
        extend(to, &self.candidates, first, self.number);
        (self.number, self.num_others) = (0, 0);
    }
}

/// Two runs: while words are cut for one, memory brings what the other one needs.
struct Runs<'a, 'm, T: Id> {
    encoder: &'m Encoder,
    memory: &'m mut Memory,
    ids: &'m mut Vec<T>,
    filling: &'m mut Run<'a>,
    waiting: &'m mut Run<'a>,
}

impl<'a, T: Id> Taker<'a> for Runs<'a, '_, T> {
    #[inline(always)]
    fn take(&mut self, word: Word<'a>) {
        let run = &mut self.filling;
        run.words[run.number] = (word.key(), word.bytes);
        run.number += 1;
        if run.number == RUN {
            self.turn();
        }
    }
}

impl<T: Id> Runs<'_, '_, T> {
    #[inline(never)]
    fn turn(&mut self) {
        self.memory.stay_bounded();
        self.filling.find(&self.encoder.whole, self.memory);
        self.waiting.give_out(self.encoder, self.memory, self.ids);
        std::mem::swap(&mut self.filling, &mut self.waiting);
    }
}

/// Ask the memory for what will be read soon.
#[inline(always)]
fn fetch<T>(what: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: the instruction reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = what;
}

/// Add `ids[first..end]`, behind which a block can be read: whole blocks are written and shortened,
/// since how many ids stand between two words that are no tokens nobody can guess.
#[inline(always)]
fn extend<T: Id>(to: &mut Vec<T>, ids: &[u32; RUN + BLOCK], first: usize, end: usize) {
    let length = to.len() + end - first;
    let number = (end - first).div_ceil(BLOCK);
    for block in ids[first..].chunks_exact(BLOCK).take(number) {
        to.extend(block.iter().map(|&id| T::from_u32(id)));
    }
    to.truncate(length);
}

/// The ids of a word that is not remembered near.
#[cold]
fn encode_unseen(encoder: &Encoder, memory: &mut Memory, key: Key, word: &[u8]) -> Ids {
    let known = match key.is_short() {
        true => memory.beside(key),
        false => memory.far.get(word).copied(),
    };
    if let Some(ids) = known {
        return ids;
    }
    let ids = memory.kept(&encoder.encode_word(word));
    if key.is_short() {
        memory.remember_near(Near { key, ids });
    } else if word.len() <= MAX_FAR_WORD {
        memory.remember_far(word, ids);
    }
    ids
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
    fn what_is_remembered_stays_bounded() {
        let encoder = encoder(&[]);
        let mut worker = encoder.worker();
        for i in 0..400_000_u64 {
            let mut ids: Vec<u32> = Vec::new();
            worker
                .encode(&format!("{:x}é é{i}é", i * 7919), &mut ids)
                .unwrap();
        }
        let memory = &worker.memory;
        assert!(memory.near.len() <= MAX_NEAR);
        let far_bytes = memory.far_bytes.max(memory.far.len() * FAR_COST);
        assert!(far_bytes <= MAX_FAR_BYTES + RUN * (MAX_FAR_WORD + FAR_COST));
        assert!(memory.many.len() <= MAX_MANY + RUN * MAX_FAR_WORD);
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
