//! A word of a text, and the 16-byte key by which short words are looked up.

use crate::window::Head;
use std::hash::{Hash, Hasher};

/// Bytes of the longest word with a unique key.
pub const MAX_SHORT: usize = 15;

/// A word of a text.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    text: &'a [u8],
    first: usize,
    end: usize,
    /// The bytes of the text from the start of the word.
    head: Head,
}

impl<'a> Word<'a> {
    /// A word that is the complete text.
    pub fn new(text: &'a [u8]) -> Self {
        Self::within(text, 0, text.len(), Head::of(text))
    }

    /// The word `text[first..end]`; `head` is what the text has from `first` on.
    #[inline(always)]
    pub fn within(text: &'a [u8], first: usize, end: usize, head: Head) -> Self {
        Self {
            text,
            first,
            end,
            head,
        }
    }

    /// Its start in the text.
    #[inline(always)]
    pub fn first(self) -> usize {
        self.first
    }

    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        &self.text[self.first..self.end]
    }

    /// Unique for a word of at most `MAX_SHORT` bytes; longer words of equal length share a key.
    #[inline(always)]
    pub fn key(self) -> Key {
        let length = self.end - self.first;
        match MASKS.get(length) {
            Some(mask) => Key(self.head.0 & mask | (length as u128) << LENGTH_SHIFT),
            None => Key::long(length),
        }
    }
}

/// For a word of up to fifteen bytes: its bytes and, in the last byte, their number. For a longer
/// word: its length in the lower half, all ones in the upper. Packed, so that a key and a count
/// take 24 bytes instead of 32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(Rust, packed(8))]
pub struct Key(u128);

impl Key {
    /// The key that longer words of this length share.
    #[inline(always)]
    const fn long(length: usize) -> Self {
        Self::from_halves(length as u64, u64::MAX)
    }

    /// True when the key identifies its word.
    #[inline(always)]
    pub fn is_short(self) -> bool {
        self.halves().1 != u64::MAX
    }

    /// The length of the word in bytes.
    #[inline(always)]
    pub fn length(self) -> usize {
        match self.is_short() {
            true => (self.0 >> LENGTH_SHIFT) as usize,
            false => self.0 as usize,
        }
    }

    /// Lower and upper half; the upper half is never 0, because it contains the length.
    #[inline(always)]
    pub fn halves(self) -> (u64, u64) {
        (self.0 as u64, (self.0 >> 64) as u64)
    }

    /// The key of these halves.
    #[inline(always)]
    pub const fn from_halves(low: u64, high: u64) -> Self {
        Self((high as u128) << 64 | low as u128)
    }

    /// A 64-bit hash whose upper bits are well mixed.
    #[inline(always)]
    pub fn hash64(self) -> u64 {
        let (low, high) = self.halves();
        // Odd constants from the digits of the golden ratio and of the square root of three.
        low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high.wrapping_mul(0xBB67_AE85_84CA_A73B)
    }

    /// Its bucket in a table of `number` buckets, a power of two above 1.
    #[inline(always)]
    pub fn bucket(self, number: usize) -> usize {
        (self.hash64() >> (number.leading_zeros() + 1)) as usize
    }

    /// The bytes of a short word, padded with zeros, and their number.
    pub fn bytes(self) -> ([u8; 16], usize) {
        debug_assert!(self.is_short());
        (self.0.to_le_bytes(), self.length())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash64());
    }
}

/// Bit position of a short word's length in its key: the last byte.
const LENGTH_SHIFT: u32 = u128::BITS - 8;

/// For each length a mask of a word's bytes.
const MASKS: [u128; MAX_SHORT + 1] = {
    let mut masks = [0; MAX_SHORT + 1];
    let mut length = 1;
    while length <= MAX_SHORT {
        masks[length] = u128::MAX >> (128 - 8 * length);
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
        let key = |text: &[u8], length: usize| Word::within(text, 0, length, Head::of(text)).key();
        for length in 0..=MAX_SHORT {
            assert_eq!(key(&long, length), Word::new(&long[..length]).key());
            let (bytes, n) = key(&long, length).bytes();
            assert_eq!(&bytes[..n], &long[..length]);
        }
        assert_ne!(Word::new(b"a").key(), Word::new(b"a\0").key());
        assert_eq!(Word::new(&long[..16]).key(), Key::long(16));
        assert_eq!(Word::new(&long[..16]).key().length(), 16);
    }
}
