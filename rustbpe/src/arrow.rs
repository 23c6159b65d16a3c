//! Arrow arrays of strings, whose memory is read without the GIL.

use crate::error::Error;
use crate::texts::Texts;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Add the rows of an Arrow array, or of the chunks of one.
pub fn add_rows(item: &Bound<'_, PyAny>, rows: &mut VecDeque<Rows>) -> PyResult<()> {
    // One level only: an object whose chunks contain itself would recurse without end.
    if item.hasattr("chunks")? {
        let mut chunks = item.getattr("chunks")?.try_iter()?;
        return chunks.try_for_each(|chunk| add_array(&chunk?, rows));
    }
    add_array(item, rows)
}

/// Add the rows of an Arrow array.
fn add_array(array: &Bound<'_, PyAny>, rows: &mut VecDeque<Rows>) -> PyResult<()> {
    if let Some(column) = Column::new(array)? {
        rows.push_back(Rows {
            rows: 0..column.length,
            column: Arc::new(column),
        });
    }
    Ok(())
}

/// Some rows of an Arrow array.
pub struct Rows {
    column: Arc<Column>,
    rows: Range<usize>,
}

impl Rows {
    /// Bytes of all rows, 0 when the array is damaged.
    pub fn num_bytes(&self) -> usize {
        let first = self.column.offset(self.rows.start);
        let end = self.column.offset(self.rows.end);
        end.zip(first)
            .map_or(0, |(end, first)| end.saturating_sub(first))
    }

    /// True when no row is left.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Split off the first rows, at least one, until they have `max_bytes`.
    pub fn take(&mut self, max_bytes: usize) -> Result<Self, Error> {
        let first = self.column.offset(self.rows.start).ok_or_else(damaged)?;
        let mut taken = Self {
            column: Arc::clone(&self.column),
            rows: self.rows.start..self.rows.start,
        };
        for row in self.rows.by_ref() {
            taken.rows.end = row + 1;
            let end = self.column.offset(row + 1).ok_or_else(damaged)?;
            if end.saturating_sub(first) >= max_bytes {
                break;
            }
        }
        Ok(taken)
    }
}

impl Texts for Rows {
    fn for_each(&self, mut visit: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        let mut buffer = Vec::new();
        self.rows.clone().try_for_each(|row| {
            let bytes = self.column.row(row).ok_or_else(damaged)?;
            // Copied before it is checked: most Arrow buffers are writable, and another thread
            // could make valid UTF-8 invalid after the check.
            buffer.clear();
            buffer.extend_from_slice(bytes);
            let text = std::str::from_utf8(&buffer);
            visit(text.map_err(|error| Error::NotText(error.to_string()))?)
        })
    }
}

fn damaged() -> Error {
    Error::NotText("an Arrow array points beyond its data".to_string())
}

/// An Arrow array of strings: its buffers, shared with their owner.
struct Column {
    validity: Option<PyUntypedBuffer>,
    offsets: PyUntypedBuffer,
    data: PyUntypedBuffer,
    is_large: bool,
    first: usize,
    length: usize,
}

impl Column {
    /// None when the array has no rows.
    fn new(array: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let kind = match array.hasattr("buffers")? {
            true => array.getattr("type")?.str()?.to_string(),
            false => array.get_type().to_string(),
        };
        if kind != "string" && kind != "large_string" {
            let message = "texts must be str or Arrow arrays of strings, got an item of";
            return Err(PyTypeError::new_err(format!("{message} {kind}")));
        }
        let length = array.len()?;
        if length == 0 {
            return Ok(None);
        }
        let buffers = array.call_method0("buffers")?;
        let validity = buffers.get_item(0)?;
        Ok(Some(Self {
            validity: match validity.is_none() {
                true => None,
                false => Some(contiguous(&validity)?),
            },
            offsets: contiguous(&buffers.get_item(1)?)?,
            data: contiguous(&buffers.get_item(2)?)?,
            is_large: kind == "large_string",
            first: array.getattr("offset")?.extract()?,
            length,
        }))
    }

    /// The bytes of a row, empty for null. None when the array is damaged.
    fn row(&self, row: usize) -> Option<&[u8]> {
        if let Some(validity) = &self.validity {
            let bit = self.first.checked_add(row)?;
            if bytes_of(validity).get(bit / 8)? >> (bit % 8) & 1 == 0 {
                return Some(&[]);
            }
        }
        bytes_of(&self.data).get(self.offset(row)?..self.offset(row + 1)?)
    }

    /// The start of a row in `data`.
    fn offset(&self, row: usize) -> Option<usize> {
        let offsets = bytes_of(&self.offsets);
        let row = self.first.checked_add(row)?;
        if self.is_large {
            let bytes = offsets.get(row.checked_mul(8)?..)?.first_chunk()?;
            usize::try_from(i64::from_ne_bytes(*bytes)).ok()
        } else {
            let bytes = offsets.get(row.checked_mul(4)?..)?.first_chunk()?;
            usize::try_from(i32::from_ne_bytes(*bytes)).ok()
        }
    }
}

/// A buffer whose bytes are adjacent in memory, which `bytes_of` relies on.
fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    match buffer.is_c_contiguous() {
        true => Ok(buffer),
        false => Err(PyTypeError::new_err(
            "a buffer of an Arrow array has strides",
        )),
    }
}

/// The bytes of an Arrow buffer.
fn bytes_of(buffer: &PyUntypedBuffer) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    // This saves a copy of every text that is read from a file.
    // SAFETY: the buffer protocol keeps the memory in place while `buffer` lives, which the slice
    // borrows, and `contiguous` made sure that there are `len_bytes` of it.
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) }
}
