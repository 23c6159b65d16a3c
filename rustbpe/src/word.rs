//! A word of a text, and the key of sixteen bytes under which short words are looked up.

use crate::window::Head;
use std::hash::{Hash, Hasher};

/// Bytes of the longest word that has a key.
pub const MAX_SHORT: usize = 15;

/// A word of a text.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    text: &'a [u8],
    first: usize,
    end: usize,
    /// What the text has where the word begins.
    head: Head,
}

impl<'a> Word<'a> {
    /// A word that stands alone.
    pub fn new(text: &'a [u8]) -> Self {
        Self::within(text, 0, text.len(), Head::of(text))
    }

    /// One that stands in a text, which has `head` where the word begins.
    #[inline(always)]
    pub fn within(text: &'a [u8], first: usize, end: usize, head: Head) -> Self {
        Self {
            text,
            first,
            end,
            head,
        }
    }

    /// Where it begins.
    #[inline(always)]
    pub fn first(self) -> usize {
        self.first
    }

    /// Its bytes.
    pub fn bytes(self) -> &'a [u8] {
        &self.text[self.first..self.end]
    }

    /// The key of a word of at most `MAX_SHORT` bytes; of a longer one what all of its length have.
    #[inline(always)]
    pub fn key(self) -> Key {
        let length = self.end - self.first;
        match MASKS.get(length) {
            Some(mask) => Key(self.head.0 & mask | (length as u128) << LENGTH_AT),
            None => Key::long(length),
        }
    }
}

/// The bytes of a word of up to fifteen bytes and, in the last byte, their number. Of a longer word
/// its length, and ones above. Packed, so that a key and a count take 24 bytes and not 32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(Rust, packed(8))]
pub struct Key(u128);

impl Key {
    /// What all longer words of a length have.
    #[inline(always)]
    const fn long(length: usize) -> Self {
        Self::from_halves(length as u64, u64::MAX)
    }

    /// True when only one word has it.
    #[inline(always)]
    pub fn is_short(self) -> bool {
        self.halves().1 != u64::MAX
    }

    /// Bytes of the word.
    #[inline(always)]
    pub fn length(self) -> usize {
        match self.is_short() {
            true => (self.0 >> LENGTH_AT) as usize,
            false => self.0 as usize,
        }
    }

    /// Lower and upper half; the upper one of a word is never 0.
    #[inline(always)]
    pub fn halves(self) -> (u64, u64) {
        (self.0 as u64, (self.0 >> 64) as u64)
    }

    /// The key of these halves.
    #[inline(always)]
    pub const fn from_halves(low: u64, high: u64) -> Self {
        Self((high as u128) << 64 | low as u128)
    }

    /// A number of 64 bits whose upper ones are well mixed.
    #[inline(always)]
    pub fn mixed(self) -> u64 {
        let (low, high) = self.halves();
        // Odd constants from the digits of the golden ratio and of the square root of three.
        low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high.wrapping_mul(0xBB67_AE85_84CA_A73B)
    }

    /// Which of `number` places, a power of two above 1, it has in a table.
    #[inline(always)]
    pub fn place(self, number: usize) -> usize {
        (self.mixed() >> (number.leading_zeros() + 1)) as usize
    }

    /// The bytes of a short word, and behind them no others.
    pub fn bytes(self) -> ([u8; 16], usize) {
        debug_assert!(self.is_short());
        (self.0.to_le_bytes(), self.length())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed());
    }
}

/// Where the length of a short word stands in its key: in the last byte.
const LENGTH_AT: u32 = u128::BITS - 8;

/// Ones where the bytes of a word of each length are.
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
