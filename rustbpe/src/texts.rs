//! Texts on their way to the threads that work on them.

use crate::error::Error;
use std::ops::BitOr;

/// Some texts that follow one another.
pub trait Texts: Send {
    /// Give `take` each of them, in order. Fails when one is not UTF-8, and when `take` does.
    fn each(&self, take: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error>;
}

impl Texts for Vec<String> {
    fn each(&self, mut take: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        self.iter().try_for_each(|text| take(text))
    }
}

/// A text as Python keeps it: code points in units of one, two or four bytes, or UTF-8.
#[derive(Debug, Clone, Copy)]
pub enum Units<'a> {
    /// The first 256 code points.
    One(&'a [u8]),
    /// The first 65,536, surrogates among them.
    Two(&'a [u16]),
    /// All.
    Four(&'a [u32]),
    /// Bytes of valid UTF-8.
    Utf8(&'a [u8]),
}

impl<'a> Units<'a> {
    /// How many there are.
    pub fn number(self) -> usize {
        match self {
            Self::One(units) | Self::Utf8(units) => units.len(),
            Self::Two(units) => units.len(),
            Self::Four(units) => units.len(),
        }
    }

    /// The text; where it does not stand in memory as it is, it is written into `room`. Two
    /// surrogates that are one character become it; a lone one, which is no text, becomes U+FFFD.
    pub fn text(self, room: &'a mut Vec<u8>) -> &'a str {
        room.clear();
        let bytes = match self {
            Self::One(units) if units.is_ascii() => units,
            Self::One(units) => written(units, room),
            Self::Two(units) => written(units, room),
            Self::Four(units) => written(units, room),
            Self::Utf8(units) => units,
        };
        // To look at every byte again takes as long as to write it.
        // SAFETY: bytes of ASCII or UTF-8, and what characters are encoded to.
        unsafe { std::str::from_utf8_unchecked(bytes) }
    }
}

/// What a text is kept in.
trait Unit: Copy + Into<u32> + BitOr<Output = Self> {}

impl<U: Copy + Into<u32> + BitOr<Output = U>> Unit for U {}

/// Units that are looked at together: most stand for ASCII.
const BLOCK: usize = 16;

fn written<'a, U: Unit>(units: &[U], room: &'a mut Vec<u8>) -> &'a [u8] {
    room.reserve(units.len());
    let mut rest = units;
    while !rest.is_empty() {
        let mut done = 0;
        match rest.first_chunk().and_then(ascii) {
            Some(bytes) => {
                room.extend_from_slice(&bytes);
                done = BLOCK;
            }
            None => {
                done += add_ascii(rest, room);
                done += add_others(&rest[done..], room);
            }
        }
        rest = &rest[done..];
    }
    room
}

/// The bytes of a block that is ASCII.
#[inline(always)]
fn ascii<U: Unit>(block: &[U; BLOCK]) -> Option<[u8; BLOCK]> {
    let all = block[1..].iter().fold(block[0], |all, &unit| all | unit);
    (all.into() < 0x80).then(|| block.map(|unit| unit.into() as u8))
}

/// Add the ASCII that units begin with; gives how many are its.
fn add_ascii<U: Unit>(units: &[U], room: &mut Vec<u8>) -> usize {
    let length = room.len();
    let codes = units.iter().map(|&unit| unit.into());
    room.extend(codes.take_while(|&code| code < 0x80).map(|code| code as u8));
    room.len() - length
}

/// Add the letters beyond ASCII that units begin with; gives how many are theirs.
fn add_others<U: Unit>(units: &[U], room: &mut Vec<u8>) -> usize {
    let mut done = 0;
    while done < units.len() && units[done].into() >= 0x80 {
        let (letter, length) = first_letter(&units[done..]);
        room.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
        done += length;
    }
    done
}

/// The character that units begin with, and how many are its.
#[inline(always)]
fn first_letter<U: Unit>(units: &[U]) -> (char, usize) {
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

    fn written(units: Units) -> String {
        units.text(&mut b"of another text".to_vec()).to_string()
    }

    #[test]
    fn texts_come_out_of_units_of_any_width() {
        let ascii = "more than one block of ASCII letters, and some more";
        for text in ["", "ab", ascii, "é", &format!("{ascii}é{ascii}é")] {
            let codes: Vec<u32> = text.chars().map(u32::from).collect();
            let two: Vec<u16> = text.encode_utf16().collect();
            let one: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
            for units in [Units::One(&one), Units::Two(&two), Units::Four(&codes)] {
                assert_eq!(written(units), text);
            }
        }
        for place in 0..40 {
            let text = format!("{}é日🙂{}", "a".repeat(place), "b".repeat(40 - place));
            let codes: Vec<u32> = text.chars().map(u32::from).collect();
            let pairs: Vec<u16> = text.encode_utf16().collect();
            assert_eq!(written(Units::Four(&codes)), text);
            assert_eq!(written(Units::Two(&pairs)), text);
        }
    }

    #[test]
    fn surrogates_are_mended() {
        let codes = [0xD83D, 0xDE42, 0xDC00, 0xD800, 0x61, 0xD800];
        let expected = "🙂\u{FFFD}\u{FFFD}a\u{FFFD}";
        assert_eq!(written(Units::Two(&codes)), expected);
        assert_eq!(written(Units::Four(&codes.map(u32::from))), expected);
        // A pair on both sides of the end of a block.
        let mut codes = [0x61; 2 * BLOCK];
        (codes[BLOCK - 1], codes[BLOCK]) = (0xDBFF, 0xDFFF);
        let letters = "a".repeat(BLOCK - 1);
        let expected = format!("{letters}\u{10FFFF}{letters}");
        assert_eq!(written(Units::Two(&codes)), expected);
    }
}
