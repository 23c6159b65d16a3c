//! Encoding and counting many texts with several threads.

use crate::count::{self, WordCounts};
use crate::encode::{self, Encoder, Id};
use crate::error::Error;
use crate::memory::reserve_in_huge_pages;
use crate::split::Splitter;
use crate::texts::Texts;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, TrySendError};
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// Ids that each text gets before and after its own.
pub type Affixes = [Option<u32>; 2];

/// The ids of some texts.
#[derive(Debug, Default)]
pub struct Encoded<T> {
    ids: Vec<T>,
    /// The end of each text in `ids`.
    ends: Vec<usize>,
}

impl<T> Encoded<T> {
    /// Ids of each text, in order.
    pub fn texts(&self) -> impl Iterator<Item = &[T]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let ranges = starts.zip(&self.ends);
        ranges.map(|(start, &end)| &self.ids[start..end])
    }
}

impl<T: Id> Encoded<T> {
    /// Encode texts and append their ids.
    fn add(
        &mut self,
        worker: &mut encode::Worker,
        texts: impl Texts,
        [first, last]: Affixes,
    ) -> Result<(), Error> {
        texts.for_each(|text| {
            reserve_in_huge_pages(&mut self.ids, text.len() + 2);
            self.ids.extend(first.map(T::from_u32));
            worker.encode(text, &mut self.ids)?;
            self.ids.extend(last.map(T::from_u32));
            self.ends.push(self.ids.len());
            Ok(())
        })
    }
}

/// All ids of the texts that `next` returns in chunks, concatenated, and the end of each text.
pub fn encode<T: Id, S: Texts, E: From<Error>>(
    encoder: &Encoder,
    threads: usize,
    next: impl FnMut() -> Result<Option<S>, E>,
) -> Result<(Vec<T>, Vec<i64>), E> {
    // Each thread appends to a vector of its own. So the ids of a single one are not copied.
    let writer = || (encoder.worker(), Encoded::default(), Vec::new());
    let write = |writer: &mut (_, Encoded<T>, Vec<_>), (number, texts): (usize, S)| {
        let (worker, encoded, numbers) = writer;
        encoded.add(worker, texts, [None; 2])?;
        numbers.resize(encoded.ends.len(), number);
        Ok(())
    };
    let writers = run_workers(threads, numbered(next), writer, write)?;
    let mut texts: Vec<(usize, &[T])> = Vec::new();
    for (_, encoded, numbers) in &writers {
        texts.extend(numbers.iter().copied().zip(encoded.texts()));
    }
    // The sort is stable, and the texts of a chunk are in order.
    texts.sort_by_key(|&(number, _)| number);
    let ends = texts.iter().scan(0, |end, (_, ids)| {
        *end += ids.len() as i64;
        Some(*end)
    });
    let (ends, mut ids) = (ends.collect(), Vec::new());
    if writers.len() > 1 {
        reserve_in_huge_pages(&mut ids, texts.iter().map(|(_, ids)| ids.len()).sum());
        texts
            .iter()
            .for_each(|(_, text)| ids.extend_from_slice(text));
    } else if let Some((_, encoded, _)) = writers.into_iter().next() {
        ids = encoded.ids;
    }
    Ok((ids, ends))
}

/// The chunks with their numbers, counted from 0.
fn numbered<S, E>(
    mut next: impl FnMut() -> Result<Option<S>, E>,
) -> impl FnMut() -> Result<Option<(usize, S)>, E> {
    let mut numbers = 0..;
    move || next().map(|chunk| numbers.next().zip(chunk))
}

/// Encoded chunks on their way from the threads that encode them to the thread that called
/// `encode_chunks`, which takes them, in the order of the texts, while others are encoded. So they
/// are few, and their memory, which is used again, stays in the caches of the cores.
#[derive(Default)]
pub struct Output<T>(Mutex<Waiting<T>>);

#[derive(Default)]
struct Waiting<T> {
    /// By number.
    done: BTreeMap<usize, Encoded<T>>,
    num_taken: usize,
    unused: Vec<Encoded<T>>,
}

impl<T: Id> Output<T> {
    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pass the chunks that come next to `take`, as far as they are encoded.
    pub fn take<E>(&self, mut take: impl FnMut(&Encoded<T>) -> Result<(), E>) -> Result<(), E> {
        loop {
            let mut waiting = self.lock();
            let number = waiting.num_taken;
            let Some(chunk) = waiting.done.remove(&number) else {
                return Ok(());
            };
            waiting.num_taken += 1;
            drop(waiting);
            take(&chunk)?;
            self.lock().unused.push(chunk);
        }
    }
}

/// Encode all texts, which `next` returns in chunks. `next` should take what is in `output` before
/// it looks for a chunk; the last ones are there when this function returns.
pub fn encode_chunks<T: Id, S: Texts, E: From<Error>>(
    encoder: &Encoder,
    threads: usize,
    affixes: Affixes,
    output: &Output<T>,
    next: impl FnMut() -> Result<Option<S>, E>,
) -> Result<(), E> {
    let work = |worker: &mut encode::Worker, (number, texts): (usize, S)| {
        let mut chunk = output.lock().unused.pop().unwrap_or_default();
        chunk.ids.clear();
        chunk.ends.clear();
        chunk.add(worker, texts, affixes)?;
        output.lock().done.insert(number, chunk);
        Ok(())
    };
    run_workers(threads, numbered(next), || encoder.worker(), work).map(|_| ())
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
            assert_eq!(found.0, expected_ids.concat());
            let ends = expected_ids.iter().scan(0, |end, ids| {
                *end += ids.len() as i64;
                Some(*end)
            });
            assert_eq!(found.1, ends.collect::<Vec<_>>());
            let (output, mut next, mut lists) = (Output::default(), chunks(number), Vec::new());
            let mut take = |chunk: &Encoded<u16>| {
                lists.extend(chunk.texts().map(|ids| {
                    assert_eq!((ids[0], ids[ids.len() - 1]), (1, 2));
                    ids[1..ids.len() - 1].to_vec()
                }));
                Ok(())
            };
            let take_and_read = || output.take(&mut take).and_then(|()| next());
            encode_chunks(
                &encoder,
                threads,
                [Some(1), Some(2)],
                &output,
                take_and_read,
            )
            .unwrap();
            output.take(&mut take).unwrap();
            assert_eq!(lists, expected_ids);
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
