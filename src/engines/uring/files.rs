//! Who may have a disk read for what he is sent: only so many at once, the others wait for a *place*.
//!
//! When the queue of a disk is full, the kernel makes even who must not wait do so, and that would be the
//! loop. How many are few enough shows in how long it takes to begin. What has come from a disk shows whether
//! it is quick.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::squeue;

use crate::engines::HEAVY_MIN;
use crate::engines::resident::{self, Resident};
use crate::http::Source;

use super::Task;
use super::operation::Key;

/// Spans of files that may be on their way from the disk at once: at first, at the least, and at the most.
/// Many keep a quick disk busy; but they fill the queue of a slow one, and who submits to it when it is full
/// has to wait, which here is the loop.
const PLACES: usize = 16;
const PLACES_MIN: usize = 2;
const PLACES_MAX: usize = 32;
/// Those for [`Line::Unknown`]: each holds a buffer.
const UNKNOWN_PLACES: usize = 64;
/// Beginning to read takes a tenth of a millisecond, and longer than this only where it had to wait.
const BEGIN_MAX: Duration = Duration::from_millis(10);
/// Beginnings for each place, none of which had to wait, until there is one place more.
const BEGINNINGS: usize = 4;
/// Bytes of a buffer into which a span is read: what of it is copied stays in the processor's own caches.
const FILE_BUFFER: usize = 64 * 1024;
/// A disk is quick from which so many pieces in a row have come within this time.
const QUICK_ROW: usize = 64;
const QUICK: Duration = Duration::from_millis(10);
/// The same after the loop has had to wait for it.
const WARY_ROW: usize = 64 * QUICK_ROW;

/// Who may read a file that is to be sent, which is a limited number, and with what.
pub(super) struct Files {
    /// Buffers for spans, made when first needed.
    buffers: Vec<Box<[u8]>>,
    /// By [`Line`].
    queues: [Queue; 2],
    /// Beginnings since the number of places was last changed.
    begun: usize,
    /// Beginnings of this turn for which a place will be taken once the head before has been sent.
    promised: usize,
    /// Pieces that are still to come quickly, one after the other, until the disk is taken to be quick; and
    /// how many that is each time that one does not.
    wary: usize,
    row: usize,
    /// The kernel could not start a thread to wait with.
    lacks_threads: bool,
}

/// Where clients wait for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// What they want is on the disk.
    Cold,
    /// Their socket has no descriptor of the process, so that it is not known whether there is anything to
    /// wait for.
    Unknown,
}

/// Whether it is a client's turn to have the disk read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Not that anybody has said so.
    No,
    /// It was called.
    Called,
    /// And what it wanted has been fetched.
    Fetched,
}

/// Places, and who waits for one.
struct Queue {
    places: usize,
    /// Those that tasks have.
    taken: usize,
    waiting: VecDeque<Key>,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.taken >= self.places
    }
}

impl Default for Files {
    fn default() -> Files {
        let queues =
            [PLACES, UNKNOWN_PLACES].map(|places| Queue { places, taken: 0, waiting: VecDeque::new() });
        Files {
            buffers: Vec::new(),
            queues,
            begun: 0,
            promised: 0,
            wary: QUICK_ROW,
            row: QUICK_ROW,
            lacks_threads: false,
        }
    }
}

impl Files {
    fn queue(&mut self, line: Line) -> &mut Queue {
        &mut self.queues[line as usize]
    }

    /// Whether a disk may be made to begin with something, as far as these places tell.
    pub(super) fn may_begin(&mut self) -> bool {
        let promised = self.promised;
        let queue = self.queue(Line::Cold);
        queue.taken + promised < queue.places && queue.waiting.is_empty()
    }

    /// Whether there is a place for this one now; else it waits in line. Whose turn it is is the next, and so
    /// is who wants little if nobody else waits.
    pub(super) fn has_place(&mut self, key: Key, line: Line, turn: Turn, is_little: bool) -> bool {
        let is_called = turn != Turn::No;
        let queue = self.queue(line);
        // There may be fewer places than when it was called.
        if !queue.is_full() && (is_called || is_little && queue.waiting.is_empty()) {
            return true;
        }
        if is_called {
            queue.waiting.push_front(key);
        } else {
            queue.waiting.push_back(key);
        }
        false
    }

    /// How much can be sent of a span, from its start; or `resident` has what is coming. Where the kernel
    /// does not tell what it has, to look may be to begin, so a long one is not looked at before its turn,
    /// but where all was there at the last look.
    pub(super) fn find(
        &mut self,
        resident: &mut Resident,
        file: &Arc<Source>,
        at: u64,
        len: u64,
        turn: Turn,
    ) -> u64 {
        let has_turn = turn != Turn::No && !self.queue(Line::Cold).is_full();
        if has_turn && turn == Turn::Called {
            self.begin(resident, file, at, len);
            if resident.coming() > 0 {
                return 0;
            }
        }
        resident.find(file, at, len, has_turn || len < HEAVY_MIN && self.may_begin())
    }

    /// Has the kernel begin with a span.
    pub(super) fn begin(&mut self, resident: &mut Resident, file: &Arc<Source>, at: u64, len: u64) {
        let before = Instant::now();
        resident.begin(file, at, len);
        let took = before.elapsed();
        if resident.coming() > 0 || took > BEGIN_MAX {
            self.begun(took);
        }
    }

    /// Whether the disk is quick, now that a piece has taken so long to come.
    pub(super) fn is_quick(&mut self, took: Duration) -> bool {
        self.wary = if took > QUICK { self.row } else { self.wary.saturating_sub(1) };
        if self.wary == 0 {
            self.row = QUICK_ROW;
        }
        self.wary == 0
    }

    /// What was taken to be in memory has taken so long to be sent.
    pub(super) fn has_sent(&mut self, took: Duration) {
        if took > QUICK {
            (self.wary, self.row) = (WARY_ROW, WARY_ROW);
        }
    }

    /// Of a read. Where others wait, the disk's queue may be full, and a thread of the kernel waits for that.
    pub(super) fn flags(&self, file: &Source) -> squeue::Flags {
        self.flags_where(!self.is_any_awaited() && resident::is_told(file))
    }

    /// Of a read of what is not waited for by others, as a rule.
    pub(super) fn read_flags(&self, file: &Source) -> squeue::Flags {
        self.flags_where(resident::is_told(file))
    }

    /// Of what the kernel can do at once, or tell that it cannot; or maybe not, and then one of its threads
    /// is to do it from the start.
    pub(super) fn flags_where(&self, is_told: bool) -> squeue::Flags {
        if is_told || self.lacks_threads { squeue::Flags::empty() } else { squeue::Flags::ASYNC }
    }

    /// The kernel could not start a thread, as where there may be no more processes (`RLIMIT_NPROC`,
    /// getrlimit(2)). From now on what can be done without one is.
    pub(super) fn has_no_thread(&mut self) {
        if !std::mem::replace(&mut self.lacks_threads, true) {
            tracing::warn!(
                "the kernel cannot start a thread to wait for a disk with: others may have to wait"
            );
        }
    }

    /// Whether anybody waits because there is no place.
    pub(super) fn is_any_awaited(&self) -> bool {
        self.queues.iter().any(|queue| queue.is_full() && !queue.waiting.is_empty())
    }

    /// Who has waited longest for a place, if there is one. He may have come by what he wanted since.
    pub(super) fn next(&mut self) -> Option<(Key, Line)> {
        [Line::Cold, Line::Unknown].into_iter().find_map(|line| {
            let queue = self.queue(line);
            if queue.is_full() { None } else { queue.waiting.pop_front().map(|key| (key, line)) }
        })
    }

    /// To begin with a short span, which is to take a place later, took so long.
    pub(super) fn begun_early(&mut self, took: Duration) {
        self.promised += 1;
        self.begun(took);
    }

    /// All for which a place was promised have taken theirs, or wait.
    pub(super) fn keep_promises(&mut self) {
        self.promised = 0;
    }

    /// To begin with a span took so long.
    fn begun(&mut self, took: Duration) {
        self.begun += 1;
        let places = &mut self.queues[Line::Cold as usize].places;
        if took > BEGIN_MAX {
            *places = PLACES_MIN.max(*places / 2);
            self.begun = 0;
        } else if self.begun > BEGINNINGS * *places {
            *places = PLACES_MAX.min(*places + 1);
            self.begun = 0;
        }
    }

    /// Gives a task a place.
    pub(super) fn call(&mut self, task: &mut Task, line: Line) {
        self.queue(line).taken += 1;
        *task = Task::FileCalled(line);
    }

    /// A place, and a buffer with it.
    pub(super) fn take_buffer(&mut self, line: Line) -> Task {
        self.queue(line).taken += 1;
        let buffer = self.buffers.pop().unwrap_or_else(|| vec![0; FILE_BUFFER].into_boxed_slice());
        Task::File(line, buffer, 0)
    }

    /// Takes back the place of a task that has been waited for, which then is none.
    pub(super) fn turn(&mut self, task: &mut Task) -> Turn {
        let turn = match task {
            Task::FileCalled(_) => Turn::Called,
            Task::FileFetched => Turn::Fetched,
            _ => return Turn::No,
        };
        self.give_back(task);
        turn
    }

    /// Takes back what a task has, which then is none.
    pub(super) fn give_back(&mut self, task: &mut Task) {
        let line = match std::mem::replace(task, Task::None) {
            Task::File(line, buffer, _) => {
                self.buffers.push(buffer);
                line
            }
            Task::FileCalled(line) => line,
            Task::FileFetched => Line::Cold,
            _ => return,
        };
        self.queue(line).taken -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key::NONE;

    #[test]
    fn there_are_so_many_places_and_who_waits_is_called_in_order() {
        let mut files = Files::default();
        let mut tasks: Vec<_> = (0..PLACES).map(|_| Task::None).collect();
        for (number, task) in tasks.iter_mut().enumerate() {
            assert!(files.may_begin());
            if number % 2 == 0 {
                files.call(task, Line::Cold);
            } else {
                *task = files.take_buffer(Line::Cold);
            }
        }
        assert!(!files.may_begin());
        assert!(!files.is_any_awaited());
        files.queue(Line::Cold).waiting.extend((7..9).map(|generation| Key { generation, ..KEY }));
        assert!(files.is_any_awaited() && files.next().is_none());
        files.queue(Line::Unknown).waiting.push_back(KEY);
        assert_eq!(files.next(), Some((KEY, Line::Unknown)), "the other line is not full");
        for task in &mut tasks {
            files.give_back(task);
            // It has none any more.
            files.give_back(task);
        }
        assert!(files.queue(Line::Cold).taken == 0 && !files.may_begin(), "who waits comes first");
        assert!(!files.is_any_awaited(), "there are places");
        assert_eq!(files.next().unwrap().0.generation, 7);
        assert_eq!(files.next().unwrap().0.generation, 8);
        assert!(files.next().is_none() && files.may_begin());
    }

    #[test]
    fn a_disk_is_quick_once_many_pieces_in_a_row_have_not_taken_long() {
        let mut files = Files::default();
        let come = |files: &mut Files, pieces| {
            for _ in 1..pieces {
                assert!(!files.is_quick(QUICK));
            }
            assert!(files.is_quick(QUICK) && files.is_quick(Duration::ZERO));
        };
        come(&mut files, QUICK_ROW);
        assert!(!files.is_quick(QUICK * 2));
        come(&mut files, QUICK_ROW);
        files.has_sent(QUICK);
        assert!(files.is_quick(QUICK));
        // That the loop had to wait counts for more.
        files.has_sent(QUICK * 2);
        for _ in 0..WARY_ROW / 2 {
            assert!(!files.is_quick(QUICK));
        }
        assert!(!files.is_quick(QUICK * 2));
        come(&mut files, WARY_ROW);
        assert!(!files.is_quick(QUICK * 2));
        come(&mut files, QUICK_ROW);
    }

    #[test]
    fn places_go_where_to_begin_takes_long_and_come_back_by_and_by() {
        let mut files = Files::default();
        for _ in 0..10 {
            files.begun(BEGIN_MAX * 2);
        }
        assert_eq!(files.queue(Line::Cold).places, PLACES_MIN);
        for _ in 0..PLACES_MIN {
            assert!(files.may_begin());
            files.begun_early(BEGIN_MAX * 2);
        }
        assert!(!files.may_begin());
        for _ in 0..=BEGINNINGS * PLACES_MIN {
            assert_eq!(files.queue(Line::Cold).places, PLACES_MIN);
            files.begun(BEGIN_MAX);
        }
        assert_eq!(files.queue(Line::Cold).places, PLACES_MIN + 1);
        for _ in 0..10_000 {
            files.begun(Duration::ZERO);
        }
        assert_eq!(files.queue(Line::Cold).places, PLACES_MAX);
    }
}
