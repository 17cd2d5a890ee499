//! What has happened, counted: by the workers, and by the engines below them.
//!
//! A worker counts into plain numbers of its own, a [`Tally`], and adds them to its row of the [`Board`] once
//! per turn of its engine's loop. The board is memory that may be shared with other processes: with those
//! that an engine forks, and, where it lies in a file, with whoever started the server to measure it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::http::Status;
use crate::sys;

macro_rules! counters {
    ($($name:ident $text:literal $what:literal)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $(#[doc = $what] $name),* }

        impl Counter {
            /// All of them, in the order in which they stand in a row.
            pub const ALL: &[Counter] = &[$(Counter::$name),*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => $text),* }
            }

            /// What it counts, in one line.
            pub const fn what(self) -> &'static str {
                match self { $(Counter::$name => $what),* }
            }
        }
    };
}

counters! {
    SystemCalls "system_calls" "System calls of the engine's threads for what is in the cache."
    Enters "ring_enters" "Of these, calls of io_uring_enter(2)."
    Submissions "ring_submissions" "Submission queue entries handed to the kernel."
    Completions "ring_completions" "Completion queue entries taken from it."
    Rearms "ring_multishot_rearms" "Multishot operations that had ended and were submitted again."
    BuffersExhausted "ring_buffers_exhausted" "Receives that found the buffer ring empty."
    EngineFailures "engine_failures" "Times that an engine broke and another went on in its place."
    Connections "connections" "Connections accepted."
    ConnectionsEnded "connections_ended" "Of these, connections that have ended."
    AcceptPauses "accept_pauses" "Times that accepting was paused for want of room."
    Answered2xx "answered_2xx" "Answers with a status of 200 to 299."
    Answered3xx "answered_3xx" "Answers with a status of 300 to 399."
    Answered4xx "answered_4xx" "Answers with a status of 400 to 499."
    Answered5xx "answered_5xx" "Answers with a status of 500 to 599."
    BodyBytes "body_bytes" "Bytes of bodies that these answers have promised."
    CacheHits "cache_hits" "Requests answered from the cache as it was."
    Loads "loads" "Targets that were not in the cache, or had to be looked at again."
    HeaderTimeouts "header_timeouts" "Connections whose request did not come to its end in time."
    IdleTimeouts "idle_timeouts" "Connections that were closed for asking nothing."
    SendTimeouts "send_timeouts" "Connections that were cut for taking nothing of their answer."
}

impl Counter {
    /// That of the answers with such a status.
    pub const fn answered(status: Status) -> Counter {
        match status as u16 {
            ..300 => Counter::Answered2xx,
            300..400 => Counter::Answered3xx,
            400..500 => Counter::Answered4xx,
            500.. => Counter::Answered5xx,
        }
    }
}

const COUNTERS: usize = Counter::ALL.len();
/// Rows of a board. A worker has one to itself as long as there are not more of them.
const ROWS: usize = 64;

/// A worker's counts since it last published them.
#[derive(Debug, Default)]
pub struct Tally {
    counts: [u64; COUNTERS],
    row: Option<&'static [AtomicU64]>,
}

impl Tally {
    /// Counts something, so many times.
    #[inline]
    pub fn add(&mut self, counter: Counter, times: u64) {
        self.counts[counter as usize] += times;
    }

    /// An empty tally that is added to the same row.
    #[must_use]
    pub fn beside(&self) -> Tally {
        Tally { counts: [0; COUNTERS], row: self.row }
    }

    /// Takes over what another has counted.
    pub fn take_over(&mut self, other: &mut Tally) {
        for (count, more) in self.counts.iter_mut().zip(&mut other.counts) {
            *count += std::mem::take(more);
        }
    }

    /// Adds what was counted to the board.
    pub fn publish(&mut self) {
        for (index, count) in self.counts.iter_mut().enumerate() {
            if *count != 0 {
                if let Some(row) = self.row {
                    // Several may share a row, as those who serve one client each do.
                    row[index].fetch_add(*count, Relaxed);
                }
                *count = 0;
            }
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.publish();
    }
}

/// The counts of all workers. It is never given back: it lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Board(&'static [AtomicU64]);

impl Board {
    /// Bytes of a board in a file.
    pub const SIZE: u64 = (ROWS * COUNTERS * size_of::<u64>()) as u64;

    /// A board that all processes forked from this one share.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new() -> io::Result<Board> {
        Ok(Board(sys::share_words(None, ROWS * COUNTERS)?))
    }

    /// A board that lies in a file, which is made as long as it must be.
    ///
    /// # Errors
    /// What opening, lengthening or mapping the file says.
    pub fn in_file(path: &Path) -> io::Result<Board> {
        let file = std::fs::File::options().read(true).write(true).open(path)?;
        file.set_len(Board::SIZE)?;
        Ok(Board(sys::share_words(Some(&file), ROWS * COUNTERS)?))
    }

    /// A tally that is added to this board, for the worker of that number.
    pub fn tally(self, worker: usize) -> Tally {
        let at = worker % ROWS * COUNTERS;
        Tally { counts: [0; COUNTERS], row: Some(&self.0[at..at + COUNTERS]) }
    }

    /// How often something has happened, over all workers.
    pub fn total(self, counter: Counter) -> u64 {
        self.0.iter().skip(counter as usize).step_by(COUNTERS).map(|count| count.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_add_to_one_board_and_a_second_process_sees_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let board = Board::in_file(file.path()).unwrap();
        let seen = Board::in_file(file.path()).unwrap();
        for number in [0, 1, 1 + ROWS] {
            let mut tally = board.tally(number);
            tally.add(Counter::Loads, 2);
            tally.add(Counter::SendTimeouts, 1);
        }
        assert_eq!((seen.total(Counter::Loads), seen.total(Counter::SendTimeouts)), (6, 3));
        assert_eq!(seen.total(Counter::SystemCalls), 0);
    }

    #[test]
    fn nothing_is_counted_twice() {
        let board = Board::new().unwrap();
        let mut tally = board.tally(3);
        tally.add(Counter::answered(Status::NotFound), 1);
        tally.publish();
        tally.publish();
        drop(tally);
        assert_eq!(board.total(Counter::Answered4xx), 1);
    }

    #[test]
    fn a_board_in_no_file_is_an_error() {
        assert!(Board::in_file(Path::new("/nowhere/at/all")).is_err());
    }
}
