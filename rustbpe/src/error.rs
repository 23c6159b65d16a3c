//! What can go wrong, said to people.

use std::fmt;

/// A mistake in what was asked: the message names value, bound and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The vocabulary has no room for all bytes, or more tokens than ids can count.
    VocabularySize(usize),
    /// The split pattern is not a regular expression.
    Pattern(String),
    /// The split pattern took too long on a text.
    Split(String),
    /// Something that was given as text is none.
    NotText(String),
    /// There was not one word in the texts.
    NoText,
    /// The distinct words do not fit.
    TooManyWords,
    /// A vocabulary has no token, or two, for something.
    Vocabulary(String),
    /// Somebody asked to stop.
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
                "vocab_size={size} is more than ids of 32 bits can count; use less"
            ),
            Self::Pattern(why) => write!(f, "the split pattern is not a regular expression: {why}"),
            Self::Split(why) => write!(f, "the split pattern failed on a text: {why}"),
            Self::NotText(why) => write!(f, "a text cannot be read: {why}"),
            Self::NoText => write!(f, "the texts hold no word to learn from; give some text"),
            Self::TooManyWords => write!(
                f,
                "the distinct words have more than 4 billion bytes; give less text"
            ),
            Self::Vocabulary(why) => write!(f, "this is no vocabulary: {why}"),
            Self::Stopped => write!(f, "training was stopped"),
        }
    }
}

impl std::error::Error for Error {}
