//! Releasing and taking the GIL in a process that may exit meanwhile.
//!
//! Python ends a thread that asks for the GIL once it is finalizing, which unwinds through frames of
//! Rust. So a callback of `atexit` waits for threads that are about to ask, and later ones sleep.

use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

static IS_EXITING: AtomicBool = AtomicBool::new(false);
/// The thread that exits the process may still call.
static EXITING_THREAD: OnceLock<ThreadId> = OnceLock::new();
static NUM_ASKING: AtomicUsize = AtomicUsize::new(0);
/// A thread asks and has the GIL for milliseconds, but for an iterator of texts that waits.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// While it lives, the process does not finalize Python.
struct Asking;

impl Asking {
    fn new() -> Self {
        // In this order, and the reverse in `finish`: one of the two sees the other.
        NUM_ASKING.fetch_add(1, Ordering::SeqCst);
        let asking = Self;
        let thread = thread::current().id();
        if IS_EXITING.load(Ordering::SeqCst) && EXITING_THREAD.get() != Some(&thread) {
            drop(asking);
            loop {
                thread::park();
            }
        }
        asking
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        NUM_ASKING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `Python::detach` that does not take the GIL again once the process exits.
pub fn detach<T: Send>(py: Python<'_>, work: impl Send + FnOnce() -> T) -> T {
    let (result, _asking) = py.detach(|| {
        let result = work();
        (result, Asking::new())
    });
    result
}

/// `Python::attach` that sleeps forever once the process exits.
pub fn attach<T>(work: impl FnOnce(Python<'_>) -> T) -> T {
    let _asking = Asking::new();
    Python::attach(work)
}

/// Called by `atexit`.
#[pyfunction]
fn finish(py: Python<'_>) {
    let _ = EXITING_THREAD.set(thread::current().id());
    IS_EXITING.store(true, Ordering::SeqCst);
    py.detach(|| {
        let start = Instant::now();
        while NUM_ASKING.load(Ordering::SeqCst) > 0 && start.elapsed() < MAX_WAIT {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Register the callback of `atexit`.
pub fn finish_at_exit(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let finish = wrap_pyfunction!(finish, module)?;
    let atexit = module.py().import("atexit")?;
    atexit.call_method1("register", (finish,)).map(drop)
}
