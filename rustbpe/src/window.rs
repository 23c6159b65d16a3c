//! A window of 64 bytes whose bytes are classified together.

/// Bytes of a window that are classified: one bit each.
pub const WINDOW_BYTES: usize = 64;

/// The classified bytes, and enough after them that each has a `Head`.
pub type Window = [u8; WINDOW_BYTES + Head::LENGTH];

/// The window of a text's last bytes, padded with zeros.
#[cold]
pub fn padded(text: &[u8]) -> Window {
    let mut window = [0; WINDOW_BYTES + Head::LENGTH];
    window[..text.len()].copy_from_slice(text);
    window
}

/// Sixteen bytes of text, the first one lowest.
#[derive(Clone, Copy)]
pub struct Head(pub u128);

impl Head {
    /// Its size in bytes.
    const LENGTH: usize = 16;

    /// The first bytes of a text, padded with zeros.
    #[inline(always)]
    pub fn of(text: &[u8]) -> Self {
        match text.first_chunk() {
            Some(&bytes) => Self(u128::from_le_bytes(bytes)),
            None => Self::padded(text),
        }
    }

    /// The bytes of a window from one of its classified bytes on.
    #[inline(always)]
    pub fn within(window: &Window, place: usize) -> Self {
        // `place` is below MARKED; the remainder only removes a bounds check.
        Self::of(&window[place % WINDOW_BYTES..])
    }

    #[cold]
    fn padded(text: &[u8]) -> Self {
        let mut bytes = [0; Self::LENGTH];
        bytes[..text.len()].copy_from_slice(text);
        Self(u128::from_le_bytes(bytes))
    }
}

/// Bit masks of a window: one bit per byte and class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteMasks {
    /// Letters: ASCII letters, until `classify_non_ascii` adds the others.
    pub letters: u64,
    /// ASCII digits.
    pub digits: u64,
    /// Spaces, no other white space.
    pub spaces: u64,
    /// Line feeds and carriage returns.
    pub newlines: u64,
    /// Apostrophes, which are symbols too.
    pub apostrophes: u64,
    /// Control characters without DEL and line breaks, and all that is not ASCII.
    pub others: u64,
}

impl ByteMasks {
    /// 64 bytes at a time with AVX-512: splitting takes 10 % less time than with SSE2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512bw")]
    #[inline]
    pub fn avx512(window: &Window) -> Self {
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
            // The comparison is signed: bytes that are not ASCII are negative.
            others: _mm512_cmplt_epi8_mask(bytes, all(b' ')) & !newlines,
        }
    }

    /// 16 bytes at a time with SSE2: splitting by eights takes nearly twice as long.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn of(window: &Window) -> Self {
        use std::arch::x86_64::*;
        let mut masks = Self::default();
        for (at, bytes) in window[..WINDOW_BYTES].chunks_exact(16).enumerate() {
            let (low, high) = bytes.split_at(8);
            // SAFETY: every x86-64 processor has SSE2.
            #[allow(unused_unsafe)] // newer compilers know that
            unsafe {
                let all = |byte: u8| _mm_set1_epi8(byte as i8);
                // The comparison is signed: bytes that are not ASCII are negative.
                let between = |bytes, first: u8, last: u8| {
                    let from_first = _mm_cmpgt_epi8(bytes, all(first - 1));
                    _mm_and_si128(from_first, _mm_cmplt_epi8(bytes, all(last + 1)))
                };
                let marks = |bytes| (_mm_movemask_epi8(bytes) as u64) << (16 * at);
                let bytes = _mm_set_epi64x(eight(high) as i64, eight(low) as i64);
                let below_space = _mm_cmplt_epi8(bytes, all(b' '));
                let feeds = _mm_cmpeq_epi8(bytes, all(b'\n'));
                let newlines = _mm_or_si128(feeds, _mm_cmpeq_epi8(bytes, all(b'\r')));
                masks.letters |= marks(between(_mm_or_si128(bytes, all(0x20)), b'a', b'z'));
                masks.digits |= marks(between(bytes, b'0', b'9'));
                masks.spaces |= marks(_mm_cmpeq_epi8(bytes, all(b' ')));
                masks.newlines |= marks(newlines);
                masks.apostrophes |= marks(_mm_cmpeq_epi8(bytes, all(b'\'')));
                masks.others |= marks(_mm_andnot_si128(newlines, below_space));
            }
        }
        masks
    }

    /// The masks on other processors.
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    pub fn of(window: &Window) -> Self {
        Self::portable(window)
    }

    /// 8 bytes at a time in a general register.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    #[inline(always)]
    fn portable(window: &Window) -> Self {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x80 * ONES;
        // The high bit of each byte in a range of ASCII.
        let between = |bytes: u64, first: u8, last: u8| {
            let low = bytes & !HIGHS;
            let from_first = low + u64::from(0x80 - first) * ONES;
            let past_last = low + u64::from(0x7F - last) * ONES;
            from_first & !past_last & !bytes & HIGHS
        };
        let mut masks = Self::default();
        for (at, bytes) in window[..WINDOW_BYTES].chunks_exact(8).enumerate() {
            let bytes = eight(bytes);
            // The product gathers the eight high bits in the highest byte.
            let marks =
                |highs: u64| ((highs >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * at);
            let newlines = between(bytes, b'\n', b'\n') | between(bytes, b'\r', b'\r');
            masks.letters |= marks(between(bytes | (0x20 * ONES), b'a', b'z'));
            masks.digits |= marks(between(bytes, b'0', b'9'));
            masks.spaces |= marks(between(bytes, b' ', b' '));
            masks.newlines |= marks(newlines);
            masks.apostrophes |= marks(between(bytes, b'\'', b'\''));
            masks.others |= marks(!(between(bytes, b' ', 0x7F) | newlines) & HIGHS);
        }
        masks
    }
}

/// Eight bytes as a little-endian number.
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
    fn every_byte_is_in_the_masks_of_its_class_only() {
        for byte in 0..=u8::MAX {
            for at in 0..WINDOW_BYTES {
                let mut window = padded(&[b'!'; WINDOW_BYTES]);
                window[at] = byte;
                let mark = |is: bool| u64::from(is) << at;
                let expected = ByteMasks {
                    letters: mark(byte.is_ascii_alphabetic()),
                    digits: mark(byte.is_ascii_digit()),
                    spaces: mark(byte == b' '),
                    newlines: mark(byte == b'\n' || byte == b'\r'),
                    apostrophes: mark(byte == b'\''),
                    others: mark(
                        (byte < b' ' && byte != b'\n' && byte != b'\r') || !byte.is_ascii(),
                    ),
                };
                assert_eq!(ByteMasks::of(&window), expected, "{byte} at {at}");
                assert_eq!(ByteMasks::portable(&window), expected, "{byte} at {at}");
                #[cfg(all(target_arch = "x86_64", not(miri)))]
                if std::is_x86_feature_detected!("avx512bw") {
                    // SAFETY: the processor has AVX-512BW.
                    let found = unsafe { ByteMasks::avx512(&window) };
                    assert_eq!(found, expected, "{byte} at {at}");
                }
            }
        }
    }
}
