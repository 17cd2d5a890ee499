//! One accepts, and somebody of their own serves each client: what `threads` and `processes` have in common.

use std::io;
use std::time::Duration;

use rustix::net::Shutdown;

use crate::shutdown::Phase;

use super::one_client::{self, Client};
use super::{ACCEPT_PAUSE, AcceptError, CUT_CHECK, PauseNote, Seat, calls, next_waiting};

/// Those who serve, one for each client.
pub trait Crew {
    /// How many there are.
    fn count(&mut self) -> usize;

    /// Does what is to be done for them now and then.
    fn tend(&mut self, _seat: &mut Seat) {}

    /// Has one more serve this client. Where that cannot be, the client is lost.
    fn start(&mut self, seat: &mut Seat, client: Client) -> io::Result<()>;

    /// Waits until one of them has ended, or for about so long.
    fn wait(&mut self, time: Duration);

    /// Ends every connection, whatever is being done for it.
    fn cut(&mut self);
}

/// Accepts clients until the server drains, then waits until nobody is left.
pub fn serve_all(seat: &mut Seat, crew: &mut impl Crew) -> io::Result<()> {
    one_client::prepare(&seat.listener)?;
    let mut note = PauseNote::default();
    while seat.shutdown.phase() == Phase::Serving {
        seat.worker.clock.read();
        calls::publish(&mut seat.worker);
        crew.tend(seat);
        if crew.count() >= seat.connections_max {
            note.pause_full(&mut seat.worker, seat.connections_max);
            while crew.count() >= seat.connections_max && seat.shutdown.phase() == Phase::Serving {
                crew.wait(ACCEPT_PAUSE);
            }
            continue;
        }
        let refused = match one_client::accept(&seat.listener, seat.worker.wants_peers()) {
            Ok(client) => crew.start(seat, client),
            Err(errno) => match AcceptError::of(errno) {
                AcceptError::Empty | AcceptError::Passing => Ok(()),
                AcceptError::Exhausted => Err(errno.into()),
                AcceptError::Broken => return Err(errno.into()),
            },
        };
        if let Err(error) = refused {
            note.pause(&mut seat.worker, &error.to_string());
            crew.wait(ACCEPT_PAUSE);
        }
    }
    // Who waits in the backlog already has a connection as far as he can tell, and is served.
    seat.listener.set_nonblocking(true)?;
    while !seat.shutdown.is_cut()
        && let Some(client) = next_waiting(|| one_client::accept(&seat.listener, seat.worker.wants_peers()))
    {
        if let Err(error) = crew.start(seat, client) {
            tracing::warn!("a client at the end of the backlog is lost: {error}");
        }
    }
    calls::shutdown(&seat.listener, Shutdown::Both)?;
    while crew.count() > 0 {
        if seat.shutdown.is_cut() {
            crew.cut();
        }
        crew.wait(CUT_CHECK);
        seat.worker.clock.read();
        calls::publish(&mut seat.worker);
        crew.tend(seat);
    }
    Ok(())
}
