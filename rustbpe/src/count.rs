//! Counting words: memory grows with the number of distinct words, up to a limit.
//!
//! Each worker counts in a small table that fits the cache of its core; evicted counts go to shared
//! tables. The sums do not depend on which worker counted what.
//!
//! In text without spaces nearly every word is a new one. When a shared table is full, it keeps a
//! sample: the words whose hash begins with a zero, then those with two, and so on. Which words
//! these are depends neither on their order nor on the workers; each stands for those left out.

use crate::error::Error;
use crate::split::{Splitter, WordSink};
use crate::word::{Key, Word};
use rustc_hash::FxHashMap;
use std::array::from_fn;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

const NUM_SHARDS: usize = 16;
/// Buckets of a worker's table, as a power of two: 786 KB in all.
const LOCAL_BITS: u32 = 14;
/// Counts that a worker queues for a shard before it takes the shard's lock.
const MAX_PENDING: usize = 512;

/// Bytes of long words that a worker counts before it takes the lock of their table.
const MAX_LOCAL_BYTES: usize = 1 << 20;
/// Bytes of a word, at most. Longer ones are cut, so that a few do not fill a table.
const MAX_WORD_BYTES: usize = 1 << 16;
/// Bytes of the distinct words in the tables, at most; learning merges takes up to 18 times as many.
/// Two billion characters of English have two thirds of the first and a tenth of the second.
const MAX_SHORT_BYTES: usize = 32 << 20;
const MAX_LONG_BYTES: usize = 32 << 20;
/// Of the smallest sample: one word of 2^24.
const MAX_LEVEL: u32 = 24;

/// A word as the key of a table.
trait Counted: Eq + Hash {
    /// Its bytes and one for its end.
    fn size(&self) -> usize;
    /// Zeros with which its hash begins: it is in samples up to this level.
    fn level(&self) -> u32;
}

impl Counted for Key {
    fn size(&self) -> usize {
        self.length() + 1
    }

    fn level(&self) -> u32 {
        let (bytes, length) = self.bytes();
        level(&bytes[..length])
    }
}

impl Counted for Box<[u8]> {
    fn size(&self) -> usize {
        self.len() + 1
    }

    fn level(&self) -> u32 {
        level(self)
    }
}

/// Of FNV-1a, mixed; equal on every machine and with every version of the crates.
fn level(word: &[u8]) -> u32 {
    let hash = word.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    let hash = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    hash.leading_zeros()
}

/// Counts of words; beyond `max_size`, of a sample of them.
struct Table<W> {
    counts: FxHashMap<W, u64>,
    size: usize,
    max_size: usize,
    /// It has the words of at least this level: one of 2^level.
    level: u32,
}

impl<W: Counted> Table<W> {
    fn new(max_size: usize) -> Self {
        Self {
            counts: FxHashMap::default(),
            size: 0,
            max_size,
            level: 0,
        }
    }

    fn add(&mut self, word: W, count: u64) {
        if self.level > 0 && word.level() < self.level {
            return;
        }
        match self.counts.entry(word) {
            Entry::Occupied(mut entry) => *entry.get_mut() += count,
            Entry::Vacant(entry) => {
                self.size += entry.key().size();
                entry.insert(count);
                while self.size > self.max_size && self.level < MAX_LEVEL {
                    self.raise_level();
                }
            }
        }
    }

    #[cold]
    fn raise_level(&mut self) {
        self.level += 1;
        self.counts.retain(|word, _| word.level() >= self.level);
        self.size = self.counts.keys().map(Counted::size).sum();
    }

    /// The number of words and their size.
    fn usage(&self) -> (usize, usize) {
        (self.counts.len(), self.size)
    }

    /// The words, each with its count times the number of words that it stands for.
    fn into_counts(self) -> impl Iterator<Item = (W, u64)> {
        let counts = self.counts.into_iter();
        counts.map(move |(word, count)| (word, count << self.level))
    }
}

/// The number of occurrences of each word.
pub struct WordCounts {
    short: [Mutex<Table<Key>>; NUM_SHARDS],
    long: Mutex<Table<Box<[u8]>>>,
}

impl Default for WordCounts {
    fn default() -> Self {
        Self::with_limits(MAX_SHORT_BYTES, MAX_LONG_BYTES)
    }
}

impl WordCounts {
    fn with_limits(max_short: usize, max_long: usize) -> Self {
        Self {
            short: from_fn(|_| Table::new(max_short / NUM_SHARDS).into()),
            long: Table::new(max_long).into(),
        }
    }

    /// Count the words of some texts with a single worker.
    pub fn count<T: AsRef<str>>(&self, splitter: &Splitter, texts: &[T]) -> Result<(), Error> {
        let mut worker = Worker::new(self);
        texts
            .iter()
            .try_for_each(|text| worker.count(splitter, text.as_ref()))
    }

    /// The number of words, and their bytes, with one more for the end of each.
    pub fn size(&self) -> (usize, usize) {
        let short = self.short.iter().map(|shard| lock(shard).usage());
        short.fold(lock(&self.long).usage(), |sum, one| {
            (sum.0 + one.0, sum.1 + one.1)
        })
    }

    /// Visit the words and their counts, in no order; each table is freed when it is done.
    pub fn drain(self, mut visit: impl FnMut(&[u8], u64)) {
        for shard in self.short {
            let table = shard.into_inner().unwrap_or_else(PoisonError::into_inner);
            for (key, count) in table.into_counts() {
                let (bytes, length) = key.bytes();
                visit(&bytes[..length], count);
            }
        }
        let long = self.long.into_inner();
        let long = long.unwrap_or_else(PoisonError::into_inner);
        for (word, count) in long.into_counts() {
            visit(&word, count);
        }
    }
}

/// Lock a mutex. Poison is ignored: no panic can leave a count half updated.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts locally and adds to the shared tables: evicted counts now and then, the rest on drop.
pub struct Worker<'a> {
    shared: &'a WordCounts,
    local: Vec<[(Key, u64); 2]>,
    pending: [Vec<(Key, u64)>; NUM_SHARDS],
    long: FxHashMap<Box<[u8]>, u64>,
    long_bytes: usize,
    /// Of the shared table: long words of a lower level need not be counted.
    level: u32,
}

impl<'a> Worker<'a> {
    /// A worker that adds to `shared`.
    pub fn new(shared: &'a WordCounts) -> Self {
        Self {
            shared,
            local: vec![[(Key::default(), 0); 2]; 1 << LOCAL_BITS],
            pending: Default::default(),
            long: FxHashMap::default(),
            long_bytes: 0,
            level: 0,
        }
    }

    /// Count the words of a text.
    pub fn count(&mut self, splitter: &Splitter, text: &str) -> Result<(), Error> {
        splitter.split(text, self)
    }

    #[inline(always)]
    fn count_short(&mut self, key: Key) {
        let bucket = key.bucket(1 << LOCAL_BITS);
        let [first, second] = &mut self.local[bucket];
        if first.0 == key {
            first.1 += 1;
        } else if second.0 == key {
            second.1 += 1;
        } else {
            self.evict(bucket, key);
        }
    }

    /// Replace the rarer word of a bucket by a new one.
    #[cold]
    fn evict(&mut self, bucket: usize, key: Key) {
        let slots = &mut self.local[bucket];
        let rarest = usize::from(slots[1].1 < slots[0].1);
        let old = std::mem::replace(&mut slots[rarest], (key, 1));
        if old.1 > 0 {
            self.enqueue(old.0, old.1);
        }
    }

    fn enqueue(&mut self, key: Key, count: u64) {
        let shard = (key.hash64() >> 60) as usize % NUM_SHARDS;
        self.pending[shard].push((key, count));
        if self.pending[shard].len() >= MAX_PENDING {
            self.flush(shard);
        }
    }

    fn flush(&mut self, shard: usize) {
        let mut table = lock(&self.shared.short[shard]);
        for (key, count) in self.pending[shard].drain(..) {
            table.add(key, count);
        }
    }

    #[cold]
    fn count_long(&mut self, word: Word) {
        for word in word.bytes().chunks(MAX_WORD_BYTES) {
            if self.level > 0 && level(word) < self.level {
                continue;
            }
            match self.long.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    self.long.insert(word.into(), 1);
                    self.long_bytes += word.len();
                }
            }
        }
        if self.long_bytes > MAX_LOCAL_BYTES {
            self.flush_long();
        }
    }

    fn flush_long(&mut self) {
        let mut table = lock(&self.shared.long);
        for (word, count) in self.long.drain() {
            table.add(word, count);
        }
        (self.long_bytes, self.level) = (0, table.level);
    }
}

impl WordSink<'_> for Worker<'_> {
    #[inline(always)]
    fn push(&mut self, word: Word) {
        let key = word.key();
        if key.is_short() {
            self.count_short(key);
        } else {
            self.count_long(word);
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        for (key, count) in std::mem::take(&mut self.local).into_iter().flatten() {
            if count > 0 {
                self.enqueue(key, count);
            }
        }
        for shard in 0..NUM_SHARDS {
            self.flush(shard);
        }
        self.flush_long();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::DEFAULT_PATTERN;
    use std::collections::BTreeMap;
    use std::thread;

    fn sorted(counts: WordCounts) -> BTreeMap<Vec<u8>, u64> {
        let mut found = BTreeMap::new();
        counts.drain(|word, count| *found.entry(word.to_vec()).or_insert(0) += count);
        found
    }

    struct Plain<'a>(&'a mut BTreeMap<Vec<u8>, u64>);

    impl WordSink<'_> for Plain<'_> {
        fn push(&mut self, word: Word) {
            *self.0.entry(word.bytes().to_vec()).or_insert(0) += 1;
        }
    }

    fn texts() -> Vec<String> {
        let text = |i: usize| format!("the {} fox{} {}", i % 7, "x".repeat(i % 40), i * i);
        (0..3000).map(text).collect()
    }

    #[test]
    fn counts_equal_those_of_a_plain_map() {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let counts = WordCounts::default();
        counts.count(&splitter, &texts()).unwrap();
        let mut plain = BTreeMap::new();
        for text in texts() {
            splitter.split(&text, &mut Plain(&mut plain)).unwrap();
        }
        assert_eq!(sorted(counts), plain);
        assert_eq!(plain[&b"the"[..]], 3000);
    }

    #[test]
    fn counts_do_not_depend_on_the_number_of_workers() {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let (whole, shared) = (WordCounts::default(), WordCounts::default());
        whole.count(&splitter, &texts()).unwrap();
        thread::scope(|scope| {
            for part in texts().chunks(301) {
                let (part, shared, splitter) = (part.to_vec(), &shared, &splitter);
                scope.spawn(move || shared.count(splitter, &part).unwrap());
            }
        });
        assert_eq!(sorted(whole), sorted(shared));
    }

    #[test]
    fn evicted_counts_are_not_lost() {
        let splitter = Splitter::by_regex(r"\S+").unwrap();
        let texts: Vec<String> = (0..200_000)
            .map(|i| format!("{} {}", i % 70_000, i))
            .collect();
        let counts = WordCounts::default();
        counts.count(&splitter, &texts).unwrap();
        let counts = sorted(counts);
        assert_eq!(counts.values().sum::<u64>(), 400_000);
        assert_eq!(counts[&b"5"[..]], 4);
        assert_eq!(counts[&b"199999"[..]], 1);
    }

    /// Distinct words, short and long, with every count from 1 to 9.
    fn distinct(number: usize) -> Vec<String> {
        let text = |i: usize| format!("{i} {} ", i + 1_000_000_000_000_000);
        (0..number).map(|i| text(i).repeat(1 + i % 9)).collect()
    }

    #[test]
    fn a_full_table_keeps_a_sample_that_stands_for_all_words() {
        let splitter = Splitter::by_regex(r"\S+").unwrap();
        let texts = distinct(20_000);
        let (all, sample) = (
            WordCounts::default(),
            WordCounts::with_limits(40_000, 40_000),
        );
        all.count(&splitter, &texts).unwrap();
        sample.count(&splitter, &texts).unwrap();
        assert_eq!(all.size().0, 40_000);
        assert!(sample.size().1 <= 80_000 && sample.size().1 > 20_000);
        let (all, sample) = (sorted(all), sorted(sample));
        for is_long in [false, true] {
            let total = |counts: &BTreeMap<Vec<u8>, u64>| {
                let words = counts
                    .iter()
                    .filter(|(word, _)| (word.len() > 15) == is_long);
                words.map(|(_, count)| count).sum::<u64>() as f64
            };
            let ratio = total(&sample) / total(&all);
            assert!((0.9..1.1).contains(&ratio), "{ratio}");
        }
        // A count is the true one times a power of two.
        for (word, count) in &sample {
            assert!((count / all[word]).is_power_of_two() && count % all[word] == 0);
        }
    }

    #[test]
    fn a_sample_does_not_depend_on_the_order_or_the_workers() {
        let splitter = Splitter::by_regex(r"\S+").unwrap();
        let texts = distinct(20_000);
        let new = || WordCounts::with_limits(40_000, 40_000);
        let (forward, backward, shared) = (new(), new(), new());
        forward.count(&splitter, &texts).unwrap();
        let reversed: Vec<&String> = texts.iter().rev().collect();
        backward.count(&splitter, &reversed).unwrap();
        thread::scope(|scope| {
            for part in texts.chunks(3001) {
                let (shared, splitter) = (&shared, &splitter);
                scope.spawn(move || shared.count(splitter, part).unwrap());
            }
        });
        let expected = sorted(forward);
        assert_eq!(sorted(backward), expected);
        assert_eq!(sorted(shared), expected);
    }

    #[test]
    fn a_word_without_end_is_cut() {
        let splitter = Splitter::by_regex(r"\S+").unwrap();
        let counts = WordCounts::default();
        let texts = ["ab".repeat(MAX_WORD_BYTES)];
        counts.count(&splitter, &texts).unwrap();
        let half = "ab".repeat(MAX_WORD_BYTES / 2).into_bytes();
        assert_eq!(sorted(counts), [(half, 2)].into());
    }
}
