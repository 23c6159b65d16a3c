//! Byte-pair encoding: the split pattern, counting of words, merging, encoding.
//!
//! The algorithm knows no Python; `python.rs`, behind the feature `python`, is its face.

pub mod batch;
pub mod classes;
pub mod count;
pub mod encode;
pub mod error;
mod known;
mod memory;
pub mod merge;
pub mod split;
pub mod texts;
mod window;
pub mod word;

#[cfg(feature = "python")]
mod python;
#[cfg(feature = "python")]
mod strings;
