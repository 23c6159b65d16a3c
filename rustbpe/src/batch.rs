//! Many texts over several threads.

use crate::count::{WordCounts, Worker};
use crate::encode::{Encoder, Id};
use crate::error::Error;
use crate::split::Splitter;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Bytes of text that one thread takes at a time; with less in all, one thread does it.
const SHARE_BYTES: usize = 1 << 17;

/// Something that a text can be had from.
pub trait Text: Send + Sync {
    /// The text. Fails when it is not UTF-8.
    fn text(&self) -> Result<&str, Error>;

    /// Its bytes, about.
    fn size(&self) -> usize;
}

impl Text for String {
    fn text(&self) -> Result<&str, Error> {
        Ok(self)
    }

    fn size(&self) -> usize {
        self.len()
    }
}

/// What some texts became: all ids, and where each text's end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Encoded<T> {
    /// The ids of one text after another.
    pub ids: Vec<T>,
    /// Number of ids up to the end of each text.
    pub ends: Vec<usize>,
}

/// How many threads are meant: 0 means one for each core, and more would only be in the way.
pub fn num_threads(asked: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if asked == 0 {
        cores
    } else {
        asked.min(cores)
    }
}

/// Ids of all texts, in pieces that follow one another.
pub fn encode<T: Id, S: Text>(
    encoder: &Encoder,
    texts: &[S],
    threads: usize,
) -> Result<Vec<Encoded<T>>, Error> {
    let shares = shares(texts);
    let threads = num_threads(threads).min(shares.len());
    if threads <= 1 {
        return Ok(vec![encode_some(encoder, texts)?]);
    }
    let (next, pieces) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&(first, end)) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
            let piece = encode_some(encoder, &texts[first..end]);
            let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
            pieces.push((first, piece));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let mut pieces = pieces.into_inner().unwrap_or_else(PoisonError::into_inner);
    pieces.sort_unstable_by_key(|&(first, _)| first);
    pieces.into_iter().map(|(_, piece)| piece).collect()
}

/// Ranges of texts of about `SHARE_BYTES` each.
fn shares<S: Text>(texts: &[S]) -> Vec<(usize, usize)> {
    let (mut shares, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (number, text) in texts.iter().enumerate() {
        bytes += text.size();
        if bytes >= SHARE_BYTES {
            shares.push((first, number + 1));
            (first, bytes) = (number + 1, 0);
        }
    }
    if first < texts.len() {
        shares.push((first, texts.len()));
    }
    shares
}

fn encode_some<T: Id, S: Text>(encoder: &Encoder, texts: &[S]) -> Result<Encoded<T>, Error> {
    let mut worker = encoder.worker();
    let mut encoded = Encoded {
        ids: Vec::new(),
        ends: Vec::with_capacity(texts.len()),
    };
    for text in texts {
        worker.encode(text.text()?, &mut encoded.ids)?;
        encoded.ends.push(encoded.ids.len());
    }
    Ok(encoded)
}

/// Count the words of batches of texts that `feed` sends, while it makes the next ones ready.
///
/// Sending blocks when the threads have enough to do, and fails when one of them has failed.
pub fn count<S: Text, E: From<Error>>(
    splitter: &Splitter,
    threads: usize,
    feed: impl FnOnce(&SyncSender<Vec<S>>) -> Result<(), E>,
) -> Result<WordCounts, E> {
    let counts = WordCounts::default();
    let threads = num_threads(threads);
    let (sender, receiver) = sync_channel::<Vec<S>>(threads);
    let receiver = Mutex::new(receiver);
    let done = thread::scope(|scope| {
        let (counts, receiver) = (&counts, &receiver);
        let work = move || count_received(counts, splitter, receiver);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let fed = feed(&sender);
        drop(sender);
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        for result in results {
            match result {
                Ok(counted) => counted?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        fed
    });
    done.map(|()| counts)
}

fn count_received<S: Text>(
    counts: &WordCounts,
    splitter: &Splitter,
    receiver: &Mutex<Receiver<Vec<S>>>,
) -> Result<(), Error> {
    let mut worker = Worker::new(counts);
    let mut result = Ok(());
    loop {
        // The lock is held while waiting: the next batch goes to whoever has waited longest.
        let received = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(texts) = received else { return result };
        for text in texts {
            if result.is_ok() {
                result = text.text().and_then(|text| worker.count(splitter, text));
            }
        }
    }
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

    fn counted(threads: usize, batch: usize) -> WordCounts {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let feed = |sender: &SyncSender<Vec<String>>| {
            for texts in texts().chunks(batch) {
                sender.send(texts.to_vec()).unwrap();
            }
            Ok::<(), Error>(())
        };
        count(&splitter, threads, feed).unwrap()
    }

    #[test]
    fn merges_do_not_depend_on_threads_or_batches() {
        let learn = |counts| learn_merges(counts, 400, |_| true).unwrap();
        let expected = learn(counted(1, 3000));
        for (threads, batch) in [(1, 1), (2, 7), (5, 100), (8, 3000)] {
            assert_eq!(learn(counted(threads, batch)), expected);
        }
    }

    #[test]
    fn ids_do_not_depend_on_threads() {
        let merges = learn_merges(counted(1, 3000), 400, |_| true).unwrap();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let encoder = Encoder::new(&token_bytes(&merges), splitter).unwrap();
        let whole = |threads| {
            let pieces = encode::<u16, _>(&encoder, &texts(), threads).unwrap();
            pieces
                .into_iter()
                .fold(Encoded::default(), |mut all, piece| {
                    let before = all.ids.len();
                    all.ids.extend(piece.ids);
                    all.ends.extend(piece.ends.iter().map(|end| before + end));
                    all
                })
        };
        let expected = whole(1);
        assert_eq!(expected.ends.len(), 3000);
        for threads in [0, 2, 7] {
            assert_eq!(whole(threads), expected);
        }
    }

    #[test]
    fn a_failure_of_the_feed_comes_through() {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let feed = |_: &SyncSender<Vec<String>>| Err(Error::Stopped);
        let found = count(&splitter, 2, feed).map(|_| ());
        assert_eq!(found, Err(Error::Stopped));
    }
}
