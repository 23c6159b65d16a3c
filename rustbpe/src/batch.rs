//! Many texts over several threads.

use crate::count::{self, WordCounts};
use crate::encode::{self, Encoder, Id};
use crate::error::Error;
use crate::memory::make_room;
use crate::split::Splitter;
use crate::texts::Texts;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, TrySendError};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// How many threads are meant: 0 means one for each core, and more would only be in the way.
pub fn num_threads(asked: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if asked == 0 {
        cores
    } else {
        asked.min(cores)
    }
}

/// What some texts became: all ids, and where each text's end.
#[derive(Debug, Default)]
pub struct Encoded<T> {
    /// What each thread wrote, one share behind another.
    ids: Vec<Vec<T>>,
    /// The texts in order: who wrote one, and where.
    texts: Vec<(usize, Range<usize>)>,
}

impl<T: Copy> Encoded<T> {
    /// Ids of each text, in order.
    pub fn texts(&self) -> impl ExactSizeIterator<Item = &[T]> {
        let texts = self.texts.iter();
        texts.map(|(writer, range)| &self.ids[*writer][range.clone()])
    }

    /// All ids, one text behind another, and where each text's end.
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
        make_room(&mut all, self.ids.iter().map(Vec::len).sum());
        self.texts().for_each(|ids| all.extend_from_slice(ids));
        (all, ends)
    }
}

/// One thread's part.
struct Writer<'a, T> {
    worker: encode::Worker<'a>,
    ids: Vec<T>,
    /// Number of the share and place of each text.
    texts: Vec<(usize, Range<usize>)>,
}

/// Ids of all texts that `next` gives out in shares.
pub fn encode<T: Id, S: Texts, E: From<Error>>(
    encoder: &Encoder,
    threads: usize,
    mut next: impl FnMut() -> Result<Option<S>, E>,
) -> Result<Encoded<T>, E> {
    let mut number = 0;
    let numbered = || {
        number += 1;
        next().map(|share| share.map(|share| (number, share)))
    };
    let writer = || Writer {
        worker: encoder.worker(),
        ids: Vec::new(),
        texts: Vec::new(),
    };
    let write = |writer: &mut Writer<T>, (number, share): (usize, S)| {
        share.each(|text| {
            let first = writer.ids.len();
            make_room(&mut writer.ids, text.len());
            writer.worker.encode(text, &mut writer.ids)?;
            writer.texts.push((number, first..writer.ids.len()));
            Ok(())
        })
    };
    let writers = share_out(threads, numbered, writer, write)?;
    let (mut ids, mut texts) = (Vec::new(), Vec::new());
    for (at, writer) in writers.into_iter().enumerate() {
        texts.extend(writer.texts.into_iter().map(|text| (at, text)));
        ids.push(writer.ids);
    }
    // Stable, and the texts of a share are in order.
    texts.sort_by_key(|&(_, (number, _))| number);
    let texts = texts.into_iter().map(|(at, (_, range))| (at, range));
    Ok(Encoded {
        ids,
        texts: texts.collect(),
    })
}

/// Counts of the words of all texts that `next` gives out in shares.
pub fn count<S: Texts, E: From<Error>>(
    splitter: &Splitter,
    threads: usize,
    next: impl FnMut() -> Result<Option<S>, E>,
) -> Result<WordCounts, E> {
    let counts = WordCounts::default();
    let count =
        |worker: &mut count::Worker, share: S| share.each(|text| worker.count(splitter, text));
    share_out(threads, next, || count::Worker::new(&counts), count)?;
    Ok(counts)
}

/// Do some work on all that `next` gives out, by several threads; gives each one's worker.
///
/// Only this thread asks `next`, reads one share ahead, and works along when the others have enough
/// to do; they are started when there is more than one share. Ends with the first failure, be it of
/// `next` or of the work.
fn share_out<S: Send, W: Send, E: From<Error>>(
    threads: usize,
    mut next: impl FnMut() -> Result<Option<S>, E>,
    new_worker: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, S) -> Result<(), Error> + Sync,
) -> Result<Vec<W>, E> {
    let max_others = num_threads(threads) - 1;
    let (sender, receiver) = sync_channel(2 * max_others);
    let (receiver, has_failed) = (Mutex::new(receiver), AtomicBool::new(false));
    let work_along = || {
        let mut worker = new_worker();
        while let Some(share) = received(&receiver) {
            work(&mut worker, share).inspect_err(|_| has_failed.store(true, Ordering::Relaxed))?;
        }
        Ok::<_, Error>(worker)
    };
    thread::scope(|scope| {
        let mut others = Vec::new();
        let mut worker = new_worker();
        let mut lead = || {
            let mut ahead = next()?;
            while let (Some(share), false) = (ahead, has_failed.load(Ordering::Relaxed)) {
                ahead = next()?;
                if ahead.is_some() && others.len() < max_others {
                    others.push(scope.spawn(work_along));
                }
                let kept = match ahead {
                    Some(_) => sender.try_send(share).err().map(not_sent),
                    None => Some(share),
                };
                if let Some(share) = kept {
                    work(&mut worker, share)?;
                }
            }
            Ok(())
        };
        let led = lead();
        drop(sender);
        let mut workers = vec![worker];
        for other in others {
            match other.join() {
                Ok(worker) => workers.push(worker?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        led.map(|()| workers)
    })
}

fn not_sent<S>(error: TrySendError<S>) -> S {
    match error {
        TrySendError::Full(share) | TrySendError::Disconnected(share) => share,
    }
}

/// The next share; nothing when there will be none. The lock is held while waiting.
fn received<S>(receiver: &Mutex<Receiver<S>>) -> Option<S> {
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

    /// Gives out all texts in shares of some.
    fn shares(number: usize) -> impl FnMut() -> Result<Option<Vec<String>>, Error> {
        let texts = texts();
        let mut shares: Vec<_> = texts.chunks(number).rev().map(<[_]>::to_vec).collect();
        move || Ok(shares.pop())
    }

    fn counted(threads: usize, number: usize) -> WordCounts {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        count(&splitter, threads, shares(number)).unwrap()
    }

    #[test]
    fn merges_do_not_depend_on_threads_or_shares() {
        let learn = |counts| learn_merges(counts, 400, |_| true).unwrap();
        let expected = learn(counted(1, 3000));
        for (threads, number) in [(1, 1), (2, 7), (5, 100), (8, 3000)] {
            assert_eq!(learn(counted(threads, number)), expected);
        }
    }

    #[test]
    fn ids_do_not_depend_on_threads_or_shares() {
        let merges = learn_merges(counted(1, 3000), 400, |_| true).unwrap();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let encoder = Encoder::new(&token_bytes(&merges), splitter).unwrap();
        let mut worker = encoder.worker();
        let alone: Vec<Vec<u16>> = texts()
            .iter()
            .map(|text| {
                let mut ids = Vec::new();
                worker.encode(text, &mut ids).unwrap();
                ids
            })
            .collect();
        for (threads, number) in [(1, 3000), (1, 7), (2, 1), (0, 40), (7, 100)] {
            let found = encode::<u16, _, _>(&encoder, threads, shares(number)).unwrap();
            assert_eq!(found.texts().collect::<Vec<_>>(), alone);
            let (ids, ends) = found.joined();
            assert_eq!(ids, alone.concat());
            assert_eq!(ends.len(), alone.len());
            assert_eq!(ends[1], (alone[0].len() + alone[1].len()) as i64);
        }
    }

    #[test]
    fn nothing_to_do_is_done() {
        let found = share_out(2, || Ok::<Option<()>, Error>(None), || (), |_, _| Ok(()));
        assert_eq!(found, Ok(vec![()]));
    }

    #[test]
    fn the_first_failure_ends_it() {
        let mut given = 0;
        let endless = || {
            given += 1;
            Ok(Some(given))
        };
        let work = |_: &mut (), number: usize| match number {
            50 => Err(Error::NoText),
            _ => Ok(()),
        };
        assert_eq!(share_out(3, endless, || (), work), Err(Error::NoText));
        let stop = || Err::<Option<usize>, _>(Error::Stopped);
        assert_eq!(share_out(3, stop, || (), work), Err(Error::Stopped));
    }
}
