//! Encoding by the learned merges, plainly: the lowest rank of a word's pairs is merged first.

use crate::error::Error;
use crate::merge::{Pair, NUM_BYTES};
use crate::split::Splitter;
use rustc_hash::FxHashMap;

/// Token that each pair becomes.
pub type Ranks = FxHashMap<Pair, u32>;

/// The look-up that encoding needs, from merges in their order.
pub fn ranks_of(merges: &[Pair]) -> Ranks {
    let ids = NUM_BYTES as u32..;
    merges.iter().copied().zip(ids).collect()
}

/// Token ids of a text.
pub fn encode(splitter: &Splitter, ranks: &Ranks, text: &str) -> Result<Vec<u32>, Error> {
    let mut ids = Vec::new();
    splitter.for_each_word(text, |word| ids.extend(encode_word(ranks, word.as_bytes())))?;
    Ok(ids)
}

fn encode_word(ranks: &Ranks, word: &[u8]) -> Vec<u32> {
    let mut tokens: Vec<u32> = word.iter().map(|&byte| u32::from(byte)).collect();
    loop {
        let pairs = tokens.windows(2).enumerate();
        let lowest = pairs
            .filter_map(|(i, w)| ranks.get(&(w[0], w[1])).map(|&rank| (rank, i)))
            .min();
        let Some((rank, i)) = lowest else {
            return tokens;
        };
        tokens[i] = rank;
        tokens.remove(i + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::DEFAULT_PATTERN;

    #[test]
    fn the_lowest_rank_is_merged_first() {
        let merges = [(98, 99), (97, 98), (97, 256)];
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let ids = encode(&splitter, &ranks_of(&merges), "abc ab").unwrap();
        assert_eq!(ids, [258, 32, 257]);
    }
}
