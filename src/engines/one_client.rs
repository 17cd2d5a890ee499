//! One client, served by a thread or a process that does nothing else meanwhile: what the engines whose calls
//! block have in common.
//!
//! The code that a readiness engine shares out over many turns stands here in one piece, for whatever cannot
//! go on blocks inside the kernel. A timeout on each socket wakes the caller once a second, to see whether a
//! deadline has passed or the server is to stop.

use std::net::{IpAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::Timeout;

use crate::http::Connection;
use crate::serve::Worker;
use crate::shutdown::Shutdown;

use super::calls::{self, set_socket_timeout};
use super::session::{Desk, Session, Wait};

/// How long a system call may block before the caller looks at deadlines and at the shutdown.
pub const LOOK_UP: Duration = Duration::from_secs(1);

/// A client that was just accepted.
pub struct Client {
    pub socket: OwnedFd,
    pub peer: Option<IpAddr>,
}

/// Has accepting look up now and then.
pub fn prepare(listener: &TcpListener) -> Result<(), Errno> {
    set_socket_timeout(listener, Timeout::Recv, LOOK_UP)
}

/// Blocks until there is a client, for a second at the most.
pub fn accept(listener: &TcpListener, wants_peer: bool) -> Result<Client, Errno> {
    let (socket, peer) = calls::accept(listener, SocketFlags::empty(), wants_peer)?;
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, direction, LOOK_UP)?;
    }
    Ok(Client { socket, peer })
}

/// Serves a client until it leaves or the server is to end at once. `tend` is called each time that something
/// has come, or a second has passed.
pub fn serve(
    worker: &mut Worker,
    shutdown: &Shutdown,
    client: Client,
    desk: &mut Desk,
    mut tend: impl FnMut(&Worker),
) {
    worker.clock.read();
    let mut session = Session::new(client.socket, Connection::new(client.peer), worker);
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
        if shutdown.is_cut() {
            break;
        }
        if worker.is_draining() {
            session.hasten(worker);
        }
        calls::publish(worker);
        worker.clock.read();
        tend(worker);
        session.wake(false);
        if worker.clock.now() > session.deadline() {
            session.late(worker);
        }
    }
    drop(session);
    calls::publish(worker);
}
