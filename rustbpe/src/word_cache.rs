//! Caches of encoded words and their ids.

use crate::memory::vec_in_huge_pages;
use crate::word::Key;
use rustc_hash::FxHashMap;
use std::array::from_fn;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

/// Ids that are stored inline with a short word.
pub const MAX_INLINE_IDS: usize = 4;
/// Buckets of a new table and of the largest one, which has 32 MB.
const MIN_BUCKETS: usize = 1 << 9;
const MAX_BUCKETS: usize = 1 << 19;
/// Buckets that are probed for a word.
const NUM_PROBES: usize = 4;
/// Bytes of a thread's cache of other words.
const MAX_OTHER_BYTES: usize = 16 << 20;
/// Bytes of the longest word that is cached; a longer one is unlikely to occur again.
const MAX_CACHED_WORD: usize = 128;
/// Memory of an entry beside its bytes and ids, about.
const ENTRY_OVERHEAD: usize = 80;

/// Ids of a short word, at least one, padded with `NO_ID`.
pub type InlineIds = [u32; MAX_INLINE_IDS];
/// An id that no token has.
pub const NO_ID: u32 = u32::MAX;

/// Cache of short words with few ids, shared by all threads without locks. Entries are only added,
/// each to a free slot; a full table is replaced by a new one.
pub struct ShortWordCache {
    buckets: Vec<Bucket>,
    num_words: OwnCacheLine,
}

/// On a cache line of its own: it changes with every new word, the rest is read all the time.
#[repr(align(128))]
struct OwnCacheLine(AtomicUsize);

/// Two slots on one cache line.
#[derive(Default)]
#[repr(align(64))]
struct Bucket([Slot; 2]);

/// A short word and its ids. The upper half of the key is written last (release), so that a reader
/// who sees it (acquire) sees the rest. It is 0 in a free slot; no word has 0 there.
#[derive(Default)]
struct Slot {
    low: AtomicU64,
    high: AtomicU64,
    ids: [AtomicU32; MAX_INLINE_IDS],
}

/// The upper half of a slot that a thread is writing.
const WRITING: u64 = u64::MAX - 1;

impl Slot {
    #[inline(always)]
    fn has(&self, key: Key) -> bool {
        let high = self.high.load(Acquire);
        Key::from_halves(self.low.load(Relaxed), high) == key
    }

    #[inline(always)]
    fn ids(&self) -> InlineIds {
        from_fn(|at| self.ids[at].load(Relaxed))
    }

    #[inline(always)]
    fn is_free(&self) -> bool {
        self.high.load(Relaxed) == 0
    }

    /// Write a word into a free slot; false when another thread took the slot first.
    fn put(&self, key: Key, ids: InlineIds) -> bool {
        let is_acquired = self
            .high
            .compare_exchange(0, WRITING, Relaxed, Relaxed)
            .is_ok();
        if is_acquired {
            let (low, high) = key.halves();
            self.low.store(low, Relaxed);
            self.ids
                .iter()
                .zip(ids)
                .for_each(|(slot, id)| slot.store(id, Relaxed));
            self.high.store(high, Release);
        }
        is_acquired
    }

    /// The entry of the slot, if it has one.
    fn word(&self) -> Option<(Key, InlineIds)> {
        let high = self.high.load(Acquire);
        let has_word = high != 0 && high != WRITING;
        has_word.then(|| (Key::from_halves(self.low.load(Relaxed), high), self.ids()))
    }
}

impl Default for ShortWordCache {
    fn default() -> Self {
        Self::of_size(MIN_BUCKETS)
    }
}

impl ShortWordCache {
    fn of_size(buckets: usize) -> Self {
        Self {
            buckets: vec_in_huge_pages(buckets),
            num_words: OwnCacheLine(AtomicUsize::new(0)),
        }
    }

    #[inline(always)]
    fn slots(&self, key: Key) -> &[Slot; 2] {
        &self.buckets[key.bucket(self.buckets.len())].0
    }

    /// Prefetch what `get` will read.
    #[inline(always)]
    pub fn prefetch(&self, key: Key) {
        prefetch(self.slots(key));
    }

    /// The ids of a word in its first bucket, where most are.
    #[inline(always)]
    pub fn get(&self, key: Key) -> Option<InlineIds> {
        let slots = self.slots(key);
        let slot = &slots[usize::from(slots[1].has(key))];
        slot.has(key).then(|| slot.ids())
    }

    /// The ids of a word in another bucket, as when the first one was full.
    pub fn get_displaced(&self, key: Key) -> Option<InlineIds> {
        if self.slots(key)[1].is_free() {
            return None;
        }
        let slots = self.buckets_of(key).skip(1).flat_map(|Bucket(slots)| slots);
        slots.filter(|slot| slot.has(key)).map(Slot::ids).next()
    }

    fn buckets_of(&self, key: Key) -> impl Iterator<Item = &Bucket> {
        let first = key.bucket(self.buckets.len());
        (0..NUM_PROBES).map(move |step| &self.buckets[first ^ step])
    }

    /// Add a word, if one of its buckets has a free slot.
    pub fn put(&self, key: Key, ids: InlineIds) {
        let mut slots = self.buckets_of(key).flat_map(|Bucket(slots)| slots);
        if slots.any(|slot| slot.is_free() && slot.put(key, ids)) {
            self.num_words.0.fetch_add(1, Relaxed);
        }
    }

    /// True when the table should be replaced: a quarter full, the largest one three quarters.
    pub fn is_full(&self) -> bool {
        let num_words = self.num_words.0.load(Relaxed);
        match self.buckets.len() < MAX_BUCKETS {
            true => 2 * num_words > self.buckets.len(),
            false => 2 * num_words > 3 * self.buckets.len(),
        }
    }

    /// A larger table with the same words. After the largest an empty one, so that words of old
    /// texts do not fill it forever.
    pub fn replacement(&self) -> Self {
        if self.buckets.len() == MAX_BUCKETS {
            return Self::default();
        }
        let larger = Self::of_size(4 * self.buckets.len());
        let slots = self.buckets.iter().flat_map(|Bucket(slots)| slots);
        slots
            .filter_map(Slot::word)
            .for_each(|(key, ids)| larger.put(key, ids));
        larger
    }
}

/// Prefetch a value into the cache.
#[inline(always)]
pub fn prefetch<T>(what: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: the instruction reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = what;
}

/// Cache of words that are long or have many ids, for one thread.
#[derive(Default)]
pub struct OtherWordCache {
    words: FxHashMap<Box<[u8]>, Box<[u32]>>,
    bytes: usize,
}

impl OtherWordCache {
    /// The ids of a word.
    pub fn get(&self, word: &[u8]) -> Option<&[u32]> {
        self.words.get(word).map(|ids| &**ids)
    }

    /// Add a word; when the cache is full, clear it first.
    pub fn put(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() > MAX_CACHED_WORD {
            return;
        }
        let bytes = ENTRY_OVERHEAD + word.len() + size_of_val(ids);
        if self.bytes + bytes > MAX_OTHER_BYTES {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.words.insert(word.into(), ids.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::Word;
    use std::thread;

    fn key(number: u32) -> Key {
        Word::new(number.to_string().as_bytes()).key()
    }

    fn get(words: &ShortWordCache, number: u32) -> Option<InlineIds> {
        words
            .get(key(number))
            .or_else(|| words.get_displaced(key(number)))
    }

    #[test]
    fn words_are_kept_when_the_table_grows() {
        let mut words = ShortWordCache::default();
        for number in 0..100_000 {
            words.put(key(number), [number, number + 1, NO_ID, NO_ID]);
            if words.is_full() {
                words = words.replacement();
            }
        }
        let found = |number: &u32| get(&words, *number).is_some();
        assert!((0..100_000).filter(found).count() > 99_900);
        for ids in (0..100_000).filter_map(|number| get(&words, number)) {
            assert_eq!(ids[1], ids[0] + 1);
        }
        assert_eq!(get(&words, 100_000), None);
    }

    #[test]
    fn threads_never_see_a_half_written_word() {
        let words = ShortWordCache::of_size(1 << 14);
        let work = |from: u32| {
            for number in (from..from + 4000).chain(0..8000) {
                if number >= from && number < from + 4000 {
                    words.put(key(number), [number; MAX_INLINE_IDS]);
                }
                let found = get(&words, number);
                assert!(found.is_none_or(|ids| ids == [number; MAX_INLINE_IDS]));
            }
        };
        thread::scope(|scope| {
            for from in [0, 1000, 2000, 4000] {
                scope.spawn(move || work(from));
            }
        });
        assert!(
            (0..8000)
                .filter(|&number| get(&words, number).is_some())
                .count()
                > 7000
        );
    }

    #[test]
    fn the_caches_are_bounded() {
        let (mut short, mut others) = (ShortWordCache::default(), OtherWordCache::default());
        for number in 0..2_000_000 {
            short.put(key(number), [number; MAX_INLINE_IDS]);
            if short.is_full() {
                short = short.replacement();
            }
            let word = format!("a word longer than those which have a key: {number}");
            others.put(word.as_bytes(), &[number; 20]);
            assert!(short.buckets.len() <= MAX_BUCKETS && others.bytes <= MAX_OTHER_BYTES);
        }
        assert_eq!(get(&short, 1_999_999), Some([1_999_999; MAX_INLINE_IDS]));
        assert!(others.words.len() * (ENTRY_OVERHEAD + 43 + 80) <= MAX_OTHER_BYTES);
    }
}
