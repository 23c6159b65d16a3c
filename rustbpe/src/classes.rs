//! Character classes of split patterns: letters, numbers, line breaks, white space and others.
//!
//! The tables come from the regex engine, so that the hand-written scanner and a regular expression
//! agree on every code point, whatever Unicode version the engine has.

use regex_syntax::hir::{Class as HirClass, HirKind};
use std::sync::LazyLock;

/// The class of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// None of the others: punctuation, marks, emoji, unassigned.
    Other,
    /// \p{L}
    Letter,
    /// \p{N}
    Number,
    /// \s without the line breaks below.
    Space,
    /// Carriage return or line feed.
    Newline,
}

const BLOCK: usize = 256;
const NUM_BLOCKS: usize = 0x11_0000 / BLOCK;

/// The class of every code point, in blocks; equal blocks are stored once.
pub struct Classes {
    numbers: Vec<u16>,
    blocks: Vec<[Class; BLOCK]>,
}

/// The table, computed on first use.
pub static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);

impl Classes {
    fn new() -> Self {
        let mut flat = vec![Class::Other; NUM_BLOCKS * BLOCK];
        for (pattern, class) in [
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"\s", Class::Space),
            (r"[\r\n]", Class::Newline),
        ] {
            for (first, last) in ranges(pattern) {
                flat[first..=last].fill(class);
            }
        }
        let mut table = Self {
            numbers: Vec::with_capacity(NUM_BLOCKS),
            blocks: Vec::new(),
        };
        for block in flat.chunks_exact(BLOCK) {
            let same = table.blocks.iter().position(|known| known == block);
            let number = same.unwrap_or_else(|| {
                let mut new = [Class::Other; BLOCK];
                new.copy_from_slice(block);
                table.blocks.push(new);
                table.blocks.len() - 1
            });
            table.numbers.push(number as u16);
        }
        table
    }

    /// Class and length in bytes of the character at `at` in UTF-8 text.
    #[inline(always)]
    pub fn at(&self, text: &[u8], at: usize) -> (Class, usize) {
        let first = text[at];
        if first < 0x80 {
            return (self.blocks[0][first as usize], 1);
        }
        let (code, length) = decode(text, at);
        let block = self.numbers[code / BLOCK] as usize;
        (self.blocks[block][code % BLOCK], length)
    }
}

/// Code point and length of the multi-byte character at `at`.
#[inline(always)]
fn decode(text: &[u8], at: usize) -> (usize, usize) {
    let low = |offset: usize| (text[at + offset] & 0x3F) as usize;
    let first = text[at] as usize;
    match first {
        0..0xE0 => ((first & 0x1F) << 6 | low(1), 2),
        0xE0..0xF0 => ((first & 0x0F) << 12 | low(1) << 6 | low(2), 3),
        _ => (
            (first & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3),
            4,
        ),
    }
}

/// The code point ranges of a character class; none for a pattern that is not a class.
fn ranges(pattern: &str) -> Vec<(usize, usize)> {
    let kind = regex_syntax::parse(pattern).map(|hir| hir.into_kind());
    let Ok(HirKind::Class(HirClass::Unicode(class))) = kind else {
        return Vec::new();
    };
    let ends = class.iter();
    ends.map(|range| (range.start() as usize, range.end() as usize))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    #[test]
    fn every_code_point_has_the_class_of_the_regex_engine() {
        let engine = [
            (Regex::new(r"^\p{L}").unwrap(), Class::Letter),
            (Regex::new(r"^\p{N}").unwrap(), Class::Number),
            (Regex::new(r"^[\r\n]").unwrap(), Class::Newline),
            (Regex::new(r"^\s").unwrap(), Class::Space),
        ];
        // All planes in use, and a sample of the empty ones.
        let (used, empty) = ('\0'..='\u{3FFFF}', '\u{40000}'..=char::MAX);
        for letter in used.chain(empty.step_by(97)) {
            let text = letter.to_string();
            let found = engine
                .iter()
                .find(|(regex, _)| regex.is_match(&text).unwrap());
            let expected = found.map_or(Class::Other, |&(_, class)| class);
            let is = CLASSES.at(text.as_bytes(), 0);
            assert_eq!(is, (expected, letter.len_utf8()), "{letter:?}");
        }
    }
}
