//! Coroutines on readiness: code that reads like the blocking server, and a runtime that does the waiting.
//!
//! **How it waits.** Each client has a task. A task is written as if it had a thread to itself: receive,
//! turn, send, again. Where it would block it awaits, which means: it says what it waits for, leaves its
//! local variables where they are, and gives the thread back. The runtime keeps the tasks; when none can go
//! on, it sleeps in `epoll_wait`, and goes on with the task whose socket has news.
//!
//! **What it gives.** The order of things stands in the code again. In [epoll](super::epoll) it stands in
//! states, and in the reader's head. A task costs some hundred bytes, where a thread costs a stack, and a
//! change of task is a function's return. What is awaited is marked in the text, so that one can see where
//! others may run in between.
//!
//! **What it costs.** The runtime's own work for each wait: a timer entered and taken out, a list of who is
//! to be woken, a queue of who can run. And it is readiness still: a `recv` and a `send` for each request.
//!
//! **Where it breaks.** Where epoll does. A task that does not await holds up all others on its thread, and
//! reading a file is such a thing; it is handed to a pool of threads
//! ([`run_aside`]).

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime;
use tokio::task::{LocalSet, spawn_local, yield_now};

use crate::http::Connection;

use super::session::{Desk, Session, Wait};
use super::tasks::{DISK_THREADS, Room, register, run_aside, unless};
use super::{
    ACCEPT_PAUSE, AcceptError, Capabilities, Engine, Family, PauseNote, Seat, Threads, always_available,
    calls, next_waiting,
};

/// The table's row. What the runtime does of itself is not counted.
pub const ENGINE: Engine = Engine {
    name: "tokio",
    summary: "coroutines on readiness: a task for each client, on tokio",
    family: Family::Coroutines,
    threads: Threads::PerCore,
    capabilities: Capabilities { own_descriptors: 4, ..Capabilities::UNLIMITED },
    runtime_counted: false,
    available: always_available,
    run,
};

/// Clients accepted before those already there have their turn.
const ACCEPTS_MAX: usize = 64;

fn run(seat: &mut Seat) -> io::Result<()> {
    seat.listener.set_nonblocking(true)?;
    let mut builder = runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().max_blocking_threads(DISK_THREADS).build()?;
    if !seat.ready() {
        return Ok(());
    }
    let tasks = LocalSet::new();
    let result = tasks.block_on(&runtime, serve_all(seat));
    // Whoever is to be cut is dropped where he waits; a disk that does not answer is not waited for.
    drop(tasks);
    runtime.shutdown_background();
    result
}

async fn serve_all(seat: &Seat) -> io::Result<()> {
    let room = Room::new(seat, Desk::new());
    let shutdown = register(seat.shutdown.as_fd(), Interest::READABLE)?;
    let accepting = accept_all(&seat.listener, seat.connections_max, &room);
    unless(accepting, shutdown.readable()).await.transpose()?;
    // Who waits in the backlog already has a connection as far as he can tell, and is served.
    while next_waiting(|| accept_one(&seat.listener, &room)).is_some() {}
    calls::shutdown(&seat.listener, Shutdown::Both)?;
    room.empty().await;
    Ok(())
}

/// Accepts clients, as many as there is room for, and starts a task for each. It ends where the listener is
/// broken.
async fn accept_all(listener: &TcpListener, clients_max: usize, room: &Rc<Room<Desk>>) -> io::Result<()> {
    let readiness = register(listener.as_fd(), Interest::READABLE)?;
    let mut note = PauseNote::default();
    loop {
        for _ in 0..ACCEPTS_MAX {
            if room.clients() >= clients_max {
                note.pause_full(&mut room.turn(), clients_max);
            }
            while room.clients() >= clients_max {
                room.wait_for_leaver(ACCEPT_PAUSE).await;
            }
            let Err(errno) = accept_one(listener, room) else { continue };
            match AcceptError::of(errno) {
                AcceptError::Empty => readiness.readable().await?.clear_ready(),
                AcceptError::Passing => {}
                AcceptError::Exhausted => {
                    note.pause(&mut room.turn(), &errno.to_string());
                    room.wait_for_leaver(ACCEPT_PAUSE).await;
                }
                AcceptError::Broken => return Err(errno.into()),
            }
        }
        yield_now().await;
    }
}

fn accept_one(listener: &TcpListener, room: &Rc<Room<Desk>>) -> Result<(), Errno> {
    let wants_peers = room.turn().wants_peers();
    let (socket, peer) = calls::accept(listener, SocketFlags::NONBLOCK, wants_peers)?;
    let place = room.enter();
    let room = room.clone();
    spawn_local(async move {
        serve(&room, socket, peer).await;
        drop(place);
    });
    Ok(())
}

/// Serves a client until it leaves. This is [`one_client::serve`](super::one_client::serve), with an `await`
/// wherever that one blocks.
async fn serve(room: &Room<Desk>, socket: OwnedFd, peer: Option<IpAddr>) {
    let mut session = Session::new(socket, Connection::new(peer), &mut room.turn());
    let mut wait = advance(room, &mut session);
    if wait == Wait::Over {
        return;
    }
    // Who asks for one thing only is served and gone before he was ever registered.
    let Ok(mut session) = register(session, Interest::READABLE | Interest::WRITABLE) else { return };
    loop {
        match wait {
            Wait::Over => return,
            Wait::Turn => yield_now().await,
            Wait::Disk => {
                let Some(job) = session.get_mut().take_job() else { return };
                let Some(done) = run_aside(job).await else { return };
                session.get_mut().resume(done, &mut room.turn());
            }
            Wait::Readable | Wait::Writable => {
                let deadline = session.get_ref().deadline();
                room.wait(deadline, ready(&mut session, wait)).await;
                session.get_mut().wake(false);
            }
        }
        wait = advance(room, session.get_mut());
    }
}

/// The next turn of a connection.
fn advance(room: &Room<Desk>, session: &mut Session) -> Wait {
    let worker = &mut room.turn();
    if worker.is_draining() {
        session.hasten(worker);
    }
    if worker.clock.now() >= session.deadline() {
        session.late(worker);
    }
    session.advance(worker, &mut room.desk.borrow_mut())
}

/// Waits until the socket is ready. The runtime is told again only of news, so what it has told is taken note
/// of before the socket is tried, and whatever comes in between is news.
async fn ready(session: &mut AsyncFd<Session>, wait: Wait) {
    let ready = match wait {
        Wait::Writable => session.writable_mut().await,
        _ => session.readable_mut().await,
    };
    if let Ok(mut ready) = ready {
        ready.clear_ready();
    }
}
