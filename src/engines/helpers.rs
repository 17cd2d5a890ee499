//! Threads that wait for disks, so that a loop that serves many clients need not.
//!
//! Readiness knows no "not yet" for files: they are always ready, and a read waits for the disk all the same.
//! So a loop does inline only what is known not to wait, hands the rest over as a [`Job`], and is told by an
//! event descriptor when one is done.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Advice, fadvise, fstat, makedev};
use rustix::io::Errno;
use rustix::thread::sched_yield;

use crate::content::directory::Listing;
use crate::content::{Load, Loaded, Step};
use crate::http::Source;

use super::calls::{self, counted, openat2, pread, read, sendfile, write};
use super::queue::{PATIENCE, Queue};
use super::resident::{SHORT_MAX, is_cold, readable, seems_there};

/// Threads of one loop. More would queue at the disk instead of here.
const THREADS_MAX: usize = 20;
/// Helpers stand behind the loop where both want the core: what is in memory is not to wait for what is not.
const NICENESS: i32 = 15;
/// And they leave the core to it after so many nanoseconds, the least that can be asked for.
const SLICE: u64 = 100_000;
/// Bytes of a file that are read for a load before others have their turn.
const READ_AT_ONCE: usize = 128 * 1024;
/// Jobs of which the loop is told at once, at the most.
const REPORT_MAX: usize = 8;
/// What has come from a disk stays in memory for so long at the least.
const KEPT: Duration = Duration::from_millis(100);
/// So much of a span is sent whatever the kernel throws out.
const SPAN_MIN: u64 = 64 * 1024;

/// Something that waits for a disk.
#[derive(Debug)]
pub enum Job {
    /// Finding out what a target means.
    Load(Box<Load>),
    /// Getting so many bytes of a file, from an offset on, into the page cache.
    Read(Arc<Source>, u64, u64),
}

/// Bytes of a file that are to be in the page cache soon.
#[derive(Debug)]
pub struct Span {
    file: Arc<Source>,
    at: u64,
    /// How many.
    pub len: u64,
}

impl Span {
    /// Has the disk begin with it, and does not wait for that.
    fn begin(&self) {
        let _ = counted(|| fadvise(&self.file, self.at, NonZeroU64::new(self.len), Advice::WillNeed));
    }
}

/// What came of a [`Job`].
#[derive(Debug)]
pub enum Done {
    /// The target is loaded.
    Loaded(Box<Loaded>),
    /// So many bytes from there on have been read.
    Read(Arc<Source>, u64, u64),
}

/// Which of the two, for a job and for what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Finding out what a target means: less to do, as a rule, and so it comes first.
    Load,
    /// Reading a span.
    Read,
}

impl Done {
    fn kind(&self) -> Kind {
        match self {
            Done::Loaded(_) => Kind::Load,
            Done::Read(..) => Kind::Read,
        }
    }

    /// Bytes that are to be sent by now.
    pub fn size(&self) -> u64 {
        match self {
            Done::Loaded(loaded) => loaded.size(),
            Done::Read(_, _, len) => *len,
        }
    }
}

impl Job {
    /// Which of the two it is.
    pub fn kind(&self) -> Kind {
        match self {
            Job::Load(_) => Kind::Load,
            Job::Read(..) => Kind::Read,
        }
    }

    /// Whether it is for so little that one thread may see to several like it.
    pub fn is_short(&self) -> bool {
        matches!(self, Job::Read(_, _, len) if *len <= SHORT_MAX)
    }

    /// The span, if it is short.
    pub fn short_span(&self) -> Option<Span> {
        match self {
            Job::Read(file, at, len) if self.is_short() => {
                Some(Span { file: file.clone(), at: *at, len: *len })
            }
            _ => None,
        }
    }

    /// Whether the disk may have to be waited for.
    fn may_wait(&self) -> bool {
        match self {
            Job::Load(_) => true,
            Job::Read(file, at, len) => !seems_there(file.as_fd(), *at, *len),
        }
    }

    /// Does it on this thread.
    pub fn run(self) -> Done {
        match self {
            Job::Load(load) => Done::Loaded(Box::new(finish(*load))),
            Job::Read(file, at, len) => {
                let there = fetch(&file, at, len);
                Done::Read(file, at, there)
            }
        }
    }
}

fn finish(mut load: Load) -> Loaded {
    loop {
        load.leave_if(is_cold);
        match load.next() {
            Step::Open { root, path, flags, resolve } => {
                let result = openat2(root, path, flags, resolve);
                load.opened(result.map_err(io::Error::from));
            }
            Step::Read { file, buffer, at } => {
                let result = read_piece(file, buffer, at);
                load.read(result.map_err(io::Error::from));
                // The kernel ends a slice only at its tick, and there are some hundred of these a second.
                sched_yield();
            }
            Step::Note { file, at } => {
                let _ = pread(file, &mut [0; 1], at);
                load.noted();
            }
            Step::Gather(gathering) => {
                let _ = counted(|| gathering.run());
                load.gathered();
            }
            Step::List(listing) => {
                list_aside(listing);
                load.listed();
            }
            Step::Done => return load.finish(),
        }
    }
}

/// Has a directory listed by a thread of its own, for which nobody waits. Where there can be none, it is
/// listed another time.
pub fn list_aside(listing: &Listing) {
    let listing = listing.clone();
    let list = move || {
        stand_back();
        listing.run();
    };
    let _ = thread::Builder::new().name("listing".into()).spawn(list);
}

/// Appends bytes of a file to a buffer, a piece at the most.
fn read_piece(file: BorrowedFd, buffer: &mut Vec<u8>, at: u64) -> Result<usize, Errno> {
    let room = buffer.spare_capacity_mut();
    let len = room.len().min(READ_AT_ONCE);
    let (read, _) = pread(file, &mut room[..len], at)?;
    let read = read.len();
    // SAFETY: the kernel has written so many bytes behind those there were, within the capacity.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

/// Where bytes go that nobody wants, once it is open.
static NOWHERE: OnceLock<File> = OnceLock::new();

/// That place, if there is one. It is looked for again where it could not be opened.
fn nowhere() -> Option<&'static File> {
    if let Some(file) = NOWHERE.get() {
        return Some(file);
    }
    let file = File::options().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/null").ok()?;
    // A container may have something else there.
    let is_null = fstat(&file).is_ok_and(|stat| stat.st_rdev == makedev(1, 3));
    is_null.then(|| NOWHERE.get_or_init(|| file))
}

/// Has the kernel read a span, and waits until it is there; says how many bytes of it are. An error shows
/// when they are sent to somebody.
fn fetch(file: &Source, at: u64, mut len: u64) -> u64 {
    let mut is_again = false;
    loop {
        let began = Instant::now();
        let mut done = 0;
        while done < len {
            match pass_over(file, at + done, (len - done) as usize) {
                Ok(n @ 1..) => done += n as u64,
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) if done > 0 => return done,
                Ok(0) | Err(_) => return len,
            }
        }
        if began.elapsed() < KEPT || len <= SPAN_MIN {
            return len;
        }
        // What came first may have been thrown out again while the rest was waited for.
        match readable(file.as_fd(), at, len) {
            Some(there @ SPAN_MIN..) => return there,
            // The kernel does not tell; it shows in how long it takes to read it once more.
            None if !is_again => is_again = true,
            // It was too much to come by at once.
            _ => len = SPAN_MIN.max(len / 8),
        }
    }
}

/// Waits until bytes of a file are in the page cache, and says how many: they are sent nowhere, by which
/// nothing is copied.
fn pass_over(file: &Source, mut at: u64, len: usize) -> Result<usize, Errno> {
    match nowhere() {
        Some(nowhere) => sendfile(nowhere, file, &mut at, len),
        None => pread(file, &mut vec![0; len.min(READ_AT_ONCE)][..], at),
    }
}

/// The helpers of one loop, which marks its jobs with keys.
#[derive(Debug)]
pub struct Helpers<K> {
    shared: Arc<Shared<K>>,
    /// Loads that are under way or wait for a thread before others are put off.
    loads_max: usize,
    threads: usize,
    /// Jobs of each [`Kind`] that were handed over and not taken back.
    away: [usize; 2],
}

#[derive(Debug)]
struct Shared<K> {
    queue: Mutex<Queue<K>>,
    /// There is a job, or no more will come.
    news: Condvar,
    finished: Mutex<Finished<K>>,
    /// Readable when something is done.
    event: OwnedFd,
}

#[derive(Debug)]
struct Finished<K> {
    jobs: Vec<(K, Done)>,
    /// System calls that this has taken.
    calls: u64,
}

impl<K: Send + 'static> Helpers<K> {
    /// No thread yet: they are made as they are needed.
    pub fn new(loads_max: usize) -> io::Result<Helpers<K>> {
        let shared = Shared {
            queue: Mutex::new(Queue::default()),
            news: Condvar::new(),
            finished: Mutex::new(Finished { jobs: Vec::new(), calls: 0 }),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok(Helpers { shared: Arc::new(shared), loads_max, threads: 0, away: [0; 2] })
    }

    /// Hands a job over. Where no thread can be made it is done here and now.
    pub fn submit(&mut self, key: K, job: Job) {
        self.away[job.kind() as usize] += 1;
        let mut queue = lock(&self.shared.queue);
        if queue.is_long() && self.threads < THREADS_MAX {
            let shared = self.shared.clone();
            let made = thread::Builder::new().name("helper".into()).spawn(move || shared.work());
            self.threads += usize::from(made.is_ok());
        }
        if self.threads == 0 {
            drop(queue);
            self.shared.report(&mut vec![(key, job.run())]);
            return;
        }
        queue.add(key, job);
        if queue.wakes() {
            self.shared.news.notify_one();
        }
    }

    /// When [`Helpers::look`] is due at the latest, if it is.
    pub fn patience(&self) -> Option<Duration> {
        (self.are_at_work() && lock(&self.shared.queue).is_to_be_looked_at()).then_some(PATIENCE)
    }

    /// Looks whether threads are stuck on which others wait, and has more of them work if so.
    pub fn look(&self) {
        if !self.are_at_work() {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        queue.look(Instant::now());
        if queue.wakes() {
            self.shared.news.notify_one();
        }
    }

    /// Whether a load should wait until others are done.
    pub fn are_busy(&self) -> bool {
        self.away[Kind::Load as usize] >= self.loads_max
    }

    /// Whether there are threads that have nothing to do, or could be.
    pub fn have_room(&self) -> bool {
        self.away.iter().sum::<usize>() < THREADS_MAX
    }

    /// Whether anything was handed over that was not taken out.
    pub fn are_at_work(&self) -> bool {
        self.away != [0; 2]
    }

    /// Whether anything of that is done, for who does not wait to be told.
    pub fn have_done(&self) -> bool {
        self.are_at_work() && !lock(&self.shared.finished).jobs.is_empty()
    }

    /// Takes out what is done.
    pub fn take_done(&mut self) -> Vec<(K, Done)> {
        // First, so that what comes behind it is told of again.
        let _ = read(&self.shared.event, &mut [0; 8]);
        let mut finished = lock(&self.shared.finished);
        calls::add(std::mem::take(&mut finished.calls));
        let jobs = std::mem::take(&mut finished.jobs);
        drop(finished);
        for (_, done) in &jobs {
            self.away[done.kind() as usize] -= 1;
        }
        jobs
    }
}

impl<K> AsFd for Helpers<K> {
    /// Readable when something is done.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl<K> Drop for Helpers<K> {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.news.notify_all();
    }
}

impl<K> Shared<K> {
    fn work(&self) {
        stand_back();
        let (mut before, mut done) = (None, Vec::new());
        loop {
            // What is done is not held back while anything is waited for.
            let Some((key, job)) = self.next(before.take()) else {
                self.report(&mut done);
                if !self.rest() {
                    return;
                }
                continue;
            };
            if job.may_wait() {
                self.report(&mut done);
                if job.is_short() {
                    let spans = lock(&self.queue).begin();
                    spans.iter().for_each(Span::begin);
                }
            }
            before = Some((job.kind(), job.is_short()));
            done.push((key, job.run()));
            if done.len() >= REPORT_MAX {
                self.report(&mut done);
            }
        }
    }

    /// The job to be done next, if there is one, behind one that is done.
    fn next(&self, done: Option<(Kind, bool)>) -> Option<(K, Job)> {
        let mut queue = lock(&self.queue);
        if let Some((kind, is_short)) = done {
            queue.done(kind, is_short);
        }
        if queue.closed {
            return None;
        }
        let job = queue.next();
        if queue.wakes() {
            self.news.notify_one();
        }
        job
    }

    /// Waits until there may be a job; `false` at the end.
    fn rest(&self) -> bool {
        let mut queue = lock(&self.queue);
        // One may have come meanwhile, for which nobody was woken.
        if !queue.closed && !queue.has_next() {
            queue.rests();
            queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.rises();
        }
        !queue.closed
    }

    fn report(&self, done: &mut Vec<(K, Done)>) {
        if done.is_empty() {
            return;
        }
        let mut finished = lock(&self.finished);
        finished.jobs.append(done);
        finished.calls += calls::taken();
        drop(finished);
        let _ = write(&self.event, &1u64.to_ne_bytes());
    }
}

/// `struct sched_attr` (sched_setattr(2)), as far as all kernels know it.
#[repr(C)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Makes the calling thread one that others need not wait for. Kernels before Linux 6.12 know no slices, and
/// where nothing of it is allowed the helpers help all the same.
fn stand_back() {
    let wanted = Scheduling {
        size: size_of::<Scheduling>() as u32,
        policy: libc::SCHED_BATCH as u32,
        flags: 0,
        nice: NICENESS,
        priority: 0,
        runtime: SLICE,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the struct lives across the call and has the layout that sched_setattr(2) gives.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) };
}

/// A job that panicked leaves nothing half-done behind in what the locks guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::content::Site;
    use crate::content::site::Rules;
    use crate::engines::queue::SHORT_THREADS_MAX;
    use crate::engines::resident::present;
    use crate::engines::resident::tests::cold_file;
    use crate::http::Ledger;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn every_job_comes_back_under_its_key() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![1; 300_000]).unwrap();
        let mut helpers = Helpers::new(32).unwrap();
        let ledger = Ledger::default();
        let another = on_another_disk();
        for key in 0..100u64 {
            let file = File::open(path.path()).unwrap();
            let file = Arc::new(Source::on_disk(file.into(), 300_000, &ledger));
            // A span behind the end is no reason to stay away.
            let at = if key % 2 == 0 { key } else { 1 << 30 };
            let job = match key % 7 {
                0 => Job::Read(file, at, 200_000),
                1 => Job::Read(another.clone(), at, 2),
                _ => Job::Read(file, at, 20_000),
            };
            helpers.submit(key, job);
        }
        let mut seen = Vec::new();
        while seen.len() < 100 {
            poll(&mut [PollFd::new(&helpers, PollFlags::IN)], None).unwrap();
            for (key, done) in helpers.take_done() {
                let Done::Read(_, at, 1..=200_000) = done else { panic!("{done:?}") };
                assert_eq!(at, if key % 2 == 0 { key } else { 1 << 30 });
                seen.push(key);
            }
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..100));
        assert!(helpers.take_done().is_empty());
        assert!(helpers.threads <= THREADS_MAX);
    }

    #[test]
    fn a_directory_is_listed_aside_once_enough_files_in_it_lack_siblings() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..100 {
            std::fs::write(folder.path().join(number.to_string()), "a").unwrap();
        }
        // From here on its stat proves that no name has come.
        thread::sleep(Duration::from_millis(3100));
        let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
        let load = |number: usize| Box::new(Load::plain(&site, format!("/{number}").as_bytes(), None, 0));
        for number in 0..50 {
            Job::Load(load(number)).run();
        }
        // By some time soon there are none that are looked for any more.
        let is_short = |number| {
            thread::sleep(Duration::from_millis(200));
            calls::taken();
            Job::Load(load(number)).run();
            // The file, its bytes, and the directory.
            calls::taken() <= 3
        };
        assert!((50..100).any(is_short));
    }

    /// A wish for the first bytes of a file.
    pub fn span_of(file: &Arc<Source>, len: u64) -> Job {
        Job::Read(file.clone(), 0, len)
    }

    /// Helpers of whom those who may have a short span will never be done with it.
    pub fn stuck<K: Copy + Send + 'static>(key: K) -> Helpers<K> {
        let helpers = Helpers::new(1).unwrap();
        let mut queue = lock(&helpers.shared.queue);
        for _ in 0..SHORT_THREADS_MAX {
            queue.add(key, span_of(&on_disk(), 1));
            queue.next().unwrap();
        }
        drop(queue);
        helpers
    }

    /// A file of a file system.
    pub fn on_disk() -> Arc<Source> {
        let file = tempfile::tempfile().unwrap();
        Arc::new(Source::on_disk(file.into(), 1, &Ledger::default()))
    }

    /// On what is a disk of its own to the kernel.
    fn on_another_disk() -> Arc<Source> {
        let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        Arc::new(Source::on_disk(file, 1, &Ledger::default()))
    }

    #[test]
    fn spans_under_way_put_off_no_loads() {
        let mut helpers = Helpers::new(32).unwrap();
        let file = on_disk();
        assert!(helpers.have_room());
        for key in 0..100 {
            helpers.submit(key, span_of(&file, 1));
        }
        // As long as nothing is taken back.
        assert!(!helpers.are_busy() && !helpers.have_room());
    }

    #[test]
    fn a_span_that_was_fetched_is_in_the_page_cache() {
        let file = cold_file(2 << 20);
        let file = Source::on_disk(file.into(), 2 << 20, &Ledger::default());
        for (at, len) in [(5, 1), (100_000, 500_000), ((2 << 20) - 70_000, 70_000)] {
            let mut there = 0;
            while there < len {
                let more = fetch(&file, at + there, len - there);
                assert!((1..=len - there).contains(&more));
                there += more;
            }
            // Not every kernel tells.
            assert!(present(file.as_fd(), at, len).is_none_or(|present| present == len), "{at}");
        }
    }

    #[test]
    fn what_never_is_in_the_page_cache_is_sent_all_the_same() {
        let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        // The kernel reads no page into a hole there.
        rustix::fs::ftruncate(&file, 3 << 20).unwrap();
        let file = Source::on_disk(file, 3 << 20, &Ledger::default());
        assert!(fetch(&file, 5, 2 << 20) >= SPAN_MIN);
    }
}
