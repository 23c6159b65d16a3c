//! What can go wrong, said to people.

use std::fmt;

/// A mistake in what was asked: the message names value, bound and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The vocabulary has no room for all bytes.
    VocabularyTooSmall(usize),
    /// The split pattern is not a regular expression.
    Pattern(String),
    /// The split pattern took too long on a text.
    Split(String),
    /// There was not one word in the texts.
    NoText,
    /// Somebody asked to stop.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VocabularyTooSmall(size) => write!(
                f,
                "vocab_size={size} is below 256, one for each byte; use 256 or more"
            ),
            Self::Pattern(why) => write!(f, "the split pattern is not a regular expression: {why}"),
            Self::Split(why) => write!(f, "the split pattern failed on a text: {why}"),
            Self::NoText => write!(f, "the texts hold no word to learn from; give some text"),
            Self::Stopped => write!(f, "training was stopped"),
        }
    }
}

impl std::error::Error for Error {}
