//! Loading: what the cache does not know is opened and read by the ring, a step at a time.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::types::{Fd, OpenHow};
use io_uring::{opcode, squeue};

use crate::content::{Load, Step};
use crate::engines::helpers::list_aside;
use crate::engines::resident::{is_cold, read_resident, tells};
use crate::engines::session::load_at_once;
use crate::engines::{HEAVY_MIN, LIGHT_PER_HEAVY};
use crate::sys::Area;

use super::fetch::pass_over;
use super::operation::{Key, Operation};
use super::{Loop, Task, live, slot};

/// Bytes of a file that are read for a load at once. Many disks may answer in one turn, and each read then
/// copies what it asked for; and the first of a file has the kernel read ahead several times as much, for
/// which it finds pages there and then.
const READ_AT_ONCE: usize = 64 * 1024;

impl Loop<'_> {
    /// Begins with a load, or has it wait until fewer are in flight.
    pub(super) fn begin_load(&mut self, key: Key, mut load: Box<Load>) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        if self.loads < self.seat.loads_max {
            slot.task = Task::Load(load, Box::new(OpenHow::new()));
            self.loads += 1;
            return self.load(key);
        }
        // A look at what is known already need not wait for those who wait for a disk.
        load.gather_nothing();
        if load.is_a_look() && load_at_once(&mut load, false) {
            let want = self.seat.worker.loaded(&mut slot.conn, load.finish(), &mut slot.outbox);
            return self.carry_out(key, want);
        }
        self.seat.worker.put_off(&load);
        slot.task = Task::LoadWaiting;
        self.loads_waiting.push_back(key);
        Ok(())
    }

    /// Submits the next step of a load; goes on with its connection when there is none.
    pub(super) fn load(&mut self, key: Key) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let Task::Load(load, how) = &mut slot.task else { unreachable!("a load is under way") };
        load.leave_if(is_cold);
        let (size, is_local) = (load.size(), load.is_local());
        let (operation, entry) = match load.next() {
            Step::Open { root, path, flags, resolve } => {
                **how = OpenHow::new().flags(u64::from(flags.bits())).resolve(resolve.bits());
                let entry = opcode::OpenAt2::new(Fd(root.as_raw_fd()), path.as_ptr(), &raw const **how);
                (Operation::Open, entry.build().flags(self.files.flags_where(is_local)))
            }
            Step::Read { file, buffer, at } => {
                let room = buffer.spare_capacity_mut();
                let len = room.len().min(READ_AT_ONCE) as u32;
                let entry = opcode::Read::new(Fd(file.as_raw_fd()), room.as_mut_ptr().cast(), len).offset(at);
                (Operation::Read, entry.build().flags(self.files.flags_where(tells(file, size))))
            }
            // In the ring's own first attempt the kernel would write at once, however long that takes.
            Step::Note { file, at } => (Operation::Read, pass_over(file, at, 1).flags(squeue::Flags::ASYNC)),
            // The kernel does it in a thread of its own.
            Step::Gather(gathering) => {
                let Ok(area) = gathering.prepare() else {
                    load.gathered();
                    return self.load(key);
                };
                let (at, len) = area.range();
                let entry = opcode::Madvise::new(at.as_ptr().cast(), len as libc::off_t, Area::ADVICE);
                (Operation::Gather, entry.build())
            }
            // No operation of a ring does that.
            Step::List(listing) => {
                list_aside(listing);
                load.listed();
                return self.load(key);
            }
            Step::Done => {
                let Task::Load(load, _) = std::mem::replace(&mut slot.task, Task::None) else {
                    unreachable!()
                };
                self.loads -= 1;
                let want = self.seat.worker.loaded(&mut slot.conn, load.finish(), &mut slot.outbox);
                return self.carry_out(key, want);
            }
        };
        self.submit(key, operation, entry)
    }

    /// A step of a load is done.
    pub(super) fn loaded(&mut self, key: Key, operation: Operation, result: i32) -> io::Result<()> {
        let Task::Load(load, _) = &mut slot(&mut self.slots, key).task else {
            unreachable!("a load is under way")
        };
        let result = if result == -libc::ECANCELED {
            self.files.has_no_thread();
            // Once more, without one.
            -libc::EAGAIN
        } else {
            result
        };
        let number = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
        if operation == Operation::Open {
            // SAFETY: the ring has opened it for us just now, and nobody else knows of it.
            load.opened(number.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }));
        } else if operation == Operation::Gather {
            load.gathered();
        } else if matches!(load.next(), Step::Note { .. }) {
            load.noted();
        } else {
            let Step::Read { buffer, .. } = load.next() else { unreachable!("a read was under way") };
            let read = number.map(|n| n as usize);
            let filled = buffer.len() + read.as_ref().copied().unwrap_or(0);
            // SAFETY: the ring has written so many bytes behind those there were, within the capacity.
            unsafe { buffer.set_len(filled) };
            load.read(read);
            return self.load(key);
        }
        // Many may have opened theirs in one turn, and reading begins with what the kernel reads ahead.
        if load.size() >= HEAVY_MIN && matches!(load.next(), Step::Read { .. }) {
            self.await_turn(key);
            return Ok(());
        }
        // What is in memory needs no submission.
        if let Step::Read { file, buffer, at } = load.next()
            && let Some(read) = read_resident(file, buffer, at, usize::MAX, true, self.files.may_begin())
        {
            load.read(Ok(read));
        }
        self.load(key)
    }

    /// Those who waited for a load of somebody else's get theirs.
    pub(super) fn call_loads(&mut self) -> io::Result<()> {
        // Not all at once: a thousand may by now be answered from the cache.
        for _ in 0..LIGHT_PER_HEAVY {
            if self.loads >= self.seat.loads_max {
                break;
            }
            let Some(key) = self.loads_waiting.pop_front() else { break };
            if let Some(slot) = live(&mut self.slots, key)
                && let Task::LoadWaiting = slot.task
            {
                // Somebody may have loaded the same meanwhile, so it begins with a look at the cache.
                slot.task = Task::None;
                let want = self.seat.worker.turn(&mut slot.conn, &[], &mut slot.outbox);
                self.carry_out(key, want)?;
            }
        }
        Ok(())
    }
}
