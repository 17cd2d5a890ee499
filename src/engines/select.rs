//! Readiness, scanned, in bit sets: one thread serves many, and none of them burns it.
//!
//! **How it waits.** A descriptor is a small number, so a set of descriptors is a set of bits. Before each
//! wait the thread sets a bit for every client that it wants to read from in one set, and for every client it
//! wants to write to in another. `select(2)` takes the sets, sleeps until one of the descriptors is ready,
//! and clears the bits of all that are not. Then the thread looks at each client's bit.
//!
//! **What it gives.** The event queue that [spin](super::spin) lacks: nobody tries what cannot be done yet.
//!
//! **What it costs.** The sets are written, copied into the kernel, scanned bit by bit, copied back and
//! scanned again for every single wait, however few clients are busy.
//!
//! **Where it breaks.** A set has 1,024 bits, so a descriptor of 1,024 or more cannot be waited for; in C it
//! would be a write beyond the end of the set. Files that are held open count, too. The server is kept below
//! that by the limit on descriptors, which is lowered for it at the start: accepting pauses where the kernel
//! has no more of them, and goes on when somebody leaves.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::io::Errno;

use super::crowd::{Crowd, Key, Unwatched};
use super::session::Wait;
use super::{Capabilities, Engine, Family, Seat, Threads, always_available, calls};

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "select",
    summary: "readiness, scanned: select(2) on bit sets, descriptors below 1024",
    family: Family::Scanned,
    threads: Threads::PerCore,
    capabilities: Capabilities { descriptor_max: Some(libc::FD_SETSIZE - 1), ..Capabilities::UNLIMITED },
    runtime_counted: true,
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    let mut crowd = Crowd::new(seat, Unwatched)?;
    if !crowd.ready() {
        return Ok(());
    }
    let mut ready: Vec<Key> = Vec::new();
    loop {
        let (mut readable, mut writable) = (Set::new(), Set::new());
        readable.insert(crowd.helpers());
        if let Some(listener) = crowd.listener() {
            readable.insert(listener);
        }
        if let Some(shutdown) = crowd.shutdown() {
            readable.insert(shutdown);
        }
        for (_, session, wait) in crowd.sessions() {
            match wait {
                Wait::Readable => readable.insert(session),
                Wait::Writable => writable.insert(session),
                Wait::Disk | Wait::Turn | Wait::Over => {}
            }
        }
        select(&mut readable, &mut writable, crowd.timeout())?;
        crowd.begin_turn();
        let is_ready = |source: &dyn AsFd| readable.contains(source) || writable.contains(source);
        ready.clear();
        ready.extend(crowd.sessions().filter(|(_, session, _)| is_ready(session)).map(|(key, ..)| key));
        let has_clients = crowd.listener().is_some_and(|listener| is_ready(&listener));
        let has_helped = is_ready(&crowd.helpers());
        let is_to_end = crowd.shutdown().is_some_and(|shutdown| is_ready(shutdown));
        if has_clients {
            crowd.accept()?;
        }
        if has_helped {
            crowd.take_done();
        }
        for &key in &ready {
            crowd.wake(key, false);
        }
        if is_to_end {
            crowd.drain()?;
        }
        if !crowd.end_turn(ready.len())? {
            return Ok(());
        }
    }
}

/// A set of descriptors below 1,024.
struct Set {
    bits: libc::fd_set,
    /// One more than the largest.
    bound: RawFd,
}

impl Set {
    fn new() -> Set {
        let mut bits = MaybeUninit::uninit();
        // SAFETY: FD_ZERO writes all of the set.
        let bits = unsafe {
            libc::FD_ZERO(bits.as_mut_ptr());
            bits.assume_init()
        };
        Set { bits, bound: 0 }
    }

    fn insert(&mut self, source: impl AsFd) {
        let descriptor = source.as_fd().as_raw_fd();
        assert!((descriptor as usize) < libc::FD_SETSIZE, "the limit on descriptors was lowered for this");
        // SAFETY: the descriptor is below the size of the set.
        unsafe { libc::FD_SET(descriptor, &raw mut self.bits) };
        self.bound = self.bound.max(descriptor + 1);
    }

    fn contains(&self, source: &dyn AsFd) -> bool {
        let descriptor = source.as_fd().as_raw_fd();
        // SAFETY: nothing is beyond the bound, and nothing beyond the size of the set was ever inserted.
        descriptor < self.bound && unsafe { libc::FD_ISSET(descriptor, &raw const self.bits) }
    }
}

/// `select(2)`: what remains in the sets is ready.
fn select(readable: &mut Set, writable: &mut Set, timeout: Option<Duration>) -> io::Result<()> {
    let bound = readable.bound.max(writable.bound);
    let mut time = timeout.map(|timeout| libc::timeval {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_usec: timeout.subsec_micros() as libc::suseconds_t,
    });
    let time = time.as_mut().map_or(ptr::null_mut(), ptr::from_mut);
    let (read, write) = (&raw mut readable.bits, &raw mut writable.bits);
    // SAFETY: both sets and the time live across the call, and no set has a bit at the bound or beyond it.
    let result = calls::counted(|| unsafe { libc::select(bound, read, write, ptr::null_mut(), time) });
    if result >= 0 {
        return Ok(());
    }
    // It leaves the sets as they were.
    (*readable, *writable) = (Set::new(), Set::new());
    match io::Error::last_os_error() {
        error if Errno::from_io_error(&error) == Some(Errno::INTR) => Ok(()),
        error => Err(error),
    }
}
