//! Words that were seen, and what they became.

use crate::memory::in_large_pages;
use crate::word::Key;
use rustc_hash::FxHashMap;
use std::array::from_fn;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

/// Ids that a short word may have to be remembered beside its key.
pub const MAX_FEW: usize = 4;
/// Pairs of slots that a table starts with and may grow to: 32 MB.
const MIN_PLACES: usize = 1 << 9;
const MAX_PLACES: usize = 1 << 19;
/// Places, its own and those beside it, where a word may stand.
const WAYS: usize = 4;
/// Bytes of longer words that are remembered.
const MAX_LONG_BYTES: usize = 16 << 20;
/// A longer word is not likely to come again.
const MAX_LONG_WORD: usize = 128;
/// What a remembered longer word costs beside its bytes and ids.
const LONG_COST: usize = 80;

/// Ids of a short word, one at least, `NO_ID` behind the last.
pub type Few = [u32; MAX_FEW];
/// What no token has.
pub const NO_ID: u32 = u32::MAX;

/// Short words of few ids, for all threads at once: what one has learned the others know. Words
/// only come, each into a slot that was free; where there is no room for more, a new table is made.
pub struct ShortWords {
    places: Vec<Slots>,
    number: Apart,
}

/// Written at every new word: not in the line of a cache that every look at the table reads.
#[repr(align(128))]
struct Apart(AtomicUsize);

/// Two words of one place, in one line of a cache.
#[derive(Default)]
#[repr(align(64))]
struct Slots([Slot; 2]);

/// A short word and its ids. The upper half of its key is written last: who finds it finds all. It
/// is 0 in a free slot, which no word's is, since the length stands in it.
#[derive(Default)]
struct Slot {
    low: AtomicU64,
    high: AtomicU64,
    ids: [AtomicU32; MAX_FEW],
}

/// The upper half of a slot that somebody writes to.
const TAKEN: u64 = u64::MAX - 1;

impl Slot {
    #[inline(always)]
    fn has(&self, key: Key) -> bool {
        let high = self.high.load(Acquire);
        Key::from_halves(self.low.load(Relaxed), high) == key
    }

    #[inline(always)]
    fn ids(&self) -> Few {
        from_fn(|at| self.ids[at].load(Relaxed))
    }

    #[inline(always)]
    fn is_free(&self) -> bool {
        self.high.load(Relaxed) == 0
    }

    /// False when another word was faster.
    fn put(&self, key: Key, ids: Few) -> bool {
        let is_ours = self
            .high
            .compare_exchange(0, TAKEN, Relaxed, Relaxed)
            .is_ok();
        if is_ours {
            let (low, high) = key.halves();
            self.low.store(low, Relaxed);
            self.ids
                .iter()
                .zip(ids)
                .for_each(|(place, id)| place.store(id, Relaxed));
            self.high.store(high, Release);
        }
        is_ours
    }

    /// The word that stands here, if one does.
    fn word(&self) -> Option<(Key, Few)> {
        let high = self.high.load(Acquire);
        let is_there = high != 0 && high != TAKEN;
        is_there.then(|| (Key::from_halves(self.low.load(Relaxed), high), self.ids()))
    }
}

impl Default for ShortWords {
    fn default() -> Self {
        Self::of_size(MIN_PLACES)
    }
}

impl ShortWords {
    fn of_size(places: usize) -> Self {
        Self {
            places: in_large_pages(places),
            number: Apart(AtomicUsize::new(0)),
        }
    }

    #[inline(always)]
    fn slots(&self, key: Key) -> &[Slot; 2] {
        &self.places[key.place(self.places.len())].0
    }

    /// Have what `get` will read brought near.
    #[inline(always)]
    pub fn fetch(&self, key: Key) {
        fetch(self.slots(key));
    }

    /// The ids of a word that stands at its place, as most do.
    #[inline(always)]
    pub fn get(&self, key: Key) -> Option<Few> {
        let slots = self.slots(key);
        let slot = &slots[usize::from(slots[1].has(key))];
        slot.has(key).then(|| slot.ids())
    }

    /// The ids of a word that stands beside its place, as it may where that is full.
    pub fn get_beside(&self, key: Key) -> Option<Few> {
        if self.slots(key)[1].is_free() {
            return None;
        }
        let slots = self.places_of(key).skip(1).flat_map(|Slots(slots)| slots);
        slots.filter(|slot| slot.has(key)).map(Slot::ids).next()
    }

    fn places_of(&self, key: Key) -> impl Iterator<Item = &Slots> {
        let first = key.place(self.places.len());
        (0..WAYS).map(move |step| &self.places[first ^ step])
    }

    /// Remember a word, if there is room.
    pub fn put(&self, key: Key, ids: Few) {
        let mut slots = self.places_of(key).flat_map(|Slots(slots)| slots);
        if slots.any(|slot| slot.is_free() && slot.put(key, ids)) {
            self.number.0.fetch_add(1, Relaxed);
        }
    }

    /// True when it is time for a new table.
    pub fn is_crowded(&self) -> bool {
        let number = self.number.0.load(Relaxed);
        match self.places.len() < MAX_PLACES {
            true => 2 * number > self.places.len(),
            false => 2 * number > 3 * self.places.len(),
        }
    }

    /// A larger table with the same words; an empty one behind the largest, so that what was seen
    /// long ago does not stand in the way for good.
    pub fn successor(&self) -> Self {
        if self.places.len() == MAX_PLACES {
            return Self::default();
        }
        let larger = Self::of_size(4 * self.places.len());
        let slots = self.places.iter().flat_map(|Slots(slots)| slots);
        slots
            .filter_map(Slot::word)
            .for_each(|(key, ids)| larger.put(key, ids));
        larger
    }
}

/// Ask the memory for what will be read soon.
#[inline(always)]
pub fn fetch<T>(what: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: the instruction reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = what;
}

/// Words that are long or have many ids, of one thread.
#[derive(Default)]
pub struct OtherWords {
    words: FxHashMap<Box<[u8]>, Box<[u32]>>,
    bytes: usize,
}

impl OtherWords {
    /// The ids of a word.
    pub fn get(&self, word: &[u8]) -> Option<&[u32]> {
        self.words.get(word).map(|ids| &**ids)
    }

    /// Remember a word; forget all others when they are too many.
    pub fn put(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() > MAX_LONG_WORD {
            return;
        }
        let bytes = LONG_COST + word.len() + size_of_val(ids);
        if self.bytes + bytes > MAX_LONG_BYTES {
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

    fn get(words: &ShortWords, number: u32) -> Option<Few> {
        words
            .get(key(number))
            .or_else(|| words.get_beside(key(number)))
    }

    #[test]
    fn what_was_put_is_found_in_each_larger_table() {
        let mut words = ShortWords::default();
        for number in 0..100_000 {
            words.put(key(number), [number, number + 1, NO_ID, NO_ID]);
            if words.is_crowded() {
                words = words.successor();
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
    fn threads_never_see_a_word_by_halves() {
        let words = ShortWords::of_size(1 << 14);
        let work = |from: u32| {
            for number in (from..from + 4000).chain(0..8000) {
                if number >= from && number < from + 4000 {
                    words.put(key(number), [number; MAX_FEW]);
                }
                let found = get(&words, number);
                assert!(found.is_none_or(|ids| ids == [number; MAX_FEW]));
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
    fn what_is_remembered_stays_bounded() {
        let (mut short, mut others) = (ShortWords::default(), OtherWords::default());
        for number in 0..2_000_000 {
            short.put(key(number), [number; MAX_FEW]);
            if short.is_crowded() {
                short = short.successor();
            }
            let word = format!("a word longer than those which have a key: {number}");
            others.put(word.as_bytes(), &[number; 20]);
            assert!(short.places.len() <= MAX_PLACES && others.bytes <= MAX_LONG_BYTES);
        }
        assert_eq!(get(&short, 1_999_999), Some([1_999_999; MAX_FEW]));
        assert!(others.words.len() * (LONG_COST + 43 + 80) <= MAX_LONG_BYTES);
    }
}
