//! A thread for each client: the simplest server that serves many.
//!
//! **How it waits.** One thread blocks in `accept`, and starts a thread for every client that comes. That
//! thread blocks in `recv` until its client has sent something, then in `send` until the answer is gone, and
//! ends when its client has left. The code is that of [blocking](super::blocking), line for line; that others
//! go on meanwhile is the kernel's affair, whose scheduler wakes the thread whose client has news.
//!
//! **What it gives.** A slow client or a slow disk holds up nobody else. Keep-alive pays off for the first
//! time: a client may stay as long as it likes, and later requests save the handshake and the new thread.
//!
//! **What it costs.** A thread's start and end for every connection; a stack and a receive buffer for every
//! client, idle ones too; a change of thread for nearly every request; and once a second a look at the
//! deadline, by everybody. All share one store of entries behind one lock, which is held for a look-up and
//! never while anything is sent or loaded.
//!
//! **Where it breaks.** At thousands of clients, where the scheduler and the stacks are most of the work. So
//! there is a cap on clients: beyond it accepting pauses until one of them leaves.
//!
//! A thread that blocks for a client can only be woken through that client's socket. At the end of the server
//! the sockets of all who are still there are shut down.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use slab::Slab;

use super::crew::{self, Crew};
use super::one_client::{self, Client};
use super::session::Desk;
use super::{Capabilities, Engine, Family, Seat, Threads, always_available, calls};

/// The table's row. What the C library does to start and end a thread is not counted, nor how often threads
/// wait for the lock on their store.
pub const ENGINE: Engine = Engine {
    name: "threads",
    summary: "a thread for each client: each blocks, the kernel switches",
    family: Family::Blocking,
    threads: Threads::PerConnection,
    capabilities: Capabilities { clients_max: Some(4000), ..Capabilities::UNLIMITED },
    runtime_counted: false,
    available: always_available,
    run,
};

/// Bytes of a client's stack. What is large stands on the heap.
const STACK: usize = 256 * 1024;

fn run(seat: &mut Seat) -> io::Result<()> {
    if !seat.ready() {
        return Ok(());
    }
    crew::serve_all(seat, &mut Clients::default())
}

/// The sockets of all clients that a thread serves.
#[derive(Clone, Default)]
struct Clients(Arc<(Mutex<Slab<RawFd>>, Condvar)>);

impl Crew for Clients {
    fn count(&mut self) -> usize {
        self.sockets().len()
    }

    fn start(&mut self, seat: &mut Seat, client: Client) -> io::Result<()> {
        let mut worker = seat.worker.another();
        let shutdown = seat.shutdown.clone();
        let number = self.sockets().insert(client.socket.as_raw_fd());
        let place = Place { clients: self.clone(), number };
        let serve = move || {
            one_client::serve(&mut worker, &shutdown, client, &mut Desk::new(), |_| {});
            drop(place);
        };
        thread::Builder::new().name("client".into()).stack_size(STACK).spawn(serve).map(drop)
    }

    fn wait(&mut self, time: Duration) {
        drop(self.0.1.wait_timeout(self.sockets(), time));
    }

    fn cut(&mut self) {
        for (_, &socket) in &*self.sockets() {
            // SAFETY: it touches no memory. A socket that was closed meanwhile is at worst another client's
            // by now, who is to be cut as well.
            calls::counted(|| unsafe { libc::shutdown(socket, libc::SHUT_RDWR) });
        }
    }
}

impl Clients {
    fn sockets(&self) -> MutexGuard<'_, Slab<RawFd>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's place among them, until it is dropped.
struct Place {
    clients: Clients,
    number: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.sockets().remove(self.number);
        self.clients.0.1.notify_all();
    }
}
