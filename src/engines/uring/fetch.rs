//! Fetching: what is sent of a file and still on the disk.
//!
//! The kernel is made to begin with it, and of what is on its way the ring reads no more than the last byte:
//! when that has come, the rest has as a rule ([`Resident`](crate::engines::resident::Resident) looks), and
//! leaves without having been copied. So the disk holds up nobody else. The kernel reads ahead from there,
//! and so does sendfile(2). Where the file system knows no reads that do not wait, and where a part had come
//! before, the ring has the kernel read a piece ahead; and where that is slow, it reads it for nobody, which
//! takes a copy but leaves nothing out. For a socket without a descriptor of the process it reads into a
//! buffer, and no buffer is ever held while a client is waited for.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::AtomicU8;
use std::time::Instant;

use io_uring::types::{Fd, Fixed};
use io_uring::{opcode, squeue};

use crate::engines::HEAVY_MIN;
use crate::engines::resident;
use crate::http::{Chunk, Source};
use crate::serve::Want;

use super::files::{Line, Turn};
use super::operation::{ASIDE, Key, Mark, Operation};
use super::send::send_flags;
use super::{Installed, Loop, Slot, Task, live, slot};

/// Bytes that are read at once for nobody. The kernel copies them, and with more at once others wait longer.
const PASSED_MAX: usize = 128 * 1024;

impl Loop<'_> {
    /// Has the file in front of the outbox read, or waits for a place: in front where it was called for one.
    /// What was fetched already, and yet was not there, is read for nobody.
    pub(super) fn fetch(&mut self, key: Key, turn: Turn) -> io::Result<()> {
        let (slot, files) = (slot(&mut self.slots, key), &mut self.files);
        let mut slices = [IoSlice::new(&[])];
        let Chunk::File { file, at, len } = slot.outbox.front(&mut slices) else {
            unreachable!("the caller has looked")
        };
        if !matches!(slot.task, Task::File(..)) {
            let is_cold = slot.installed.is_some() || len <= resident::SHORT_MAX;
            let line = if is_cold { Line::Cold } else { Line::Unknown };
            // With little others need not have their turn before.
            if !files.has_place(key, line, turn, len < HEAVY_MIN) {
                slot.task = Task::FileWaiting;
                return Ok(());
            }
            if let Some(Installed { resident, begun, .. }) = slot.installed.as_deref_mut() {
                if resident.coming() == 0 && turn == Turn::No {
                    files.begin(resident, file, at, len);
                }
                files.call(&mut slot.task, line);
                let (flags, coming) = (files.flags(file), resident.coming());
                if turn == Turn::Fetched {
                    let entry = pass_over(file.as_fd(), at, len).flags(flags);
                    return self.submit(key, Operation::FileRead, entry);
                }
                if coming > 0 {
                    let entry = pass_over(file.as_fd(), at + coming - 1, 1);
                    return self.submit(key, Operation::FileFetch, entry);
                }
                *begun = Some(Instant::now());
                assert_eq!(slot.in_flight, None);
                slot.in_flight = Some(Operation::FileFetch);
                let entries = read_ahead(file, at, len, [flags, files.read_flags(file)], key);
                // SAFETY: the last one points to bytes that are never freed, nor read by anybody, the others
                // to nothing.
                return unsafe { self.ring.push_linked(&entries) };
            }
            slot.task = files.take_buffer(line);
        }
        let Task::File(_, buffer, _) = &mut slot.task else { unreachable!("it was just put there") };
        let len = len.min(buffer.len() as u64) as u32;
        let entry = opcode::Read::new(Fd(file.as_fd().as_raw_fd()), buffer.as_mut_ptr(), len).offset(at);
        let entry = entry.build().flags(files.flags(file));
        self.submit(key, Operation::FileRead, entry)
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
        let mut slices = [IoSlice::new(&[])];
        let Chunk::File { file, at, len } = slot.outbox.front(&mut slices) else {
            unreachable!("what was read is in front")
        };
        if result == -libc::ECANCELED
            && let Some(installed) = &mut slot.installed
        {
            // Nobody can wait for it elsewhere, so whoever sends it does.
            self.files.has_no_thread();
            installed.resident.read(file, at..at + piece(len));
            self.files.give_back(&mut slot.task);
            return self.send_now(key);
        }
        if result <= 0 {
            // Shorter than was promised, or the disk has failed: the answer cannot be completed.
            return self.carry_out(key, Want::Close);
        }
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
            _ => return self.carry_out(key, Want::Close),
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

    /// Those who waited for a place get theirs.
    pub(super) fn call_waiting(&mut self) -> io::Result<()> {
        self.files.keep_promises();
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
fn read_ahead(
    file: &Source,
    at: u64,
    len: u64,
    [flags, last]: [squeue::Flags; 2],
    key: Key,
) -> [squeue::Entry; 3] {
    let (of_file, len) = (Fd(file.as_fd().as_raw_fd()), piece(len));
    let read = opcode::Read::new(of_file, ptr::null_mut(), len as u32).offset(at).build();
    let rest =
        opcode::Fadvise::new(of_file, len as libc::off_t, libc::POSIX_FADV_WILLNEED).offset(at).build();
    let mark = Mark { operation: Operation::FileFetch, key };
    [
        read.user_data(ASIDE.into()).flags(flags | squeue::Flags::IO_HARDLINK),
        rest.user_data(ASIDE.into()).flags(squeue::Flags::IO_HARDLINK | squeue::Flags::SKIP_SUCCESS),
        pass_over(file.as_fd(), at + len - 1, 1).user_data(mark.into()).flags(last),
    ]
}
