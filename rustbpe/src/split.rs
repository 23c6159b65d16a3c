//! Splitting text into words that merges never cross.
//!
//! The patterns of GPT-2 and GPT-4 and the default have a hand-written scanner with the results of
//! the regular expression; any other pattern is matched by the regex engine.

use crate::classes::{Class, Classes, CLASSES};
use crate::error::Error;
use crate::pattern;
use crate::window::{padded, ByteMasks, Head, Window, WINDOW_BYTES};
use crate::word::Word;
use fancy_regex::{Regex, RegexBuilder};
use std::time::{Duration, Instant};

/// GPT-4's pattern with numbers split into at most two digits.
pub const DEFAULT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// The patterns that have a scanner, in all their spellings.
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

/// The differences between the known patterns.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// 'S is a contraction like 's, and any symbol except a line break may precede letters in their
    /// word; otherwise only a space may, and it may precede numbers too.
    is_gpt4: bool,
    /// Digits of a number, at most.
    max_digits: usize,
    /// White space at the end of the text is one word even if it contains line breaks.
    joins_trailing_space: bool,
}

impl Rules {
    const GPT2: Self = Self {
        is_gpt4: false,
        max_digits: usize::MAX,
        joins_trailing_space: true,
    };

    const fn gpt4(max_digits: usize, joins_trailing_space: bool) -> Self {
        Self {
            is_gpt4: true,
            max_digits,
            joins_trailing_space,
        }
    }
}

/// Bytes of a compiled part of a pattern, at most.
const MAX_COMPILED_BYTES: usize = 10 << 20;
/// Time that the regex engine may take for a text: 50 times what it takes for ordinary ones.
const MIN_SPLIT_TIME: Duration = Duration::from_secs(5);
const SPLIT_TIME_PER_BYTE: Duration = Duration::from_micros(5);
/// Matches between two looks at the clock.
const MATCHES_PER_CHECK: u32 = 64;

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

    /// Compile a pattern for the regex engine, even if there is a scanner.
    pub fn by_regex(pattern: &str) -> Result<Self, Error> {
        pattern::check(pattern)?;
        // Where the engine has to try again, it must not search beyond one start: a last
        // alternative matches any character, as an empty word after it.
        let complete = match regex_syntax::parse(pattern) {
            Ok(_) => pattern.to_string(),
            Err(_) => format!(r"(?:{pattern})|(?s:.)\K"),
        };
        let mut builder = RegexBuilder::new(&complete);
        match builder.delegate_size_limit(MAX_COMPILED_BYTES).build() {
            Ok(regex) => Ok(Self(Kind::Regex(Box::new(regex)))),
            Err(error) => Err(Error::Pattern(error.to_string())),
        }
    }

    /// Pass each word of a text to `sink`, in order, without text that the pattern does not match.
    #[inline(always)]
    pub fn split<'a>(&self, text: &'a str, sink: &mut impl WordSink<'a>) -> Result<(), Error> {
        match &self.0 {
            Kind::Scanner(scanner) => scanner.split(text.as_bytes(), sink),
            Kind::Regex(regex) => {
                split_by_regex(regex, text, sink)?;
            }
        }
        Ok(())
    }
}

/// The same with the regex engine, within a time that grows with the text.
fn split_by_regex<'a>(
    regex: &Regex,
    text: &'a str,
    sink: &mut impl WordSink<'a>,
) -> Result<(), Error> {
    let (bytes, began) = (text.as_bytes(), Instant::now());
    let limit = MIN_SPLIT_TIME + text.len() as u32 * SPLIT_TIME_PER_BYTE;
    let (mut at, mut number) = (0, 0_u32);
    while at < text.len() {
        let found = regex.find_from_pos(text, at);
        let Some(found) = found.map_err(|error| Error::Split(error.to_string()))? else {
            break;
        };
        if found.start() < found.end() {
            WordStart::at(bytes, found.start()).emit(bytes, found.end(), sink);
            sink.window_end();
        }
        at = match found.end() > at {
            true => found.end(),
            // An empty match: go on after the next character.
            false => at + text[at..].chars().next().map_or(1, char::len_utf8),
        };
        number += 1;
        if number % MATCHES_PER_CHECK == 0 && began.elapsed() > limit {
            return Err(Error::Split(format!("it takes more than {limit:.0?}")));
        }
    }
    Ok(())
}

/// Receives the words. A trait instead of a closure, because its methods have to be inlined into
/// the loop that finds the words.
pub trait WordSink<'a> {
    /// Receive the next word.
    fn push(&mut self, word: Word<'a>);

    /// Called after at most `MAX_WINDOW_WORDS` words, for work that would slow the scan down.
    #[inline(always)]
    fn window_end(&mut self) {}
}

/// Words of a window, at most: one may end with each byte.
pub const MAX_WINDOW_WORDS: usize = WINDOW_BYTES;

/// Number of preceding bytes that decide whether a word starts at a byte: a symbol of four bytes,
/// and the byte before, which tells whether that symbol is the first one. One following byte does.
/// Six digits do too; but where they start before a window, the previous window ended ambiguously.
const OVERLAP: usize = 5;
/// Index of the last byte of a window.
const LAST: usize = WINDOW_BYTES - 1;

/// Bit masks of a window.
struct Marks {
    /// A word starts here, unless an ambiguous byte before it decides otherwise.
    starts: u64,
    /// Bytes that `end` has to decide: non-ASCII white space and numbers, tabs, digits after a
    /// second group, line breaks next to spaces; with GPT-2's pattern all line breaks.
    ambiguous: u64,
}

/// The start of the next word.
#[derive(Clone, Copy)]
struct WordStart {
    at: usize,
    head: Head,
}

impl WordStart {
    fn at(text: &[u8], at: usize) -> Self {
        let head = Head::of(&text[at..]);
        Self { at, head }
    }

    /// Pass the word on, once its end is known.
    #[inline(always)]
    fn emit<'a>(self, text: &'a [u8], end: usize, sink: &mut impl WordSink<'a>) {
        sink.push(Word::within(text, self.at, end, self.head));
    }
}

struct Scanner {
    rules: Rules,
    classes: &'static Classes,
    /// The processor has the instructions of `split_avx512`.
    has_avx512: bool,
}

impl Scanner {
    fn new(rules: Rules) -> Self {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        let has_avx512 = std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("bmi1")
            && std::is_x86_feature_detected!("bmi2");
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let has_avx512 = false;
        Self {
            rules,
            classes: &CLASSES,
            has_avx512,
        }
    }

    #[inline(always)]
    fn split<'a>(&self, text: &'a [u8], sink: &mut impl WordSink<'a>) {
        #[cfg(target_arch = "x86_64")]
        if self.has_avx512 {
            // SAFETY: `new` has checked that the processor has the instructions.
            return unsafe { self.split_avx512(text, sink) };
        }
        self.split_windows(ByteMasks::of, text, sink);
    }

    /// The same, compiled for processors with AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bw,bmi1,bmi2")]
    fn split_avx512<'a>(&self, text: &'a [u8], sink: &mut impl WordSink<'a>) {
        self.split_windows(|window| ByteMasks::avx512(window), text, sink);
    }

    /// Windows overlap by a few bytes, so that a window does not depend on the result of the
    /// previous one, unless a word extends beyond it.
    #[inline(always)]
    fn split_windows<'a>(
        &self,
        masks_of: impl Fn(&Window) -> ByteMasks,
        text: &'a [u8],
        sink: &mut impl WordSink<'a>,
    ) {
        let mut next = WordStart::at(text, 0);
        let (mut first, mut overlap) = (0, 0);
        while next.at < text.len() {
            let room;
            let window = match text[first..].first_chunk() {
                Some(window) => window,
                None => {
                    room = padded(&text[first..]);
                    &room
                }
            };
            let mut marks = self.marks(text, first, masks_of(window));
            // The overlap is done, the current word starts with the first byte, and the last byte
            // cannot be decided without the one after it.
            marks.starts &= !0 << overlap & !1 & !(1 << LAST);
            marks.ambiguous &= !0 << overlap;
            next = self.split_window(text, next, first, window, marks, sink);
            sink.window_end();
            (first, overlap) = match next.at < first + LAST {
                true => (first + LAST - OVERLAP, OVERLAP),
                false => (next.at, 0),
            };
        }
    }

    /// Emit the words that end in the window at `first`; returns the start of the last word.
    #[inline(always)]
    fn split_window<'a>(
        &self,
        text: &'a [u8],
        mut next: WordStart,
        first: usize,
        window: &Window,
        Marks {
            mut starts,
            mut ambiguous,
        }: Marks,
        sink: &mut impl WordSink<'a>,
    ) -> WordStart {
        loop {
            // The byte before the first ambiguous one may belong to the same word.
            let clear = (ambiguous & ambiguous.wrapping_neg()).wrapping_sub(1) >> 1;
            let mut ends = starts & clear;
            while ends != 0 {
                let place = ends.trailing_zeros() as usize;
                ends &= ends - 1;
                next.emit(text, first + place, sink);
                next = WordStart {
                    at: first + place,
                    head: Head::within(window, place),
                };
            }
            if ambiguous == 0 {
                return next;
            }
            let first_ambiguous = first + ambiguous.trailing_zeros() as usize;
            while next.at <= first_ambiguous && next.at < text.len() {
                let end = self.end(text, next.at);
                next.emit(text, end, sink);
                next = WordStart::at(text, end);
            }
            if next.at >= text.len().min(first + LAST) {
                return next;
            }
            starts &= !1 << (next.at - first);
            ambiguous &= !0 << (next.at - first);
        }
    }

    /// Where words start in the window at `first`, by the classes of adjacent bytes. For all bytes
    /// at once and without branches: a branch on the next word's class is often mispredicted.
    #[inline(always)]
    fn marks(&self, text: &[u8], first: usize, mut masks: ByteMasks) -> Marks {
        let continuation = match masks.others {
            0 => 0,
            _ => self.classify_non_ascii(text, first, &mut masks),
        };
        let ByteMasks {
            letters,
            digits,
            spaces,
            newlines,
            apostrophes,
            others: mut ambiguous,
        } = masks;
        let symbols = !(letters | digits | spaces | newlines | ambiguous);
        let after_space = spaces << 1;
        let first_symbols = symbols & !(symbols << 1 | after_space);
        let first_letters = letters & !(letters << 1 | after_space);
        let first_digits = digits & !(digits << 1);
        // All spaces but the last one are a word; the last one belongs to what follows.
        let first_spaces = spaces & !(after_space & spaces >> 1);
        let mut starts = first_symbols | first_spaces;
        if self.rules.is_gpt4 {
            let max_digits = self.rules.max_digits;
            let mut too_many = digits;
            for _ in 0..max_digits {
                too_many &= too_many << 1;
            }
            // The start of digits is known unless a non-ASCII number may precede them; with it the
            // start of their second group is known.
            let second_groups = (first_digits & !(ambiguous << 1)) << max_digits & too_many;
            let mut in_second_groups = second_groups;
            for _ in 1..max_digits {
                in_second_groups |= in_second_groups << 1;
            }
            // Line breaks belong to the symbols before them; next to spaces they form one word.
            ambiguous |= too_many & !in_second_groups | newlines & (after_space | spaces >> 1);
            starts |= newlines & !(newlines << 1 | symbols << 1);
            // The addition carries a bit over the continuation bytes of a first symbol.
            let after_first_symbols = (first_symbols << 1).wrapping_add(continuation);
            starts |= first_letters & !after_first_symbols | first_digits | second_groups;
        } else {
            ambiguous |= newlines;
            starts |= first_letters | first_digits & !after_space;
        }
        // An apostrophe that starts a word may start a contraction: the next word starts after it,
        // and none within it.
        let mut first_apostrophes = first_symbols & apostrophes;
        while first_apostrophes != 0 {
            let place = first_apostrophes.trailing_zeros();
            first_apostrophes &= first_apostrophes - 1;
            let length = self.contraction(&text[first + place as usize + 1..]);
            if length > 0 {
                starts = starts & !(2 << place) | 2 << place << length;
            }
        }
        Marks { starts, ambiguous }
    }

    /// Classify non-ASCII letters and symbols, with all of their bytes. Returns the continuation
    /// bytes of symbols; where a window starts within a symbol the first one may be missing, which
    /// does not matter.
    #[inline(never)]
    fn classify_non_ascii(&self, text: &[u8], first: usize, masks: &mut ByteMasks) -> u64 {
        let (mut rest, mut continuation) = (masks.others, 0);
        while rest != 0 {
            let mut at = first + rest.trailing_zeros() as usize;
            if at >= text.len() {
                break;
            }
            // The first character may start before the window.
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
                Class::Letter => masks.letters |= bytes,
                Class::Other => continuation |= bytes & bytes << 1,
                _ => continue,
            }
            masks.others &= !bytes;
        }
        continuation
    }

    /// The end of the word that starts at `at`.
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
            Class::Newline => self.white_space(text, at),
            Class::Space | Class::Other => self.after_prefix(text, at, next, class),
        }
    }

    /// The same for a symbol or white space, which may be the prefix of letters or numbers.
    fn after_prefix(&self, text: &[u8], at: usize, next: usize, class: Class) -> usize {
        let is_space = text[at] == b' ';
        let follows = if next < text.len() {
            self.classes.at(text, next).0
        } else {
            Class::Newline
        };
        match (class, follows) {
            (_, Class::Letter) if self.rules.is_gpt4 || is_space => {
                self.run(text, next, Class::Letter)
            }
            (_, Class::Number) if !self.rules.is_gpt4 && is_space => self.numbers(text, next),
            (Class::Other, _) => self.symbols(text, next),
            (_, Class::Other) if is_space => self.symbols(text, next),
            _ => self.white_space(text, at),
        }
    }

    /// Number of bytes of a contraction after its apostrophe; 0 when it is none.
    fn contraction(&self, rest: &[u8]) -> usize {
        let fold = |byte: Option<&u8>| match byte {
            Some(byte) if self.rules.is_gpt4 => byte.to_ascii_lowercase(),
            Some(byte) => *byte,
            None => 0,
        };
        match (fold(rest.first()), fold(rest.get(1))) {
            (b's' | b'd' | b'm' | b't', _) => 1,
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => 2,
            // The long s, which is equal to s when case is ignored.
            _ if self.rules.is_gpt4 && rest.starts_with("\u{17F}".as_bytes()) => 2,
            _ => 0,
        }
    }

    /// The end of a run of characters of one class.
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

    /// The end of a run of symbols and, with GPT-4's pattern, of the line breaks after it.
    fn symbols(&self, text: &[u8], at: usize) -> usize {
        let end = self.run(text, at, Class::Other);
        if self.rules.is_gpt4 {
            self.run(text, end, Class::Newline)
        } else {
            end
        }
    }

    /// The end of a word of white space: after its last line break, else before its last character
    /// if something follows, whose prefix that character becomes.
    fn white_space(&self, text: &[u8], at: usize) -> usize {
        let (mut end, mut last, mut after_newline) = (at, at, 0);
        while end < text.len() {
            let (class, length) = self.classes.at(text, end);
            if class != Class::Space && class != Class::Newline {
                break;
            }
            last = end;
            end += length;
            if class == Class::Newline {
                after_newline = end;
            }
        }
        let is_last = end == text.len();
        if self.rules.is_gpt4 && after_newline > 0 && !(is_last && self.rules.joins_trailing_space)
        {
            after_newline
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
        split_words(&Splitter::new(pattern).unwrap(), text)
    }

    #[derive(Default)]
    struct Words {
        words: Vec<String>,
        num_words: usize,
        max_words: usize,
    }

    impl WordSink<'_> for Words {
        fn push(&mut self, word: Word) {
            let bytes = word.bytes().to_vec();
            self.words.push(String::from_utf8(bytes).unwrap());
            self.num_words += 1;
            self.max_words = self.max_words.max(self.num_words);
        }

        fn window_end(&mut self) {
            self.num_words = 0;
        }
    }

    /// The scanner with and without AVX-512, and the regular expression.
    fn assert_all_agree(pattern: &str, texts: impl Iterator<Item = String>) {
        let mut narrow = Splitter::new(pattern).unwrap();
        let Kind::Scanner(scanner) = &mut narrow.0 else {
            panic!("{pattern} is not scanned by hand");
        };
        scanner.has_avx512 = false;
        let scanners = [Splitter::new(pattern).unwrap(), narrow];
        let by_regex = Splitter::by_regex(pattern).unwrap();
        for text in texts {
            let expected = split_words(&by_regex, &text);
            for splitter in &scanners {
                assert_eq!(
                    split_words(splitter, &text),
                    expected,
                    "{pattern} on {text:?}"
                );
            }
            assert_eq!(expected.concat(), text);
        }
    }

    fn split_words(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut split_words = Words::default();
        splitter.split(text, &mut split_words).unwrap();
        assert!(split_words.max_words <= MAX_WINDOW_WORDS);
        split_words.words
    }

    #[test]
    fn window_end_is_called_in_time() {
        let mut split_words = Words::default();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        splitter
            .split(&"!\t".repeat(100), &mut split_words)
            .unwrap();
        assert_eq!(split_words.max_words, MAX_WINDOW_WORDS);
    }

    #[test]
    fn numbers_are_split_into_two_digits() {
        assert_eq!(
            words(DEFAULT_PATTERN, "in 12345"),
            ["in", " ", "12", "34", "5"]
        );
    }

    #[test]
    fn contractions_are_words() {
        assert_eq!(
            words(DEFAULT_PATTERN, "I'll, DON'T"),
            ["I", "'ll", ",", " DON", "'T"]
        );
    }

    #[test]
    fn an_invalid_pattern_is_refused() {
        assert!(matches!(Splitter::new("(a"), Err(Error::Pattern(_))));
    }

    #[test]
    fn text_that_no_alternative_matches_is_left_out() {
        for pattern in [
            r"[a-z]+(?!\d)",
            r"[a-z]++",
            r"[a-z]+",
            r"(?=[a-z])|[a-z]+|$",
        ] {
            let splitter = Splitter::by_regex(pattern).unwrap();
            let regex = Regex::new(pattern).unwrap();
            for text in ["", "ab1 cd", "11 ab ééé cd22 e", "é", "ab", "日本ab日"] {
                let found = regex.find_iter(text).map(|found| found.unwrap().as_str());
                let expected: Vec<&str> = found.filter(|word| !word.is_empty()).collect();
                assert_eq!(split_words(&splitter, text), expected, "{pattern} {text}");
            }
        }
    }

    /// Characters that the alternatives of the patterns distinguish, and some of every class.
    const CHARACTERS: [char; 34] = [
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

    /// Mostly plain; the first ones are ambiguous or not ASCII.
    const PLAIN_CHARACTERS: [char; 24] = [
        '½', '\u{2003}', '\t', '\n', 'é', '日', '’', '\'', '7', '8', ' ', ' ', ' ', 'a', 'b', 'Z',
        's', 'l', 'x', ',', '(', '🙂', '\u{7F}', '@',
    ];

    /// An xorshift generator.
    fn random(mut state: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 33) as usize % below
        }
    }

    #[test]
    fn the_scanner_agrees_with_the_regular_expression() {
        let num_texts = if cfg!(miri) { 20 } else { 4_000 };
        for (pattern, _) in KNOWN_PATTERNS {
            let mut random = random(88_172_645_463_325_252);
            let texts = (0..num_texts).map(|_| {
                // A few characters only, so that they form runs; every other text is mostly plain
                // and longer than a window.
                let (symbols, length) = match random(2) {
                    0 => (&CHARACTERS[..1 + random(CHARACTERS.len())], random(40)),
                    _ => (&PLAIN_CHARACTERS[random(12)..], random(300)),
                };
                (0..length)
                    .map(|_| symbols[random(symbols.len())])
                    .collect()
            });
            assert_all_agree(pattern, texts);
        }
    }

    #[test]
    fn the_scanner_agrees_on_all_short_texts_of_a_few_units_at_any_offset() {
        const UNITS: [&str; 12] = [
            "½", "7", "777", "'", "sa", "ſ", "“", "🙂", "é", " ", "\t", "\n",
        ];
        let (longest, places) = if cfg!(miri) { (2, 1) } else { (4, 3) };
        for (pattern, _) in KNOWN_PATTERNS {
            let mut random = random(88_172_645_463_325_252);
            let texts = (0..places * UNITS.len().pow(longest)).map(|number| {
                let digits = (0..longest).map(|digit| number / UNITS.len().pow(digit));
                let units: String = digits.map(|digit| UNITS[digit % UNITS.len()]).collect();
                "x".repeat(random(WINDOW_BYTES)) + &units + " x y z"
            });
            assert_all_agree(pattern, texts);
        }
    }

    #[test]
    fn the_scanner_agrees_on_any_character_in_any_context() {
        let step = if cfg!(miri) { 30_011 } else { 41 };
        for (pattern, _) in KNOWN_PATTERNS {
            let symbols = ('\0'..=char::MAX).step_by(step);
            let texts =
                symbols.map(|sign| format!("a{sign}b {sign}1{sign} '{sign} {sign}{sign}!{sign}"));
            assert_all_agree(pattern, texts);
        }
    }
}
