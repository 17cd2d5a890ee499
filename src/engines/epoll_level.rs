//! Readiness, level-triggered: the kernel keeps the list, and repeats itself.
//!
//! **How it waits.** Each socket is registered once, with what is wanted of it now: to be read, or to be
//! written. The thread sleeps in `epoll_wait`, which hands it the sockets that *are* ready. The list of
//! interests stays in the kernel, where a packet that arrives puts its socket into a second list, of those
//! that are ready; so the cost grows with the clients that do something. With select and poll it grew with
//! all of them.
//!
//! **What it gives.** Nothing is lost by stopping early: a socket with bytes left in it is told of again by
//! the next wait, and again by the one after that. This is the easy half of epoll, and the default.
//!
//! **What it costs.** What is told again must be untold. A socket can nearly always be written, so the
//! interest in that must be taken back as soon as an answer is out, or every wait would return at once: one
//! `epoll_ctl` when a client's buffer is full, another when it has room again. And as with every readiness
//! engine, each `recv` and each `send` is a system call of its own.
//!
//! **The trap.** That a client has hung up is told whether it was asked for or not. While a disk works for
//! such a client nothing can be done about it, and the loop would spin; so who waits for no socket is
//! registered as one-shot, to be told of once at the most.
//!
//! **Where it breaks.** As [edge-triggered epoll](super::epoll) does: files are always "ready".

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
    name: "epoll-level",
    summary: "readiness, level-triggered: told as long as it is so",
    family: Family::Queued,
    threads: Threads::PerCore,
    capabilities: Capabilities::UNLIMITED,
    runtime_counted: true,
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    let interests = Interests::new(&seat.shutdown)?;
    let mut crowd = Crowd::new(seat, LevelTriggered(interests))?;
    crowd.watch().0.add(crowd.helpers(), HELPERS, EventFlags::IN)?;
    if !crowd.ready() {
        return Ok(());
    }
    let mut events = Interests::room();
    loop {
        crowd.watch().0.wait(&mut events, crowd.timeout())?;
        crowd.begin_turn();
        for event in &events {
            match event.data.u64() {
                LISTENER => crowd.accept()?,
                SHUTDOWN => crowd.drain()?,
                HELPERS => crowd.take_done(),
                key => crowd.wake(Key::from(key), false),
            }
        }
        if !crowd.end_turn(events.len())? {
            return Ok(());
        }
    }
}

struct LevelTriggered(Interests);

impl Watch for LevelTriggered {
    fn accepting(&self, listener: &TcpListener, is_on: bool) -> io::Result<()> {
        self.0.set_accepting(listener, is_on)
    }

    fn draining(&self, shutdown: &Shutdown) -> io::Result<()> {
        Ok(self.0.remove(shutdown)?)
    }

    fn waiting(&self, key: Key, socket: BorrowedFd, now: Wait, before: Option<Wait>) -> Result<(), Errno> {
        match before.map(interest) {
            None => self.0.add(socket, key.into(), interest(now)),
            Some(known) if known != interest(now) => self.0.change(socket, key.into(), interest(now)),
            Some(_) => Ok(()),
        }
    }
}

/// What is to be told about a socket whose connection waits so.
fn interest(wait: Wait) -> EventFlags {
    match wait {
        Wait::Readable => EventFlags::IN,
        Wait::Writable => EventFlags::OUT,
        Wait::Disk | Wait::Turn | Wait::Over => EventFlags::ONESHOT,
    }
}
