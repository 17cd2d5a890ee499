//! When the loop must wake by itself, as an operation of the ring.
//!
//! A time limit on the call that waits would be started and stopped again with every sleep, and on a virtual
//! machine that is a good part of what a sleep costs. A timeout in flight serves many of them.
#![allow(unsafe_code)]

use std::io;

use io_uring::opcode;
use io_uring::types::Timespec;

use crate::clock::Tick;
use crate::engines::CUT_CHECK;

use super::Loop;
use super::operation::{ASIDE, Key, Mark, Operation};

const MARK: Mark = Mark { operation: Operation::Timer, key: Key::NONE };

/// The timeout in flight.
pub(super) struct Timer {
    /// When it ends; never, if there is none.
    at: Tick,
    /// Read by the kernel when the timeout is submitted or changed.
    time: Box<Timespec>,
}

impl Default for Timer {
    fn default() -> Timer {
        Timer { at: Tick::NEVER, time: Box::new(Timespec::new()) }
    }
}

impl Timer {
    /// The timeout has ended.
    ///
    /// # Errors
    /// What the kernel says, where that is not that the time is over.
    pub(super) fn ended(&mut self, result: i32) -> io::Result<()> {
        self.at = Tick::NEVER;
        if result == -libc::ETIME { Ok(()) } else { Err(io::Error::from_raw_os_error(-result)) }
    }
}

impl Loop<'_> {
    /// Sees to it that the loop wakes for the next deadline. To be called once before each wait.
    pub(super) fn set_timer(&mut self) -> io::Result<()> {
        let now = self.seat.worker.clock.now();
        let check = self.seat.worker.is_draining().then(|| now.after(CUT_CHECK));
        let resend = (!self.paused.is_empty()).then_some(self.paused_until);
        let moments = [self.deadlines.next(), self.acceptor.paused_until(), check, resend];
        let Some(next) = moments.into_iter().flatten().min().filter(|&next| next < self.timer.at) else {
            return Ok(());
        };
        let is_set = std::mem::replace(&mut self.timer.at, next) != Tick::NEVER;
        *self.timer.time = Tick::now().until(next).into();
        let time = &raw const *self.timer.time;
        let entry = if is_set {
            // Where it has ended at this moment, its completion has the next one set.
            opcode::TimeoutUpdate::new(MARK.into(), time).build().user_data(ASIDE.into())
        } else {
            opcode::Timeout::new(time).build().user_data(MARK.into())
        };
        // SAFETY: the time is on the heap and lives as long as the loop; the kernel reads it only while it is
        // submitted, and only by a call of this thread.
        unsafe { self.ring.push(&entry) }
    }
}
