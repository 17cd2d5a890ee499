//! Readiness, edge-triggered: the fastest of the readiness family, and what runs wherever io_uring is
//! forbidden.
//!
//! **How it waits.** Each socket is registered once. The thread sleeps in `epoll_wait`, which hands it a list
//! of those sockets about which there is *news*: they have become readable or writable since it was last
//! told. So the cost grows with the clients that do something, not with those that are merely connected.
//!
//! **What it costs.** Being told is not being served: for every request the thread still makes a `recv` and a
//! `send` of its own, each a trip into the kernel and back, and an `epoll_wait` for each batch.
//!
//! **The trap.** Edge-triggered news comes once. Who stops reading before the socket is empty is never told
//! again; so each connection is advanced until its socket says "not yet", or until a receive brought less
//! than it had room for, which for a stream says the same (epoll(7)). Who has too much to do is put at the
//! end of a queue of this thread's own, since no event will bring it back.
//!
//! **Where it breaks.** Files are always "ready": a read from a slow disk would block the whole thread. So
//! this one does nothing with a file that may wait; [helpers](super::helpers) wait for it.

use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::shutdown::Shutdown;

use super::crowd::{Crowd, Key, Watch};
use super::interests::{HELPERS, Interests, LISTENER, SHUTDOWN};
use super::session::Wait;
use super::{Capabilities, Engine, Family, Seat, Threads, always_available};

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "epoll",
    summary: "readiness, edge-triggered: told once, then recv and send by itself",
    family: Family::Queued,
    threads: Threads::PerCore,
    capabilities: Capabilities::UNLIMITED,
    runtime_counted: true,
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    let interests = Interests::new(&seat.shutdown)?;
    let mut crowd = Crowd::new(seat, EdgeTriggered(interests))?;
    crowd.watch().0.add(crowd.helpers(), HELPERS, EventFlags::IN)?;
    if !crowd.ready() {
        return Ok(());
    }
    let mut events = Interests::room();
    loop {
        crowd.watch().0.wait(&mut events, crowd.timeout())?;
        crowd.begin_turn();
        for event in &events {
            let flags = event.flags;
            match event.data.u64() {
                LISTENER => crowd.accept()?,
                SHUTDOWN => crowd.drain()?,
                HELPERS => crowd.take_done(),
                key => {
                    let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
                    crowd.wake(Key::from(key), flags.intersects(hung_up));
                }
            }
        }
        if !crowd.end_turn(events.len())? {
            return Ok(());
        }
    }
}

struct EdgeTriggered(Interests);

impl Watch for EdgeTriggered {
    fn accepting(&self, listener: &TcpListener, is_on: bool) -> io::Result<()> {
        self.0.set_accepting(listener, is_on)
    }

    fn draining(&self, shutdown: &Shutdown) -> io::Result<()> {
        Ok(self.0.remove(shutdown)?)
    }

    /// Registered once, for all there may ever be to tell.
    fn waiting(&self, key: Key, socket: BorrowedFd, _: Wait, before: Option<Wait>) -> Result<(), Errno> {
        if before.is_some() {
            return Ok(());
        }
        self.0.add(socket, key.into(), EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET)
    }
}
