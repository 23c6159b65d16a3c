//! Texts that are handed to worker threads, and conversion of Python's strings to UTF-8.

use crate::error::Error;
use std::ops::BitOr;

/// A chunk of consecutive texts.
pub trait Texts: Send {
    /// Call `visit` with each text, in order. Fails when a text is not UTF-8 or `visit` fails.
    fn for_each(&self, visit: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error>;
}

impl Texts for Vec<String> {
    fn for_each(&self, mut visit: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        self.iter().try_for_each(|text| visit(text))
    }
}

/// A text as Python stores it: code points in units of one, two or four bytes, or UTF-8.
#[derive(Debug, Clone, Copy)]
pub enum Units<'a> {
    /// Code points below 256.
    One(&'a [u8]),
    /// Code points below 65,536, surrogates included.
    Two(&'a [u16]),
    /// All code points.
    Four(&'a [u32]),
    /// Bytes of valid UTF-8.
    Utf8(&'a [u8]),
}

impl<'a> Units<'a> {
    /// Number of units.
    pub fn number(self) -> usize {
        match self {
            Self::One(units) | Self::Utf8(units) => units.len(),
            Self::Two(units) => units.len(),
            Self::Four(units) => units.len(),
        }
    }

    /// The text as UTF-8, converted into `buffer` unless it is UTF-8 in memory already. A surrogate
    /// pair becomes its character, a lone surrogate U+FFFD.
    pub fn text(self, buffer: &'a mut Vec<u8>) -> &'a str {
        buffer.clear();
        let bytes = match self {
            Self::One(units) if units.is_ascii() => units,
            Self::One(units) => to_utf8(units, buffer),
            Self::Two(units) => to_utf8(units, buffer),
            Self::Four(units) => to_utf8(units, buffer),
            Self::Utf8(units) => units,
        };
        // Unchecked, because validation would take as long as the conversion.
        // SAFETY: ASCII, UTF-8, or the encoding of `char`s.
        unsafe { std::str::from_utf8_unchecked(bytes) }
    }
}

/// A unit of one, two or four bytes.
trait Unit: Copy + Into<u32> + BitOr<Output = Self> {}

impl<U: Copy + Into<u32> + BitOr<Output = U>> Unit for U {}

/// Units that are tested together: most blocks are ASCII.
const BLOCK: usize = 16;

fn to_utf8<'a, U: Unit>(units: &[U], buffer: &'a mut Vec<u8>) -> &'a [u8] {
    buffer.reserve(units.len());
    let mut rest = units;
    while !rest.is_empty() {
        let mut done = 0;
        match rest.first_chunk().and_then(ascii) {
            Some(bytes) => {
                buffer.extend_from_slice(&bytes);
                done = BLOCK;
            }
            None => {
                done += push_ascii(rest, buffer);
                done += push_non_ascii(&rest[done..], buffer);
            }
        }
        rest = &rest[done..];
    }
    buffer
}

/// The bytes of a block; None unless all of it is ASCII.
#[inline(always)]
fn ascii<U: Unit>(block: &[U; BLOCK]) -> Option<[u8; BLOCK]> {
    let all = block[1..].iter().fold(block[0], |all, &unit| all | unit);
    (all.into() < 0x80).then(|| block.map(|unit| unit.into() as u8))
}

/// Append the leading ASCII of some units; returns the number of units.
fn push_ascii<U: Unit>(units: &[U], buffer: &mut Vec<u8>) -> usize {
    let length = buffer.len();
    let codes = units.iter().map(|&unit| unit.into());
    buffer.extend(codes.take_while(|&code| code < 0x80).map(|code| code as u8));
    buffer.len() - length
}

/// Append the leading non-ASCII characters; returns the number of units.
fn push_non_ascii<U: Unit>(units: &[U], buffer: &mut Vec<u8>) -> usize {
    let mut done = 0;
    while done < units.len() && units[done].into() >= 0x80 {
        let (letter, length) = first_char(&units[done..]);
        buffer.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        done += length;
    }
    done
}

/// The first character and its number of units.
#[inline(always)]
fn first_char<U: Unit>(units: &[U]) -> (char, usize) {
    let code = units[0].into();
    if let Some(letter) = char::from_u32(code) {
        return (letter, 1);
    }
    let next = units.get(1).map_or(0, |&unit| unit.into());
    if code < 0xDC00 && (0xDC00..0xE000).contains(&next) {
        let code = 0x1_0000 + ((code - 0xD800) << 10 | (next - 0xDC00));
        if let Some(letter) = char::from_u32(code) {
            return (letter, 2);
        }
    }
    (char::REPLACEMENT_CHARACTER, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_utf8(units: Units) -> String {
        units.text(&mut b"of another text".to_vec()).to_string()
    }

    #[test]
    fn units_of_any_width_give_the_text() {
        let ascii = "more than one block of ASCII letters, and some more";
        for text in ["", "ab", ascii, "é", &format!("{ascii}é{ascii}é")] {
            let codes: Vec<u32> = text.chars().map(u32::from).collect();
            let two: Vec<u16> = text.encode_utf16().collect();
            let one: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
            for units in [Units::One(&one), Units::Two(&two), Units::Four(&codes)] {
                assert_eq!(to_utf8(units), text);
            }
        }
        for place in 0..40 {
            let text = format!("{}é日🙂{}", "a".repeat(place), "b".repeat(40 - place));
            let codes: Vec<u32> = text.chars().map(u32::from).collect();
            let pairs: Vec<u16> = text.encode_utf16().collect();
            assert_eq!(to_utf8(Units::Four(&codes)), text);
            assert_eq!(to_utf8(Units::Two(&pairs)), text);
        }
    }

    #[test]
    fn surrogate_pairs_are_joined_and_lone_ones_replaced() {
        let codes = [0xD83D, 0xDE42, 0xDC00, 0xD800, 0x61, 0xD800];
        let expected = "🙂\u{FFFD}\u{FFFD}a\u{FFFD}";
        assert_eq!(to_utf8(Units::Two(&codes)), expected);
        assert_eq!(to_utf8(Units::Four(&codes.map(u32::from))), expected);
        // A pair across the end of a block.
        let mut codes = [0x61; 2 * BLOCK];
        (codes[BLOCK - 1], codes[BLOCK]) = (0xDBFF, 0xDFFF);
        let letters = "a".repeat(BLOCK - 1);
        let expected = format!("{letters}\u{10FFFF}{letters}");
        assert_eq!(to_utf8(Units::Two(&codes)), expected);
    }
}
