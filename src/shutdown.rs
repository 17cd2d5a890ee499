//! From a signal to one descriptor that stays readable, which every engine can wait for beside its sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};

use crate::sys;

/// The signals that end the server.
pub const ENDING: [i32; 3] = [SIGTERM, SIGINT, SIGQUIT];

/// How the server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not at all.
    Serving,
    /// Stop accepting, finish what is under way.
    Draining,
    /// At once.
    Cut,
}

/// Whether the server is draining, as the answers need to know it. The default never is.
#[derive(Clone, Debug, Default)]
pub struct Draining(Option<&'static AtomicU64>);

impl Draining {
    /// Whether every answer is the last of its connection.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.is_some_and(|draining| draining.load(Ordering::Relaxed) != 0)
    }
}

/// The shutdown, shared by all threads, and by all processes forked from this one.
#[derive(Debug)]
pub struct Shutdown {
    event: OwnedFd,
    phase: &'static AtomicU64,
    draining: &'static AtomicU64,
    expected: AtomicBool,
}

impl Shutdown {
    /// A server that is serving.
    ///
    /// # Errors
    /// What `eventfd(2)` or `mmap(2)` says.
    pub fn new() -> io::Result<Shutdown> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [phase, draining] = sys::share_words(None, 2)? else { unreachable!("two were asked for") };
        Ok(Shutdown { event, phase, draining, expected: AtomicBool::new(false) })
    }

    /// The server will drain, if perhaps not yet: whoever sends clients here should stop to.
    pub fn expect(&self) {
        self.expected.store(true, Ordering::Relaxed);
    }

    /// Whether the server drains or will.
    pub fn is_expected(&self) -> bool {
        self.expected.load(Ordering::Relaxed)
    }

    /// From now on every answer is the last of its connection; nothing else changes yet.
    pub fn announce(&self) {
        self.expect();
        self.draining.store(1, Ordering::Relaxed);
    }

    /// Moves on to a later phase, and makes the descriptor readable for good.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u64, Ordering::Release);
        self.announce();
        // It fails only where the counter is full, and then the descriptor is readable already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// For those who answer.
    pub fn draining(&self) -> Draining {
        Draining(Some(self.draining))
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Cut,
        }
    }

    /// Whether what is left is to be cut off.
    pub fn is_cut(&self) -> bool {
        self.phase() == Phase::Cut
    }
}

impl AsFd for Shutdown {
    /// Readable from the first [`Shutdown::advance`] on; never read from.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
