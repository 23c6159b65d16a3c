//! Byte-pair encoding: splitting by a pattern, counting words, learning merges, encoding.
//!
//! The algorithm does not depend on Python; the bindings are `python.rs`, behind the feature
//! `python`.

pub mod batch;
pub mod classes;
pub mod count;
pub mod encode;
pub mod error;
mod memory;
pub mod merge;
mod pattern;
pub mod split;
pub mod texts;
mod window;
pub mod word;
mod word_cache;

#[cfg(feature = "python")]
mod arrow;
#[cfg(feature = "python")]
mod chunks;
#[cfg(feature = "python")]
mod gil;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "python")]
mod strings;
