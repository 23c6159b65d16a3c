//! Python's strings, readable without the GIL.

use crate::texts::Units;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// A string in Python's memory. Not copied; nor is UTF-8 cached in the object for as long as it
/// lives, as `to_str` would do.
#[cfg(not(feature = "abi3"))]
pub struct Text {
    units: Units<'static>,
    /// Keeps the string alive while its units are read; strings are immutable.
    _owner: Py<PyString>,
}

#[cfg(not(feature = "abi3"))]
impl Text {
    /// Borrow a string.
    pub fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        use pyo3::{ffi::PyCompactUnicodeObject, types::PyStringData};
        /// A slice with an extended lifetime.
        ///
        /// SAFETY: its memory must not move or change for as long as it is read.
        unsafe fn kept<T>(units: &[T]) -> &'static [T] {
            unsafe { std::slice::from_raw_parts(units.as_ptr(), units.len()) }
        }
        /// The UTF-8 that Python has cached, if another caller requested it.
        ///
        /// SAFETY: the string must not be ASCII, whose object has no such field; else as `kept`.
        unsafe fn utf8(text: &Bound<'_, PyString>) -> Option<Units<'static>> {
            let object = text.as_ptr().cast::<PyCompactUnicodeObject>();
            let (bytes, length) = unsafe { ((*object).utf8, (*object).utf8_length) };
            let bytes = std::ptr::slice_from_raw_parts(bytes.cast(), length as usize);
            unsafe { bytes.as_ref() }.map(Units::Utf8)
        }
        // SAFETY: `data` requires a string created by the interpreter. The owner keeps the units
        // alive, and they are lent for no longer than `self` lives. A string with units of more
        // than one byte is not ASCII.
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

/// The code points of a string, copied: the only access in the stable ABI.
#[cfg(feature = "abi3")]
pub struct Text(Vec<u32>);

#[cfg(feature = "abi3")]
impl Text {
    /// Copy a string.
    pub fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        let mut codes = vec![0; text.len()?];
        let length = codes.len() as isize;
        // SAFETY: `text` is a string, and `codes` has room for all of its code points.
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
