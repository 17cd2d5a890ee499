//! Which job of a disk comes next, and who is woken for it: what the threads of
//! [helpers](super::helpers) take from.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::helpers::{Job, Kind, Span};

/// Threads that may have the same kind of job at once, so that a small file does not wait behind all of the
/// large ones, nor these behind ever more of the small.
const ALIKE_MAX: usize = 16;
/// And those that may have a short span. Before one waits for the disk it asks for those that come next, too,
/// so that they are there by then, most likely: few threads have the disk do as much at once as many would,
/// sleep less often, and wake the loop less often.
pub const SHORT_THREADS_MAX: usize = 2;
/// When for so long none of those that wait was taken, the threads that should have are stuck.
pub const PATIENCE: Duration = Duration::from_millis(20);
/// And then each span has a thread of its own for so long.
const HASTE: Duration = Duration::from_secs(1);

/// What is to be done, with the keys of those who want it.
#[derive(Debug)]
pub struct Queue<K> {
    /// Of each [`Kind`].
    lanes: [Lane<K>; 2],
    /// Short spans that wait.
    short: usize,
    /// Threads that are busy with one.
    short_busy: usize,
    /// Spans at the head of their lane that the disk was asked for.
    begun: usize,
    /// Threads that wait for a job, and those of them that have been woken.
    idle: usize,
    woken: usize,
    /// Spans that were taken.
    taken: u64,
    /// And how many that were, and when, as [`Queue::look`] last saw another number.
    seen: Option<(u64, Instant)>,
    /// Until when each span has a thread of its own.
    in_haste: Option<Instant>,
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
        Queue {
            lanes: [(); 2].map(|()| Lane { waiting: VecDeque::new(), busy: 0 }),
            short: 0,
            short_busy: 0,
            begun: 0,
            idle: 0,
            woken: 0,
            taken: 0,
            seen: None,
            in_haste: None,
            closed: false,
        }
    }
}

impl<K> Queue<K> {
    /// Whether those who wait for a job are fewer than there are jobs.
    pub fn is_long(&self) -> bool {
        self.idle <= self.lanes.iter().map(|lane| lane.waiting.len()).sum()
    }

    /// Adds a job.
    pub fn add(&mut self, key: K, job: Job) {
        self.short += usize::from(job.is_short());
        self.lanes[job.kind() as usize].waiting.push_back((key, job));
    }

    /// Whether there is a job that may be begun.
    pub fn has_next(&self) -> bool {
        self.next_kind().is_some()
    }

    fn next_kind(&self) -> Option<Kind> {
        let may_be_short = self.in_haste.is_some() || self.short_busy < SHORT_THREADS_MAX;
        [Kind::Load, Kind::Read].into_iter().find(|&kind| {
            let lane = &self.lanes[kind as usize];
            let first = lane.waiting.front();
            lane.busy < ALIKE_MAX && first.is_some_and(|(_, job)| may_be_short || !job.is_short())
        })
    }

    /// Takes out the job to be done next, if any may be begun.
    pub fn next(&mut self) -> Option<(K, Job)> {
        let lane = &mut self.lanes[self.next_kind()? as usize];
        lane.busy += 1;
        let (key, job) = lane.waiting.pop_front()?;
        if job.kind() == Kind::Read {
            self.begun = self.begun.saturating_sub(1);
            self.taken += 1;
        }
        self.short -= usize::from(job.is_short());
        self.short_busy += usize::from(job.is_short());
        Some((key, job))
    }

    /// A job that was taken out is done.
    pub fn done(&mut self, kind: Kind, is_short: bool) {
        self.lanes[kind as usize].busy -= 1;
        self.short_busy -= usize::from(is_short);
    }

    /// Short spans that come next, and that the disk is to be asked for.
    pub fn begin(&mut self) -> Vec<Span> {
        let lane = &self.lanes[Kind::Read as usize];
        let next = lane.waiting.iter().take(ALIKE_MAX - lane.busy).skip(self.begun);
        let spans: Vec<_> = next.map_while(|(_, job)| job.short_span()).collect();
        self.begun += spans.len();
        spans
    }

    /// Whether another thread is to be woken, which then counts as woken.
    pub fn wakes(&mut self) -> bool {
        let wakes = self.idle > self.woken && self.wanted() > self.woken;
        self.woken += usize::from(wakes);
        wakes
    }

    /// Threads that there should be for what waits and may be begun.
    fn wanted(&self) -> usize {
        let [loads, spans] = &self.lanes;
        let long = spans.waiting.len() - self.short;
        let short = match self.in_haste {
            Some(_) => self.short,
            None => self.short.min(SHORT_THREADS_MAX.saturating_sub(self.short_busy)),
        };
        loads.waiting.len().min(ALIKE_MAX - loads.busy) + (long + short).min(ALIKE_MAX - spans.busy)
    }

    /// A thread waits for a job from now on.
    pub fn rests(&mut self) {
        self.idle += 1;
    }

    /// And now it does not any more.
    pub fn rises(&mut self) {
        self.idle -= 1;
        self.woken = self.woken.saturating_sub(1);
    }

    /// Whether spans wait for a thread that may be stuck, so that [`Queue::look`] is to be called within
    /// [`PATIENCE`].
    pub fn is_to_be_looked_at(&self) -> bool {
        self.short > 0 && self.in_haste.is_none()
    }

    /// Looks whether those who should take what waits are stuck. If so, others are to be woken.
    pub fn look(&mut self, now: Instant) {
        self.in_haste = self.in_haste.filter(|&until| now < until);
        if !self.is_to_be_looked_at() {
            self.seen = None;
            return;
        }
        let Some((_, since)) = self.seen.filter(|&(taken, _)| taken == self.taken) else {
            self.seen = Some((self.taken, now));
            return;
        };
        if now.duration_since(since) >= PATIENCE {
            self.seen = None;
            self.in_haste = Some(now + HASTE);
        }
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
        let next = |queue: &mut Queue<usize>| queue.next().map(|(key, _)| key);
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
        queue.done(Kind::Read, false);
        for number in 201..200 + ALIKE_MAX {
            assert_eq!(next(&mut queue), Some(number));
        }
        assert_eq!(next(&mut queue), Some(ALIKE_MAX), "and there are too many of these, too");
        assert_eq!(next(&mut queue), None);
    }

    fn with_idle(threads: usize) -> Queue<usize> {
        let mut queue = Queue::default();
        (0..threads).for_each(|_| queue.rests());
        queue
    }

    /// Adds spans, and says how many threads are woken for them.
    fn woken(queue: &mut Queue<usize>, number: usize, len: u64) -> usize {
        let file = on_disk();
        let add = |key| {
            queue.add(key, span_of(&file, len));
            usize::from(queue.wakes())
        };
        (0..number).map(add).sum()
    }

    #[test]
    fn the_disk_is_asked_for_short_spans_that_come_next_and_for_each_once() {
        let file = on_disk();
        let mut queue = Queue { in_haste: Some(Instant::now()), ..Queue::default() };
        for key in 0..100 {
            queue.add(key, span_of(&file, if key == 5 { SHORT_MAX + 1 } else { key as u64 + 1 }));
        }
        let lens =
            |queue: &mut Queue<usize>| queue.begin().into_iter().map(|span| span.len).collect::<Vec<_>>();
        queue.next();
        assert_eq!(lens(&mut queue), [2, 3, 4, 5]);
        assert!(lens(&mut queue).is_empty());
        (1..5).for_each(|_| drop(queue.next()));
        assert!(lens(&mut queue).is_empty(), "a long one comes first");
        queue.next();
        assert_eq!(lens(&mut queue), [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        queue.next();
        assert!(lens(&mut queue).is_empty(), "the disk has been asked for enough");
        (0..4).for_each(|_| queue.done(Kind::Read, true));
        assert_eq!(lens(&mut queue), [17, 18, 19, 20]);
    }

    #[test]
    fn few_threads_are_woken_for_short_spans_and_each_other_job_has_its_own() {
        let mut queue = with_idle(20);
        assert_eq!(woken(&mut queue, 100, SHORT_MAX), SHORT_THREADS_MAX);
        assert_eq!(woken(&mut queue, 3, SHORT_MAX + 1), 3);
        assert_eq!(woken(&mut queue, 100, SHORT_MAX + 1), ALIKE_MAX - 5, "more may not be begun");
        for _ in 0..SHORT_THREADS_MAX {
            queue.next().unwrap();
        }
        assert!(!queue.has_next() && queue.next().is_none());
        queue.done(Kind::Read, true);
        assert!(queue.has_next() && queue.next().is_some());
    }

    #[test]
    fn who_takes_a_job_has_another_woken_where_that_could_not_be_before() {
        let mut queue = with_idle(1);
        assert_eq!(woken(&mut queue, ALIKE_MAX, SHORT_MAX + 1), 1);
        queue.rises();
        (0..ALIKE_MAX).for_each(|_| drop(queue.next()));
        queue.rests();
        assert_eq!(woken(&mut queue, 3, SHORT_MAX + 1), 0, "the disk has been asked for enough");
        queue.done(Kind::Read, false);
        queue.done(Kind::Read, false);
        assert!(queue.next().is_some() && queue.wakes());
        assert!(!queue.wakes(), "nobody else is there");
    }

    #[test]
    fn spans_that_nobody_comes_for_have_threads_of_their_own() {
        let mut queue = with_idle(9);
        let start = Instant::now();
        woken(&mut queue, 6, 1);
        queue.rises();
        queue.next().unwrap();
        assert!(queue.is_to_be_looked_at());
        queue.look(start);
        queue.look(start + PATIENCE / 2);
        assert!(!queue.wakes());
        // Others have been taken meanwhile, so that all go on.
        queue.done(Kind::Read, true);
        queue.next().unwrap();
        queue.look(start + PATIENCE);
        queue.look(start + PATIENCE * 3 / 2);
        assert!(!queue.wakes());
        queue.look(start + PATIENCE * 2);
        for _ in 0..3 {
            assert!(queue.wakes());
        }
        assert!(!queue.wakes() && !queue.is_to_be_looked_at());
        assert_eq!(woken(&mut queue, 2, 1), 2);
        queue.look(start + PATIENCE * 3 + HASTE);
        assert!(queue.is_to_be_looked_at());
    }
}
