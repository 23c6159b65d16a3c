//! Memory for large tables.

/// A vector of so many values, all the default, in large pages where the system has some to give: a table that
/// is read all over costs the processor a translation of addresses for nearly every look.
pub fn in_large_pages<T: Default>(number: usize) -> Vec<T> {
    let mut values = Vec::new();
    make_room(&mut values, number);
    values.resize_with(number, T::default);
    values
}

/// Room for so many more values, in large pages as well: each new page costs a call of the system.
pub fn make_room<T>(values: &mut Vec<T>, number: usize) {
    if values.capacity() - values.len() >= number {
        return;
    }
    values.reserve(number);
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        let start = values.as_mut_ptr() as usize;
        let bytes = values.capacity() * size_of::<T>();
        let (first, end) = (
            start.next_multiple_of(LARGE_PAGE),
            (start + bytes) & !(LARGE_PAGE - 1),
        );
        if first < end {
            // SAFETY: the pages lie within the vector's memory, and the advice leaves what is in
            // them as it is. It is one: that the system does not take it does not matter.
            unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
        }
    }
}

/// As on x86 and most ARM systems; with others the advice is for nothing.
#[cfg(all(target_os = "linux", not(miri)))]
const LARGE_PAGE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_there() {
        for number in [0, 1, 1000, 3 << 20] {
            assert_eq!(in_large_pages::<u8>(number), vec![0; number]);
        }
    }
}
