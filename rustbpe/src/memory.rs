//! Huge pages for large tables and buffers.

/// A vector of `number` default values, in huge pages where the system offers them: random reads of
/// a large table in ordinary pages miss the TLB nearly every time.
pub fn vec_in_huge_pages<T: Default>(number: usize) -> Vec<T> {
    let mut values = Vec::new();
    reserve_in_huge_pages(&mut values, number);
    values.resize_with(number, T::default);
    values
}

/// Reserve capacity for `number` more values, also in huge pages: fewer page faults while it fills.
pub fn reserve_in_huge_pages<T>(values: &mut Vec<T>, number: usize) {
    if values.capacity() - values.len() >= number {
        return;
    }
    values.reserve(number);
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        let start = values.as_mut_ptr() as usize;
        let bytes = values.capacity() * size_of::<T>();
        let (first, end) = (
            start.next_multiple_of(HUGE_PAGE_BYTES),
            (start + bytes) & !(HUGE_PAGE_BYTES - 1),
        );
        if first < end {
            // SAFETY: the pages lie within the vector's memory, and the advice does not change
            // their content. A failure is harmless: it is only advice.
            unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
        }
    }
}

/// The size on x86 and most ARM systems; elsewhere the advice has no effect.
#[cfg(all(target_os = "linux", not(miri)))]
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_values_are_the_default() {
        for number in [0, 1, 1000, 3 << 20] {
            assert_eq!(vec_in_huge_pages::<u8>(number), vec![0; number]);
        }
    }
}
