//! What all readiness engines have in common: doing what a connection wants with system calls that may say
//! "not yet".
//!
//! An engine built on readiness learns *when* a socket can be read or written, and must still do the reading
//! and the writing itself, one system call each. That part is the same for all of them and stands here. How
//! they learn it is what tells them apart, and stands in each engine's own file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, openat2};
use rustix::io::{Errno, pread};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

use crate::clock::Tick;
use crate::content::{Load, Loaded, Step};
use crate::http::{Connection, Outbox};
use crate::serve::{READ_MAX, Want, Worker};

use super::transfer::{Sent, queued, send_now};

/// Things done for one connection before others have their turn.
const STEPS_MAX: usize = 32;
/// Memory that one thread lends to whichever connection it is busy with, so that idle ones hold none.
#[derive(Debug)]
pub struct Desk {
    buffer: Box<[u8]>,
    outbox: Outbox,
}

impl Desk {
    pub fn new() -> Desk {
        Desk { buffer: vec![0; READ_MAX].into_boxed_slice(), outbox: Outbox::default() }
    }
}

/// A connection with its socket.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    conn: Connection,
    outbox: Outbox,
    want: Want,
    /// The last receive took all there was: the next would only say "not yet".
    drained: bool,
    /// The client has ended its side; that comes as no news again, so it must be read up to.
    hung_up: bool,
}

/// What a connection must wait for before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until its socket can be read.
    Readable,
    /// Until its socket can be written.
    Writable,
    /// Until others have had their turn.
    Turn,
    /// For nothing: it is over, and is to be dropped.
    Over,
}

impl Session {
    pub fn new(socket: OwnedFd, mut conn: Connection, worker: &mut Worker) -> Session {
        let want = worker.accepted(&mut conn);
        Session { socket, conn, outbox: Outbox::default(), want, drained: false, hung_up: false }
    }

    /// The socket has news.
    pub fn wake(&mut self, hung_up: bool) {
        self.drained = false;
        self.hung_up |= hung_up;
    }

    /// When [`Session::late`] is due.
    pub fn deadline(&self) -> Tick {
        self.conn.deadline()
    }

    /// The server is draining.
    pub fn hasten(&mut self, worker: &Worker) {
        worker.hasten(&mut self.conn);
    }

    /// The deadline has passed. To be followed by [`Session::advance`].
    pub fn late(&mut self, worker: &mut Worker) {
        self.want = match self.want {
            Want::Send { then_close } if worker.is_still_taking(&mut self.conn, queued(&self.socket)) => {
                Want::Send { then_close }
            }
            // Nothing can be said behind half an answer.
            Want::Send { .. } => Want::Close,
            _ => worker.late(&mut self.conn, &mut self.outbox),
        };
    }

    /// Does what the connection wants, one thing after the other, until it must wait.
    pub fn advance(&mut self, worker: &mut Worker, desk: &mut Desk) -> Wait {
        if self.outbox.is_empty() {
            std::mem::swap(&mut self.outbox, &mut desk.outbox);
        }
        let wait = self.advance_with(worker, &mut desk.buffer);
        if self.outbox.is_empty() {
            std::mem::swap(&mut self.outbox, &mut desk.outbox);
        }
        wait
    }

    fn advance_with(&mut self, worker: &mut Worker, buffer: &mut [u8]) -> Wait {
        for _ in 0..STEPS_MAX {
            let Session { conn, outbox, .. } = self;
            self.want = match std::mem::replace(&mut self.want, Want::Close) {
                Want::Read if self.drained => {
                    self.want = Want::Read;
                    return Wait::Readable;
                }
                Want::Read => match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                    Ok((0, _)) => worker.ended(conn, outbox),
                    Ok((n, _)) => {
                        self.drained = n < buffer.len() && !self.hung_up;
                        worker.turn(conn, &buffer[..n], outbox)
                    }
                    Err(Errno::INTR) => Want::Read,
                    Err(Errno::AGAIN) => {
                        self.want = Want::Read;
                        return Wait::Readable;
                    }
                    Err(_) => return Wait::Over,
                },
                Want::Send { then_close } => {
                    let (sent, progress) = send_now(&self.socket, outbox, |_, _, len| len);
                    if progress {
                        worker.progressed(conn);
                    }
                    match sent {
                        Sent::All if then_close => return Wait::Over,
                        Sent::All => worker.turn(conn, &[], outbox),
                        Sent::Failed => return Wait::Over,
                        Sent::UntilFull | Sent::Share | Sent::UntilDisk => {
                            self.want = Want::Send { then_close };
                            return if sent == Sent::UntilFull { Wait::Writable } else { Wait::Turn };
                        }
                    }
                }
                Want::Load(load) => {
                    let loaded = do_load(*load);
                    worker.loaded(conn, loaded, outbox)
                }
                Want::Shutdown => match shutdown(&self.socket, Shutdown::Write) {
                    Ok(()) => Want::Read,
                    Err(_) => return Wait::Over,
                },
                Want::Close => return Wait::Over,
            };
        }
        Wait::Turn
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Does a load on this thread; a slow disk holds up everybody this thread serves.
fn do_load(mut load: Load) -> Loaded {
    loop {
        match load.next() {
            Step::Open { root, path, flags, resolve } => {
                let result = openat2(root, path, flags, Mode::empty(), resolve);
                load.opened(result.map_err(io::Error::from));
            }
            Step::Read { file, buffer, at } => {
                let result = pread(file, spare_capacity(buffer), at);
                load.read(result.map_err(io::Error::from));
            }
            Step::Done => return load.finish(),
        }
    }
}
