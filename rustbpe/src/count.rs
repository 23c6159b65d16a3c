//! Counting words: memory grows with the number of distinct words, not with the text.
//!
//! Each worker counts in a small table that fits the cache of its core; evicted counts go to shared
//! tables. The sums do not depend on which worker counted what.

use crate::error::Error;
use crate::split::{Splitter, WordSink};
use crate::word::{Key, Word};
use rustc_hash::FxHashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const NUM_SHARDS: usize = 16;
/// Buckets of a worker's table, as a power of two: 786 KB in all.
const LOCAL_BITS: u32 = 14;
/// Counts that a worker queues for a shard before it takes the shard's lock.
const MAX_PENDING: usize = 512;

/// The number of occurrences of each word.
#[derive(Default)]
pub struct WordCounts {
    short: [Mutex<FxHashMap<Key, u64>>; NUM_SHARDS],
    long: Mutex<FxHashMap<Box<[u8]>, u64>>,
}

impl WordCounts {
    /// Count the words of some texts with a single worker.
    pub fn count<T: AsRef<str>>(&self, splitter: &Splitter, texts: &[T]) -> Result<(), Error> {
        let mut worker = Worker::new(self);
        texts
            .iter()
            .try_for_each(|text| worker.count(splitter, text.as_ref()))
    }

    /// Visit the words and their counts, in no order; each table is freed when it is done.
    pub fn drain(self, mut visit: impl FnMut(&[u8], u64)) {
        for shard in self.short {
            for (key, count) in shard.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let (bytes, length) = key.bytes();
                visit(&bytes[..length], count);
            }
        }
        let long = self.long.into_inner();
        for (word, count) in long.unwrap_or_else(PoisonError::into_inner) {
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
}

impl<'a> Worker<'a> {
    /// A worker that adds to `shared`.
    pub fn new(shared: &'a WordCounts) -> Self {
        Self {
            shared,
            local: vec![[(Key::default(), 0); 2]; 1 << LOCAL_BITS],
            pending: Default::default(),
            long: FxHashMap::default(),
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
        let mut counts = lock(&self.shared.short[shard]);
        for (key, count) in self.pending[shard].drain(..) {
            *counts.entry(key).or_insert(0) += count;
        }
    }

    #[cold]
    fn count_long(&mut self, word: Word) {
        match self.long.get_mut(word.bytes()) {
            Some(count) => *count += 1,
            None => {
                self.long.insert(word.bytes().into(), 1);
            }
        }
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
        let mut long = lock(&self.shared.long);
        for (word, count) in self.long.drain() {
            *long.entry(word).or_insert(0) += count;
        }
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
}
