//! Receiving, also ahead of its time: behind a send that is likely to be the whole answer.
//!
//! A short answer nearly always fits into the socket, and then the next thing is to receive. So both are
//! submitted together, and one call is enough for a turn of the loop where it took two: the second would only
//! hear what the first had sent. A send of this engine never waits, so it is done once it is submitted. This
//! one only has a completion where it has *not* sent all, and that stands before the receive's.
#![allow(unsafe_code)]

use std::io;

use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};

use crate::serve::{READ_MAX, Want};

use super::operation::{Key, Mark, Operation};
use super::ring::{BUFFER_GROUP, BUFFERS, Completion};
use super::{Loop, Task, slot, take_back};

/// Receives in a row that find no buffer, for each client and buffer, until the buffers are believed to be
/// gone. Where they are only lent, every turn of the loop gives some of them out.
const UNSERVED_MAX: usize = 16;

impl Loop<'_> {
    /// Submits the receive that follows a send of the whole outbox, `len` bytes, which was just submitted.
    pub(super) fn receive_behind(&mut self, key: Key, len: usize) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let worker = &self.seat.worker;
        worker.waits_for_bytes(&mut slot.conn);
        self.deadlines.cover(key, slot.conn.deadline(), worker.clock.now(), &mut slot.entered);
        self.presumed.push((key, len));
        // The outbox stays as it is until `settle`.
        slot.in_flight = None;
        self.submit(key, Operation::Receive, receive(key))
    }

    /// To be called behind each wait: of whose send there is no completion, all has been sent.
    pub(super) fn settle(&mut self, completions: &[Completion]) {
        let Loop { presumed, slots, spare, ring, .. } = self;
        // A completion may be missing where something has not been submitted yet, or not come through; but
        // not if that of the receive is there.
        let is_behind = !presumed.is_empty() && ring.is_behind();
        presumed.retain(|&(key, len)| {
            let has_ended = |operation| {
                let mark = u64::from(Mark { operation, key });
                completions.iter().any(|completion| completion.user_data == mark)
            };
            if has_ended(Operation::Send) {
                return false;
            }
            if is_behind && !has_ended(Operation::Receive) {
                return true;
            }
            let slot = slot(slots, key);
            slot.task = Task::None;
            slot.outbox.sent(len as u64);
            take_back(&mut slot.outbox, spare);
            false
        });
    }

    /// Not all was sent, or nothing: the receive behind it has come too early, and is cancelled.
    pub(super) fn sent_too_little(&mut self, key: Key, result: i32) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        slot.outbox.sent(u64::from(result.max(0).unsigned_abs()));
        self.seat.worker.progressed(&mut slot.conn);
        self.deadlines.cover(key, slot.conn.deadline(), self.seat.worker.clock.now(), &mut slot.entered);
        slot.task = Task::Unsent { is_broken: result < 0 && !matches!(-result, libc::EAGAIN | libc::EINTR) };
        self.cancel(Mark { operation: Operation::Receive, key })
    }

    /// The receive has ended that was not to come yet. What it has brought is kept for later; the end of the
    /// stream will come again.
    fn received_too_early(&mut self, key: Key, completion: Completion, is_broken: bool) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        slot.task = Task::None;
        if let Some(id) = cqueue::buffer_select(completion.flags) {
            let bytes = self.ring.buffer(id, completion.result.max(0) as usize);
            slot.conn.hold(bytes.to_vec(), false);
            self.ring.give_back(id);
        }
        if is_broken { self.carry_out(key, Want::Close) } else { self.wait_until_writable(key) }
    }

    /// Something has come, or nothing ever will.
    pub(super) fn received(&mut self, key: Key, completion: Completion, late: bool) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        if let Task::Unsent { is_broken } = slot.task {
            return self.received_too_early(key, completion, is_broken);
        }
        slot.outbox = self.spare.pop().unwrap_or_default();
        let worker = &mut self.seat.worker;
        let buffer = cqueue::buffer_select(completion.flags);
        if buffer.is_some() {
            self.unserved = 0;
        } else if completion.result == -libc::ENOBUFS {
            self.unserved += 1;
            if self.unserved > UNSERVED_MAX * (self.connections + usize::from(BUFFERS)) {
                return Err(io::Error::other("its receive buffers are gone"));
            }
        }
        let want = match completion.result {
            0 => worker.ended(&mut slot.conn, &mut slot.outbox),
            n @ 1.. => {
                let id = buffer.expect("bytes come in a buffer");
                worker.turn(&mut slot.conn, self.ring.buffer(id, n as usize), &mut slot.outbox)
            }
            error if late && error == -libc::ECANCELED => worker.late(&mut slot.conn, &mut slot.outbox),
            // All buffers are lent at this moment; by the next submission they are back.
            error if matches!(-error, libc::ENOBUFS | libc::EINTR | libc::EAGAIN) => Want::Read,
            _ => Want::Close,
        };
        if let Some(id) = buffer {
            self.ring.give_back(id);
        }
        // A flood is always quicker than a cancellation.
        let want = match want {
            Want::Read if late && slot.conn.deadline() <= worker.clock.now() => {
                worker.late(&mut slot.conn, &mut slot.outbox)
            }
            want => want,
        };
        self.carry_out(key, want)
    }
}

/// Receives into whatever buffer the kernel picks when bytes have come.
pub(super) fn receive(key: Key) -> squeue::Entry {
    opcode::Recv::new(Fixed(key.index), std::ptr::null_mut(), READ_MAX as u32)
        .buf_group(BUFFER_GROUP)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
}
