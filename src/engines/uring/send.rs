//! Sending: memory by the ring, large files from the page cache to the socket, the rest through buffers.
//!
//! What a client is sent stands in its outbox. Plain memory is lent to the kernel where it is. A file in
//! memory, and a span of a large file that is in the page cache, goes by sendfile(2), which waits for
//! nothing. What is still on the disk the kernel is made to begin with, and of what is on its way the ring
//! reads no more than the last byte: when that has come, the rest has as a rule ([`Resident`] looks), and
//! leaves without having been copied. So the disk holds up nobody else. The kernel reads ahead from there,
//! and so does sendfile(2). Where the file system knows no reads that do not wait, and where a part had come
//! before, the ring has the kernel read a piece ahead; and where that is slow, it reads it for nobody, which
//! takes a copy but leaves nothing out. No buffer is ever held while a client is waited for. Only so many may
//! have the disk read at once, the others wait for a *place* ([`Files`]): when the disk's own queue is full,
//! the kernel makes even who must not wait do so.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed};
use io_uring::{opcode, squeue};

use crate::engines::HEAVY_MIN;
use crate::engines::calls;
use crate::engines::calls::counted;
use crate::engines::resident::{self, Resident};
use crate::engines::transfer::{Sent, send_now};
use crate::http::{Chunk, Source};
use crate::serve::Want;

use super::operation::{ASIDE, Key, Mark, Operation};
use super::{Installed, Loop, Slot, Task, live, slot};

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
/// Bytes that are read at once for nobody. The kernel copies them, and with more at once others wait longer.
const PASSED_MAX: usize = 128 * 1024;
/// A disk is quick from which so many pieces in a row have come within this time.
const QUICK_ROW: usize = 64;
const QUICK: Duration = Duration::from_millis(10);
/// The same after the loop has had to wait for it.
const WARY_ROW: usize = 64 * QUICK_ROW;
/// `enum io_uring_socket_op`: what ioctl(2) calls SIOCOUTQ (tcp(7)).
const SOCKET_URING_OP_SIOCOUTQ: u32 = 1;
/// What is no longer an empty socket takes at once, as a rule: so much it may hold by net.ipv4.tcp_wmem.
const SHORT_MAX: usize = 16 * 1024;
/// Slices of one message.
const SLICES: usize = 8;

impl Loop<'_> {
    /// Submits the front of the outbox.
    pub(super) fn send(&mut self, key: Key) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let socket = Fixed(key.index);
        let is_fetched = matches!(slot.task, Task::FileFetched);
        let is_called = is_fetched || matches!(slot.task, Task::FileCalled(_));
        let files = &mut self.files;
        if is_called {
            files.give_back(&mut slot.task);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (operation, entry) = match slot.outbox.front(&mut slices) {
            Chunk::Memory { slices: count, more } => {
                let entry = memory(socket, &slices[..count], send_flags(more), &mut slot.task);
                (Operation::Send, entry)
            }
            // What is in memory goes straight from there to the socket, without being copied.
            Chunk::File { file, len, .. }
                if (file.is_in_memory() || len > resident::SHORT_MAX)
                    && self.can_install
                    && slot.installed.is_none()
                    && !is_called
                    && matches!(slot.task, Task::None) =>
            {
                (Operation::Install, opcode::FixedFdInstall::new(socket, 0).build())
            }
            Chunk::File { file, at, len }
                if !matches!(slot.task, Task::File(..))
                    && let Some(installed) = &mut slot.installed
                    && (file.is_in_memory()
                        || files.find(&mut installed.resident, file, at, len, is_called, is_fetched) > 0) =>
            {
                slot.task = Task::None;
                return self.send_now(key);
            }
            Chunk::File { file, at, len } => {
                if !matches!(slot.task, Task::File(..)) {
                    let is_cold = slot.installed.is_some() || len <= resident::SHORT_MAX;
                    let line = if is_cold { Line::Cold } else { Line::Unknown };
                    let queue = files.queue(line);
                    // With little others need not have their turn before. There may be fewer places by now.
                    let is_next = is_called || len < HEAVY_MIN && queue.waiting.is_empty();
                    if !is_next || queue.is_full() {
                        slot.task = Task::FileWaiting;
                        if is_called {
                            queue.waiting.push_front(key);
                        } else {
                            queue.waiting.push_back(key);
                        }
                        return Ok(());
                    }
                    if let Some(Installed { resident, begun, .. }) = slot.installed.as_deref_mut() {
                        if resident.coming() == 0 && !is_called {
                            files.begin(resident, file, at, len);
                        }
                        files.call(&mut slot.task, line);
                        let (file, flags, coming) = (file.as_fd(), files.flags(), resident.coming());
                        if is_fetched {
                            let entry = pass_over(file, at, len).flags(flags);
                            return self.submit(key, Operation::FileRead, entry);
                        }
                        if coming > 0 {
                            let entry = pass_over(file, at + coming - 1, 1);
                            return self.submit(key, Operation::FileFetch, entry);
                        }
                        *begun = Some(Instant::now());
                        debug_assert_eq!(slot.in_flight, None);
                        slot.in_flight = Some(Operation::FileFetch);
                        let entries = read_ahead(file, at, len, flags, key);
                        // SAFETY: the last one points to bytes that are never freed, nor read by anybody, the
                        // others to nothing.
                        return unsafe { self.ring.push_linked(&entries) };
                    }
                    slot.task = files.take_buffer(line);
                }
                let Task::File(_, buffer, _) = &mut slot.task else { unreachable!("it was just put there") };
                let len = len.min(buffer.len() as u64) as u32;
                let entry =
                    opcode::Read::new(Fd(file.as_fd().as_raw_fd()), buffer.as_mut_ptr(), len).offset(at);
                (Operation::FileRead, entry.build().flags(files.flags()))
            }
            Chunk::Empty => unreachable!("a send is only wanted where there is something to send"),
        };
        self.submit(key, operation, entry)
    }

    /// Submits the whole outbox, if that is memory and short, and the receive that follows. Says whether.
    pub(super) fn send_and_receive(&mut self, key: Key) -> io::Result<bool> {
        let slot = slot(&mut self.slots, key);
        let mut slices = [IoSlice::new(&[]); SLICES];
        let Chunk::Memory { slices: count, more: false } = slot.outbox.front(&mut slices) else {
            return Ok(false);
        };
        let slices = &slices[..count];
        let len = slices.iter().map(|slice| slice.len()).sum();
        if len > SHORT_MAX || !slot.conn.is_heard_next() {
            return Ok(false);
        }
        // With WAITALL it has failed where it has not sent all, and only then there is a completion.
        let flags = send_flags(false) | libc::MSG_WAITALL;
        let entry = memory(Fixed(key.index), slices, flags, &mut slot.task);
        self.submit(key, Operation::Send, entry.flags(squeue::Flags::SKIP_SUCCESS))?;
        self.receive_behind(key, len)?;
        Ok(true)
    }

    pub(super) fn installed(&mut self, key: Key, result: i32) -> io::Result<()> {
        if result < 0 {
            // Not known to this kernel, or no descriptor left: the file is read through the ring instead.
            self.can_install &= matches!(-result, libc::EMFILE | libc::ENFILE | libc::ENOMEM);
            if !self.can_install {
                self.seat.worker.site().hold_plainly();
            }
            slot(&mut self.slots, key).task = Task::FileWaiting;
            return self.send(key);
        }
        // SAFETY: the ring has made it for us just now, and nobody else knows of it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(result) };
        // For sendfile(2) alone: the ring's own operations do not look at the flag of a direct descriptor.
        if counted(|| rustix::io::ioctl_fionbio(&descriptor, true)).is_err() {
            return self.carry_out(key, Want::Close);
        }
        slot(&mut self.slots, key).installed =
            Some(Box::new(Installed { socket: descriptor, resident: Resident::default(), begun: None }));
        self.send(key)
    }

    /// Sends what is in memory, as much as the socket takes. This does not wait for anything, so it needs no
    /// submission; what waits, for more room in the socket or for a disk, is submitted.
    fn send_now(&mut self, key: Key) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let Installed { socket, resident, .. } =
            slot.installed.as_deref_mut().expect("the caller has looked");
        let may_begin = self.files.may_begin();
        let before = Instant::now();
        let (sent, progress) = send_now(&*socket, &mut slot.outbox, |file, at, len| {
            resident.find(file, at, len, may_begin && len < HEAVY_MIN)
        });
        self.files.has_sent(before.elapsed());
        if progress {
            self.seat.worker.progressed(&mut slot.conn);
        }
        match sent {
            Sent::All => self.go_on_sending(key),
            Sent::UntilDisk => self.send(key),
            // Also where there is room left: others have their turn before the poll completes.
            Sent::UntilFull | Sent::Share => self.wait_until_writable(key),
            Sent::Failed => self.carry_out(key, Want::Close),
        }
    }

    pub(super) fn sent(&mut self, key: Key, result: i32) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        slot.task = Task::None;
        match result {
            1.. => {
                slot.outbox.sent(result as u64);
                self.go_on_sending(key)
            }
            error if error == -libc::EAGAIN => self.wait_until_writable(key),
            error if error == -libc::EINTR => self.send(key),
            _ => self.carry_out(key, Want::Close),
        }
    }

    pub(super) fn go_on_sending(&mut self, key: Key) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let want = if !slot.outbox.is_empty() {
            self.seat.worker.progressed(&mut slot.conn);
            return self.send(key);
        } else if slot.then_close {
            Want::Close
        } else {
            if let Some(installed) = &mut slot.installed {
                installed.resident = Resident::default();
            }
            self.seat.worker.turn(&mut slot.conn, &[], &mut slot.outbox)
        };
        self.carry_out(key, want)
    }

    /// A span of a file has come into the page cache, as its last byte says. Should it not be there all the
    /// same, or should that have failed, it is read for nobody. Where the kernel does not tell, it is taken
    /// to be there if the disk is quick: then it does not take long should a part of it be missing.
    pub(super) fn file_fetched(&mut self, key: Key, result: i32) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let begun = slot.installed.as_deref_mut().and_then(|installed| installed.begun.take());
        match result {
            // Shorter than was promised: the answer cannot be completed.
            0 => return self.carry_out(key, Want::Close),
            error if matches!(-error, libc::EINTR | libc::EAGAIN) => {}
            _ => slot.task = Task::FileFetched,
        }
        if result > 0
            && begun.is_some_and(|begun| self.files.is_quick(begun.elapsed()))
            && let Chunk::File { file, at, len } = slot.outbox.front(&mut [IoSlice::new(&[])])
        {
            resident::was_read(file, at..at + piece(len));
        }
        self.send(key)
    }

    /// A span of a file has been read, and thus is in the page cache. It is sent from there; or, where there
    /// is no descriptor installed for that, as much of its buffer as the socket takes at once: what it does
    /// not take is read again later, so that no slow client holds a buffer.
    pub(super) fn file_read(&mut self, key: Key, result: i32) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        if matches!(-result, libc::EINTR | libc::EAGAIN) {
            return self.send(key);
        }
        if result <= 0 {
            // Shorter than was promised, or the disk has failed: the answer cannot be completed.
            self.files.give_back(&mut slot.task);
            return self.carry_out(key, Want::Close);
        }
        let mut slices = [IoSlice::new(&[])];
        let Chunk::File { file, at, len } = slot.outbox.front(&mut slices) else {
            unreachable!("what was read is in front")
        };
        let Task::File(_, buffer, filled) = &mut slot.task else {
            let installed = slot.installed.as_mut().expect("without a buffer");
            installed.resident.read(file, at..at + result as u64);
            self.files.give_back(&mut slot.task);
            return self.send_now(key);
        };
        *filled = result as usize;
        resident::was_read(file, at..at + result as u64);
        let more = len > result as u64;
        let entry =
            opcode::Send::new(Fixed(key.index), buffer.as_ptr(), result as u32).flags(send_flags(more));
        self.submit(key, Operation::FileSend, entry.build())
    }

    pub(super) fn file_sent(&mut self, key: Key, result: i32) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let Task::File(_, _, filled) = slot.task else { unreachable!("a file is sent from a buffer") };
        match result {
            1.. => slot.outbox.sent(result as u64),
            error if matches!(-error, libc::EINTR | libc::EAGAIN) => {}
            _ => {
                self.files.give_back(&mut slot.task);
                return self.carry_out(key, Want::Close);
            }
        }
        if result as usize == filled {
            let is_over = !matches!(slot.outbox.front(&mut [IoSlice::new(&[])]), Chunk::File { .. });
            if is_over || self.files.is_any_awaited() {
                self.files.give_back(&mut slot.task);
            }
            return self.go_on_sending(key);
        }
        if result > 0 {
            self.seat.worker.progressed(&mut slot.conn);
        }
        self.files.give_back(&mut slot.task);
        self.wait_until_writable(key)
    }

    /// A send is stuck. Whether the client takes anything is seen in the socket's queue.
    pub(super) fn ask_queued(&mut self, key: Key) -> io::Result<()> {
        self.submit(key, Operation::Queued, ask_queued(Fixed(key.index)))
    }

    pub(super) fn queued(&mut self, key: Key, result: i32) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        // Unknown to Linux before 6.7, and unknown is as good as unchanged.
        let queued = u32::try_from(result).unwrap_or(u32::MAX);
        if self.seat.worker.is_still_taking(&mut slot.conn, queued) {
            let now = self.seat.worker.clock.now();
            self.deadlines.cover(key, slot.conn.deadline(), now, &mut slot.entered);
            self.send(key)
        } else {
            self.submit(key, Operation::Abandon, abandon(Fixed(key.index)))
        }
    }

    /// Those who waited for a place get theirs.
    pub(super) fn call_waiting(&mut self) -> io::Result<()> {
        self.files.promised = 0;
        while let Some((key, line)) = self.files.next() {
            let Some(slot) = live(&mut self.slots, key) else { continue };
            if !matches!(slot.task, Task::FileWaiting) || slot.in_flight.is_some() {
                continue;
            }
            self.files.call(&mut slot.task, line);
            if is_much_left(slot) {
                // Many may be called at once, and reading begins with what the kernel reads ahead.
                self.await_turn(key);
            } else {
                self.send(key)?;
            }
        }
        Ok(())
    }

    pub(super) fn wait_until_writable(&mut self, key: Key) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fixed(key.index), libc::POLLOUT as u32).build();
        self.submit(key, Operation::Writable, entry)
    }
}

/// Whether of the file that a client is sent so much is left that others have their turn before.
pub(super) fn is_much_left(slot: &Slot) -> bool {
    matches!(slot.outbox.front(&mut []), Chunk::File { len, .. } if len >= HEAVY_MIN)
}

/// Bytes of a span that are read at once for nobody.
fn piece(len: u64) -> u64 {
    len.min(PASSED_MAX as u64)
}

/// Reads a piece of a file, for the kernel to have it in its page cache. Nobody looks at what that writes, so
/// it has one place for all clients.
pub(super) fn pass_over(file: BorrowedFd, at: u64, len: u64) -> squeue::Entry {
    static BYTES: [AtomicU8; PASSED_MAX] = [const { AtomicU8::new(0) }; PASSED_MAX];
    let len = piece(len) as u32;
    opcode::Read::new(Fd(file.as_raw_fd()), BYTES.as_ptr().cast_mut().cast(), len).offset(at).build()
}

/// Has the kernel read a piece of a file into its page cache and copy nothing, in three steps, of which the
/// next follows also where one fails. A read that has nowhere to write to fails once the first byte has come;
/// if that was on the disk the kernel reads ahead, as far as it thinks fit. Whatever of the piece that leaves
/// out it is told to read. Then the last byte is waited for.
fn read_ahead(file: BorrowedFd, at: u64, len: u64, flags: squeue::Flags, key: Key) -> [squeue::Entry; 3] {
    let (of_file, len) = (Fd(file.as_raw_fd()), piece(len));
    let read = opcode::Read::new(of_file, ptr::null_mut(), len as u32).offset(at).build();
    let rest =
        opcode::Fadvise::new(of_file, len as libc::off_t, libc::POSIX_FADV_WILLNEED).offset(at).build();
    let mark = Mark { operation: Operation::FileFetch, key };
    [
        read.user_data(ASIDE.into()).flags(flags | squeue::Flags::IO_HARDLINK),
        rest.user_data(ASIDE.into()).flags(squeue::Flags::IO_HARDLINK | squeue::Flags::SKIP_SUCCESS),
        pass_over(file, at + len - 1, 1).user_data(mark.into()),
    ]
}

/// Asks how much is in a socket's own queue.
pub(super) fn ask_queued(socket: Fixed) -> squeue::Entry {
    opcode::UringCmd16::new(socket, SOCKET_URING_OP_SIOCOUTQ).build()
}

/// Has the close of a socket drop what is in its queue.
pub(super) fn abandon(socket: Fixed) -> squeue::Entry {
    let (level, option) = (libc::SOL_SOCKET as u32, libc::SO_LINGER as u32);
    let value = (&raw const calls::NO_LINGER).cast();
    opcode::SetSockOpt::new(socket, level, option, value, size_of::<libc::linger>() as u32).build()
}

/// Of every send. None waits inside the kernel: to a client that has ended its own side it would spin there,
/// and then tie up a kernel thread.
fn send_flags(more: bool) -> i32 {
    libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | if more { libc::MSG_MORE } else { 0 }
}

/// Sends slices of memory. Several are a message, which the task is to hold.
fn memory(socket: Fixed, slices: &[IoSlice], flags: i32, task: &mut Task) -> squeue::Entry {
    if let [slice] = slices {
        return opcode::Send::new(socket, slice.as_ptr(), slice.len() as u32).flags(flags).build();
    }
    let message = Message::new(slices);
    let entry = opcode::SendMsg::new(socket, &raw const message.header).flags(flags as u32);
    *task = Task::Message { _in_flight: message };
    entry.build()
}

/// A message of several slices, which must stay in place while it is in flight.
pub(super) struct Message {
    header: libc::msghdr,
    slices: [libc::iovec; SLICES],
}

impl Message {
    /// A message of slices that stay in place as long as it is in flight.
    fn new(slices: &[IoSlice]) -> Box<Message> {
        // SAFETY: plain C structs, for which all zeros is "nothing".
        let mut message: Box<Message> = Box::new(unsafe { std::mem::zeroed() });
        for (into, slice) in message.slices.iter_mut().zip(slices) {
            *into = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        }
        message.header.msg_iov = message.slices.as_mut_ptr();
        message.header.msg_iovlen = slices.len() as _;
        message
    }
}

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
    /// Pieces that are to come quickly, one after the other, until the disk is taken to be quick.
    wary: usize,
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
        Files { buffers: Vec::new(), queues, begun: 0, promised: 0, wary: QUICK_ROW }
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

    /// How much can be sent of a span, from its start; or `resident` has what is coming. Where the kernel
    /// does not tell what it has, to look may be to begin, so a long one is not looked at before its turn,
    /// but where all was there at the last look.
    fn find(
        &mut self,
        resident: &mut Resident,
        file: &Arc<Source>,
        at: u64,
        len: u64,
        is_called: bool,
        is_fetched: bool,
    ) -> u64 {
        let has_turn = is_called && !self.queue(Line::Cold).is_full();
        if has_turn && !is_fetched {
            self.begin(resident, file, at, len);
            if resident.coming() > 0 {
                return 0;
            }
        }
        resident.find(file, at, len, has_turn || len < HEAVY_MIN && self.may_begin())
    }

    /// Has the kernel begin with a span.
    fn begin(&mut self, resident: &mut Resident, file: &Arc<Source>, at: u64, len: u64) {
        let before = Instant::now();
        resident.begin(file, at, len);
        let took = before.elapsed();
        if resident.coming() > 0 || took > BEGIN_MAX {
            self.begun(took);
        }
    }

    /// Whether the disk is quick, now that a piece has taken so long to come.
    fn is_quick(&mut self, took: Duration) -> bool {
        self.wary = if took > QUICK { self.wary.max(QUICK_ROW) } else { self.wary.saturating_sub(1) };
        self.wary == 0
    }

    /// What was taken to be in memory has taken so long to be sent.
    fn has_sent(&mut self, took: Duration) {
        if took > QUICK {
            self.wary = WARY_ROW;
        }
    }

    /// Of a read. Where others wait, the disk's queue may be full, and a thread of the kernel waits for that.
    fn flags(&self) -> squeue::Flags {
        if self.is_any_awaited() { squeue::Flags::ASYNC } else { squeue::Flags::empty() }
    }

    /// Whether anybody waits because there is no place.
    fn is_any_awaited(&self) -> bool {
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
    fn take_buffer(&mut self, line: Line) -> Task {
        self.queue(line).taken += 1;
        let buffer = self.buffers.pop().unwrap_or_else(|| vec![0; FILE_BUFFER].into_boxed_slice());
        Task::File(line, buffer, 0)
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
        assert!(!files.is_quick(QUICK * 2));
        come(&mut files, WARY_ROW);
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
