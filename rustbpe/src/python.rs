//! The Python face: `rustbpe.Tokenizer`.

use crate::count::{count_words, WordCounts};
use crate::encode::{encode, ranks_of, Ranks};
use crate::error::Error;
use crate::merge::{learn_merges, token_bytes, Pair};
use crate::split::{Splitter, DEFAULT_PATTERN};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyString};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

/// A trainable BPE tokenizer without special tokens.
#[pyclass]
struct Tokenizer {
    pattern: String,
    splitter: Splitter,
    merges: Vec<Pair>,
    ranks: Ranks,
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self {
            pattern: DEFAULT_PATTERN.to_string(),
            splitter: Splitter::new(DEFAULT_PATTERN)?,
            merges: Vec::new(),
            ranks: Ranks::default(),
        })
    }

    /// Learn merges from an iterator of str, `buffer_size` of which are counted at a time.
    ///
    /// Ends with fewer than `vocab_size` tokens when the texts have no pair left to merge.
    /// Raises ValueError on a vocabulary below 256, a bad pattern or no text; TypeError on an
    /// item that is not str.
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None))]
    fn train_from_iterator(
        &mut self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: usize,
        buffer_size: usize,
        pattern: Option<&str>,
    ) -> PyResult<()> {
        let pattern = pattern.unwrap_or(DEFAULT_PATTERN);
        let splitter = Splitter::new(pattern)?;
        if vocab_size < crate::merge::NUM_BYTES {
            return Err(Error::VocabularyTooSmall(vocab_size).into());
        }
        let mut counts = WordCounts::default();
        let mut texts = iterator.try_iter()?;
        loop {
            let buffer = next_buffer(&mut texts, buffer_size.max(1))?;
            if buffer.is_empty() {
                break;
            }
            py.detach(|| count_words(&splitter, &buffer, &mut counts))?;
            py.check_signals()?;
        }
        let merges = py.detach(|| {
            learn_merges(&counts, vocab_size, |_| {
                Python::attach(|py| py.check_signals().is_ok())
            })
        });
        self.merges = match merges {
            Err(Error::Stopped) => return Err(pyo3::exceptions::PyKeyboardInterrupt::new_err(())),
            merges => merges?,
        };
        self.ranks = ranks_of(&self.merges);
        self.pattern = pattern.to_string();
        self.splitter = splitter;
        Ok(())
    }

    /// The split pattern, a regular expression.
    fn get_pattern(&self) -> &str {
        &self.pattern
    }

    /// [(bytes of the token, its id), ...] in the order of ids.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, u32)> {
        let tokens = token_bytes(&self.merges);
        let bytes = tokens.iter().map(|token| PyBytes::new(py, token));
        bytes.zip(0..).collect()
    }

    /// Number of tokens: 256 bytes and the merges.
    #[getter]
    fn vocab_size(&self) -> usize {
        crate::merge::NUM_BYTES + self.merges.len()
    }

    /// Token ids of a text.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        Ok(py.detach(|| encode(&self.splitter, &self.ranks, text))?)
    }
}

/// Up to `size` texts of a Python iterator.
fn next_buffer(texts: &mut Bound<'_, PyIterator>, size: usize) -> PyResult<Vec<PyBackedStr>> {
    let mut buffer = Vec::with_capacity(size.min(8192));
    for item in texts.by_ref().take(size) {
        let item = item?;
        let text = item.cast::<PyString>().map_err(|_| {
            let kind = item.get_type().to_string();
            PyTypeError::new_err(format!("texts must be str, got an item of {kind}"))
        })?;
        buffer.push(PyBackedStr::try_from(text.clone())?);
    }
    Ok(buffer)
}

/// BPE tokenizer training in Rust.
#[pymodule]
fn rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEFAULT_PATTERN", DEFAULT_PATTERN)?;
    module.add_class::<Tokenizer>()
}
