//! Which job of a disk comes next, and who is woken for it: what the threads of
//! [helpers](super::helpers) take from.

use std::collections::VecDeque;

use super::helpers::{Job, Kind};

/// Threads that may have the same kind of job at once, so that a small file does not wait behind all of the
/// large ones, nor these behind ever more of the small.
const ALIKE_MAX: usize = 16;
/// Short spans of one disk that one thread sees to at once: it asks for all of them, and where it has waited
/// for the first the others are there, most likely. So it sleeps less often, and wakes the loop less often.
pub const SHORT_AT_ONCE: usize = 8;

/// What is to be done, with the keys of those who want it.
#[derive(Debug)]
pub struct Queue<K> {
    /// Of each [`Kind`].
    lanes: [Lane<K>; 2],
    /// Threads that wait for a job.
    pub idle: usize,
    /// Short spans that may be added before another thread is woken: the last that was will see to them.
    covered: usize,
    /// No more will come.
    pub closed: bool,
}

#[derive(Debug)]
struct Lane<K> {
    waiting: VecDeque<(K, Job)>,
    /// Those that threads are busy with.
    busy: usize,
}

impl<K> Default for Queue<K> {
    fn default() -> Queue<K> {
        let lanes = [(); 2].map(|()| Lane { waiting: VecDeque::new(), busy: 0 });
        Queue { lanes, idle: 0, covered: 0, closed: false }
    }
}

impl<K> Queue<K> {
    /// Jobs that nobody does yet.
    pub fn waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }

    /// Takes out what is to be done next, if any of it may be begun: one job, or some for short spans.
    pub fn next(&mut self, jobs: &mut Vec<(K, Job)>) {
        let Some(lane) = self.lanes.iter_mut().find(|lane| !lane.waiting.is_empty() && lane.busy < ALIKE_MAX)
        else {
            return;
        };
        self.covered = 0;
        let short = lane.waiting.iter().take_while(|(_, job)| job.is_short()).count();
        let taken = short.min(SHORT_AT_ONCE).min(ALIKE_MAX - lane.busy).max(1);
        lane.busy += taken;
        jobs.extend(lane.waiting.drain(..taken));
    }

    /// Puts back jobs of a kind that were taken out, before all others.
    pub fn put_back(&mut self, kind: Kind, jobs: Vec<(K, Job)>) {
        self.done(kind, jobs.len());
        for job in jobs.into_iter().rev() {
            self.lanes[kind as usize].waiting.push_front(job);
        }
    }

    /// So many jobs of a kind that were taken out are done.
    pub fn done(&mut self, kind: Kind, number: usize) {
        self.lanes[kind as usize].busy -= number;
    }

    /// Adds a job, and says whether a thread is to be woken for it.
    pub fn add(&mut self, key: K, job: Job) -> bool {
        let is_short = job.is_short();
        self.lanes[job.kind() as usize].waiting.push_back((key, job));
        if is_short && self.covered > 0 {
            self.covered -= 1;
            return false;
        }
        let wakes = self.idle > 0;
        if wakes && is_short {
            self.covered = SHORT_AT_ONCE - 1;
        }
        wakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::helpers::tests::{on_disk, span_of};
    use crate::engines::resident::SHORT_MAX;
    use crate::engines::session::tests::worker;
    use crate::http::{Connection, Outbox};
    use crate::serve::Want;

    #[test]
    fn spans_leave_threads_for_loads_and_loads_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = worker(folder.path());
        let mut load = || {
            let mut conn = Connection::new(None);
            worker.accepted(&mut conn);
            let head = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
            let want = worker.turn(&mut conn, head, &mut Outbox::default());
            let Want::Load(load) = want else { panic!("it is not known yet") };
            Job::Load(load)
        };
        let file = on_disk();
        let mut queue = Queue::default();
        let next = |queue: &mut Queue<usize>| {
            let mut jobs = Vec::new();
            queue.next(&mut jobs);
            assert!(jobs.len() <= 1);
            jobs.pop().map(|(key, _)| key)
        };
        for number in 0..100 {
            queue.add(number, span_of(&file, SHORT_MAX + 1));
        }
        for number in 0..ALIKE_MAX {
            assert_eq!(next(&mut queue), Some(number));
        }
        assert_eq!(next(&mut queue), None, "the rest is for loads");
        for number in 200..230 {
            queue.add(number, load());
        }
        assert_eq!(next(&mut queue), Some(200));
        queue.done(Kind::Read, 1);
        for number in 201..200 + ALIKE_MAX {
            assert_eq!(next(&mut queue), Some(number));
        }
        assert_eq!(next(&mut queue), Some(ALIKE_MAX), "and there are too many of these, too");
        assert_eq!(next(&mut queue), None);
    }

    #[test]
    fn short_spans_are_taken_together_as_far_as_the_disk_may_be_asked() {
        let file = on_disk();
        let mut queue = Queue::default();
        for key in 0..100 {
            let len = if key == 3 { SHORT_MAX + 1 } else { SHORT_MAX };
            queue.add(key, span_of(&file, len));
        }
        let mut next = || {
            let mut jobs = Vec::new();
            queue.next(&mut jobs);
            jobs.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(next(), [0, 1, 2]);
        assert_eq!(next(), [3]);
        assert_eq!(next(), [4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(next(), [12, 13, 14, 15]);
        assert!(next().is_empty());
    }

    #[test]
    fn one_thread_is_woken_for_as_many_short_spans_as_it_takes() {
        let file = on_disk();
        let mut queue = Queue { idle: 9, ..Queue::default() };
        let wakes = |queue: &mut Queue<usize>, number, len| {
            let mut added = (0..number).map(|key| queue.add(key, span_of(&file, len)));
            added.by_ref().map(usize::from).sum::<usize>()
        };
        assert_eq!(wakes(&mut queue, SHORT_AT_ONCE, 1), 1);
        assert_eq!(wakes(&mut queue, 1, 1), 1);
        assert_eq!(wakes(&mut queue, 3, SHORT_MAX + 1), 3);
        assert_eq!(wakes(&mut queue, SHORT_AT_ONCE - 1, 1), 0);
        assert_eq!(wakes(&mut queue, 2, 1), 1);
        // Whoever it was has taken what there was.
        queue.next(&mut Vec::new());
        assert_eq!(wakes(&mut queue, 1, 1), 1);
        queue.idle = 0;
        assert_eq!(wakes(&mut queue, 100, 1), 0, "who is busy comes back by himself");
    }
}
