//! The ring itself: set up, filled, waited for. And the memory the kernel picks receive buffers from.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::slice::from_ref;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, squeue};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::serve::READ_MAX;

use crate::engines::calls;
use crate::observe::counters::{Counter, Tally};

/// The one group of provided buffers.
pub const BUFFER_GROUP: u16 = 0;
/// Receive buffers of an engine thread. They are held only from a completion to its `turn`.
pub const BUFFERS: u16 = 256;
/// The kernel's own threads that may wait for a ring's files at once, and for anything else. Left alone, it
/// takes up to four for each CPU of the machine, however few of them are ours, and for anything else as many
/// as the user may have processes; each counts as a process of the container. Of files there are more than
/// may wait for a disk at once, in a place or in a load: who ends a socket or opens a file of another disk
/// needs one, too, and is not to wait for those. For anything else none is wanted, for sockets are polled.
const KERNEL_THREADS_MAX: [u32; 2] = [160, 4];

/// The steps of the set-up, in their order. The engine relies on each.
pub const STEPS: [&str; 3] = ["io_uring_setup", "IORING_REGISTER_FILES2", "IORING_REGISTER_PBUF_RING"];

/// How large a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Entries of the submission queue.
    pub submissions: u32,
    /// Entries of the completion queue.
    pub completions: u32,
    /// Direct descriptors there is room for.
    pub files: u32,
    /// Receive buffers, a power of two.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_size: u32,
}

/// A completion, copied out of the queue.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// What the submission was marked with.
    pub user_data: u64,
    /// Its result: a number, or a negated errno.
    pub result: i32,
    /// `IORING_CQE_F_*`
    pub flags: u32,
}

/// A step of the set-up that was refused.
#[derive(Debug)]
pub struct Refused {
    /// The system call or operation.
    pub step: &'static str,
    /// What the kernel said.
    pub error: io::Error,
}

/// What makes a ring better and need not be had, and what the kernel said to it.
pub type Extra = (&'static str, io::Result<()>);

/// An io_uring with direct descriptors and provided buffers, used by the thread that made it.
pub struct Ring {
    uring: IoUring,
    buffers: Buffers,
    /// Of every `io_uring_enter` that waits.
    enter_flags: EnterFlags,
    extras: Vec<Extra>,
    /// Completions that had to be taken out between two waits.
    early: Vec<Completion>,
    counts: Tally,
}

impl Ring {
    /// Makes the ring of an engine thread, with room for so many direct descriptors.
    pub fn to_serve(files: u32) -> Result<Ring, Refused> {
        let size = |submissions, completions| Size {
            submissions,
            completions,
            files,
            buffers: BUFFERS,
            buffer_size: READ_MAX as u32,
        };
        match Ring::new(size(1024, 4096)) {
            // Little memory may be locked: a smaller ring does, too.
            Err(refused) if refused.error.raw_os_error() == Some(libc::ENOMEM) => Ring::new(size(256, 1024)),
            result => result,
        }
    }

    /// Makes a ring.
    pub fn new(size: Size) -> Result<Ring, Refused> {
        let [setup, register_files, register_buffers] =
            STEPS.map(|step| move |error| Refused { step, error });
        let build = |no_sqarray: bool| {
            let mut builder = IoUring::builder();
            // One thread submits and reaps. Completions are worked off when it asks for them, not by
            // interrupting it: the one set of flags that measurably pays. Linux 6.1.
            builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
            builder.setup_cqsize(size.completions);
            if no_sqarray {
                builder.setup_no_sqarray();
            }
            builder.build(size.submissions)
        };
        let (uring, no_sqarray) = match build(true) {
            // Linux before 6.6 knows no NO_SQARRAY.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (build(false), Err(error)),
            result => (result, Ok(())),
        };
        let uring = uring.map_err(setup)?;
        uring.submitter().register_files_sparse(size.files).map_err(register_files)?;
        let buffers = Buffers::new(size.buffers, size.buffer_size);
        // SAFETY: the entries are `size.buffers` long, page-aligned, and live as long as the ring: both are
        // fields of `Ring`, and the ring is dropped first.
        unsafe {
            let entries = buffers.entries.as_ptr() as u64;
            uring.submitter().register_buf_ring_with_flags(entries, size.buffers, BUFFER_GROUP, 0)
        }
        .map_err(register_buffers)?;
        let mut enter_flags = EnterFlags::GETEVENTS;
        // A ring that waits for clients waits for no disk, and must not be counted as if it did.
        let no_iowait = if uring.params().is_feature_no_iowait() {
            enter_flags |= EnterFlags::NO_IOWAIT;
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        };
        let extras = vec![
            ("IORING_SETUP_NO_SQARRAY", no_sqarray),
            ("IORING_ENTER_NO_IOWAIT", no_iowait),
            (
                "IORING_REGISTER_IOWQ_MAX_WORKERS",
                uring.submitter().register_iowq_max_workers(&mut KERNEL_THREADS_MAX.clone()),
            ),
            ("IORING_REGISTER_IOWQ_AFF", keep_near(&uring)),
        ];
        Ok(Ring { uring, buffers, enter_flags, extras, early: Vec::new(), counts: Tally::default() })
    }

    /// What it has beside the necessary, and what it has not; to be asked once.
    pub fn take_extras(&mut self) -> Vec<Extra> {
        std::mem::take(&mut self.extras)
    }

    /// Queues an operation; submits what is queued if there is no room.
    ///
    /// # Safety
    /// Whatever memory the entry points to must stay valid and in place, and must not be touched otherwise,
    /// until its completion has been reaped.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.push_linked(from_ref(entry)) }
    }

    /// The same for operations that are linked to each other, and so must be submitted together.
    ///
    /// # Safety
    /// As for [`Ring::push`], for each entry.
    pub unsafe fn push_linked(&mut self, entries: &[squeue::Entry]) -> io::Result<()> {
        loop {
            // SAFETY: the caller's promise is the one `push_multiple` asks for.
            if unsafe { self.uring.submission().push_multiple(entries) }.is_ok() {
                return Ok(());
            }
            let result = self.uring.submit();
            self.entered(&result);
            match result.map_err(|error| (error.raw_os_error(), error)) {
                Ok(_) | Err((Some(libc::EINTR), _)) => {}
                // The kernel wants completions taken out first, or memory to come back with them.
                Err((Some(libc::EAGAIN | libc::EBUSY), _)) => {
                    let mut early = std::mem::take(&mut self.early);
                    self.enter(Some(Duration::ZERO), &mut early)?;
                    self.early = early;
                }
                Err((_, error)) => return Err(error),
            }
        }
    }

    /// Submits what is queued, then waits for a completion, or until the time is over. Takes all completions
    /// out.
    pub fn wait(&mut self, timeout: Option<Duration>, into: &mut Vec<Completion>) -> io::Result<()> {
        into.append(&mut self.early);
        self.enter(if into.is_empty() { timeout } else { Some(Duration::ZERO) }, into)
    }

    /// Whether something is still queued after a wait, or the kernel has completions for which there was no
    /// room.
    pub fn is_behind(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.cq_overflow()
    }

    fn enter(&mut self, timeout: Option<Duration>, into: &mut Vec<Completion>) -> io::Result<()> {
        let queued = self.uring.submission().len() as u32;
        let submitter = self.uring.submitter();
        let flags = self.enter_flags;
        let result = match timeout {
            // SAFETY: what is queued was pushed, so its memory is valid; there is no argument.
            None => unsafe { submitter.enter::<libc::sigset_t>(queued, 1, flags.bits(), None) },
            // SAFETY: as above. Nothing is waited for, so there is no time to be told.
            Some(Duration::ZERO) => unsafe {
                submitter.enter::<libc::sigset_t>(queued, 0, flags.bits(), None)
            },
            Some(timeout) => {
                let time = Timespec::from(timeout);
                let flags = flags | EnterFlags::EXT_ARG;
                // SAFETY: as above; the argument is of the type that EXT_ARG says, and lives across the call.
                unsafe { submitter.enter(queued, 1, flags.bits(), Some(&SubmitArgs::new().timespec(&time))) }
            }
        };
        self.entered(&result);
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // EBUSY: the completion queue has run over; taking completions out is what helps.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY), _)) => {}
            Err((_, error)) => return Err(error),
        }
        // The queue's head is published when the iterator is dropped, before the next wait.
        let before = into.len();
        into.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
        let taken = &into[before..];
        self.counts.add(Counter::Completions, taken.len() as u64);
        let exhausted = taken.iter().filter(|completion| completion.result == -libc::ENOBUFS).count();
        self.counts.add(Counter::BuffersExhausted, exhausted as u64);
        Ok(())
    }

    /// Counts a call of `io_uring_enter(2)`.
    fn entered(&mut self, result: &io::Result<usize>) {
        calls::add(1);
        self.counts.add(Counter::Enters, 1);
        self.counts.add(Counter::Submissions, *result.as_ref().unwrap_or(&0) as u64);
    }

    /// A multishot operation had ended, and is submitted again.
    pub fn rearmed(&mut self) {
        self.counts.add(Counter::Rearms, 1);
    }

    /// Moves what was counted to a worker's tally.
    pub fn count_into(&mut self, tally: &mut Tally) {
        tally.take_over(&mut self.counts);
    }

    /// Puts a socket into a free place of the table of direct descriptors.
    pub fn install(&self, index: u32, socket: &impl AsRawFd) -> io::Result<()> {
        calls::counted(|| self.uring.submitter().register_files_update(index, &[socket.as_raw_fd()]))
            .map(drop)
    }

    /// The first bytes of the receive buffer that a completion names.
    pub fn buffer(&self, id: u16, len: usize) -> &[u8] {
        self.buffers.slice(id, len)
    }

    /// Gives the receive buffers up, for the kernel may still write to them when this ring is dropped.
    pub fn leak_buffers(&mut self) {
        self.buffers.leaked = true;
    }

    /// Gives a receive buffer back to the kernel.
    pub fn give_back(&mut self, id: u16) {
        self.buffers.provide(id);
    }
}

/// Keeps the kernel's threads of this ring on the CPUs of this thread. Linux before 6.12 would let them leave
/// the control group's cpuset; later ones know the cpuset but not a mask set by `taskset` or a runtime.
fn keep_near(uring: &IoUring) -> io::Result<()> {
    let ours = sched_getaffinity(None)?;
    // SAFETY: a plain C struct, for which all zeros is the empty set.
    let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| ours.is_set(cpu)) {
        // SAFETY: the function writes within the set for any number below its size, which this is.
        unsafe { libc::CPU_SET(cpu, &mut cpus) };
    }
    uring.submitter().register_iowq_aff(&cpus)
}

/// Receive buffers and the ring of entries through which the kernel is given them
/// (io_uring_register_buf_ring(3)).
struct Buffers {
    entries: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    count: u16,
    size: u32,
    tail: u16,
    leaked: bool,
}

impl Buffers {
    fn new(count: u16, size: u32) -> Buffers {
        assert!(count.is_power_of_two());
        let (entries, memory) = (Buffers::entries_layout(count), Buffers::memory_layout(count, size));
        // SAFETY: neither layout has size 0.
        let [entries, memory] = unsafe {
            // Pages of the memory are taken as the kernel first writes to them.
            [(alloc_zeroed(entries), entries), (alloc(memory), memory)]
        }
        .map(|(at, layout)| NonNull::new(at).unwrap_or_else(|| handle_alloc_error(layout)));
        let entries = entries.cast();
        let mut buffers = Buffers { entries, memory, count, size, tail: 0, leaked: false };
        for id in 0..count {
            buffers.provide(id);
        }
        buffers
    }

    fn slice(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= self.size as usize);
        // SAFETY: within the allocation by the assertion. The kernel has named this buffer in a completion,
        // with so many bytes that it has written, and does not write there until it is provided again, for
        // which `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(id as usize * self.size as usize), len) }
    }

    fn provide(&mut self, id: u16) {
        assert!(id < self.count);
        let place = self.tail & (self.count - 1);
        // SAFETY: `place` is below `count` and `id` too, so both pointers stay within their allocations. The
        // kernel reads an entry only behind the tail's release store below. The tail lies in the first
        // entry's reserved field, which `set_*` do not write.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add(place as usize);
            entry.set_addr(self.memory.as_ptr().add(id as usize * self.size as usize) as u64);
            entry.set_len(self.size);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn entries_layout(count: u16) -> Layout {
        Layout::from_size_align(count as usize * size_of::<BufRingEntry>(), 4096).expect("a small layout")
    }

    fn memory_layout(count: u16, size: u32) -> Layout {
        Layout::from_size_align(count as usize * size as usize, 4096).expect("a small layout")
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: allocated in `new` with these layouts. The ring was dropped before, with nothing in flight:
        // else `leak_buffers` was called.
        unsafe {
            dealloc(self.entries.as_ptr().cast(), Buffers::entries_layout(self.count));
            dealloc(self.memory.as_ptr(), Buffers::memory_layout(self.count, self.size));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use io_uring::opcode;
    use io_uring::types::Fd;
    use rustix::thread::{gettid, sched_setaffinity};

    use crate::engines::uring::probe;

    /// The kernel's threads for a ring of the thread of that id, as `/proc/self/task` shows them.
    fn kernel_threads(of: i32) -> Vec<String> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let read = |name: &str, task: &fs::DirEntry| fs::read_to_string(task.path().join(name));
        tasks
            .filter_map(|task| {
                let task = task.unwrap();
                let name = read("comm", &task).ok()?;
                (name.trim() == format!("iou-wrk-{of}")).then(|| read("status", &task).ok())?
            })
            .collect()
    }

    #[test]
    fn threads_of_the_kernel_are_few_and_stay_on_our_cpus() {
        if let Err(refusal) = probe::available() {
            println!("skipped: {refusal}");
            return;
        }
        // In a thread of its own, for the affinity is not given back.
        let of_one_cpu = std::thread::spawn(|| {
            let all = sched_getaffinity(None).unwrap();
            let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| all.is_set(cpu)).unwrap();
            let mut one = CpuSet::new();
            one.set(last);
            sched_setaffinity(None, &one).unwrap();
            let mut ring =
                Ring::new(Size { submissions: 64, completions: 256, files: 4, buffers: 2, buffer_size: 64 })
                    .unwrap();
            let pair: Vec<_> =
                (0..64).map(|_| std::os::unix::net::UnixStream::pair().expect("a pair of sockets")).collect();
            // A shutdown is always left to such a thread, whatever the socket.
            for (one, _) in &pair {
                let entry = opcode::Shutdown::new(Fd(one.as_raw_fd()), libc::SHUT_WR).build();
                // SAFETY: a shutdown points to nothing.
                unsafe { ring.push(&entry) }.unwrap();
            }
            let mut completions = Vec::new();
            while completions.len() < pair.len() {
                let mut more = Vec::new();
                ring.wait(Some(Duration::from_secs(1)), &mut more).unwrap();
                assert!(!more.is_empty());
                completions.extend(more);
            }
            (last, kernel_threads(gettid().as_raw_nonzero().get()))
        });
        let (cpu, threads) = of_one_cpu.join().unwrap();
        assert!(!threads.is_empty() && threads.len() <= KERNEL_THREADS_MAX[0] as usize, "{threads:?}");
        for status in threads {
            let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:"));
            assert_eq!(allowed.map(|line| line[18..].trim()), Some(&*cpu.to_string()));
        }
    }
}
