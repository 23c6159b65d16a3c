//! Encoding and counting many texts with several threads.

use crate::count::{self, WordCounts};
use crate::encode::{self, Encoder, Id};
use crate::error::Error;
use crate::memory::reserve_in_huge_pages;
use crate::split::Splitter;
use crate::texts::Texts;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The number of threads to use: 0 means one per core, which is also the maximum.
pub fn num_threads(requested: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if requested == 0 {
        cores
    } else {
        requested.min(cores)
    }
}

/// The ids of some texts.
#[derive(Debug, Default)]
pub struct Encoded<T> {
    /// The ids that each worker wrote.
    ids: Vec<Vec<T>>,
    /// For each text, in order: its worker and the range in that worker's ids.
    texts: Vec<(usize, Range<usize>)>,
}

impl<T: Copy> Encoded<T> {
    /// Ids of each text, in order.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = &[T]> {
        let texts = self.texts.iter();
        texts.map(|(writer, range)| &self.ids[*writer][range.clone()])
    }

    /// All ids, concatenated, and the end of each text.
    pub fn joined(mut self) -> (Vec<T>, Vec<i64>) {
        let ends = self.texts().scan(0, |end, ids| {
            *end += ids.len() as i64;
            Some(*end)
        });
        let ends = ends.collect();
        if let [all] = &mut self.ids[..] {
            return (std::mem::take(all), ends);
        }
        let mut all = Vec::new();
        reserve_in_huge_pages(&mut all, self.ids.iter().map(Vec::len).sum());
        self.texts().for_each(|ids| all.extend_from_slice(ids));
        (all, ends)
    }
}

/// The output of one thread.
struct Writer<'a, T> {
    worker: encode::Worker<'a>,
    ids: Vec<T>,
    /// For each text: the number of its chunk and its range in `ids`.
    texts: Vec<(usize, Range<usize>)>,
}

/// Ids of all texts, which `next` returns in chunks.
pub fn encode<T: Id, S: Texts, E: From<Error>>(
    encoder: &Encoder,
    threads: usize,
    mut next: impl FnMut() -> Result<Option<S>, E>,
) -> Result<Encoded<T>, E> {
    let mut number = 0;
    let numbered = || {
        number += 1;
        next().map(|chunk| chunk.map(|chunk| (number, chunk)))
    };
    let writer = || Writer {
        worker: encoder.worker(),
        ids: Vec::new(),
        texts: Vec::new(),
    };
    let write = |writer: &mut Writer<T>, (number, chunk): (usize, S)| {
        chunk.for_each(|text| {
            let first = writer.ids.len();
            reserve_in_huge_pages(&mut writer.ids, text.len());
            writer.worker.encode(text, &mut writer.ids)?;
            writer.texts.push((number, first..writer.ids.len()));
            Ok(())
        })
    };
    let writers = run_workers(threads, numbered, writer, write)?;
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for (at, writer) in writers.into_iter().enumerate() {
        texts.extend(writer.texts.into_iter().map(|text| (at, text)));
        ids.push(writer.ids);
    }
    // The sort is stable, and the texts of a chunk are in order.
    texts.sort_by_key(|&(_, (number, _))| number);
    let texts = texts.into_iter().map(|(at, (_, range))| (at, range));
    Ok(Encoded {
        ids,
        texts: texts.collect(),
    })
}

/// Counts of the words of all texts, which `next` returns in chunks.
pub fn count<S: Texts, E: From<Error>>(
    splitter: &Splitter,
    threads: usize,
    next: impl FnMut() -> Result<Option<S>, E>,
) -> Result<WordCounts, E> {
    let counts = WordCounts::default();
    let count =
        |worker: &mut count::Worker, chunk: S| chunk.for_each(|text| worker.count(splitter, text));
    run_workers(threads, next, || count::Worker::new(&counts), count)?;
    Ok(counts)
}

/// Process all chunks of `next` with several threads; returns the worker of each thread.
///
/// Only this thread calls `next`. It reads one chunk ahead, and processes a chunk itself when the
/// queue is full; other threads are started only if there is more than one chunk. Ends at the first
/// error of `next` or of the work.
fn run_workers<S: Send, W: Send, E: From<Error>>(
    threads: usize,
    mut next: impl FnMut() -> Result<Option<S>, E>,
    new_worker: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, S) -> Result<(), Error> + Sync,
) -> Result<Vec<W>, E> {
    let max_helpers = num_threads(threads) - 1;
    let (sender, receiver) = sync_channel(2 * max_helpers);
    let (receiver, has_failed) = (Mutex::new(receiver), AtomicBool::new(false));
    let run_worker = || {
        let mut worker = new_worker();
        while let Some(chunk) = receive(&receiver) {
            work(&mut worker, chunk).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))?;
        }
        Ok::<_, Error>(worker)
    };
    thread::scope(|scope| {
        let mut helpers = Vec::new();
        let mut worker = new_worker();
        let mut feed = || {
            let mut next_chunk = next()?;
            while let (Some(chunk), false) = (next_chunk, has_failed.load(Ordering::Relaxed)) {
                next_chunk = next()?;
                if next_chunk.is_some() && helpers.len() < max_helpers {
                    helpers.push(scope.spawn(run_worker));
                }
                let unsent = match next_chunk {
                    Some(_) => sender.try_send(chunk).err().map(into_chunk),
                    None => Some(chunk),
                };
                if let Some(chunk) = unsent {
                    work(&mut worker, chunk)?;
                }
            }
            Ok(())
        };
        let result = feed();
        drop(sender);
        let mut workers = vec![worker];
        for helper in helpers {
            match helper.join() {
                Ok(worker) => workers.push(worker?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        result.map(|()| workers)
    })
}

fn into_chunk<S>(error: TrySendError<S>) -> S {
    match error {
        TrySendError::Full(chunk) | TrySendError::Disconnected(chunk) => chunk,
    }
}

/// The next chunk; None when there are no more. The lock is held while waiting.
fn receive<S>(receiver: &Mutex<Receiver<S>>) -> Option<S> {
    let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
    receiver.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::{learn_merges, token_bytes};
    use crate::split::DEFAULT_PATTERN;

    fn texts() -> Vec<String> {
        let text = |i: usize| format!("text number {i} of many: {}\n", "ab cde ".repeat(i % 99));
        (0..3000).map(text).collect()
    }

    /// Returns all texts in chunks of `number`.
    fn chunks(number: usize) -> impl FnMut() -> Result<Option<Vec<String>>, Error> {
        let texts = texts();
        let mut chunks: Vec<_> = texts.chunks(number).rev().map(<[_]>::to_vec).collect();
        move || Ok(chunks.pop())
    }

    fn counted(threads: usize, number: usize) -> WordCounts {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        count(&splitter, threads, chunks(number)).unwrap()
    }

    #[test]
    fn merges_do_not_depend_on_threads_or_chunks() {
        let learn = |counts| learn_merges(counts, 400, |_| true).unwrap();
        let expected = learn(counted(1, 3000));
        for (threads, number) in [(1, 1), (2, 7), (5, 100), (8, 3000)] {
            assert_eq!(learn(counted(threads, number)), expected);
        }
    }

    #[test]
    fn ids_do_not_depend_on_threads_or_chunks() {
        let merges = learn_merges(counted(1, 3000), 400, |_| true).unwrap();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let encoder = Encoder::new(&token_bytes(&merges), splitter).unwrap();
        let mut worker = encoder.worker();
        let expected_ids: Vec<Vec<u16>> = texts()
            .iter()
            .map(|text| {
                let mut ids = Vec::new();
                worker.encode(text, &mut ids).unwrap();
                ids
            })
            .collect();
        for (threads, number) in [(1, 3000), (1, 7), (2, 1), (0, 40), (7, 100)] {
            let found = encode::<u16, _, _>(&encoder, threads, chunks(number)).unwrap();
            assert_eq!(found.texts().collect::<Vec<_>>(), expected_ids);
            let (ids, ends) = found.joined();
            assert_eq!(ids, expected_ids.concat());
            assert_eq!(ends.len(), expected_ids.len());
            assert_eq!(
                ends[1],
                (expected_ids[0].len() + expected_ids[1].len()) as i64
            );
        }
    }

    #[test]
    fn no_chunk_is_no_work() {
        let found = run_workers(2, || Ok::<Option<()>, Error>(None), || (), |_, _| Ok(()));
        assert_eq!(found, Ok(vec![()]));
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let mut given = 0;
        let endless = || {
            given += 1;
            Ok(Some(given))
        };
        let work = |_: &mut (), number: usize| match number {
            50 => Err(Error::NoText),
            _ => Ok(()),
        };
        assert_eq!(run_workers(3, endless, || (), work), Err(Error::NoText));
        let stop = || Err::<Option<usize>, _>(Error::Stopped);
        assert_eq!(run_workers(3, stop, || (), work), Err(Error::Stopped));
    }
}
