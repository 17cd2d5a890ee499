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
//! A receive timeout on each socket wakes the thread once a second, to see whether a deadline has passed or
//! the server is to stop.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::http::Connection;
use crate::shutdown::{Phase, Shutdown};

use super::session::{Desk, Session, Wait};
use super::{AcceptError, Capabilities, Engine, Seat, Threads, always_available};

/// A client that asks for nothing may hold the others up this long.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// How long a system call may block before the thread looks at deadlines and at the shutdown.
const LOOK_UP: Duration = Duration::from_secs(1);

/// How often the end of the server looks whether it is to cut off the client being served.
const CUT_CHECK: Duration = Duration::from_millis(50);

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "blocking",
    summary: "one task that blocks: one client at a time",
    threads: Threads::One,
    capabilities: Capabilities { clients_max: Some(1) },
    available: always_available,
    run,
};

fn run(seat: &mut Seat) -> io::Result<()> {
    set_socket_timeout(&seat.listener, Timeout::Recv, Some(LOOK_UP))?;
    let limits = seat.worker.limits_mut();
    limits.idle_timeout = limits.idle_timeout.min(IDLE_TIMEOUT_MAX);
    let current = Current::default();
    watch_for_cut(seat.shutdown.clone(), Arc::downgrade(&current))?;
    let mut desk = Desk::new();
    if !seat.ready() {
        return Ok(());
    }
    while seat.shutdown.phase() == Phase::Serving {
        accept_one(seat, &mut desk, &current)?;
    }
    seat.listener.set_nonblocking(true)?;
    while !seat.shutdown.is_cut() && accept_one(seat, &mut desk, &current)? {}
    Ok(())
}

/// The client being served.
type Current = Arc<Mutex<Option<TcpStream>>>;

/// A thread that blocks for a client can only be woken through that client's socket. Another one does so,
/// should the server not be willing to wait any longer.
fn watch_for_cut(shutdown: Arc<Shutdown>, current: Weak<Mutex<Option<TcpStream>>>) -> io::Result<()> {
    let watch = move || {
        let mut asked = [PollFd::new(&*shutdown, PollFlags::IN)];
        while poll(&mut asked, None).is_err() {}
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
fn accept_one(seat: &mut Seat, desk: &mut Desk, current: &Current) -> io::Result<bool> {
    match accept(&seat.listener) {
        Ok(stream) => {
            *current.lock().unwrap_or_else(PoisonError::into_inner) = stream.try_clone().ok();
            serve(seat, stream, desk);
            *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
            Ok(true)
        }
        Err(error) => match AcceptError::of(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)) {
            AcceptError::Broken => Err(error),
            AcceptError::Exhausted => {
                std::thread::sleep(LOOK_UP);
                Ok(false)
            }
            AcceptError::Empty | AcceptError::Passing => Ok(false),
        },
    }
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&stream, direction, Some(LOOK_UP))?;
    }
    Ok(stream)
}

fn serve(seat: &mut Seat, stream: TcpStream, desk: &mut Desk) {
    let worker = &mut seat.worker;
    let peer = if worker.wants_peers() { stream.peer_addr().ok().map(|peer| peer.ip()) } else { None };
    worker.begin_turn();
    let mut session = Session::new(stream.into(), Connection::new(peer), worker);
    loop {
        match session.advance(worker, desk) {
            Wait::Over => break,
            // There is nobody else to serve meanwhile.
            Wait::Disk => {
                if let Some(job) = session.take_job() {
                    session.resume(job.run(), worker);
                }
            }
            Wait::Readable | Wait::Writable | Wait::Turn => {}
        }
        if seat.shutdown.is_cut() {
            break;
        }
        if worker.is_draining() {
            session.hasten(worker);
        }
        worker.begin_turn();
        session.wake(false);
        if worker.clock.now() > session.deadline() {
            session.late(worker);
        }
    }
}
