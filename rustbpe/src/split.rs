//! Cutting text into words that merges never cross.

use crate::error::Error;
use fancy_regex::Regex;

/// GPT-4's pattern with numbers cut to at most two digits.
pub const DEFAULT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// A compiled split pattern.
#[derive(Debug, Clone)]
pub struct Splitter {
    regex: Regex,
}

impl Splitter {
    /// Compile a pattern.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        Regex::new(pattern)
            .map(|regex| Self { regex })
            .map_err(|error| Error::Pattern(error.to_string()))
    }

    /// Call `take` with each word of a text, in order; what the pattern skips is left out.
    pub fn for_each_word(&self, text: &str, mut take: impl FnMut(&str)) -> Result<(), Error> {
        for found in self.regex.find_iter(text) {
            take(
                found
                    .map_err(|error| Error::Split(error.to_string()))?
                    .as_str(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Splitter::new(DEFAULT_PATTERN)
            .unwrap()
            .for_each_word(text, |word| words.push(word.to_string()))
            .unwrap();
        words
    }

    #[test]
    fn numbers_are_cut_to_two_digits() {
        assert_eq!(words("in 12345"), ["in", " ", "12", "34", "5"]);
    }

    #[test]
    fn contractions_stand_apart() {
        assert_eq!(words("I'll, DON'T"), ["I", "'ll", ",", " DON", "'T"]);
    }

    #[test]
    fn nothing_is_lost() {
        let text = "a  b\r\n\r\n  c\t'd 日本 \u{1F600}!  ";
        assert_eq!(words(text).concat(), text);
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        assert!(matches!(Splitter::new("(a"), Err(Error::Pattern(_))));
    }
}
