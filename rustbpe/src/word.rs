//! A word of a text, and the key of sixteen bytes under which short words are looked up.

use std::hash::{Hash, Hasher};

/// Bytes of the longest word that has a key.
pub const MAX_SHORT: usize = 15;

/// The first sixteen bytes from some place, zeros behind the end, little-endian in two halves.
#[derive(Clone, Copy)]
pub struct Head {
    low: u64,
    high: u64,
}

impl Head {
    /// Read from `at`.
    #[inline(always)]
    pub fn read(text: &[u8], at: usize) -> Self {
        let rest = &text[at..];
        match rest.first_chunk() {
            Some(bytes) => Self::new(bytes),
            None => Self::padded(rest),
        }
    }

    #[inline(always)]
    fn new(bytes: &[u8; 16]) -> Self {
        let all = u128::from_le_bytes(*bytes);
        Self {
            low: all as u64,
            high: (all >> 64) as u64,
        }
    }

    #[cold]
    fn padded(rest: &[u8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..rest.len()].copy_from_slice(rest);
        Self::new(&bytes)
    }

    /// The first byte.
    #[inline(always)]
    pub fn first(self) -> u8 {
        self.low as u8
    }

    /// How many bytes, whatever the first one is, ASCII letters go on for, 16 when all do; and
    /// whether the byte behind them is ASCII, or none of the sixteen.
    #[inline(always)]
    pub fn run_of_letters(self) -> (usize, bool) {
        let others = u128::from(not_letters(self.high)) << 64 | u128::from(not_letters(self.low));
        let length = (others & !0xFF).trailing_zeros() as usize / 8;
        let all = u128::from(self.high) << 64 | u128::from(self.low);
        let is_ascii = length == 16 || all >> (8 * length) & 0x80 == 0;
        (length, is_ascii)
    }
}

/// The high bit of each byte that is not an ASCII letter.
#[inline(always)]
fn not_letters(bytes: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x80 * ONES;
    let folded = (bytes | (0x20 * ONES)) & !HIGH_BITS;
    let from_a = folded + (0x80 - b'a' as u64) * ONES;
    let past_z = folded + (0x7F - b'z' as u64) * ONES;
    (!from_a | past_z | bytes) & HIGH_BITS
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
        let head = Head::read(bytes, 0);
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
    fn a_run_ends_at_the_first_byte_that_is_no_letter() {
        for byte in 0..=u8::MAX {
            for length in 1..16 {
                let mut text = vec![b'Q'; 16];
                text[length] = byte;
                let run = Head::read(&text, 0).run_of_letters();
                let expected = match byte.is_ascii_alphabetic() {
                    true => (16, true),
                    false => (length, byte < 0x80),
                };
                assert_eq!(run, expected, "{byte} at {length}");
            }
        }
    }

    #[test]
    fn what_stands_first_and_behind_the_end_does_not_count() {
        assert_eq!(Head::read(b" word", 0).run_of_letters(), (5, true));
        assert_eq!(Head::read(b"\xFF", 0).run_of_letters(), (1, true));
    }

    #[test]
    fn keys_differ_where_words_do() {
        let long: Vec<u8> = (1..=20).collect();
        let key = |text: &[u8], length: usize| {
            let head = Head::read(text, 0);
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
