//! Coroutines on completion: code that reads like the blocking server, and a kernel that does the work.
//!
//! **How it waits.** As on [tokio](super::tokio), each client has a task, which awaits wherever it would
//! block. But what it awaits is not that a socket is ready: it is the receive itself, or the send. The
//! operation is queued for the kernel, and the task goes on with its result.
//!
//! **What it teaches.** The kernel works on the task's memory while the task is away, and a task can be
//! dropped at any `await`. A borrowed buffer would then be gone under the kernel's hands. So buffers are
//! handed over by value and come back with the result: `let (result, buffer) = stream.read(buffer).await`.
//! The type system keeps what [uring](super::uring) must keep by care.
//!
//! **What it costs.** What is shared cannot be handed over, so everything is copied into a buffer that can.
//! An idle client has a receive in flight, and with it a whole buffer: this runtime knows no buffers that the
//! kernel picks when bytes have come, and no operation that completes more than once. And a deadline cannot
//! take an operation back; it shuts the socket down, upon which the operation ends.
//!
//! **Where it breaks.** Where io_uring is forbidden. Names are looked up by a pool of threads, since the
//! runtime has no `openat2`; but a cold file is read by the ring, and holds up nobody else. At the end the
//! runtime waits for whatever it has handed to the kernel or to those threads. Where a disk hangs that is for
//! ever, and the process ends without this thread.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;
use tokio_uring::net::{TcpListener, TcpStream};
use tokio_uring::{Runtime, spawn};

use crate::clock::Tick;
use crate::content::{Load, Loaded};
use crate::http::{Chunk, Connection, Outbox, Source};
use crate::serve::{READ_MAX, Want};

use super::helpers::{Done, Job};
use super::resident::take_in_short_spans;
use super::session::load_at_once;
use super::tasks::{Room, register, run_aside, unless};
use super::transfer::queued;
use super::uring::probe;
use super::{
    ACCEPT_PAUSE, AcceptError, Capabilities, Engine, Family, PauseNote, Refusal, Seat, Threads, calls,
};

/// The table's row. What the runtime does of itself is not counted.
pub const ENGINE: Engine = Engine {
    name: "tokio-uring",
    summary: "coroutines on completion: a task for each client, on tokio-uring",
    family: Family::Coroutines,
    threads: Threads::PerCore,
    capabilities: Capabilities { own_descriptors: 8, ..Capabilities::UNLIMITED },
    runtime_counted: false,
    available,
    run,
};

/// Entries of the submission queue, and where little memory may be locked.
const ENTRIES: [u32; 2] = [1024, 256];
/// Bytes sent at once.
const PIECE: usize = 64 * 1024;
/// Slices gathered at once.
const SLICES: usize = 8;
/// Buffers kept that are not lent out.
const SPARE_MAX: usize = 64;
/// How often a draining thread looks whether the backlog is empty.
const BACKLOG_LOOK: Duration = Duration::from_millis(10);

/// Buffers of a piece each, for whoever is sending.
type Spare = Vec<Vec<u8>>;

fn available() -> Result<(), Refusal> {
    probe::any_ring_available()?;
    runtime().map(drop).map_err(probe::setup_refused)
}

fn runtime() -> io::Result<Runtime> {
    let make = |entries| {
        let mut ring = tokio_uring::uring_builder();
        // Not DEFER_TASKRUN: the runtime waits for the ring's descriptor, and would wait for ever.
        ring.setup_coop_taskrun();
        Runtime::new(tokio_uring::builder().entries(entries).uring_builder(&ring))
    };
    let [many, few] = ENTRIES;
    match make(many) {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => make(few),
        result => result,
    }
}

fn run(seat: &mut Seat) -> io::Result<()> {
    let runtime = runtime().map_err(|error| io::Error::other(probe::setup_refused(error).to_string()))?;
    if !seat.ready() {
        return Ok(());
    }
    runtime.block_on(serve_all(seat))
}

async fn serve_all(seat: &Seat) -> io::Result<()> {
    let room = Room::new(seat, Spare::new());
    let listener = TcpListener::from_std(seat.listener.try_clone()?);
    let shutdown = register(seat.shutdown.as_fd(), Interest::READABLE)?;
    // An accept under way cannot be taken back: dropped, it would still take a client, and lose it. So it
    // goes on until nobody is left in the backlog, who all have a connection as far as they can tell.
    let mut accepting = pin!(accept_all(&listener, seat.connections_max, &room));
    unless(accepting.as_mut(), shutdown.readable()).await.transpose()?;
    room.announce_end();
    while has_clients(seat) && !seat.shutdown.is_cut() {
        unless(accepting.as_mut(), tokio::time::sleep(BACKLOG_LOOK)).await.transpose()?;
    }
    calls::shutdown(&seat.listener, rustix::net::Shutdown::Both)?;
    // That ends the accept with an error.
    let _ = unless(accepting, room.empty()).await;
    room.empty().await;
    Ok(())
}

/// Whether somebody waits in the backlog.
fn has_clients(seat: &Seat) -> bool {
    calls::poll(&mut [PollFd::new(&seat.listener, PollFlags::IN)], Some(Duration::ZERO)) != Ok(0)
}

/// Accepts clients, as many as there is room for, and starts a task for each. It ends where the listener is
/// broken.
async fn accept_all(listener: &TcpListener, clients_max: usize, room: &Rc<Room<Spare>>) -> io::Result<()> {
    let mut note = PauseNote::default();
    loop {
        if room.clients() >= clients_max {
            note.pause_full(&mut room.turn(), clients_max);
        }
        while room.clients() >= clients_max {
            room.wait_for_leaver(ACCEPT_PAUSE).await;
        }
        match listener.accept().await {
            Ok((stream, address)) => {
                let peer = room.turn().wants_peers().then(|| address.ip());
                let place = room.enter();
                let room = room.clone();
                spawn(async move {
                    serve(&room, stream, peer).await;
                    calls::closed();
                    calls::connections_ended(1);
                    drop(place);
                });
            }
            Err(error) => match AcceptError::of(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)) {
                AcceptError::Empty | AcceptError::Passing => {}
                AcceptError::Exhausted => {
                    note.pause(&mut room.turn(), &error.to_string());
                    room.wait_for_leaver(ACCEPT_PAUSE).await;
                }
                AcceptError::Broken => return Err(error),
            },
        }
    }
}

/// Serves a client until it leaves.
async fn serve(room: &Room<Spare>, stream: TcpStream, peer: Option<IpAddr>) {
    let mut conn = Connection::new(peer);
    let mut outbox = Outbox::default();
    let mut buffer = Vec::with_capacity(READ_MAX);
    // Whether a deadline has passed, upon which nothing more is received.
    let mut is_late = false;
    let mut want = room.turn().accepted(&mut conn);
    loop {
        want = match want {
            Want::Read => {
                let (result, bytes) = receive(room, &stream, &mut conn, buffer, &mut is_late).await;
                let worker = &mut room.turn();
                let want = match result {
                    Err(_) => return,
                    Ok(0) if is_late => worker.late(&mut conn, &mut outbox),
                    Ok(0) => worker.ended(&mut conn, &mut outbox),
                    Ok(n) => worker.turn(&mut conn, &bytes[..n], &mut outbox),
                };
                buffer = bytes;
                want
            }
            Want::Send { then_close } => match send(room, &stream, &mut conn, &mut outbox).await {
                Some(()) if then_close => return,
                Some(()) => room.turn().turn(&mut conn, &[], &mut outbox),
                None => return,
            },
            Want::Load(load) => match load_now(load).await {
                Some(loaded) => room.turn().loaded(&mut conn, loaded, &mut outbox),
                None => return,
            },
            Want::Shutdown => match calls::counted(|| stream.shutdown(Shutdown::Write)) {
                Ok(()) => Want::Read,
                Err(_) => return,
            },
            Want::Close => return,
        };
        if room.shutdown.is_cut() {
            return;
        }
    }
}

/// Receives into a buffer, which comes back with the result. Where the deadline has passed, nothing more is
/// received on this connection but what had come already.
async fn receive(
    room: &Room<Spare>,
    stream: &TcpStream,
    conn: &mut Connection,
    buffer: Vec<u8>,
    is_late: &mut bool,
) -> (io::Result<usize>, Vec<u8>) {
    let mut receiving = pin!(stream.read(buffer));
    loop {
        let deadline = if *is_late { Tick::NEVER } else { conn.deadline() };
        if let Some(received) = room.wait(deadline, receiving.as_mut()).await {
            return received;
        }
        let worker = room.turn();
        if worker.is_draining() {
            worker.hasten(conn);
        }
        if conn.deadline() <= worker.clock.now() || room.shutdown.is_cut() {
            *is_late = true;
            let _ = calls::counted(|| stream.shutdown(Shutdown::Read));
        }
    }
}

/// Sends what the outbox holds. `None`: the client has gone or takes nothing, or a file was cut short.
async fn send(
    room: &Room<Spare>,
    stream: &TcpStream,
    conn: &mut Connection,
    outbox: &mut Outbox,
) -> Option<()> {
    take_in_short_spans(outbox, true, |_| {});
    let mut file = None;
    let spare = room.desk.borrow_mut().pop();
    let mut buffer = spare.unwrap_or_else(|| Vec::with_capacity(PIECE));
    while !outbox.is_empty() {
        buffer = fill(outbox, buffer, &mut file).await?;
        buffer = write(room, stream, conn, outbox, buffer).await?;
    }
    let mut spare = room.desk.borrow_mut();
    if spare.len() < SPARE_MAX {
        spare.push(buffer);
    }
    Some(())
}

/// A descriptor of the runtime's own, for the file that is being sent.
type Opened = Option<(Arc<Source>, File)>;

/// Puts the next piece into a buffer.
async fn fill(outbox: &Outbox, mut buffer: Vec<u8>, opened: &mut Opened) -> Option<Vec<u8>> {
    buffer.clear();
    let mut slices = [IoSlice::new(&[]); SLICES];
    match outbox.front(&mut slices) {
        Chunk::Memory { slices: count, .. } => {
            for slice in &slices[..count] {
                let room = PIECE - buffer.len();
                buffer.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            Some(buffer)
        }
        Chunk::File { file, at, len } => {
            if !opened.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, file)) {
                let own = calls::counted(|| file.as_fd().try_clone_to_owned()).ok()?;
                *opened = Some((file.clone(), File::from_std(own.into())));
            }
            let (_, file) = opened.as_ref()?;
            let (result, slice) = file.read_at(buffer.slice(..PIECE.min(len as usize)), at).await;
            // Shorter than was promised, or the disk has failed.
            result.ok().filter(|&n| n > 0)?;
            Some(slice.into_inner())
        }
        Chunk::Empty => None,
    }
}

/// Sends a buffer, and takes off the outbox what the client has got of it.
async fn write(
    room: &Room<Spare>,
    stream: &TcpStream,
    conn: &mut Connection,
    outbox: &mut Outbox,
    mut buffer: Vec<u8>,
) -> Option<Vec<u8>> {
    let mut at = 0;
    while at < buffer.len() {
        let mut writing = pin!(stream.write(buffer.slice(at..)).submit());
        let mut is_over = false;
        let (result, slice) = loop {
            let deadline = if is_over { Tick::NEVER } else { conn.deadline() };
            if let Some(done) = room.wait(deadline, writing.as_mut()).await {
                break done;
            }
            let worker = &mut room.turn();
            let is_late = conn.deadline() <= worker.clock.now();
            if room.shutdown.is_cut() || (is_late && !worker.is_still_taking(conn, queued(socket(stream)))) {
                is_over = true;
                calls::abandon(socket(stream));
                let _ = calls::counted(|| stream.shutdown(Shutdown::Both));
            }
        };
        buffer = slice.into_inner();
        let n = result.ok().filter(|&n| n > 0)?;
        at += n;
        outbox.sent(n as u64);
        room.turn().progressed(conn);
    }
    Some(buffer)
}

/// The runtime's sockets cannot be borrowed otherwise.
fn socket(stream: &TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream keeps its descriptor open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

/// Does a load here and now as far as no disk is waited for, and the rest on another thread.
async fn load_now(mut load: Box<Load>) -> Option<Loaded> {
    if load_at_once(&mut load, true) {
        return Some(load.finish());
    }
    match run_aside(Job::Load(load)).await? {
        Done::Loaded(loaded) => Some(*loaded),
        Done::Read(..) => None,
    }
}
