//! Texts on their way to the threads that work on them.

use crate::error::Error;

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

/// Texts one behind another in one piece of memory.
#[derive(Default)]
pub struct Joined {
    text: String,
    ends: Vec<usize>,
}

impl Joined {
    /// None, and room for some bytes of them.
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            text: String::with_capacity(bytes),
            ends: Vec::new(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all.
    pub fn num_bytes(&self) -> usize {
        self.text.len()
    }

    /// Go on with the text that is not ended yet.
    pub fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The same with code points. Two surrogates that are one character become it; a lone one,
    /// which is no text, becomes U+FFFD.
    pub fn push_codes(&mut self, codes: &[u32]) {
        let mut rest = codes;
        while !rest.is_empty() {
            let (letter, length) = first_letter(rest);
            self.text.push(letter);
            rest = &rest[length..];
        }
    }

    /// The text ends here.
    pub fn end(&mut self) {
        self.ends.push(self.text.len());
    }
}

impl Texts for Joined {
    fn each(&self, mut take: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        let mut first = 0;
        self.ends.iter().try_for_each(|&end| {
            let text = &self.text[first..end];
            first = end;
            take(text)
        })
    }
}

/// The character that code points begin with, and how many are its.
fn first_letter(codes: &[u32]) -> (char, usize) {
    match (char::from_u32(codes[0]), codes) {
        (Some(letter), _) => (letter, 1),
        (None, &[high @ 0xD800..0xDC00, low @ 0xDC00..0xE000, ..]) => {
            let code = 0x1_0000 + ((high - 0xD800) << 10 | (low - 0xDC00));
            (
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER),
                2,
            )
        }
        _ => (char::REPLACEMENT_CHARACTER, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(joined: &Joined) -> Vec<String> {
        let mut texts = Vec::new();
        let take = |text: &str| {
            texts.push(text.to_string());
            Ok(())
        };
        joined.each(take).unwrap();
        texts
    }

    #[test]
    fn texts_come_back_as_they_were_joined() {
        let expected = [
            "",
            "ab",
            "é日🙂 and more than one run of ASCII letters behind",
            "",
            "x",
        ];
        let (mut joined, mut by_codes) = (Joined::default(), Joined::with_capacity(9));
        for text in expected {
            joined.push_str(text);
            joined.end();
            by_codes.push_codes(&text.chars().map(u32::from).collect::<Vec<_>>());
            by_codes.end();
        }
        assert_eq!(texts(&joined), expected);
        assert_eq!(texts(&by_codes), expected);
        assert_eq!((joined.len(), joined.is_empty()), (5, false));
    }

    #[test]
    fn surrogates_are_mended() {
        let mut joined = Joined::default();
        joined.push_codes(&[0xD83D, 0xDE42, 0xDC00, 0xD800, 0x61, 0xD800]);
        joined.end();
        assert_eq!(texts(&joined), ["🙂\u{FFFD}\u{FFFD}a\u{FFFD}"]);
    }
}
