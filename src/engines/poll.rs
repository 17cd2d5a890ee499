//! Readiness, scanned, in an array: one thread, as many clients as there are descriptors.
//!
//! **How it waits.** Before each wait the thread writes a list: for every connected client the descriptor,
//! and whether it is to be read or written. `poll(2)` takes the list, sleeps until one of them is ready, and
//! marks which are. Then the thread goes through the list to find the marks.
//!
//! **What it gives.** An array has no largest descriptor, so the limit of [select](super::select) is gone;
//! and one thread serves everybody without burning a core as [spin](super::spin) does.
//!
//! **What it costs.** The kernel forgets the list as soon as it has returned. So all of it is written by us,
//! copied into the kernel, looked through there and looked through again here, for every single wait: the
//! cost of one request grows with the number of clients that are merely *connected*.
//!
//! **Where it breaks.** At thousands of idle clients, of whom a few are busy, nearly all work is the list.
//! [epoll](super::epoll) leaves the list in the kernel. Files are always "ready" here, too, so
//! [helpers](super::helpers) wait for disks.

use std::io;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::crowd::{Crowd, Key, Unwatched};
use super::session::Wait;
use super::{Capabilities, Engine, Family, Seat, Threads, always_available, calls};

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "poll",
    summary: "readiness, scanned: poll(2) on an array of all clients",
    family: Family::Scanned,
    threads: Threads::PerCore,
    capabilities: Capabilities::UNLIMITED,
    runtime_counted: true,
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    let mut crowd = Crowd::new(seat, Unwatched)?;
    if !crowd.ready() {
        return Ok(());
    }
    let mut ready: Vec<Source> = Vec::new();
    loop {
        wait(&crowd, &mut ready)?;
        crowd.begin_turn();
        for &source in &ready {
            match source {
                Source::Listener => crowd.accept()?,
                Source::Shutdown => crowd.drain()?,
                Source::Helpers => crowd.take_done(),
                Source::Client(key) => crowd.wake(key, false),
            }
        }
        if !crowd.end_turn(ready.len())? {
            return Ok(());
        }
    }
}

/// Whom a line of the array belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Shutdown,
    Helpers,
    Client(Key),
}

/// Writes the array, waits, and reads off it who is ready.
fn wait(crowd: &Crowd<Unwatched>, ready: &mut Vec<Source>) -> io::Result<()> {
    let mut array = vec![PollFd::from_borrowed_fd(crowd.helpers(), PollFlags::IN)];
    let mut sources = vec![Source::Helpers];
    if let Some(listener) = crowd.listener() {
        array.push(PollFd::from_borrowed_fd(listener, PollFlags::IN));
        sources.push(Source::Listener);
    }
    if let Some(shutdown) = crowd.shutdown() {
        array.push(PollFd::new(shutdown, PollFlags::IN));
        sources.push(Source::Shutdown);
    }
    for (key, session, wait) in crowd.sessions() {
        let wanted = match wait {
            Wait::Readable => PollFlags::IN,
            Wait::Writable => PollFlags::OUT,
            Wait::Disk | Wait::Turn | Wait::Over => continue,
        };
        array.push(PollFd::new(session, wanted));
        sources.push(Source::Client(key));
    }
    ready.clear();
    match calls::poll(&mut array, crowd.timeout()) {
        Ok(_) => {
            let marked = array.iter().zip(sources).filter(|(line, _)| !line.revents().is_empty());
            ready.extend(marked.map(|(_, source)| source));
            Ok(())
        }
        Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
