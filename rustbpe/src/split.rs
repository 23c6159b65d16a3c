//! Cutting text into words that merges never cross.
//!
//! The patterns of GPT-2, of GPT-4 and ours are scanned by hand, with the results of the regular
//! expression; any other pattern is left to the regex engine.

use crate::classes::{Class, Classes, CLASSES};
use crate::error::Error;
use crate::window::{padded, Kinds, Window, MARKED};
use crate::word::Word;
use fancy_regex::Regex;

/// GPT-4's pattern with numbers cut to at most two digits.
pub const DEFAULT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// Other spellings that are scanned by hand.
const KNOWN_PATTERNS: [(&str, Rules); 5] = [
    (DEFAULT_PATTERN, Rules::gpt4(2, false)),
    (
        concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
        Rules::gpt4(3, false),
    ),
    (
        concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|",
            r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        ),
        Rules::gpt4(3, true),
    ),
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        Rules::GPT2,
    ),
    (
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        Rules::GPT2,
    ),
];

/// Wherein the known patterns differ.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// 'S is a contraction as 's is, and any sign but a line break may lead a run of letters; else
    /// only a space may, and it may lead numbers as well.
    like_gpt4: bool,
    /// Digits of a number at most.
    max_digits: usize,
    /// White space at the very end is one word even where line breaks are in it.
    end_in_one: bool,
}

impl Rules {
    const GPT2: Self = Self {
        like_gpt4: false,
        max_digits: usize::MAX,
        end_in_one: true,
    };

    const fn gpt4(max_digits: usize, end_in_one: bool) -> Self {
        Self {
            like_gpt4: true,
            max_digits,
            end_in_one,
        }
    }
}

/// A compiled split pattern.
pub struct Splitter(Kind);

enum Kind {
    Scanner(Box<Scanner>),
    Regex(Box<Regex>),
}

impl Splitter {
    /// Compile a pattern.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let known = KNOWN_PATTERNS.iter().find(|(text, _)| *text == pattern);
        match known {
            Some(&(_, rules)) => Ok(Self(Kind::Scanner(Box::new(Scanner::new(rules))))),
            None => Self::by_regex(pattern),
        }
    }

    /// Compile a pattern for the regex engine, known or not.
    pub fn by_regex(pattern: &str) -> Result<Self, Error> {
        match Regex::new(pattern) {
            Ok(regex) => Ok(Self(Kind::Regex(Box::new(regex)))),
            Err(error) => Err(Error::Pattern(error.to_string())),
        }
    }

    /// Give `taker` each word of a text, in order; what the pattern skips is left out.
    #[inline(always)]
    pub fn split<'a>(&self, text: &'a str, taker: &mut impl Taker<'a>) -> Result<(), Error> {
        match &self.0 {
            Kind::Scanner(scanner) => scanner.split(text.as_bytes(), taker),
            Kind::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| Error::Split(error.to_string()))?;
                    if !found.as_str().is_empty() {
                        taker.take(Word::new(found.as_str().as_bytes()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whoever takes the words. A trait and no closure, since what is done with a word has to be
/// compiled into the loop that finds it.
pub trait Taker<'a> {
    /// Take the next word.
    fn take(&mut self, word: Word<'a>);
}

/// Bytes before a byte that have a say in whether a word begins with it: as many as digits before
/// one too many. Behind it one byte has.
const NEIGHBOURS: usize = 3;
/// The last byte of a window.
const LAST: usize = MARKED - 1;

/// A bit for each byte of a window.
struct Marks {
    /// A word begins with it, if no byte before it that is unclear has a say in that.
    starts: u64,
    /// Anything but printable ASCII and plain line breaks, an apostrophe, a digit of many.
    unclear: u64,
}

struct Scanner {
    rules: Rules,
    classes: &'static Classes,
}

impl Scanner {
    fn new(rules: Rules) -> Self {
        let classes = &CLASSES;
        Self { rules, classes }
    }

    /// Windows follow one another with some bytes in common and do not wait for what the last one
    /// gave, unless a word reaches beyond it.
    #[inline(always)]
    fn split<'a>(&self, text: &'a [u8], taker: &mut impl Taker<'a>) {
        let (mut at, mut first, mut num_seen) = (0, 0, 0);
        while at < text.len() {
            let mut marks = match text[first..].first_chunk() {
                Some(window) => self.marks(window),
                None => self.marks(&padded(&text[first..])),
            };
            // With its first byte the word at hand begins; of its last one the next is not seen.
            marks.starts &= !0 << num_seen & !1 & !(1 << LAST);
            marks.unclear &= !0 << num_seen;
            at = self.split_window(text, at, first, marks, taker);
            (first, num_seen) = match at < first + LAST {
                true => (first + LAST - NEIGHBOURS, NEIGHBOURS),
                false => (at, 0),
            };
        }
    }

    /// Take the words that end in the window at `first`; the one at hand begins at `at`. Gives where
    /// the next one begins.
    #[inline(always)]
    fn split_window<'a>(
        &self,
        text: &'a [u8],
        mut at: usize,
        first: usize,
        Marks {
            mut starts,
            mut unclear,
        }: Marks,
        taker: &mut impl Taker<'a>,
    ) -> usize {
        loop {
            // What stands before the first unclear byte may belong to its word.
            let clear = (unclear & unclear.wrapping_neg()).wrapping_sub(1) >> 1;
            let mut ends = starts & clear;
            while ends != 0 {
                let end = first + ends.trailing_zeros() as usize;
                ends &= ends - 1;
                taker.take(Word::within(text, at, end));
                at = end;
            }
            if unclear == 0 {
                return at;
            }
            let first_unclear = first + unclear.trailing_zeros() as usize;
            while at <= first_unclear && at < text.len() {
                let end = self.end(text, at);
                taker.take(Word::within(text, at, end));
                at = end;
            }
            if at >= text.len().min(first + LAST) {
                return at;
            }
            starts &= !1 << (at - first);
            unclear &= !0 << (at - first);
        }
    }

    /// Where words begin in a window, as the bytes around each byte tell. All at once, since a guess
    /// at what the next word is would be wrong too often.
    #[inline(always)]
    fn marks(&self, window: &Window) -> Marks {
        let Kinds {
            letters,
            digits,
            spaces,
            newlines,
            mut unclear,
        } = Kinds::of(window);
        let signs = !(letters | digits | spaces | newlines | unclear);
        let behind_space = spaces << 1;
        let first_signs = signs & !(signs << 1 | behind_space);
        let first_letters = letters & !(letters << 1 | behind_space);
        let first_digits = digits & !(digits << 1);
        // All spaces but the last one are one word; the last one leads what follows.
        let first_spaces = spaces & !(behind_space & spaces >> 1);
        let mut starts = first_signs | first_spaces;
        if self.rules.like_gpt4 {
            let mut too_many = digits;
            for _ in 0..self.rules.max_digits {
                too_many &= too_many << 1;
            }
            // Line breaks belong to the signs before them, and are one word with spaces.
            unclear |= too_many | newlines & (behind_space | spaces >> 1);
            starts |= newlines & !(newlines << 1 | signs << 1);
            starts |= first_letters & !(first_signs << 1) | first_digits;
        } else {
            unclear |= newlines;
            starts |= first_letters | first_digits & !behind_space;
        }
        Marks { starts, unclear }
    }

    /// The end of the word that begins at `at`.
    fn end(&self, text: &[u8], at: usize) -> usize {
        let (class, length) = self.classes.at(text, at);
        let next = at + length;
        if text[at] == b'\'' {
            let length = self.contraction(&text[next..]);
            if length > 0 {
                return next + length;
            }
        }
        match class {
            Class::Letter => self.run(text, next, Class::Letter),
            Class::Number => self.numbers(text, at),
            Class::Newline => self.white(text, at),
            Class::Space | Class::Other => self.behind_prefix(text, at, next, class),
        }
    }

    /// The same where a sign or white space begins it, which may be the prefix of something else.
    fn behind_prefix(&self, text: &[u8], at: usize, next: usize, class: Class) -> usize {
        let is_space = text[at] == b' ';
        let follows = if next < text.len() {
            self.classes.at(text, next).0
        } else {
            Class::Newline
        };
        match (class, follows) {
            (_, Class::Letter) if self.rules.like_gpt4 || is_space => {
                self.run(text, next, Class::Letter)
            }
            (_, Class::Number) if !self.rules.like_gpt4 && is_space => self.numbers(text, next),
            (Class::Other, _) => self.signs(text, next),
            (_, Class::Other) if is_space => self.signs(text, next),
            _ => self.white(text, at),
        }
    }

    /// Bytes behind an apostrophe that belong to a contraction; 0 when it is none.
    fn contraction(&self, rest: &[u8]) -> usize {
        let fold = |byte: Option<&u8>| match byte {
            Some(byte) if self.rules.like_gpt4 => byte.to_ascii_lowercase(),
            Some(byte) => *byte,
            None => 0,
        };
        match (fold(rest.first()), fold(rest.get(1))) {
            (b's' | b'd' | b'm' | b't', _) => 1,
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => 2,
            // The long s, which is an s when case does not matter.
            _ if self.rules.like_gpt4 && rest.starts_with("\u{17F}".as_bytes()) => 2,
            _ => 0,
        }
    }

    /// The end of a run of one class.
    fn run(&self, text: &[u8], mut at: usize, class: Class) -> usize {
        while at < text.len() {
            let (found, length) = self.classes.at(text, at);
            if found != class {
                break;
            }
            at += length;
        }
        at
    }

    fn numbers(&self, text: &[u8], mut at: usize) -> usize {
        for _ in 0..self.rules.max_digits {
            if at >= text.len() {
                break;
            }
            let (class, length) = self.classes.at(text, at);
            if class != Class::Number {
                break;
            }
            at += length;
        }
        at
    }

    /// The end of a run of signs and, in GPT-4's manner, the line breaks behind it.
    fn signs(&self, text: &[u8], at: usize) -> usize {
        let end = self.run(text, at, Class::Other);
        if self.rules.like_gpt4 {
            self.run(text, end, Class::Newline)
        } else {
            end
        }
    }

    /// The end of a word of white space: behind its last line break, else before its last
    /// character when something follows, which then gets that one as its prefix.
    fn white(&self, text: &[u8], at: usize) -> usize {
        let (mut end, mut last, mut behind_newline) = (at, at, 0);
        while end < text.len() {
            let (class, length) = self.classes.at(text, end);
            if class != Class::Space && class != Class::Newline {
                break;
            }
            last = end;
            end += length;
            if class == Class::Newline {
                behind_newline = end;
            }
        }
        let is_last = end == text.len();
        if self.rules.like_gpt4 && behind_newline > 0 && !(is_last && self.rules.end_in_one) {
            behind_newline
        } else if is_last || last == at {
            end
        } else {
            last
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: &str, text: &str) -> Vec<String> {
        cut(&Splitter::new(pattern).unwrap(), text)
    }

    struct Cut(Vec<String>);

    impl Taker<'_> for Cut {
        fn take(&mut self, word: Word) {
            self.0.push(String::from_utf8(word.bytes.to_vec()).unwrap());
        }
    }

    fn cut(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut cut = Cut(Vec::new());
        splitter.split(text, &mut cut).unwrap();
        cut.0
    }

    #[test]
    fn numbers_are_cut_to_two_digits() {
        assert_eq!(
            words(DEFAULT_PATTERN, "in 12345"),
            ["in", " ", "12", "34", "5"]
        );
    }

    #[test]
    fn contractions_stand_apart() {
        assert_eq!(
            words(DEFAULT_PATTERN, "I'll, DON'T"),
            ["I", "'ll", ",", " DON", "'T"]
        );
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        assert!(matches!(Splitter::new("(a"), Err(Error::Pattern(_))));
    }

    /// Characters on which the patterns' branches differ, and some of every class.
    const SIGNS: [char; 32] = [
        ' ',
        ' ',
        '\n',
        '\r',
        '\t',
        '\u{A0}',
        '\u{2003}',
        '\u{85}',
        'a',
        'l',
        'v',
        'e',
        'S',
        'Q',
        '\'',
        '\'',
        '\u{17F}',
        '\u{212A}',
        'é',
        '日',
        'ʰ',
        '\u{301}',
        '1',
        '2',
        '½',
        '٣',
        '!',
        '_',
        '\u{200D}',
        '🙂',
        '\0',
        '\u{10FFFF}',
    ];

    /// The first ones end what is plain.
    const PLAIN_SIGNS: [char; 16] = [
        'é', '\n', '\'', '7', ' ', ' ', ' ', 'a', 'b', 'Z', 'x', ',', '(', '1', '\u{7F}', '@',
    ];

    /// Numbers without end, the same on every run.
    fn random(mut state: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        }
    }

    #[test]
    fn the_scanner_cuts_as_the_regular_expression_does() {
        let num_texts = if cfg!(miri) { 20 } else { 4_000 };
        for (pattern, _) in KNOWN_PATTERNS {
            let (by_hand, by_regex) = (
                Splitter::new(pattern).unwrap(),
                Splitter::by_regex(pattern).unwrap(),
            );
            assert!(matches!(by_hand.0, Kind::Scanner(_)));
            let mut random = random(88_172_645_463_325_252);
            for _ in 0..num_texts {
                // Now and then only a few signs, so that they meet in runs; every other text is
                // plain for the most part, and of more than one window.
                let (signs, length) = match random(2) {
                    0 => (&SIGNS[..1 + random(SIGNS.len())], random(40)),
                    _ => (&PLAIN_SIGNS[random(4)..], random(300)),
                };
                let text: String = (0..length).map(|_| signs[random(signs.len())]).collect();
                let found = cut(&by_hand, &text);
                assert_eq!(found, cut(&by_regex, &text), "{pattern} on {text:?}");
                assert_eq!(found.concat(), text);
            }
        }
    }

    #[test]
    fn the_scanner_agrees_on_any_character_between_any_neighbours() {
        let step = if cfg!(miri) { 30_011 } else { 41 };
        for (pattern, _) in KNOWN_PATTERNS {
            let (by_hand, by_regex) = (
                Splitter::new(pattern).unwrap(),
                Splitter::by_regex(pattern).unwrap(),
            );
            for sign in ('\0'..=char::MAX).step_by(step) {
                let text = format!("a{sign}b {sign}1{sign} '{sign} {sign}{sign}!{sign}");
                assert_eq!(cut(&by_hand, &text), cut(&by_regex, &text), "{text:?}");
            }
        }
    }
}
