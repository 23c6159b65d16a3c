//! Counting words: memory grows with distinct words, not with text.

use crate::error::Error;
use crate::split::Splitter;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// How often each word was seen.
pub type WordCounts = FxHashMap<Box<str>, u64>;

/// Texts that one task counts before its counts are united with the others'.
const TEXTS_PER_TASK: usize = 64;

/// Add the words of `texts` to `counts`, in parallel; the sums do not depend on threads.
pub fn count_words(
    splitter: &Splitter,
    texts: &[impl AsRef<str> + Sync],
    counts: &mut WordCounts,
) -> Result<(), Error> {
    let parts: Result<Vec<WordCounts>, Error> = texts
        .par_chunks(TEXTS_PER_TASK)
        .map(|texts| count_some(splitter, texts))
        .collect();
    for part in parts? {
        for (word, count) in part {
            *counts.entry(word).or_insert(0) += count;
        }
    }
    Ok(())
}

fn count_some(splitter: &Splitter, texts: &[impl AsRef<str>]) -> Result<WordCounts, Error> {
    let mut counts = WordCounts::default();
    for text in texts {
        splitter.for_each_word(text.as_ref(), |word| match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                counts.insert(word.into(), 1);
            }
        })?;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::DEFAULT_PATTERN;

    #[test]
    fn counts_do_not_depend_on_how_texts_are_batched() {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let texts: Vec<String> = (0..500).map(|i| format!("the {} fox", i % 7)).collect();
        let mut whole = WordCounts::default();
        count_words(&splitter, &texts, &mut whole).unwrap();
        let mut pieces = WordCounts::default();
        for text in &texts {
            count_words(&splitter, std::slice::from_ref(text), &mut pieces).unwrap();
        }
        assert_eq!(whole, pieces);
        assert_eq!(whole["the"], 500);
    }
}
