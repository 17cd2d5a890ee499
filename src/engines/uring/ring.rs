//! The ring itself: set up, filled, waited for. And the memory the kernel picks receive buffers from.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{IoUring, squeue};

use crate::engines::calls;
use crate::observe::counters::{Counter, Tally};

/// The one group of provided buffers.
pub const BUFFER_GROUP: u16 = 0;

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

/// An io_uring with direct descriptors and provided buffers, used by the thread that made it.
pub struct Ring {
    uring: IoUring,
    buffers: Buffers,
    /// Completions that had to be taken out between two waits.
    early: Vec<Completion>,
    counts: Tally,
}

impl Ring {
    /// Makes a ring.
    pub fn new(size: Size) -> Result<Ring, Refused> {
        let refused = |step| move |error| Refused { step, error };
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
        let uring = match build(true) {
            // Linux before 6.6 knows no NO_SQARRAY.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => build(false),
            result => result,
        };
        let uring = uring.map_err(refused("io_uring_setup"))?;
        uring.submitter().register_files_sparse(size.files).map_err(refused("IORING_REGISTER_FILES2"))?;
        let buffers = Buffers::new(size.buffers, size.buffer_size);
        // SAFETY: the entries are `size.buffers` long, page-aligned, and live as long as the ring: both are
        // fields of
        // `Ring`, and the ring is dropped first.
        unsafe {
            let entries = buffers.entries.as_ptr() as u64;
            uring.submitter().register_buf_ring_with_flags(entries, size.buffers, BUFFER_GROUP, 0)
        }
        .map_err(refused("IORING_REGISTER_PBUF_RING"))?;
        Ok(Ring { uring, buffers, early: Vec::new(), counts: Tally::default() })
    }

    /// Queues an operation; submits what is queued if there is no room.
    ///
    /// # Safety
    /// Whatever memory the entry points to must stay valid and in place, and must not be touched otherwise,
    /// until its completion has been reaped.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the caller's promise is the one `push` asks for.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
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

    fn enter(&mut self, timeout: Option<Duration>, into: &mut Vec<Completion>) -> io::Result<()> {
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let time = Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
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
        let entries = allocate(Buffers::entries_layout(count)).cast();
        let memory = allocate(Buffers::memory_layout(count, size));
        let mut buffers = Buffers { entries, memory, count, size, tail: 0, leaked: false };
        for id in 0..count {
            buffers.provide(id);
        }
        buffers
    }

    fn slice(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= self.size as usize);
        // SAFETY: within the allocation by the assertion. The kernel has named this buffer in a completion,
        // so it does not write there until it is provided again, for which `self` is borrowed mutably.
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

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here has size 0.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
