//! A piece of text that is looked at as a whole.

/// Bytes of a window whose kinds are marked: a bit each.
pub const MARKED: usize = 64;

/// The bytes of one, and so many behind them that each marked byte has a head.
pub type Window = [u8; MARKED + Head::LENGTH];

/// The window of a text's last bytes, zeros behind them.
#[cold]
pub fn padded(text: &[u8]) -> Window {
    let mut window = [0; MARKED + Head::LENGTH];
    window[..text.len()].copy_from_slice(text);
    window
}

/// Sixteen bytes of text from some place, the first one lowest.
#[derive(Clone, Copy)]
pub struct Head(pub u128);

impl Head {
    /// How many bytes it is.
    const LENGTH: usize = 16;

    /// What a text begins with; zeros behind its end.
    #[inline(always)]
    pub fn of(text: &[u8]) -> Self {
        match text.first_chunk() {
            Some(&bytes) => Self(u128::from_le_bytes(bytes)),
            None => Self::padded(text),
        }
    }

    /// What stands in a window from one of its marked bytes on.
    #[inline(always)]
    pub fn within(window: &Window, place: usize) -> Self {
        // The remainder is the place itself; it spares a check.
        Self::of(&window[place % MARKED..])
    }

    #[cold]
    fn padded(text: &[u8]) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[..text.len()].copy_from_slice(text);
        Self(u128::from_le_bytes(bytes))
    }
}

/// A bit for each marked byte of a window: whether it is of some kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Letters: ASCII ones, until the others are sorted.
    pub letters: u64,
    /// ASCII digits.
    pub digits: u64,
    /// Spaces, no other white space.
    pub spaces: u64,
    /// Line feeds and carriage returns.
    pub newlines: u64,
    /// Apostrophes, which are signs.
    pub apostrophes: u64,
    /// Control characters but DEL and line breaks, and what is not ASCII.
    pub others: u64,
}

impl Kinds {
    /// All at once, on processors that can. Cutting text takes a tenth less time.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bw")]
    #[inline]
    pub fn at_once(window: &Window) -> Self {
        use std::arch::x86_64::*;
        let all = |byte: u8| _mm512_set1_epi8(byte as i8);
        let is = |bytes, byte| _mm512_cmpeq_epi8_mask(bytes, all(byte));
        let between = |bytes, first: u8, last: u8| {
            let from_first = _mm512_sub_epi8(bytes, all(first));
            _mm512_cmple_epu8_mask(from_first, all(last - first))
        };
        // SAFETY: a window has more than 64 bytes.
        let bytes = unsafe { _mm512_loadu_si512(window.as_ptr().cast()) };
        let newlines = is(bytes, b'\n') | is(bytes, b'\r');
        Self {
            letters: between(_mm512_or_si512(bytes, all(0x20)), b'a', b'z'),
            digits: between(bytes, b'0', b'9'),
            spaces: is(bytes, b' '),
            newlines,
            apostrophes: is(bytes, b'\''),
            // Bytes count as signed here: all that are not ASCII lie below zero.
            others: _mm512_cmplt_epi8_mask(bytes, all(b' ')) & !newlines,
        }
    }

    /// Sixteen bytes at a time: by eights, cutting text takes nearly twice as long.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn of(window: &Window) -> Self {
        use std::arch::x86_64::*;
        let mut kinds = Self::default();
        for (at, bytes) in window[..MARKED].chunks_exact(16).enumerate() {
            let (low, high) = bytes.split_at(8);
            // SAFETY: every processor of this kind has these instructions, SSE2.
            #[allow(unused_unsafe)] // newer compilers know that
            unsafe {
                let all = |byte: u8| _mm_set1_epi8(byte as i8);
                // Bytes count as signed here: all that are not ASCII lie below zero.
                let between = |bytes, first: u8, last: u8| {
                    let from_first = _mm_cmpgt_epi8(bytes, all(first - 1));
                    _mm_and_si128(from_first, _mm_cmplt_epi8(bytes, all(last + 1)))
                };
                let marks = |bytes| (_mm_movemask_epi8(bytes) as u64) << (16 * at);
                let bytes = _mm_set_epi64x(eight(high) as i64, eight(low) as i64);
                let below_space = _mm_cmplt_epi8(bytes, all(b' '));
                let feeds = _mm_cmpeq_epi8(bytes, all(b'\n'));
                let newlines = _mm_or_si128(feeds, _mm_cmpeq_epi8(bytes, all(b'\r')));
                kinds.letters |= marks(between(_mm_or_si128(bytes, all(0x20)), b'a', b'z'));
                kinds.digits |= marks(between(bytes, b'0', b'9'));
                kinds.spaces |= marks(_mm_cmpeq_epi8(bytes, all(b' ')));
                kinds.newlines |= marks(newlines);
                kinds.apostrophes |= marks(_mm_cmpeq_epi8(bytes, all(b'\'')));
                kinds.others |= marks(_mm_andnot_si128(newlines, below_space));
            }
        }
        kinds
    }

    /// The marks on any processor.
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    pub fn of(window: &Window) -> Self {
        Self::by_eight(window)
    }

    /// Eight bytes at a time.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    #[inline(always)]
    fn by_eight(window: &Window) -> Self {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x80 * ONES;
        // The high bit of each byte that lies between two ASCII ones.
        let between = |bytes: u64, first: u8, last: u8| {
            let low = bytes & !HIGHS;
            let from_first = low + u64::from(0x80 - first) * ONES;
            let past_last = low + u64::from(0x7F - last) * ONES;
            from_first & !past_last & !bytes & HIGHS
        };
        let mut kinds = Self::default();
        for (at, bytes) in window[..MARKED].chunks_exact(8).enumerate() {
            let bytes = eight(bytes);
            // The product moves the eight bits together into the highest byte.
            let marks =
                |highs: u64| ((highs >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * at);
            let newlines = between(bytes, b'\n', b'\n') | between(bytes, b'\r', b'\r');
            kinds.letters |= marks(between(bytes | (0x20 * ONES), b'a', b'z'));
            kinds.digits |= marks(between(bytes, b'0', b'9'));
            kinds.spaces |= marks(between(bytes, b' ', b' '));
            kinds.newlines |= marks(newlines);
            kinds.apostrophes |= marks(between(bytes, b'\'', b'\''));
            kinds.others |= marks(!(between(bytes, b' ', 0x7F) | newlines) & HIGHS);
        }
        kinds
    }
}

/// Eight bytes as a number, the first one lowest.
#[inline(always)]
pub fn eight(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_the_marks_of_its_kind_alone() {
        for byte in 0..=u8::MAX {
            for at in 0..MARKED {
                let mut window = padded(&[b'!'; MARKED]);
                window[at] = byte;
                let mark = |is: bool| u64::from(is) << at;
                let expected = Kinds {
                    letters: mark(byte.is_ascii_alphabetic()),
                    digits: mark(byte.is_ascii_digit()),
                    spaces: mark(byte == b' '),
                    newlines: mark(byte == b'\n' || byte == b'\r'),
                    apostrophes: mark(byte == b'\''),
                    others: mark(
                        (byte < b' ' && byte != b'\n' && byte != b'\r') || !byte.is_ascii(),
                    ),
                };
                assert_eq!(Kinds::of(&window), expected, "{byte} at {at}");
                assert_eq!(Kinds::by_eight(&window), expected, "{byte} at {at}");
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                if std::is_x86_feature_detected!("avx512bw") {
                    // SAFETY: the processor has what is asked for.
                    let found = unsafe { Kinds::at_once(&window) };
                    assert_eq!(found, expected, "{byte} at {at}");
                }
            }
        }
    }
}
