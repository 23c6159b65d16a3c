//! Errors that the user can fix.

use std::fmt;

/// An invalid request: the message names value, bound and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The vocabulary is too small for all bytes, or too large for ids of 32 bits.
    VocabularySize(usize),
    /// The split pattern is not a regular expression.
    Pattern(String),
    /// The split pattern took too long on a text.
    Split(String),
    /// An input is not valid text.
    NotText(String),
    /// The texts contain no word.
    NoText,
    /// A token of the vocabulary is missing, empty, repeated or not a merge.
    Vocabulary(String),
    /// The caller asked to stop.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VocabularySize(size) if *size < 256 => write!(
                f,
                "vocab_size={size} is below 256, one for each byte; use 256 or more"
            ),
            Self::VocabularySize(size) => write!(
                f,
                "vocab_size={size} is more than 32-bit ids can number; use less"
            ),
            Self::Pattern(reason) => {
                write!(f, "the split pattern is not a regular expression: {reason}")
            }
            Self::Split(reason) => write!(f, "the split pattern failed on a text: {reason}"),
            Self::NotText(reason) => write!(f, "a text cannot be read: {reason}"),
            Self::NoText => write!(f, "the texts contain no word to learn from; give some text"),
            Self::Vocabulary(reason) => write!(f, "invalid vocabulary: {reason}"),
            Self::Stopped => write!(f, "training was stopped"),
        }
    }
}

impl std::error::Error for Error {}
