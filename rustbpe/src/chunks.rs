//! Texts from Python, in chunks that are read without the GIL.

use crate::arrow::{add_rows, Rows};
use crate::error::Error;
use crate::strings::Text;
use crate::texts::Texts;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The items of a Python iterator, in chunks that can be read without the GIL.
pub struct Chunks {
    iterator: Py<PyIterator>,
    /// Arrow arrays that are not finished.
    rows: VecDeque<Rows>,
    max_bytes: usize,
    max_texts: usize,
    processed: Processed,
}

impl Chunks {
    /// From what can be iterated.
    pub fn new(texts: &Bound<'_, PyAny>, max_bytes: usize, max_texts: usize) -> PyResult<Self> {
        Ok(Self {
            iterator: texts.try_iter()?.unbind(),
            rows: VecDeque::new(),
            max_bytes,
            max_texts: max_texts.max(1),
            processed: Processed::default(),
        })
    }

    /// The next texts, or the next rows of an array.
    pub fn next(&mut self, py: Python<'_>) -> PyResult<Option<PyTexts>> {
        drop(std::mem::take(&mut *lock(&self.processed)));
        let (mut texts, mut num_units) = (Vec::new(), 0);
        while self.rows.is_empty() && num_units < self.max_bytes && texts.len() < self.max_texts {
            let Some(item) = self.iterator.bind(py).clone().next() else {
                break;
            };
            match item?.cast_into::<PyString>() {
                Ok(text) => {
                    texts.push(Text::new(&text)?);
                    num_units += texts[texts.len() - 1].units().number();
                }
                Err(item) => add_rows(&item.into_inner(), &mut self.rows)?,
            }
        }
        if !texts.is_empty() {
            return Ok(Some(self.lend(Borrowed::Strings(texts))));
        }
        let Some(rows) = self.rows.front_mut() else {
            return Ok(None);
        };
        let taken = rows.take(self.max_bytes)?;
        if rows.is_empty() {
            self.rows.pop_front();
        }
        Ok(Some(self.lend(Borrowed::Rows(taken))))
    }

    fn lend(&self, borrowed: Borrowed) -> PyTexts {
        PyTexts {
            borrowed: Some(borrowed),
            processed: Arc::clone(&self.processed),
        }
    }
}

/// Chunks that were processed, whose references the thread with the GIL drops. Without the GIL
/// PyO3 would put each reference into a global list under a lock, and a fork while another thread
/// holds that lock leaves the child waiting for it forever.
type Processed = Arc<Mutex<Vec<Borrowed>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A chunk of texts; when dropped, what it borrows goes to `processed`.
pub struct PyTexts {
    borrowed: Option<Borrowed>,
    processed: Processed,
}

impl Drop for PyTexts {
    fn drop(&mut self) {
        lock(&self.processed).extend(self.borrowed.take());
    }
}

impl PyTexts {
    /// Bytes of all texts, about.
    pub fn size(&self) -> usize {
        match &self.borrowed {
            Some(Borrowed::Strings(texts)) => texts.iter().map(|text| text.units().number()).sum(),
            Some(Borrowed::Rows(rows)) => rows.num_bytes(),
            None => 0,
        }
    }
}

impl Texts for PyTexts {
    fn for_each(&self, visit: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        self.borrowed
            .as_ref()
            .map_or(Ok(()), |texts| texts.for_each(visit))
    }
}

/// Texts in Python's memory.
enum Borrowed {
    Strings(Vec<Text>),
    Rows(Rows),
}

impl Texts for Borrowed {
    fn for_each(&self, mut visit: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        match self {
            Self::Strings(texts) => {
                let mut buffer = Vec::new();
                let mut texts = texts.iter();
                texts.try_for_each(|text| visit(text.units().text(&mut buffer)))
            }
            Self::Rows(rows) => rows.for_each(visit),
        }
    }
}
