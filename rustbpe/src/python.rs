//! The Python face: `rustbpe.Tokenizer`.

use crate::batch::{self, Encoded, Text};
use crate::encode::{Encoder, Id};
use crate::error::Error;
use crate::merge::{learn_merges, token_bytes, NUM_BYTES};
use crate::split::{Splitter, DEFAULT_PATTERN};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyByteArray, PyBytes, PyIterator, PyString};
use std::sync::mpsc::SyncSender;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Characters that one batch of texts for training has at most, whatever `buffer_size` allows.
const MAX_BATCH: usize = 1 << 20;
/// Between two calls of a progress callback.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

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
    /// From the bytes of each token in the order of ids; without, the 256 bytes.
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
    /// Texts are counted by `num_threads` threads (0: one for each core), at most `buffer_size` at
    /// a time, while the next ones are read. `progress(what, done, total)` is called now and then:
    /// "counting" characters, of an unknown total that is given as 0, or "merging".
    /// Ends with fewer than `vocab_size` tokens when the texts have no pair left to merge.
    /// Raises ValueError on a vocabulary below 256, a bad pattern or no text; TypeError on an
    /// item that is neither; and what the iterator or the callback raises.
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
        let mut texts = Texts {
            iterator: iterator.try_iter()?.unbind(),
            buffer_size: buffer_size.max(1),
            characters: 0,
        };
        let mut progress = Progress::new(progress);
        let vocabulary = py.detach(|| -> PyResult<_> {
            let feed = |sender: &SyncSender<_>| texts.feed(sender, &mut progress);
            let counts = batch::count(&splitter, num_threads, feed)?;
            let mut trouble = Ok(());
            let merges = learn_merges(counts, vocab_size, |number| {
                trouble = Python::attach(|py| {
                    progress.tell(py, "merging", number, vocab_size - NUM_BYTES)
                });
                trouble.is_ok()
            });
            trouble?;
            Ok(Vocabulary::new(token_bytes(&merges?), pattern)?)
        })?;
        *self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = vocabulary;
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
    /// Raises ValueError when a token does not come about by merging two before it.
    fn get_merges(&self, py: Python<'_>) -> PyResult<Vec<(u32, u32)>> {
        let vocabulary = self.vocabulary();
        py.detach(|| {
            let tokens = vocabulary.tokens.iter().enumerate().skip(NUM_BYTES);
            tokens
                .map(|(id, token)| {
                    let parts = vocabulary.encoder.parts(token);
                    parts.ok_or_else(|| {
                        let why = format!("token {id} is not a pair of tokens before it");
                        Error::Vocabulary(why).into()
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
        let (vocabulary, text) = (self.vocabulary(), PyText::new(text)?);
        Ok(py.detach(|| {
            let mut ids = Vec::new();
            let mut worker = vocabulary.encoder.worker();
            worker.encode(text.text()?, &mut ids).map(|()| ids)
        })?)
    }

    /// Token ids of each text, by `num_threads` threads (0: one for each core).
    #[pyo3(signature = (texts, num_threads=0))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<Vec<Vec<u32>>> {
        let pieces = self.encode_all::<u32>(py, texts, num_threads)?;
        let mut found = Vec::new();
        for piece in &pieces {
            let mut first = 0;
            for &end in &piece.ends {
                found.push(piece.ids[first..end].to_vec());
                first = end;
            }
        }
        Ok(found)
    }

    /// Token ids of all texts, one after another, and where each text's end, as two buffers: of
    /// uint16, or uint32 when the vocabulary has more than 65,536 ids or `wide` is true; and int64.
    ///
    /// Texts are a list of str or an Arrow array of strings, which is not copied.
    #[pyo3(signature = (texts, num_threads=0, wide=false))]
    fn encode_to_buffer<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
        wide: bool,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        if wide || self.vocab_size() > 1 << 16 {
            let pieces = self.encode_all::<u32>(py, texts, num_threads)?;
            buffers(py, &pieces, |id| id.to_ne_bytes())
        } else {
            let pieces = self.encode_all::<u16>(py, texts, num_threads)?;
            buffers(py, &pieces, |id| id.to_ne_bytes())
        }
    }
}

impl Tokenizer {
    fn vocabulary(&self) -> Arc<Vocabulary> {
        let vocabulary = self.0.read();
        Arc::clone(&vocabulary.unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn encode_all<T: Id>(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<Vec<Encoded<T>>> {
        let vocabulary = self.vocabulary();
        let mut all = Vec::new();
        if texts.hasattr("type")? {
            add_texts(texts, &mut all)?;
        } else {
            for text in texts.try_iter()? {
                add_texts(&text?, &mut all)?;
            }
        }
        Ok(py.detach(|| batch::encode(&vocabulary.encoder, &all, num_threads))?)
    }
}

/// Ids and ends as bytes; `to_bytes` gives those of an id.
fn buffers<'py, T: Id, const N: usize>(
    py: Python<'py>,
    pieces: &[Encoded<T>],
    to_bytes: impl Fn(T) -> [u8; N],
) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
    let number: usize = pieces.iter().map(|piece| piece.ids.len()).sum();
    let num_texts: usize = pieces.iter().map(|piece| piece.ends.len()).sum();
    let ids = PyByteArray::new_with(py, N * number, |bytes| {
        let ids = pieces.iter().flat_map(|piece| &piece.ids);
        for (place, &id) in bytes.chunks_exact_mut(N).zip(ids) {
            place.copy_from_slice(&to_bytes(id));
        }
        Ok(())
    })?;
    let ends = PyByteArray::new_with(py, 8 * num_texts, |bytes| {
        let mut places = bytes.chunks_exact_mut(8);
        let mut before = 0;
        for piece in pieces {
            for (end, place) in piece.ends.iter().zip(&mut places) {
                place.copy_from_slice(&((before + end) as i64).to_ne_bytes());
            }
            before += piece.ids.len();
        }
        Ok(())
    })?;
    Ok((ids, ends))
}

/// Calls back, not too often, and looks for Ctrl-C.
struct Progress {
    callback: Option<Py<PyAny>>,
    last: Instant,
}

impl Progress {
    fn new(callback: Option<Py<PyAny>>) -> Self {
        let last = Instant::now();
        Self { callback, last }
    }

    fn tell(&mut self, py: Python<'_>, what: &str, done: usize, total: usize) -> PyResult<()> {
        py.check_signals()?;
        if let Some(callback) = &self.callback {
            if self.last.elapsed() >= PROGRESS_PAUSE {
                self.last = Instant::now();
                callback.call1(py, (what, done, total))?;
            }
        }
        Ok(())
    }
}

/// What training reads from.
struct Texts {
    iterator: Py<PyIterator>,
    buffer_size: usize,
    characters: usize,
}

impl Texts {
    /// Send all texts in batches; the interpreter's lock is held while one is gathered only.
    fn feed(&mut self, sender: &SyncSender<Vec<PyText>>, progress: &mut Progress) -> PyResult<()> {
        loop {
            let batch = Python::attach(|py| {
                progress.tell(py, "counting", self.characters, 0)?;
                self.next_batch(py)
            })?;
            // When all counting threads have failed, they have the reason.
            if batch.is_empty() || sender.send(batch).is_err() {
                return Ok(());
            }
        }
    }

    fn next_batch(&mut self, py: Python<'_>) -> PyResult<Vec<PyText>> {
        let mut batch = Vec::new();
        let limit = self.characters + MAX_BATCH;
        for item in self.iterator.bind(py).clone() {
            self.characters += add_texts(&item?, &mut batch)?;
            if batch.len() >= self.buffer_size || self.characters >= limit {
                break;
            }
        }
        Ok(batch)
    }
}

/// Add the text, or the texts of an Arrow array, to `texts`; gives their characters or bytes.
fn add_texts(item: &Bound<'_, PyAny>, texts: &mut Vec<PyText>) -> PyResult<usize> {
    if let Ok(text) = item.cast::<PyString>() {
        texts.push(PyText::new(text)?);
        return text.len();
    }
    if item.hasattr("chunks")? {
        let chunks = item.getattr("chunks")?;
        let sizes = chunks.try_iter()?.map(|chunk| add_texts(&chunk?, texts));
        return sizes.sum();
    }
    let Some(column) = Column::new(item)?.map(Arc::new) else {
        return Ok(0);
    };
    texts.extend((0..column.length).map(|row| PyText::Arrow(Arc::clone(&column), row)));
    Ok(column.size().ok_or_else(damaged)?)
}

/// A text of Python's, readable without the interpreter's lock.
enum PyText {
    /// Only ASCII: Python's own bytes.
    Ascii(PyBackedStr),
    /// Python would keep the UTF-8 of these beside the text for good, so they are converted anew.
    Utf8(PyBackedBytes),
    Mended(String),
    Arrow(Arc<Column>, usize),
}

impl PyText {
    fn new(text: &Bound<'_, PyString>) -> PyResult<Self> {
        if text.call_method0("isascii")?.is_truthy()? {
            return Ok(Self::Ascii(text.clone().try_into()?));
        }
        match text.encode_utf8() {
            Ok(bytes) => Ok(Self::Utf8(bytes.into())),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
                Ok(Self::Mended(mended(text)?))
            }
            Err(error) => Err(error),
        }
    }
}

/// A text with each lone surrogate, which is no text, replaced by U+FFFD.
fn mended(text: &Bound<'_, PyString>) -> PyResult<String> {
    let encoded = text.call_method1("encode", ("utf-16-le", "surrogatepass"))?;
    let bytes: PyBackedBytes = encoded.cast::<PyBytes>()?.clone().into();
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let letters =
        char::decode_utf16(units).map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER));
    Ok(letters.collect())
}

impl Text for PyText {
    fn text(&self) -> Result<&str, Error> {
        let bytes = match self {
            Self::Ascii(text) => return Ok(text),
            Self::Mended(text) => return Ok(text),
            Self::Utf8(bytes) => bytes,
            Self::Arrow(column, row) => column.row(*row).ok_or_else(damaged)?,
        };
        std::str::from_utf8(bytes).map_err(|error| Error::NotText(error.to_string()))
    }

    fn size(&self) -> usize {
        match self {
            Self::Ascii(text) => text.len(),
            Self::Mended(text) => text.len(),
            Self::Utf8(bytes) => bytes.len(),
            Self::Arrow(column, row) => column.row(*row).map_or(0, <[u8]>::len),
        }
    }
}

fn damaged() -> Error {
    Error::NotText("an Arrow array points beyond its data".to_string())
}

/// An Arrow array of strings: its buffers as they are, shared with their owner.
struct Column {
    validity: Option<PyUntypedBuffer>,
    offsets: PyUntypedBuffer,
    data: PyUntypedBuffer,
    is_large: bool,
    first: usize,
    length: usize,
}

impl Column {
    /// Nothing when the array has no rows.
    fn new(array: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let kind = match array.hasattr("buffers")? {
            true => array.getattr("type")?.str()?.to_string(),
            false => array.get_type().to_string(),
        };
        if kind != "string" && kind != "large_string" {
            let words = "texts must be str or Arrow arrays of strings, got an item of";
            return Err(PyTypeError::new_err(format!("{words} {kind}")));
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
                false => Some(PyUntypedBuffer::get(&validity)?),
            },
            offsets: PyUntypedBuffer::get(&buffers.get_item(1)?)?,
            data: PyUntypedBuffer::get(&buffers.get_item(2)?)?,
            is_large: kind == "large_string",
            first: array.getattr("offset")?.extract()?,
            length,
        }))
    }

    /// Bytes of text in all rows.
    fn size(&self) -> Option<usize> {
        self.offset(self.length)?.checked_sub(self.offset(0)?)
    }

    /// The bytes of a row; an empty text where there is none. Nothing when the array is damaged.
    fn row(&self, row: usize) -> Option<&[u8]> {
        if let Some(validity) = &self.validity {
            let bit = self.first + row;
            if bytes_of(validity).get(bit / 8)? >> (bit % 8) & 1 == 0 {
                return Some(&[]);
            }
        }
        bytes_of(&self.data).get(self.offset(row)?..self.offset(row + 1)?)
    }

    /// Where a row begins.
    fn offset(&self, row: usize) -> Option<usize> {
        let offsets = bytes_of(&self.offsets);
        let row = self.first + row;
        if self.is_large {
            let bytes = offsets.get(8 * row..)?.first_chunk()?;
            usize::try_from(i64::from_ne_bytes(*bytes)).ok()
        } else {
            let bytes = offsets.get(4 * row..)?.first_chunk()?;
            usize::try_from(i32::from_ne_bytes(*bytes)).ok()
        }
    }
}

/// The bytes of an Arrow buffer.
fn bytes_of(buffer: &PyUntypedBuffer) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    // The one unsafe block of the crate: it saves a copy of every text that is read from a file.
    // SAFETY: the buffer protocol keeps the memory in place while `buffer` lives, which the slice
    // borrows; an Arrow buffer is one run of bytes, and nobody writes to one that is in an array.
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) }
}

/// BPE tokenizer training and encoding in Rust.
#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEFAULT_PATTERN", DEFAULT_PATTERN)?;
    module.add_class::<Tokenizer>()
}
