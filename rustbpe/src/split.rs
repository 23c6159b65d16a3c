//! Cutting text into words that merges never cross.
//!
//! The patterns of GPT-2, of GPT-4 and ours are scanned by hand, with the results of the regular
//! expression; any other pattern is left to the regex engine.

use crate::classes::{Class, Classes, CLASSES};
use crate::error::Error;
use crate::window::{padded, Head, Kinds, Window, MARKED};
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
                let bytes = text.as_bytes();
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| Error::Split(error.to_string()))?;
                    if !found.as_str().is_empty() {
                        Next::at(bytes, found.start()).give(bytes, found.end(), taker);
                        taker.rest();
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

    /// Do what would disturb the cutting. Comes after `MAX_TAKEN` words at most.
    #[inline(always)]
    fn rest(&mut self) {}
}

/// Words between two rests, at most: one ends with each byte of a window.
pub const MAX_TAKEN: usize = MARKED;

/// How many bytes before a byte can decide whether a word begins with it: a sign of four bytes, and
/// the byte before, which tells whether that sign is a first one. Behind it one byte can. Six digits
/// can too; but where these begin before a window, the last one found its last byte unclear.
const NEIGHBOURS: usize = 5;
/// The last byte of a window.
const LAST: usize = MARKED - 1;

/// A bit for each byte of a window.
struct Marks {
    /// A word begins with it, if no byte before it that is unclear has a say in that.
    starts: u64,
    /// To be looked at one by one: white space and numbers beyond ASCII, tabs, digits behind a second
    /// group of them, line breaks beside spaces; in GPT-2's manner all line breaks.
    unclear: u64,
}

/// Where the word begins that is to be taken next.
#[derive(Clone, Copy)]
struct Next {
    at: usize,
    head: Head,
}

impl Next {
    fn at(text: &[u8], at: usize) -> Self {
        let head = Head::of(&text[at..]);
        Self { at, head }
    }

    /// Give the word away, now that its end is known.
    #[inline(always)]
    fn give<'a>(self, text: &'a [u8], end: usize, taker: &mut impl Taker<'a>) {
        taker.take(Word::within(text, self.at, end, self.head));
    }
}

struct Scanner {
    rules: Rules,
    classes: &'static Classes,
    /// The processor has the instructions of `split_at_once`.
    is_wide: bool,
}

impl Scanner {
    fn new(rules: Rules) -> Self {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        let is_wide = std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("bmi1")
            && std::is_x86_feature_detected!("bmi2");
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let is_wide = false;
        Self {
            rules,
            classes: &CLASSES,
            is_wide,
        }
    }

    #[inline(always)]
    fn split<'a>(&self, text: &'a [u8], taker: &mut impl Taker<'a>) {
        #[cfg(target_arch = "x86_64")]
        if self.is_wide {
            // SAFETY: the processor has been asked for the instructions.
            return unsafe { self.split_at_once(text, taker) };
        }
        self.split_by(Kinds::of, text, taker);
    }

    /// The same, compiled for newer processors.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bw,bmi1,bmi2")]
    fn split_at_once<'a>(&self, text: &'a [u8], taker: &mut impl Taker<'a>) {
        self.split_by(|window| Kinds::at_once(window), text, taker);
    }

    /// Windows follow one another with some bytes in common and do not wait for what the last one
    /// gave, unless a word reaches beyond it.
    #[inline(always)]
    fn split_by<'a>(
        &self,
        kinds_of: impl Fn(&Window) -> Kinds,
        text: &'a [u8],
        taker: &mut impl Taker<'a>,
    ) {
        let mut next = Next::at(text, 0);
        let (mut first, mut num_seen) = (0, 0);
        while next.at < text.len() {
            let room;
            let window = match text[first..].first_chunk() {
                Some(window) => window,
                None => {
                    room = padded(&text[first..]);
                    &room
                }
            };
            let mut marks = self.marks(text, first, kinds_of(window));
            // What was seen before is done, and with the first byte the word at hand begins; what
            // follows the last one is not seen.
            marks.starts &= !0 << num_seen & !1 & !(1 << LAST);
            marks.unclear &= !0 << num_seen;
            next = self.split_window(text, next, first, window, marks, taker);
            taker.rest();
            (first, num_seen) = match next.at < first + LAST {
                true => (first + LAST - NEIGHBOURS, NEIGHBOURS),
                false => (next.at, 0),
            };
        }
    }

    /// Take the words that end in the window at `first`; gives the one that begins last.
    #[inline(always)]
    fn split_window<'a>(
        &self,
        text: &'a [u8],
        mut next: Next,
        first: usize,
        window: &Window,
        Marks {
            mut starts,
            mut unclear,
        }: Marks,
        taker: &mut impl Taker<'a>,
    ) -> Next {
        loop {
            // What stands before the first unclear byte may belong to its word.
            let clear = (unclear & unclear.wrapping_neg()).wrapping_sub(1) >> 1;
            let mut ends = starts & clear;
            while ends != 0 {
                let place = ends.trailing_zeros() as usize;
                ends &= ends - 1;
                next.give(text, first + place, taker);
                next = Next {
                    at: first + place,
                    head: Head::within(window, place),
                };
            }
            if unclear == 0 {
                return next;
            }
            let first_unclear = first + unclear.trailing_zeros() as usize;
            while next.at <= first_unclear && next.at < text.len() {
                let end = self.end(text, next.at);
                next.give(text, end, taker);
                next = Next::at(text, end);
            }
            if next.at >= text.len().min(first + LAST) {
                return next;
            }
            starts &= !1 << (next.at - first);
            unclear &= !0 << (next.at - first);
        }
    }

    /// Where words begin in the window at `first`, as the bytes around each byte tell. All at once,
    /// since a guess at what the next word is would be wrong too often.
    #[inline(always)]
    fn marks(&self, text: &[u8], first: usize, mut kinds: Kinds) -> Marks {
        let inner = match kinds.others {
            0 => 0,
            _ => self.sort_others(text, first, &mut kinds),
        };
        let Kinds {
            letters,
            digits,
            spaces,
            newlines,
            apostrophes,
            others: mut unclear,
        } = kinds;
        let signs = !(letters | digits | spaces | newlines | unclear);
        let behind_space = spaces << 1;
        let first_signs = signs & !(signs << 1 | behind_space);
        let first_letters = letters & !(letters << 1 | behind_space);
        let first_digits = digits & !(digits << 1);
        // All spaces but the last one are one word; the last one leads what follows.
        let first_spaces = spaces & !(behind_space & spaces >> 1);
        let mut starts = first_signs | first_spaces;
        if self.rules.like_gpt4 {
            let max_digits = self.rules.max_digits;
            let mut too_many = digits;
            for _ in 0..max_digits {
                too_many &= too_many << 1;
            }
            // Where digits begin is known, unless a number beyond ASCII may stand before them; then so
            // is where their second group begins.
            let second_groups = (first_digits & !(unclear << 1)) << max_digits & too_many;
            let mut in_second_groups = second_groups;
            for _ in 1..max_digits {
                in_second_groups |= in_second_groups << 1;
            }
            // Line breaks belong to the signs before them, and are one word with spaces.
            unclear |= too_many & !in_second_groups | newlines & (behind_space | spaces >> 1);
            starts |= newlines & !(newlines << 1 | signs << 1);
            // The sum carries a bit over the inner bytes of a first sign.
            let behind_first_signs = (first_signs << 1).wrapping_add(inner);
            starts |= first_letters & !behind_first_signs | first_digits | second_groups;
        } else {
            unclear |= newlines;
            starts |= first_letters | first_digits & !behind_space;
        }
        // An apostrophe that begins a word may begin a contraction: behind that a word begins, within
        // it none.
        let mut first_apostrophes = first_signs & apostrophes;
        while first_apostrophes != 0 {
            let place = first_apostrophes.trailing_zeros();
            first_apostrophes &= first_apostrophes - 1;
            let length = self.contraction(&text[first + place as usize + 1..]);
            if length > 0 {
                starts = starts & !(2 << place) | 2 << place << length;
            }
        }
        Marks { starts, unclear }
    }

    /// Mark letters and signs beyond ASCII as such, all of their bytes. Gives the bytes of signs but
    /// their first ones; where a window begins within a sign one is missing, which has no say.
    #[inline(never)]
    fn sort_others(&self, text: &[u8], first: usize, kinds: &mut Kinds) -> u64 {
        let (mut rest, mut inner) = (kinds.others, 0);
        while rest != 0 {
            let mut at = first + rest.trailing_zeros() as usize;
            if at >= text.len() {
                break;
            }
            // The first one may begin before the window.
            while text[at] & 0xC0 == 0x80 {
                at -= 1;
            }
            let (class, length) = self.classes.at(text, at);
            let ones = (1 << length) - 1;
            let bytes = match at.checked_sub(first) {
                Some(place) => ones << place,
                None => ones >> (first - at),
            };
            rest &= !bytes;
            match class {
                Class::Letter => kinds.letters |= bytes,
                Class::Other => inner |= bytes & bytes << 1,
                _ => continue,
            }
            kinds.others &= !bytes;
        }
        inner
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

    #[derive(Default)]
    struct Cut {
        words: Vec<String>,
        num_taken: usize,
        max_taken: usize,
    }

    impl Taker<'_> for Cut {
        fn take(&mut self, word: Word) {
            let bytes = word.bytes().to_vec();
            self.words.push(String::from_utf8(bytes).unwrap());
            self.num_taken += 1;
            self.max_taken = self.max_taken.max(self.num_taken);
        }

        fn rest(&mut self) {
            self.num_taken = 0;
        }
    }

    /// By hand, with the processor's newest instructions and without, and by the regular expression.
    fn assert_all_agree(pattern: &str, texts: impl Iterator<Item = String>) {
        let mut narrow = Splitter::new(pattern).unwrap();
        let Kind::Scanner(scanner) = &mut narrow.0 else {
            panic!("{pattern} is not scanned by hand");
        };
        scanner.is_wide = false;
        let by_hand = [Splitter::new(pattern).unwrap(), narrow];
        let by_regex = Splitter::by_regex(pattern).unwrap();
        for text in texts {
            let expected = cut(&by_regex, &text);
            for splitter in &by_hand {
                assert_eq!(cut(splitter, &text), expected, "{pattern} on {text:?}");
            }
            assert_eq!(expected.concat(), text);
        }
    }

    fn cut(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut cut = Cut::default();
        splitter.split(text, &mut cut).unwrap();
        assert!(cut.max_taken <= MAX_TAKEN);
        cut.words
    }

    #[test]
    fn a_taker_rests_in_time() {
        let mut cut = Cut::default();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        splitter.split(&"!\t".repeat(100), &mut cut).unwrap();
        assert_eq!(cut.max_taken, MAX_TAKEN);
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
    const SIGNS: [char; 34] = [
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
        '’',
        '“',
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
    const PLAIN_SIGNS: [char; 24] = [
        '½', '\u{2003}', '\t', '\n', 'é', '日', '’', '\'', '7', '8', ' ', ' ', ' ', 'a', 'b', 'Z',
        's', 'l', 'x', ',', '(', '🙂', '\u{7F}', '@',
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
            let mut random = random(88_172_645_463_325_252);
            let texts = (0..num_texts).map(|_| {
                // Now and then only a few signs, so that they meet in runs; every other text is
                // plain for the most part, and of more than one window.
                let (signs, length) = match random(2) {
                    0 => (&SIGNS[..1 + random(SIGNS.len())], random(40)),
                    _ => (&PLAIN_SIGNS[random(12)..], random(300)),
                };
                (0..length).map(|_| signs[random(signs.len())]).collect()
            });
            assert_all_agree(pattern, texts);
        }
    }

    #[test]
    fn the_scanner_agrees_on_all_short_texts_of_a_few_signs_wherever_they_stand() {
        const UNITS: [&str; 12] = [
            "½", "7", "777", "'", "sa", "ſ", "“", "🙂", "é", " ", "\t", "\n",
        ];
        let (longest, places) = if cfg!(miri) { (2, 1) } else { (4, 3) };
        for (pattern, _) in KNOWN_PATTERNS {
            let mut random = random(88_172_645_463_325_252);
            let texts = (0..places * UNITS.len().pow(longest)).map(|number| {
                let digits = (0..longest).map(|digit| number / UNITS.len().pow(digit));
                let units: String = digits.map(|digit| UNITS[digit % UNITS.len()]).collect();
                "x".repeat(random(MARKED)) + &units + " x y z"
            });
            assert_all_agree(pattern, texts);
        }
    }

    #[test]
    fn the_scanner_agrees_on_any_character_between_any_neighbours() {
        let step = if cfg!(miri) { 30_011 } else { 41 };
        for (pattern, _) in KNOWN_PATTERNS {
            let signs = ('\0'..=char::MAX).step_by(step);
            let texts =
                signs.map(|sign| format!("a{sign}b {sign}1{sign} '{sign} {sign}{sign}!{sign}"));
            assert_all_agree(pattern, texts);
        }
    }
}
