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

/// A bit for each marked byte: whether it is an ASCII letter.
#[inline(always)]
pub fn letters(window: &Window) -> u64 {
    let mut letters = 0;
    for (at, bytes) in window[..MARKED].chunks_exact(8).enumerate() {
        let bytes = u64::from_le_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
        ]);
        // The product moves the lowest bits of the eight bytes together into the highest byte.
        let bits = (are_letters(bytes) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        letters |= bits << (8 * at);
    }
    letters
}

/// The high bit of each byte that is an ASCII letter.
#[inline(always)]
fn are_letters(bytes: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH_BITS: u64 = 0x80 * ONES;
    let folded = (bytes | (0x20 * ONES)) & !HIGH_BITS;
    let from_a = folded + (0x80 - b'a' as u64) * ONES;
    let past_z = folded + (0x7F - b'z' as u64) * ONES;
    from_a & !past_z & !bytes & HIGH_BITS
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
    fn letters_are_marked() {
        for byte in 0..=u8::MAX {
            for at in 0..MARKED {
                let mut window = padded(&[b'!'; MARKED]);
                window[at] = byte;
                let expected = u64::from(byte.is_ascii_alphabetic()) << at;
                assert_eq!(letters(&window), expected, "{byte} at {at}");
            }
        }
    }

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
