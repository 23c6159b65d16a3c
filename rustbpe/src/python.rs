//! The Python module: `rustbpe.Tokenizer`.

use crate::batch::{self, Encoded};
use crate::encode::{Encoder, Id};
use crate::error::Error;
use crate::merge::{learn_merges, token_bytes, NUM_BYTES};
use crate::split::{Splitter, DEFAULT_PATTERN};
use crate::strings::Text;
use crate::texts::Texts;
use numpy::{Element, IntoPyArray};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyIterator, PyString};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of text, about, in a chunk for counting, even if `buffer_size` allows more.
const COUNT_CHUNK_BYTES: usize = 1 << 18;
/// The same for encoding.
const ENCODE_CHUNK_BYTES: usize = 1 << 17;
/// Minimum time between two calls of a progress callback.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::Stopped => PyKeyboardInterrupt::new_err(()),
            error => PyValueError::new_err(error.to_string()),
        }
    }
}

/// A trainable BPE tokenizer without special tokens.
#[pyclass(frozen)]
struct Tokenizer(std::sync::RwLock<Arc<Vocabulary>>);

struct Vocabulary {
    pattern: String,
    tokens: Vec<Vec<u8>>,
    encoder: Encoder,
}

impl Vocabulary {
    fn new(tokens: Vec<Vec<u8>>, pattern: &str) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            pattern: pattern.to_string(),
            encoder: Encoder::new(&tokens, Splitter::new(pattern)?)?,
            tokens,
        }))
    }
}

#[pymethods]
impl Tokenizer {
    /// From the bytes of each token in the order of ids; by default the 256 single bytes.
    #[new]
    #[pyo3(signature = (tokens=None, pattern=None))]
    fn new(py: Python<'_>, tokens: Option<Vec<Vec<u8>>>, pattern: Option<&str>) -> PyResult<Self> {
        let tokens = tokens.unwrap_or_else(|| token_bytes(&[]));
        let pattern = pattern.unwrap_or(DEFAULT_PATTERN);
        let vocabulary = py.detach(|| Vocabulary::new(tokens, pattern))?;
        Ok(Self(vocabulary.into()))
    }

    /// Learn merges from an iterator of str or of Arrow arrays of strings, which are not copied.
    ///
    /// Texts are counted by `num_threads` threads (0: one per core), in chunks of at most
    /// `buffer_size`, while the next ones are read. `progress(what, done, total)` is called now and
    /// then: "counting" bytes of text, with total 0 because it is unknown, or "merging".
    /// Ends with fewer than `vocab_size` tokens when the texts have no pair left to merge.
    /// Raises ValueError on a vocabulary below 256, an invalid pattern or no text; TypeError on an
    /// item of another type; and what the iterator or the callback raises.
    #[allow(clippy::too_many_arguments)] // they are keywords in Python
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None, num_threads=0, progress=None))]
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: usize,
        buffer_size: usize,
        pattern: Option<&str>,
        num_threads: usize,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let pattern = pattern.unwrap_or(DEFAULT_PATTERN);
        let splitter = Splitter::new(pattern)?;
        if vocab_size < NUM_BYTES {
            return Err(Error::VocabularySize(vocab_size).into());
        }
        let mut chunks = Chunks::new(iterator, COUNT_CHUNK_BYTES, buffer_size)?;
        let mut progress = Progress::new(progress);
        let vocabulary = py.detach(|| -> PyResult<_> {
            let mut counted = 0;
            let counts = batch::count(&splitter, num_threads, || {
                Python::attach(|py| {
                    progress.report(py, "counting", counted, 0)?;
                    let chunk = chunks.next(py)?;
                    counted += chunk.as_ref().map_or(0, PyTexts::size);
                    Ok::<_, PyErr>(chunk)
                })
            })?;
            let mut callback_result = Ok(());
            let merges = learn_merges(counts, vocab_size, |number| {
                callback_result = Python::attach(|py| {
                    progress.report(py, "merging", number, vocab_size - NUM_BYTES)
                });
                callback_result.is_ok()
            });
            callback_result?;
            Ok(Vocabulary::new(token_bytes(&merges?), pattern)?)
        })?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = vocabulary;
        Ok(())
    }

    /// The split pattern, a regular expression.
    fn get_pattern(&self) -> String {
        self.vocabulary().pattern.clone()
    }

    /// [(bytes of the token, its id), ...] in the order of ids.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        let vocabulary = self.vocabulary();
        let bytes = vocabulary
            .tokens
            .iter()
            .map(|token| PyBytes::new(py, token));
        bytes.zip(0..).collect()
    }

    /// [(left id, right id), ...] of every token after the 256 bytes.
    ///
    /// Raises ValueError when a token is not the merge of two earlier ones.
    fn get_merges(&self, py: Python<'_>) -> PyResult<Vec<(u32, u32)>> {
        let vocabulary = self.vocabulary();
        py.detach(|| {
            let tokens = vocabulary.tokens.iter().enumerate().skip(NUM_BYTES);
            tokens
                .map(|(id, token)| {
                    let parts = vocabulary.encoder.parts(token);
                    parts.ok_or_else(|| {
                        let reason = format!("token {id} is not a pair of tokens before it");
                        Error::Vocabulary(reason).into()
                    })
                })
                .collect()
        })
    }

    /// Number of tokens: 256 bytes and the merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.vocabulary().tokens.len()
    }

    /// Token ids of a text.
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyString>) -> PyResult<Vec<u32>> {
        let (vocabulary, texts) = (self.vocabulary(), Borrowed::Strings(vec![Text::new(text)?]));
        Ok(py.detach(|| {
            let mut ids = Vec::new();
            let mut worker = vocabulary.encoder.worker();
            let encoded = texts.for_each(|text| worker.encode(text, &mut ids));
            encoded.map(|()| ids)
        })?)
    }

    /// Token ids of each text, with `num_threads` threads (0: one per core).
    #[pyo3(signature = (texts, num_threads=0))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<Vec<Vec<u32>>> {
        let encoded = self.encode_all(py, texts, num_threads)?;
        Ok(encoded.texts().map(<[u32]>::to_vec).collect())
    }

    /// Token ids of all texts, concatenated, and the end of each text, as two arrays: uint16, or
    /// uint32 when the vocabulary has more than 65,536 ids or `wide` is true; and int64.
    ///
    /// Texts are a list of str or an Arrow array of strings, which is not copied.
    #[pyo3(signature = (texts, num_threads=0, wide=false))]
    fn encode_to_arrays<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
        wide: bool,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        if wide || self.vocab_size() > 1 << 16 {
            arrays(self.encode_all::<u32>(py, texts, num_threads)?, py)
        } else {
            arrays(self.encode_all::<u16>(py, texts, num_threads)?, py)
        }
    }
}

/// Ids and ends as arrays, without a copy.
fn arrays<T: Id + Element>(
    encoded: Encoded<T>,
    py: Python<'_>,
) -> PyResult<(Bound<'_, PyAny>, Bound<'_, PyAny>)> {
    let (ids, ends) = py.detach(|| encoded.joined());
    Ok((
        ids.into_pyarray(py).into_any(),
        ends.into_pyarray(py).into_any(),
    ))
}

impl Tokenizer {
    fn vocabulary(&self) -> Arc<Vocabulary> {
        let vocabulary = self.0.read();
        Arc::clone(&vocabulary.unwrap_or_else(PoisonError::into_inner))
    }

    fn encode_all<T: Id>(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<Encoded<T>> {
        let vocabulary = self.vocabulary();
        let iterator = match texts.hasattr("type")? {
            true => (texts,).into_pyobject(py)?.try_iter()?,
            false => texts.try_iter()?,
        };
        let mut chunks = Chunks::new(&iterator, ENCODE_CHUNK_BYTES, usize::MAX)?;
        py.detach(|| {
            let next = || {
                Python::attach(|py| {
                    py.check_signals()?; // Ctrl-C
                    chunks.next(py)
                })
            };
            batch::encode(&vocabulary.encoder, num_threads, next)
        })
    }
}

/// Calls the progress callback, not too often, and checks for Ctrl-C.
struct Progress {
    callback: Option<Py<PyAny>>,
    last: Instant,
}

impl Progress {
    fn new(callback: Option<Py<PyAny>>) -> Self {
        let last = Instant::now();
        Self { callback, last }
    }

    fn report(&mut self, py: Python<'_>, what: &str, done: usize, total: usize) -> PyResult<()> {
        py.check_signals()?;
        if let Some(callback) = &self.callback {
            if self.last.elapsed() >= PROGRESS_INTERVAL {
                self.last = Instant::now();
                callback.call1(py, (what, done, total))?;
            }
        }
        Ok(())
    }
}

/// The items of a Python iterator, in chunks that can be read without the GIL.
struct Chunks {
    iterator: Py<PyIterator>,
    /// Arrow arrays that are not finished.
    rows: VecDeque<Rows>,
    max_bytes: usize,
    max_texts: usize,
    processed: Processed,
}

impl Chunks {
    fn new(texts: &Bound<'_, PyAny>, max_bytes: usize, max_texts: usize) -> PyResult<Self> {
        Ok(Self {
            iterator: texts.try_iter()?.unbind(),
            rows: VecDeque::new(),
            max_bytes,
            max_texts: max_texts.max(1),
            processed: Processed::default(),
        })
    }

    /// The next texts, or the next rows of an array.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<PyTexts>> {
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
        if rows.rows.is_empty() {
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

/// Add the rows of an Arrow array, or of the chunks of one.
fn add_rows(item: &Bound<'_, PyAny>, rows: &mut VecDeque<Rows>) -> PyResult<()> {
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

/// Chunks that were processed, whose references the thread with the GIL drops. Without the GIL
/// PyO3 would put each reference into a global list under a lock, and a fork while another thread
/// holds that lock leaves the child waiting for it forever.
type Processed = Arc<Mutex<Vec<Borrowed>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A chunk of texts; when dropped, what it borrows goes to `processed`.
struct PyTexts {
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
    fn size(&self) -> usize {
        self.borrowed.as_ref().map_or(0, Borrowed::size)
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

impl Borrowed {
    /// Bytes of all texts, about.
    fn size(&self) -> usize {
        match self {
            Self::Strings(texts) => texts.iter().map(|text| text.units().number()).sum(),
            Self::Rows(rows) => rows.num_bytes().unwrap_or(0),
        }
    }
}

impl Texts for Borrowed {
    fn for_each(&self, mut visit: impl FnMut(&str) -> Result<(), Error>) -> Result<(), Error> {
        match self {
            Self::Strings(texts) => {
                let mut buffer = Vec::new();
                let mut texts = texts.iter();
                texts.try_for_each(|text| visit(text.units().text(&mut buffer)))
            }
            Self::Rows(rows) => {
                let mut buffer = Vec::new();
                rows.rows.clone().try_for_each(|row| {
                    let bytes = rows.column.row(row).ok_or_else(damaged)?;
                    // Copied before it is checked: most Arrow buffers are writable, and another
                    // thread could make valid UTF-8 invalid after the check.
                    buffer.clear();
                    buffer.extend_from_slice(bytes);
                    let text = std::str::from_utf8(&buffer);
                    visit(text.map_err(|error| Error::NotText(error.to_string()))?)
                })
            }
        }
    }
}

/// Some rows of an Arrow array.
struct Rows {
    column: Arc<Column>,
    rows: Range<usize>,
}

impl Rows {
    fn num_bytes(&self) -> Option<usize> {
        let (first, end) = (
            self.column.offset(self.rows.start)?,
            self.column.offset(self.rows.end)?,
        );
        end.checked_sub(first)
    }

    /// Split off the first rows, at least one, until they have `max_bytes`.
    fn take(&mut self, max_bytes: usize) -> Result<Self, Error> {
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

/// BPE tokenizer training and encoding in Rust.
#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEFAULT_PATTERN", DEFAULT_PATTERN)?;
    module.add_class::<Tokenizer>()
}
