//! One task that blocks: the first server everyone writes.
//!
//! **How it waits.** It blocks in `accept` until a client comes, then in `recv` until that client has sent
//! something, then in `send` until the answer is gone, and only when this client has left does it accept the
//! next. Nothing is registered anywhere and nothing is polled: the kernel puts the one thread to sleep inside
//! whichever call cannot go on.
//!
//! **What it costs.** Nothing: no thread, no table, no event. For short connections (serve, close, accept the
//! next) there is hardly a simpler or cheaper way.
//!
//! **Where it breaks.** A second client waits until the first has left. With keep-alive that means: until the
//! first has been idle for its timeout, which is why the timeout is short here ([`IDLE_TIMEOUT_MAX`]).
//!
//! How the one client is served stands in [`one_client`].

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::shutdown::{Phase, Shutdown};

use super::one_client::{self, LOOK_UP};
use super::session::Desk;
use super::{AcceptError, CUT_CHECK, Capabilities, Engine, Family, Seat, Threads, always_available, calls};

/// A client that asks for nothing may hold the others up this long.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(2);

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "blocking",
    summary: "one task that blocks: one client at a time",
    family: Family::Blocking,
    threads: Threads::One,
    capabilities: Capabilities { clients_max: Some(1), ..Capabilities::UNLIMITED },
    runtime_counted: true,
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    one_client::prepare(&seat.listener)?;
    let limits = seat.worker.limits_mut();
    limits.idle_timeout = limits.idle_timeout.min(IDLE_TIMEOUT_MAX);
    let current = Current::default();
    watch_for_cut(seat.shutdown.clone(), Arc::downgrade(&current))?;
    let mut desk = Desk::new();
    if !seat.ready() {
        return Ok(());
    }
    while seat.shutdown.phase() == Phase::Serving {
        serve_one(seat, &mut desk, &current)?;
    }
    seat.listener.set_nonblocking(true)?;
    while !seat.shutdown.is_cut() && serve_one(seat, &mut desk, &current)? {}
    Ok(())
}

/// The client being served.
type Current = Arc<Mutex<Option<TcpStream>>>;

/// A thread that blocks for a client can only be woken through that client's socket. Another one does so,
/// should the server not be willing to wait any longer.
fn watch_for_cut(shutdown: Arc<Shutdown>, current: Weak<Mutex<Option<TcpStream>>>) -> io::Result<()> {
    let watch = move || {
        let mut asked = [PollFd::new(&*shutdown, PollFlags::IN)];
        while rustix::event::poll(&mut asked, None).is_err() {}
        while let Some(current) = current.upgrade() {
            if shutdown.is_cut()
                && let Some(client) = &*current.lock().unwrap_or_else(PoisonError::into_inner)
            {
                let _ = client.shutdown(std::net::Shutdown::Both);
            }
            drop(current);
            std::thread::sleep(CUT_CHECK);
        }
    };
    std::thread::Builder::new().name("blocking-cut".into()).spawn(watch).map(drop)
}

/// Accepts a client and serves it until it leaves; `false` if there was none.
fn serve_one(seat: &mut Seat, desk: &mut Desk, current: &Current) -> io::Result<bool> {
    let set_current = |client: Option<TcpStream>| {
        *current.lock().unwrap_or_else(PoisonError::into_inner) = client;
    };
    calls::publish(&mut seat.worker);
    match one_client::accept(&seat.listener, seat.worker.wants_peers()) {
        Ok(client) => {
            set_current(calls::counted(|| OwnedFd::try_clone(&client.socket)).ok().map(TcpStream::from));
            one_client::serve(&mut seat.worker, &seat.shutdown, client, desk, |_| {});
            set_current(None);
            calls::closed();
            Ok(true)
        }
        Err(errno) => match AcceptError::of(errno) {
            AcceptError::Broken => Err(errno.into()),
            AcceptError::Exhausted => {
                std::thread::sleep(LOOK_UP);
                Ok(false)
            }
            AcceptError::Empty | AcceptError::Passing => Ok(false),
        },
    }
}
