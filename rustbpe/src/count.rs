//! Counting words: memory grows with distinct words, not with text.
//!
//! Each worker counts into a small table that fits a core's own cache; what is crowded out of it
//! goes to shared tables. The sums do not depend on who counted what.

use crate::error::Error;
use crate::split::{Splitter, Taker};
use crate::word::{Key, Word};
use rustc_hash::FxHashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

const NUM_SHARDS: usize = 16;
/// Pairs of slots of a worker's own table: 786 KB.
const NEAR_BITS: u32 = 14;
/// Counts that a worker collects for one shard before it takes the shard's lock.
const PENDING: usize = 512;

/// How often each word was seen.
#[derive(Default)]
pub struct WordCounts {
    short: [Mutex<FxHashMap<Key, u64>>; NUM_SHARDS],
    long: Mutex<FxHashMap<Box<[u8]>, u64>>,
}

impl WordCounts {
    /// Count the words of some texts; for one worker alone.
    pub fn count<T: AsRef<str>>(&self, splitter: &Splitter, texts: &[T]) -> Result<(), Error> {
        let mut worker = Worker::new(self);
        texts
            .iter()
            .try_for_each(|text| worker.count(splitter, text.as_ref()))
    }

    /// The words and their counts, in no order; the tables are freed one after another.
    pub fn drain(self, mut take: impl FnMut(&[u8], u64)) {
        for shard in self.short {
            for (key, count) in shard.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let (bytes, length) = key.bytes();
                take(&bytes[..length], count);
            }
        }
        let long = self.long.into_inner();
        for (word, count) in long.unwrap_or_else(PoisonError::into_inner) {
            take(&word, count);
        }
    }
}

/// A count is never half done when a lock is given up, so a poisoned lock is as good.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts on its own and hands over to the shared tables, the rest when it is dropped.
pub struct Worker<'a> {
    shared: &'a WordCounts,
    near: Vec<[(Key, u64); 2]>,
    pending: [Vec<(Key, u64)>; NUM_SHARDS],
    long: FxHashMap<Box<[u8]>, u64>,
}

impl<'a> Worker<'a> {
    /// A worker for shared tables.
    pub fn new(shared: &'a WordCounts) -> Self {
        Self {
            shared,
            near: vec![[(Key::default(), 0); 2]; 1 << NEAR_BITS],
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
        let place = key.place(1 << NEAR_BITS);
        let [first, second] = &mut self.near[place];
        if first.0 == key {
            first.1 += 1;
        } else if second.0 == key {
            second.1 += 1;
        } else {
            self.crowd_out(place, key);
        }
    }

    /// The rarer of two words makes room for a new one.
    #[cold]
    fn crowd_out(&mut self, place: usize, key: Key) {
        let slots = &mut self.near[place];
        let rarer = usize::from(slots[1].1 < slots[0].1);
        let old = std::mem::replace(&mut slots[rarer], (key, 1));
        if old.1 > 0 {
            self.hand_over(old.0, old.1);
        }
    }

    fn hand_over(&mut self, key: Key, count: u64) {
        let shard = (key.mixed() >> 60) as usize % NUM_SHARDS;
        self.pending[shard].push((key, count));
        if self.pending[shard].len() >= PENDING {
            self.settle(shard);
        }
    }

    fn settle(&mut self, shard: usize) {
        let mut counts = locked(&self.shared.short[shard]);
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

impl Taker<'_> for Worker<'_> {
    #[inline(always)]
    fn take(&mut self, word: Word) {
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
        for (key, count) in std::mem::take(&mut self.near).into_iter().flatten() {
            if count > 0 {
                self.hand_over(key, count);
            }
        }
        for shard in 0..NUM_SHARDS {
            self.settle(shard);
        }
        let mut long = locked(&self.shared.long);
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

    impl Taker<'_> for Plain<'_> {
        fn take(&mut self, word: Word) {
            *self.0.entry(word.bytes().to_vec()).or_insert(0) += 1;
        }
    }

    fn texts() -> Vec<String> {
        let text = |i: usize| format!("the {} fox{} {}", i % 7, "x".repeat(i % 40), i * i);
        (0..3000).map(text).collect()
    }

    #[test]
    fn the_counts_are_those_of_a_plain_map() {
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
    fn counts_do_not_depend_on_who_counts_what() {
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
    fn a_word_that_is_crowded_out_is_not_forgotten() {
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
