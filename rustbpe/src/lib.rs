//! Byte-pair encoding: the split pattern, counting of words, merging, encoding.
//!
//! The algorithm knows no Python; `python.rs`, behind the feature `python`, is its face.

pub mod count;
pub mod encode;
pub mod error;
pub mod merge;
pub mod split;

#[cfg(feature = "python")]
mod python;
