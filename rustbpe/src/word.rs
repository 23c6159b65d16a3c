//! A word of a text, and the key of sixteen bytes under which short words are looked up.

use crate::window::eight;
use std::hash::{Hash, Hasher};

/// Bytes of the longest word that has a key.
pub const MAX_SHORT: usize = 15;

/// Sixteen bytes of text from some place, little-endian in two halves.
#[derive(Clone, Copy)]
struct Head {
    low: u64,
    high: u64,
}

impl Head {
    const LENGTH: usize = 16;

    /// What a text begins with; zeros behind its end.
    #[inline(always)]
    fn of(text: &[u8]) -> Self {
        match text.first_chunk() {
            Some(bytes) => Self::whole(bytes),
            None => Self::padded(text),
        }
    }

    #[inline(always)]
    fn whole(bytes: &[u8; Self::LENGTH]) -> Self {
        Self {
            low: eight(bytes),
            high: eight(&bytes[8..]),
        }
    }

    #[cold]
    fn padded(text: &[u8]) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[..text.len()].copy_from_slice(text);
        Self::whole(&bytes)
    }
}

/// A word, and the sixteen bytes of text that it begins with.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    /// The word.
    pub bytes: &'a [u8],
    /// What stands at its beginning; may reach beyond its end.
    head: Head,
}

impl<'a> Word<'a> {
    /// A word that stands alone.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::within(bytes, 0, bytes.len())
    }

    /// One that stands in a text.
    #[inline(always)]
    pub fn within(text: &'a [u8], first: usize, end: usize) -> Self {
        Self {
            bytes: &text[first..end],
            head: Head::of(&text[first..]),
        }
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

    /// Lower and upper half; the upper one of a word is never 0.
    #[inline(always)]
    pub fn halves(self) -> (u64, u64) {
        (self.low, self.high)
    }

    /// The key of these halves.
    #[inline(always)]
    pub fn from_halves(low: u64, high: u64) -> Self {
        Self { low, high }
    }

    /// A number of 64 bits whose upper ones are well mixed.
    #[inline(always)]
    pub fn mixed(self) -> u64 {
        // Odd constants from the digits of the golden ratio and of the square root of three.
        self.low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ self.high.wrapping_mul(0xBB67_AE85_84CA_A73B)
    }

    /// Which of `number` places, a power of two above 1, it has in a table.
    #[inline(always)]
    pub fn place(self, number: usize) -> usize {
        (self.mixed() >> (number.leading_zeros() + 1)) as usize
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
        let key = |text: &[u8], length: usize| Word::within(text, 0, length).key();
        for length in 0..=MAX_SHORT {
            assert_eq!(key(&long, length), Word::new(&long[..length]).key());
            let (bytes, n) = key(&long, length).bytes();
            assert_eq!(&bytes[..n], &long[..length]);
        }
        assert_ne!(Word::new(b"a").key(), Word::new(b"a\0").key());
        assert_eq!(Word::new(&long[..16]).key(), Key::LONG);
    }
}
