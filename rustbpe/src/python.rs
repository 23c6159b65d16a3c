//! The Python module: `rustbpe.Tokenizer`.

use crate::batch::{self, Output};
use crate::chunks::{Chunks, PyTexts};
use crate::encode::{Encoder, Id};
use crate::error::Error;
use crate::gil;
use crate::merge::{learn_merges, token_bytes, NUM_BYTES};
use crate::split::{Splitter, DEFAULT_PATTERN};
use crate::strings::Text;
use numpy::{Element, IntoPyArray};
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyInt, PyList, PyString};
use std::sync::{Arc, PoisonError};
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
    /// The Python integer of each id, made for the first list: lists of shared integers take a fifth
    /// of the memory and a third of the time of those with integers of their own.
    integers: PyOnceLock<Vec<Py<PyInt>>>,
}

impl Vocabulary {
    fn new(tokens: Vec<Vec<u8>>, pattern: &str) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            pattern: pattern.to_string(),
            encoder: Encoder::new(&tokens, Splitter::new(pattern)?)?,
            tokens,
            integers: PyOnceLock::new(),
        }))
    }

    /// A list of ids.
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let integers = self.integers.get_or_init(py, || {
            let ids = 0..self.tokens.len();
            ids.map(|id| PyInt::new(py, id).unbind()).collect()
        });
        let integer = |&id: &u32| match integers.get(id as usize) {
            Some(integer) => integer.clone_ref(py),
            None => PyInt::new(py, id).unbind(), // a special token
        };
        PyList::new(py, ids.iter().map(integer))
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
        let vocabulary = gil::detach(py, || Vocabulary::new(tokens, pattern))?;
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
        let vocabulary = gil::detach(py, || -> PyResult<_> {
            let mut counted = 0;
            let counts = batch::count(&splitter, num_threads, || {
                gil::attach(|py| {
                    progress.report(py, "counting", counted, 0)?;
                    let chunk = chunks.next(py)?;
                    counted += chunk.as_ref().map_or(0, PyTexts::size);
                    Ok::<_, PyErr>(chunk)
                })
            })?;
            let mut callback_result = Ok(());
            let merges = learn_merges(counts, vocab_size, |number| {
                callback_result = gil::attach(|py| {
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
        gil::detach(py, || {
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

    /// Token ids of a text, after the id `prepend` and before the id `append`.
    #[pyo3(signature = (text, prepend=None, append=None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        prepend: Option<u32>,
        append: Option<u32>,
    ) -> PyResult<Bound<'py, PyList>> {
        let (vocabulary, text) = (self.vocabulary(), Text::new(text)?);
        let ids = gil::detach(py, || {
            let mut ids: Vec<u32> = prepend.into_iter().collect();
            let mut worker = vocabulary.encoder.worker();
            worker.encode(text.units().text(&mut Vec::new()), &mut ids)?;
            ids.extend(append);
            Ok::<_, Error>(ids)
        })?;
        vocabulary.list(py, &ids)
    }

    /// The same of each text, with `num_threads` threads (0: one per core).
    #[pyo3(signature = (texts, num_threads=0, prepend=None, append=None))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
        prepend: Option<u32>,
        append: Option<u32>,
    ) -> PyResult<Bound<'py, PyList>> {
        let vocabulary = self.vocabulary();
        let mut chunks = text_chunks(texts)?;
        let (output, mut lists) = (Output::default(), Vec::new());
        let mut take = |py: Python<'_>| {
            output.take(|chunk| {
                without_gc(py, || {
                    chunk.texts().try_for_each(|ids| {
                        lists.push(vocabulary.list(py, ids)?.unbind());
                        Ok::<_, PyErr>(())
                    })
                })
            })
        };
        gil::detach(py, || {
            let next = || {
                gil::attach(|py| {
                    take(py)?;
                    next_chunk(py, &mut chunks)
                })
            };
            let affixes = [prepend, append];
            batch::encode_chunks(&vocabulary.encoder, num_threads, affixes, &output, next)
        })?;
        take(py)?;
        PyList::new(py, lists)
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
        let vocabulary = self.vocabulary();
        match wide || vocabulary.tokens.len() > 1 << 16 {
            true => encode_to_arrays::<u32>(&vocabulary, py, texts, num_threads),
            false => encode_to_arrays::<u16>(&vocabulary, py, texts, num_threads),
        }
    }
}

impl Tokenizer {
    fn vocabulary(&self) -> Arc<Vocabulary> {
        let vocabulary = self.0.read();
        Arc::clone(&vocabulary.unwrap_or_else(PoisonError::into_inner))
    }
}

fn encode_to_arrays<'py, T: Id + Element>(
    vocabulary: &Vocabulary,
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    num_threads: usize,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let mut chunks = text_chunks(texts)?;
    let (ids, ends) = gil::detach(py, || {
        let next = || gil::attach(|py| next_chunk(py, &mut chunks));
        batch::encode::<T, _, PyErr>(&vocabulary.encoder, num_threads, next)
    })?;
    let (ids, ends) = (ids.into_pyarray(py), ends.into_pyarray(py));
    Ok((ids.into_any(), ends.into_any()))
}

/// Chunks of the texts to encode, a list of str or an Arrow array.
fn text_chunks(texts: &Bound<'_, PyAny>) -> PyResult<Chunks> {
    let iterator = match texts.hasattr("type")? {
        true => (texts,).into_pyobject(texts.py())?.try_iter()?,
        false => texts.try_iter()?,
    };
    Chunks::new(&iterator, ENCODE_CHUNK_BYTES, usize::MAX)
}

/// The next chunk, unless Ctrl-C was pressed.
fn next_chunk(py: Python<'_>, chunks: &mut Chunks) -> PyResult<Option<PyTexts>> {
    py.check_signals()?;
    chunks.next(py)
}

/// Make lists of ids without the garbage collector, which would visit each id several times while
/// the number of lists grows, for a fifth of the time. It runs as usual once they are complete.
fn without_gc<T>(_py: Python<'_>, make: impl FnOnce() -> T) -> T {
    // SAFETY: both functions may be called by the thread that holds the GIL, as `_py` proves.
    let was_enabled = unsafe { ffi::PyGC_Disable() } == 1;
    let made = make();
    if was_enabled {
        unsafe { ffi::PyGC_Enable() };
    }
    made
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

/// BPE tokenizer training and encoding in Rust.
#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEFAULT_PATTERN", DEFAULT_PATTERN)?;
    // Now and not with the first array, which imports numpy under a lock: a process that is forked
    // meanwhile would wait for it forever.
    module.py().import("numpy")?;
    Vec::<u16>::new().into_pyarray(module.py());
    gil::finish_at_exit(module)?;
    module.add_class::<Tokenizer>()
}
