//! A word of a text, and the key of sixteen bytes under which short words are looked up.

use std::hash::{Hash, Hasher};

/// Bytes of the longest word that has a key.
pub const MAX_SHORT: usize = 15;

/// Bytes of a window of which it is marked whether they are letters.
pub const MARKED: usize = 64;
const HEAD: usize = 16;

/// A piece of text that is looked at as a whole: marked bytes, and the head of the last of them.
pub type Window = [u8; MARKED + HEAD];

/// The window of a text's last bytes, zeros behind them.
#[cold]
pub fn padded(text: &[u8]) -> Window {
    let mut window = [0; MARKED + HEAD];
    window[..text.len()].copy_from_slice(text);
    window
}

/// A bit for each marked byte of a window: whether it is of some kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// ASCII letters.
    pub letters: u64,
    /// ASCII digits.
    pub digits: u64,
    /// Spaces, no other white space.
    pub spaces: u64,
    /// Apostrophes and what is not printable ASCII.
    pub unclear: u64,
}

impl Kinds {
    /// Sixteen bytes at a time, by instructions that every such processor has.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn of(window: &Window) -> Self {
        use std::arch::x86_64::*;
        let mut kinds = Self::default();
        for (at, bytes) in window[..MARKED].chunks_exact(16).enumerate() {
            let half = |at: usize| {
                let mut half = [0; 8];
                half.copy_from_slice(&bytes[at..at + 8]);
                i64::from_le_bytes(half)
            };
            #[allow(unused_unsafe)]
            unsafe {
                let all = |byte: u8| _mm_set1_epi8(byte as i8);
                // Bytes count as signed here: all that are not ASCII lie below zero.
                let between = |bytes, first: u8, last: u8| {
                    _mm_and_si128(
                        _mm_cmpgt_epi8(bytes, all(first - 1)),
                        _mm_cmplt_epi8(bytes, all(last + 1)),
                    )
                };
                let mark = |bytes| (_mm_movemask_epi8(bytes) as u64) << (16 * at);
                let bytes = _mm_set_epi64x(half(8), half(0));
                kinds.letters |= mark(between(_mm_or_si128(bytes, all(0x20)), b'a', b'z'));
                kinds.digits |= mark(between(bytes, b'0', b'9'));
                kinds.spaces |= mark(_mm_cmpeq_epi8(bytes, all(b' ')));
                kinds.unclear |= mark(_mm_or_si128(
                    _mm_cmplt_epi8(bytes, all(b' ')),
                    _mm_cmpeq_epi8(bytes, all(b'\'')),
                ));
            }
        }
        kinds
    }

    /// Eight bytes at a time.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    #[inline(always)]
    pub fn portable(window: &Window) -> Self {
        let mut kinds = Self::default();
        for (at, bytes) in window[..MARKED].chunks_exact(8).enumerate() {
            let mut eight = [0; 8];
            eight.copy_from_slice(bytes);
            let bytes = u64::from_le_bytes(eight);
            // The product moves the lowest bits of the eight bytes together into the highest byte.
            let mark =
                |highs: u64| (highs >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56 << (8 * at);
            kinds.letters |= mark(between(bytes | 0x20 * ONES, b'a', b'z'));
            kinds.digits |= mark(between(bytes, b'0', b'9'));
            kinds.spaces |= mark(between(bytes, b' ', b' '));
            let clear = between(bytes, b' ', b'&') | between(bytes, b'(', 0x7F);
            kinds.unclear |= mark(!clear & HIGHS);
        }
        kinds
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
const ONES: u64 = 0x0101_0101_0101_0101;
#[cfg(any(test, not(target_arch = "x86_64")))]
const HIGHS: u64 = 0x80 * ONES;

/// The high bit of each of eight bytes that lies between two ASCII ones.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline(always)]
fn between(bytes: u64, first: u8, last: u8) -> u64 {
    let low = bytes & !HIGHS;
    let from_first = low + u64::from(0x80 - first) * ONES;
    let past_last = low + u64::from(0x7F - last) * ONES;
    from_first & !past_last & !bytes & HIGHS
}

/// Sixteen bytes of text from some place, little-endian in two halves.
#[derive(Clone, Copy)]
pub struct Head {
    low: u64,
    high: u64,
}

impl Head {
    /// What stands in a window from a marked byte on.
    #[inline(always)]
    pub fn at(window: &Window, at: usize) -> Self {
        let mut bytes = [0; HEAD];
        bytes.copy_from_slice(&window[at..at + HEAD]);
        let all = u128::from_le_bytes(bytes);
        Self {
            low: all as u64,
            high: (all >> 64) as u64,
        }
    }
}

/// A word, and the sixteen bytes of text that it begins with.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    /// The word.
    pub bytes: &'a [u8],
    /// What stands at its beginning; may reach beyond its end.
    pub head: Head,
}

impl<'a> Word<'a> {
    /// A word that stands alone.
    pub fn new(bytes: &'a [u8]) -> Self {
        let head = Head::at(&padded(&bytes[..bytes.len().min(HEAD)]), 0);
        Self { bytes, head }
    }

    /// The key of a word of at most `MAX_SHORT` bytes; `Key::LONG` of all others.
    #[inline(always)]
    pub fn key(self) -> Key {
        let length = self.bytes.len();
        let Some(&(low, high)) = MASKS.get(length) else {
            return Key::LONG;
        };
        Key {
            low: self.head.low & low,
            high: (self.head.high & high) | ((length as u64) << 56),
        }
    }
}

/// The bytes of a word of up to fifteen bytes and, in the last byte, their number.
#[derive(Debug, Clone, Copy, Default)]
pub struct Key {
    low: u64,
    high: u64,
}

impl Key {
    /// No word has it.
    pub const LONG: Self = Self {
        low: 0,
        high: u64::MAX,
    };

    /// True when it is a word's.
    #[inline(always)]
    pub fn is_short(self) -> bool {
        self != Self::LONG
    }

    /// A number of 64 bits whose upper ones are well mixed.
    #[inline(always)]
    pub fn mixed(self) -> u64 {
        // Odd constants from the digits of the golden ratio and of the square root of three.
        self.low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.high.wrapping_mul(0xBB67_AE85_84CA_A73B)
    }

    /// Bytes and length.
    pub fn bytes(self) -> ([u8; 16], usize) {
        let all = u128::from(self.high) << 64 | u128::from(self.low);
        (all.to_le_bytes(), (self.high >> 56) as usize)
    }
}

impl PartialEq for Key {
    /// Both halves at once: a branch on the first would be guessed wrong half of the time.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        (self.low ^ other.low) | (self.high ^ other.high) == 0
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed());
    }
}

/// Ones where the bytes of a word of each length are.
const MASKS: [(u64, u64); MAX_SHORT + 1] = {
    let mut masks = [(0, 0); MAX_SHORT + 1];
    let mut length = 1;
    while length <= MAX_SHORT {
        let ones = u128::MAX >> (128 - 8 * length);
        masks[length] = (ones as u64, (ones >> 64) as u64);
        length += 1;
    }
    masks
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_where_words_do() {
        let long: Vec<u8> = (1..=20).collect();
        let key = |text: &[u8], length: usize| {
            let head = Head::at(&padded(text), 0);
            let bytes = &text[..length];
            Word { bytes, head }.key()
        };
        for length in 0..=MAX_SHORT {
            assert_eq!(key(&long, length), Word::new(&long[..length]).key());
            let (bytes, n) = key(&long, length).bytes();
            assert_eq!(&bytes[..n], &long[..length]);
        }
        assert_ne!(Word::new(b"a").key(), Word::new(b"a\0").key());
        assert_eq!(Word::new(&long[..16]).key(), Key::LONG);
    }
}
