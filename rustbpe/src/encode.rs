//! Encoding: the bytes of each word are merged, the pair of lowest rank first.
//!
//! Most words of a text have occurred before, so the ids of words are cached, in tables of bounded
//! size. A new word is merged in time that is nearly linear in its length.

use crate::error::Error;
use crate::merge::NUM_BYTES;
use crate::split::{Splitter, WordSink, MAX_WINDOW_WORDS};
use crate::word::{Key, Word};
use crate::word_cache::{
    prefetch, InlineIds, OtherWordCache, ShortWordCache, MAX_INLINE_IDS, NO_ID,
};
use rustc_hash::FxHashMap;
use std::array::from_fn;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;

/// Up to this length the lowest rank is found by a scan over all pairs, faster than a heap.
const MAX_SCANNED: usize = 64;
/// The rank of a pair that is not a token.
const NONE: u32 = NO_ID;
/// Tokens in the table of words that are tokens, and its buckets.
const NUM_KEYS: usize = 1 << 16;
const NUM_BUCKETS: usize = 1 << 17;

/// Attempts to lock a mutex that is held for nanoseconds, before it counts as locked forever.
const MAX_LOCK_ATTEMPTS: usize = 100;

/// An integer type for ids.
pub trait Id: Copy + Default + Send {
    /// Convert an id that fits.
    fn from_u32(id: u32) -> Self;
    /// The id as an index.
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

/// A vocabulary prepared for encoding, shared by threads.
pub struct Encoder {
    splitter: Splitter,
    ids: FxHashMap<Box<[u8]>, u32>,
    /// Every token is the result of merging its bytes.
    has_all_parts: bool,
    bytes: [u32; NUM_BYTES],
    /// Words that are tokens.
    token_table: TokenTable,
    /// The token into which a pair is merged.
    pairs: FxHashMap<(u32, u32), u32>,
    /// The same for pairs of the first 256 tokens, which every new word looks up.
    byte_pairs: Vec<u32>,
    /// The cache that workers share, and their own caches while they are not in use.
    short: Mutex<Arc<ShortWordCache>>,
    others: Mutex<Vec<OtherWordCache>>,
    /// Locked by the worker that replaces the shared cache.
    replacing: Mutex<()>,
}

impl Encoder {
    /// From the bytes of every token in the order of ids; lower ids are merged first.
    ///
    /// A pair is merged whenever its concatenated bytes are a token, as in tiktoken.
    pub fn new(tokens: &[Vec<u8>], splitter: Splitter) -> Result<Self, Error> {
        let mut ids = FxHashMap::default();
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() || ids.insert(token[..].into(), id as u32).is_some() {
                let reason = format!("token {id} is empty or a repetition");
                return Err(Error::Vocabulary(reason));
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
            token_table: TokenTable::new(tokens),
            pairs: FxHashMap::default(),
            byte_pairs: vec![NONE; NUM_BYTES * NUM_BYTES],
            short: Mutex::default(),
            others: Mutex::default(),
            replacing: Mutex::default(),
        };
        encoder.has_all_parts = encoder.add_parts(tokens);
        if !encoder.has_all_parts {
            encoder.add_all_pairs(tokens);
        }
        Ok(encoder)
    }

    /// Add for each token the one pair into which earlier merges turn its bytes. In a trained
    /// vocabulary this exists for every token, and no other pair with the same bytes ever becomes
    /// adjacent; so these pairs suffice, and a small table is fast. False when a token has none.
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

    /// The index of a pair of ids below 256.
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

    /// A worker, with the caches of earlier ones.
    pub fn worker(&self) -> Worker<'_> {
        let others = lock_soon(&self.others).and_then(|mut others| others.pop());
        Worker {
            encoder: self,
            short: self.shared_cache().unwrap_or_default(),
            others: others.unwrap_or_default(),
        }
    }

    fn shared_cache(&self) -> Option<Arc<ShortWordCache>> {
        lock_soon(&self.short).map(|short| Arc::clone(&short))
    }

    /// The replacement of a full cache; the full one itself while another thread builds it.
    fn replacement(&self, full: &Arc<ShortWordCache>) -> Arc<ShortWordCache> {
        let Ok(_guard) = self.replacing.try_lock() else {
            return Arc::clone(full);
        };
        match self.shared_cache() {
            Some(shared) if !Arc::ptr_eq(&shared, full) => return shared,
            _ => {}
        }
        let larger = Arc::new(full.replacement());
        if let Some(mut short) = lock_soon(&self.short) {
            *short = Arc::clone(&larger);
        }
        larger
    }

    /// Ids of a word that is not cached.
    fn encode_word(&self, word: &[u8]) -> Vec<u32> {
        // Otherwise a word may be a token that merging does not produce.
        let token = match self.has_all_parts {
            true => None,
            false => self.ids.get(word),
        };
        match token {
            Some(&id) => vec![id],
            None => self.merge(word, NONE),
        }
    }

    /// The two tokens that are merged into a token; None for a byte.
    pub fn parts(&self, token: &[u8]) -> Option<(u32, u32)> {
        let &id = self.ids.get(token)?;
        match self.merge(token, id)[..] {
            [left, right] => Some((left, right)),
            _ => None,
        }
    }

    /// Merge the bytes of a word, using only ranks below a limit.
    fn merge(&self, word: &[u8], limit: u32) -> Vec<u32> {
        if word.len() <= MAX_SCANNED {
            return self.merge_short(word, limit);
        }
        let ids = word.iter().map(|&byte| self.bytes[usize::from(byte)]);
        TokenList::new(self, ids.collect(), limit).into_ids()
    }

    /// For short words; time is quadratic in the length.
    fn merge_short(&self, word: &[u8], limit: u32) -> Vec<u32> {
        let mut buffer = [Part::default(); MAX_SCANNED];
        let mut parts = &mut buffer[..word.len()];
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

/// Lock a mutex, unless it stays locked: when a process forks while another thread holds it, no
/// thread unlocks it in the child, which then works without the caches of earlier workers.
fn lock_soon<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    for _ in 0..MAX_LOCK_ATTEMPTS {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(error)) => return Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => thread::yield_now(),
        }
    }
    None
}

/// A token of a word, and the rank of the pair with the next token.
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

/// Finds short words that are tokens, which are nine of ten words of a text. Immutable, and small
/// enough for the cache of a core: buckets have two bytes, and the keys of frequent tokens are
/// adjacent.
struct TokenTable {
    /// The only token that may match in each bucket; of colliding tokens the one of the lowest id.
    buckets: Box<[u16; NUM_BUCKETS]>,
    /// Key of each short token, by id.
    keys: Box<[Key; NUM_KEYS]>,
}

impl TokenTable {
    fn new(tokens: &[Vec<u8>]) -> Self {
        // An empty bucket may hold any id: the key is compared, and no word has the default key.
        let (mut buckets, mut keys) = (boxed(), boxed::<Key, NUM_KEYS>());
        let first = tokens.iter().zip(0..=u16::MAX);
        // In reverse, so that the lowest id is written last.
        for (token, id) in first.rev() {
            let key = Word::new(token).key();
            if key.is_short() {
                keys[usize::from(id)] = key;
                buckets[key.bucket(NUM_BUCKETS)] = id;
            }
        }
        Self { buckets, keys }
    }
}

/// Default values, allocated on the heap: threads may have small stacks.
fn boxed<T: Clone + Default, const N: usize>() -> Box<[T; N]> {
    match vec![T::default(); N].into_boxed_slice().try_into() {
        Ok(boxed) => boxed,
        Err(_) => unreachable!("the vector has N values"),
    }
}

/// Index and value of the lowest rank, the first one of equals.
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

/// A long word as a linked list of tokens, with a heap of the pairs that can be merged.
struct TokenList<'a> {
    encoder: &'a Encoder,
    limit: u32,
    tokens: Vec<u32>,
    /// Rank of the pair with the next token; NONE also for a token that was merged into another.
    ranks: Vec<u32>,
    next: Vec<u32>,
    before: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

impl<'a> TokenList<'a> {
    fn new(encoder: &'a Encoder, tokens: Vec<u32>, limit: u32) -> Self {
        let number = tokens.len() as u32;
        let pairs = tokens.windows(2);
        let mut ranks: Vec<u32> = pairs.map(|pair| encoder.rank(pair[0], pair[1])).collect();
        ranks.push(NONE);
        let buckets = ranks.iter().zip(0..);
        let known = buckets.filter(|(&rank, _)| rank < limit);
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

    fn into_ids(mut self) -> Vec<u32> {
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

    /// Merge the token at `at` with the next one.
    fn merge(&mut self, at: u32, token: u32) {
        let removed = self.next[at as usize];
        let next = self.next[removed as usize];
        self.tokens[at as usize] = token;
        self.next[at as usize] = next;
        self.ranks[removed as usize] = NONE;
        if let Some(before) = self.before.get_mut(next as usize) {
            *before = at;
        }
        self.rank(at);
        let before = self.before[at as usize];
        if before != u32::MAX {
            self.rank(before);
        }
    }

    /// Update the rank of the pair that starts at `at`.
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

/// Encodes in one thread.
pub struct Worker<'a> {
    encoder: &'a Encoder,
    short: Arc<ShortWordCache>,
    others: OtherWordCache,
}

impl Worker<'_> {
    /// Append the ids of a text to `ids`.
    pub fn encode<T: Id>(&mut self, text: &str, ids: &mut Vec<T>) -> Result<(), Error> {
        let (mut filling, mut pending) = (WordBatch::new(), WordBatch::new());
        let splitter = &self.encoder.splitter;
        let mut pipeline = Pipeline {
            worker: self,
            text: text.as_bytes(),
            ids,
            filling: &mut filling,
            pending: &mut pending,
        };
        splitter.split(text, &mut pipeline)?;
        pipeline.advance();
        pipeline.advance();
        Ok(())
    }

    /// Append the ids of a word that is not in its first bucket.
    #[cold]
    fn encode_missed<T: Id>(&mut self, key: Key, word: &[u8], to: &mut Vec<T>) {
        if let Some(ids) = self.short.get_displaced(key) {
            return push_inline(ids, to);
        }
        let mut add = |ids: &[u32]| to.extend(ids.iter().map(|&id| T::from_u32(id)));
        if let Some(ids) = self.others.get(word) {
            return add(ids);
        }
        let ids = self.encoder.encode_word(word);
        add(&ids);
        if key.is_short() && ids.len() <= MAX_INLINE_IDS {
            let inline = from_fn(|at| ids.get(at).copied().unwrap_or(NO_ID));
            self.short.put(key, inline);
            if self.short.is_full() {
                self.short = self.encoder.replacement(&self.short);
            }
        } else {
            self.others.put(word, &ids);
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(mut others) = lock_soon(&self.encoder.others) {
            others.push(std::mem::take(&mut self.others));
        }
    }
}

/// Words after which a batch is looked up.
const BATCH: usize = 64;
/// Words that it may have by then, since a window is finished first.
const MAX_BATCH: usize = BATCH + MAX_WINDOW_WORDS;
/// Ids that are copied at once.
const BLOCK: usize = 16;

/// A batch of words that are looked up together. The tables are larger than the L1 and L2 caches;
/// looking words up one by one would spend the time waiting for memory.
struct WordBatch<T> {
    keys: [Key; MAX_BATCH],
    /// The start of each word in the text.
    firsts: [usize; MAX_BATCH],
    number: usize,
    /// The token that each word may be equal to.
    candidates: [T; MAX_BATCH + BLOCK],
    /// Indices of the words that are not tokens.
    others: [u8; MAX_BATCH + 1],
    num_others: usize,
}

impl<T: Id> WordBatch<T> {
    fn new() -> Self {
        Self {
            keys: [Key::default(); MAX_BATCH],
            firsts: [0; MAX_BATCH],
            number: 0,
            candidates: [T::default(); MAX_BATCH + BLOCK],
            others: [0; MAX_BATCH + 1],
            num_others: 0,
        }
    }

    /// Find the words that are tokens, and prefetch the cache slots of the others.
    #[inline(always)]
    fn look_up(&mut self, token_table: &TokenTable, short: &ShortWordCache) {
        let TokenTable { buckets, keys } = token_table;
        let words = &self.keys[..self.number];
        for (id, &key) in self.candidates.iter_mut().zip(words) {
            let candidate = buckets[key.bucket(NUM_BUCKETS)];
            prefetch(&keys[usize::from(candidate)]);
            *id = T::from_u32(candidate.into());
        }
        let mut number = 0;
        for (at, (&id, &key)) in self.candidates.iter().zip(words).enumerate() {
            self.others[number] = at as u8;
            number += usize::from(keys[id.index() % NUM_KEYS] != key);
        }
        self.num_others = number;
        for &at in &self.others[..self.num_others] {
            short.prefetch(self.keys[at as usize]);
        }
    }

    #[inline(always)]
    fn write_ids(&mut self, worker: &mut Worker, text: &[u8], to: &mut Vec<T>) {
        let mut first = 0;
        for &at in &self.others[..self.num_others] {
            let at = at as usize;
            extend(to, &self.candidates, first, at);
            first = at + 1;
            let (key, begin) = (self.keys[at], self.firsts[at]);
            match worker.short.get(key) {
                Some(ids) => push_inline(ids, to),
                None => worker.encode_missed(key, &text[begin..begin + key.length()], to),
            }
        }
        extend(to, &self.candidates, first, self.number);
        (self.number, self.num_others) = (0, 0);
    }
}

/// Two batches: while text is split for one, the memory loads what the other one needs.
struct Pipeline<'m, 'e, T: Id> {
    worker: &'m mut Worker<'e>,
    text: &'m [u8],
    ids: &'m mut Vec<T>,
    filling: &'m mut WordBatch<T>,
    pending: &'m mut WordBatch<T>,
}

impl<T: Id> WordSink<'_> for Pipeline<'_, '_, T> {
    #[inline(always)]
    fn push(&mut self, word: Word) {
        let batch = &mut self.filling;
        // The number is below MAX_BATCH; the remainder only removes a bounds check.
        let at = batch.number % MAX_BATCH;
        (batch.keys[at], batch.firsts[at]) = (word.key(), word.first());
        batch.number += 1;
    }

    #[inline(always)]
    fn window_end(&mut self) {
        if self.filling.number >= BATCH {
            self.advance();
        }
    }
}

impl<T: Id> Pipeline<'_, '_, T> {
    #[inline(never)]
    fn advance(&mut self) {
        let worker = &mut *self.worker;
        self.filling
            .look_up(&worker.encoder.token_table, &worker.short);
        self.pending.write_ids(worker, self.text, self.ids);
        std::mem::swap(&mut self.filling, &mut self.pending);
    }
}

/// Append the ids of a short word.
#[inline(always)]
fn push_inline<T: Id>(ids: InlineIds, to: &mut Vec<T>) {
    let number = ids
        .iter()
        .map(|&id| usize::from(id != NO_ID))
        .sum::<usize>();
    let length = to.len() + number;
    to.extend(ids.map(T::from_u32));
    to.truncate(length);
}

/// Append `ids[first..end]`, after which another block is readable: complete blocks are copied and
/// then truncated, because a loop over an unpredictable number of ids mispredicts its branch.
#[inline(always)]
fn extend<T: Id>(to: &mut Vec<T>, ids: &[T; MAX_BATCH + BLOCK], first: usize, end: usize) {
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

    /// Merges of "a" to runs of 2, 4, ... 64; of "b" and "c" to "bc"; of that and "a" to "bca".
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
    fn a_cached_word_has_the_same_ids() {
        let encoder = encoder(&MERGES);
        let words: Vec<String> = (0..5000)
            .map(|i| format!("{i}abc{} ", "a".repeat(i % 99)))
            .collect();
        let expected: Vec<u32> = words
            .iter()
            .flat_map(|word| encode(&self::encoder(&MERGES), word))
            .collect();
        for _ in 0..2 {
            assert_eq!(encode(&encoder, &words.concat()), expected);
        }
    }

    #[test]
    fn long_words_are_merged_like_short_ones() {
        let encoder = encoder(&MERGES);
        let mut state = 1_u64;
        for length in (0..MAX_SCANNED).chain([100, 1000]) {
            let word: Vec<u8> = (0..length)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    b"aaaabc"[(state >> 33) as usize % 6]
                })
                .collect();
            let ids: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
            let chained = TokenList::new(&encoder, ids.clone(), NONE).into_ids();
            assert_eq!(chained, reference_ids(&MERGES, ids), "{length}");
            assert_eq!(chained, encoder.merge(&word, NONE));
        }
    }

    /// The reference implementation: merge after merge, each from the left.
    fn reference_ids(merges: &[(u32, u32)], mut ids: Vec<u32>) -> Vec<u32> {
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
    fn locks_that_stay_locked_as_after_a_fork_change_no_ids() {
        let encoder = encoder(&MERGES);
        let words: Vec<String> = (0..300).map(|i| format!("aabc{i}")).collect();
        let (text, expected) = (words.join(" "), encode(&encoder, &words.join(" ")));
        let _short = encoder.short.lock().unwrap();
        let _others = encoder.others.lock().unwrap();
        assert_eq!(encode(&encoder, &text), expected);
        let _replacing = encoder.replacing.lock().unwrap();
        assert_eq!(encode(&encoder, &text), expected);
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
    fn the_parts_of_a_token_are_its_merge() {
        let encoder = encoder(&MERGES);
        let tokens = token_bytes(&MERGES);
        for (token, &parts) in tokens[NUM_BYTES..].iter().zip(&MERGES) {
            assert_eq!(encoder.parts(token), Some(parts));
        }
        assert_eq!(encoder.parts(b"a"), None);
        assert_eq!(encoder.parts(b"zz"), None);
    }

    #[test]
    fn a_megabyte_of_one_letter_is_encoded_in_linear_time() {
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
