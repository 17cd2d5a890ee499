//! Sending: memory by the ring, files from the page cache to the socket.
//!
//! What a client is sent stands in its outbox. Plain memory is lent to the kernel where it is. A file in
//! memory, and a span of a large file that is in the page cache, goes by sendfile(2), which waits for
//! nothing. What is still on the disk is [fetched](super::fetch) first.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Instant;

use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use crate::engines::HEAVY_MIN;
use crate::engines::calls;
use crate::engines::calls::counted;
use crate::engines::resident::{self, Resident};
use crate::engines::transfer::{Sent, send_now};
use crate::http::Chunk;
use crate::serve::Want;

use super::files::Turn;
use super::operation::{Key, Operation};
use super::{Installed, Loop, Task, slot};

/// `enum io_uring_socket_op`: what ioctl(2) calls SIOCOUTQ (tcp(7)).
const SOCKET_URING_OP_SIOCOUTQ: u32 = 1;
/// What is no longer an empty socket takes at once, as a rule: so much it may hold by net.ipv4.tcp_wmem.
const PRESUMED_MAX: usize = 16 * 1024;
/// Slices of one message.
const SLICES: usize = 8;

impl Loop<'_> {
    /// Submits the front of the outbox.
    pub(super) fn send(&mut self, key: Key) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let socket = Fixed(key.index);
        let files = &mut self.files;
        let turn = files.turn(&mut slot.task);
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
                    && turn == Turn::No
                    && matches!(slot.task, Task::None) =>
            {
                (Operation::Install, opcode::FixedFdInstall::new(socket, 0).build())
            }
            Chunk::File { file, at, len }
                if !matches!(slot.task, Task::File(..))
                    && let Some(installed) = &mut slot.installed
                    && (file.is_in_memory()
                        || files.find(&mut installed.resident, file, at, len, turn) > 0) =>
            {
                slot.task = Task::None;
                return self.send_now(key);
            }
            Chunk::File { .. } => return self.fetch(key, turn),
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
        if len > PRESUMED_MAX || !slot.conn.is_heard_next() {
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
    pub(super) fn send_now(&mut self, key: Key) -> io::Result<()> {
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

    pub(super) fn wait_until_writable(&mut self, key: Key) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fixed(key.index), libc::POLLOUT as u32).build();
        self.submit(key, Operation::Writable, entry)
    }
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
pub(super) fn send_flags(more: bool) -> i32 {
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
