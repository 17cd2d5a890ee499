//! The list of interests that the kernel keeps for an engine: epoll(7), as both of its engines use it.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::shutdown::Shutdown;

use super::calls::{counted, timespec};

/// News taken from the kernel at once.
const EVENTS_MAX: usize = 512;

/// What an event is about, where it is no connection.
pub const LISTENER: u64 = u64::MAX;
pub const SHUTDOWN: u64 = u64::MAX - 1;
pub const HELPERS: u64 = u64::MAX - 2;

/// An epoll instance.
#[derive(Debug)]
pub struct Interests(OwnedFd);

impl Interests {
    /// A list on which the shutdown stands.
    pub fn new(shutdown: &Shutdown) -> io::Result<Interests> {
        let interests = Interests(counted(|| epoll::create(CreateFlags::CLOEXEC))?);
        interests.add(shutdown, SHUTDOWN, EventFlags::IN)?;
        Ok(interests)
    }

    /// `EPOLL_CTL_ADD`
    pub fn add(&self, source: impl AsFd, about: u64, flags: EventFlags) -> Result<(), Errno> {
        counted(|| epoll::add(&self.0, source, EventData::new_u64(about), flags))
    }

    /// `EPOLL_CTL_MOD`
    pub fn change(&self, source: impl AsFd, about: u64, flags: EventFlags) -> Result<(), Errno> {
        counted(|| epoll::modify(&self.0, source, EventData::new_u64(about), flags))
    }

    /// `EPOLL_CTL_DEL`
    pub fn remove(&self, source: impl AsFd) -> Result<(), Errno> {
        counted(|| epoll::delete(&self.0, source))
    }

    /// Puts the listener on the list, or takes it off.
    pub fn set_accepting(&self, listener: &TcpListener, is_on: bool) -> io::Result<()> {
        let result = if is_on { self.add(listener, LISTENER, EventFlags::IN) } else { self.remove(listener) };
        Ok(result?)
    }

    /// Room for as much news as is taken at once.
    pub fn room() -> Vec<Event> {
        Vec::with_capacity(EVENTS_MAX)
    }

    /// Sleeps until there is news, or the time is over.
    pub fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let timeout = timeout.map(timespec);
        match counted(|| epoll::wait(&self.0, spare_capacity(events), timeout.as_ref())) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
