//! Python's strings, readable without the interpreter's lock.

use crate::texts::Units;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// A string as it stands in Python's memory: neither copied here, nor kept there a second time in
/// UTF-8 for good, as it would be for `to_str`.
#[cfg(not(feature = "abi3"))]
pub struct Text {
    units: Units<'static>,
    /// Strings never change, and this one lives as long as its units are read.
    _owner: Py<PyString>,
}

#[cfg(not(feature = "abi3"))]
impl Text {
    /// Look at a string.
    pub fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        use pyo3::{ffi::PyCompactUnicodeObject, types::PyStringData};
        /// A slice that lives longer than Rust can see.
        ///
        /// SAFETY: its memory must stay in place, unchanged, for as long as it is read.
        unsafe fn kept<T>(units: &[T]) -> &'static [T] {
            unsafe { std::slice::from_raw_parts(units.as_ptr(), units.len()) }
        }
        /// The UTF-8 that somebody else has made Python keep.
        ///
        /// SAFETY: the string must not be ASCII, which has no place for it; else as for `kept`.
        unsafe fn utf8(text: &Bound<'_, PyString>) -> Option<Units<'static>> {
            let object = text.as_ptr().cast::<PyCompactUnicodeObject>();
            let (bytes, length) = unsafe { ((*object).utf8, (*object).utf8_length) };
            let bytes = std::ptr::slice_from_raw_parts(bytes.cast(), length as usize);
            unsafe { bytes.as_ref() }.map(Units::Utf8)
        }
        // SAFETY: `data` asks for a string that was made as the interpreter makes them. The owner
        // keeps the units, which are given out for no longer than `self` lives. Units of more than
        // one byte are of no string that is ASCII.
        let units = unsafe {
            match text.data()? {
                PyStringData::Ucs1(units) => Units::One(kept(units)),
                PyStringData::Ucs2(units) => utf8(text).unwrap_or(Units::Two(kept(units))),
                PyStringData::Ucs4(units) => utf8(text).unwrap_or(Units::Four(kept(units))),
            }
        };
        Ok(Self {
            units,
            _owner: text.clone().unbind(),
        })
    }

    /// Its code points.
    pub fn units(&self) -> Units<'_> {
        self.units
    }
}

/// The code points of a string, copied: there is no other way that all versions of Python share.
#[cfg(feature = "abi3")]
pub struct Text(Vec<u32>);

#[cfg(feature = "abi3")]
impl Text {
    /// Copy a string.
    pub fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        let mut codes = vec![0; text.len()?];
        let length = codes.len() as isize;
        // SAFETY: `text` is a string, and `codes` has place for all of its code points.
        let written =
            unsafe { pyo3::ffi::PyUnicode_AsUCS4(text.as_ptr(), codes.as_mut_ptr(), length, 0) };
        match written.is_null() {
            true => Err(PyErr::fetch(text.py())),
            false => Ok(Self(codes)),
        }
    }

    /// Its code points.
    pub fn units(&self) -> Units<'_> {
        Units::Four(&self.0)
    }
}
