//! Accepting on the ring: one submission that goes on accepting, or a few at a time where their number
//! matters.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::types::{DestinationSlot, Fd};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use socket2::{SockAddr, SockAddrStorage};

use crate::clock::Tick;
use crate::engines::{ACCEPT_PAUSE, AcceptError, BACKLOG, PauseNote};
use crate::serve::Worker;

use super::operation::{ASIDE, Key, Mark, Operation};
use super::ring::Ring;

/// Below so much room for connections a multishot accept is not used, for it cannot be told when to stop:
/// until it is cancelled it takes all that wait, and that can be as many as net.core.somaxconn.
const MULTISHOT_ROOM: usize = 4096;
/// Accepts in flight where each takes one client.
const ONE_SHOTS: usize = 16;
/// IORING_MAX_FIXED_FILES
const FILES_MAX: u64 = 1 << 20;

/// Accepts connections into direct descriptors.
pub struct Acceptor {
    connections_max: usize,
    wants_peers: bool,
    phase: Phase,
    multishot: bool,
    one_shots: Vec<OneShot>,
    in_flight: usize,
    cancelled: bool,
    /// Whether a multishot accept has ended before.
    rearms: bool,
    /// Whether there was no room when it was last looked.
    is_full: bool,
    note: PauseNote,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Accepting,
    /// The kernel had no room; not before that moment, or until a connection ends.
    Paused(Tick),
    /// To end as soon as nothing is in flight.
    Ending,
    Ended,
}

/// One accept of one client. Boxed, so that the kernel finds the address in place.
struct OneShot {
    in_flight: bool,
    address: Box<(SockAddrStorage, libc::socklen_t)>,
}

impl Acceptor {
    pub fn new(connections_max: usize, wants_peers: bool) -> Acceptor {
        let one_shot = || OneShot { in_flight: false, address: Box::new((SockAddrStorage::zeroed(), 0)) };
        Acceptor {
            connections_max,
            wants_peers,
            phase: Phase::Accepting,
            multishot: false,
            one_shots: std::iter::repeat_with(one_shot).take(ONE_SHOTS).collect(),
            in_flight: 0,
            cancelled: false,
            rearms: false,
            is_full: false,
            note: PauseNote::default(),
        }
    }

    /// Direct descriptors the ring must have room for: the connections, and at the end those who wait in the
    /// backlog. The kernel allows no more than the limit on descriptors, and 2^20.
    pub fn files(&self) -> u32 {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(FILES_MAX).min(FILES_MAX);
        ((self.connections_max + BACKLOG) as u64).min(limit) as u32
    }

    /// Whether the kernel may still write an address.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// Gives the memory up that the kernel may still write to.
    pub fn leak_addresses(&mut self) {
        std::mem::forget(std::mem::take(&mut self.one_shots));
    }

    /// When a pause ends by itself.
    pub fn paused_until(&self) -> Option<Tick> {
        match self.phase {
            Phase::Paused(until) => Some(until),
            _ => None,
        }
    }

    /// Whether there is something to arm.
    pub fn is_due(&self, now: Tick) -> bool {
        match self.phase {
            Phase::Accepting => self.in_flight == 0,
            Phase::Paused(until) => until <= now,
            _ => false,
        }
    }

    /// A connection has ended: there is room for another.
    pub fn connection_ended(&mut self) {
        if let Phase::Paused(_) = self.phase {
            self.phase = Phase::Accepting;
        }
    }

    /// Stops: what is in flight is cancelled. Accepting is [`Acceptor::is_idle`] when that is done.
    pub fn drain(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.phase = Phase::Ending;
        self.cancel(ring)
    }

    /// Whether it was told to stop, and nothing is in flight any more.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Ending && self.in_flight == 0
    }

    /// Nobody is accepted any more, by whatever way.
    pub fn end(&mut self) {
        self.phase = Phase::Ended;
    }

    /// Whether nobody will be accepted any more.
    pub fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Puts as much in flight as there is room for.
    pub fn arm(
        &mut self,
        ring: &mut Ring,
        listener: &TcpListener,
        room: usize,
        worker: &mut Worker,
    ) -> io::Result<()> {
        match self.phase {
            Phase::Paused(until) if worker.clock.now() < until => Ok(()),
            Phase::Accepting | Phase::Paused(_) => {
                self.phase = Phase::Accepting;
                let is_full = room == 0;
                if is_full && !self.is_full {
                    self.note.pause_full(worker, self.connections_max);
                }
                self.is_full = is_full;
                let multishot = !self.wants_peers && room >= MULTISHOT_ROOM;
                if self.multishot {
                    return if multishot { Ok(()) } else { self.cancel(ring) };
                }
                if multishot {
                    // One-shots in flight are left to complete; the last of them makes place for the
                    // multishot.
                    if self.in_flight > 0 {
                        return Ok(());
                    }
                    self.multishot = true;
                    self.in_flight = 1;
                    if self.rearms {
                        ring.rearmed();
                    }
                    let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true);
                    // SAFETY: a multishot accept points to nothing.
                    return unsafe { ring.push(&entry.build().user_data(mark(0))) };
                }
                while self.in_flight < room.min(ONE_SHOTS) {
                    self.accept_one(ring, listener)?;
                }
                Ok(())
            }
            Phase::Ending | Phase::Ended => Ok(()),
        }
    }

    /// An accept is done, `more` telling that it goes on. Returns the descriptor and, if wanted, the client's
    /// address.
    ///
    /// # Errors
    /// The listener is broken.
    pub fn completed(
        &mut self,
        number: u32,
        result: i32,
        more: bool,
        worker: &mut Worker,
    ) -> io::Result<Option<(u32, Option<IpAddr>)>> {
        let one_shot = &mut self.one_shots[number as usize];
        if !more {
            self.in_flight -= 1;
            self.cancelled &= self.in_flight > 0;
            self.rearms |= self.multishot;
            self.multishot = false;
            one_shot.in_flight = false;
        }
        if result >= 0 {
            let peer = if self.wants_peers { one_shot.peer() } else { None };
            return Ok(Some((result as u32, peer)));
        }
        let errno = Errno::from_raw_os_error(-result);
        match (self.phase, AcceptError::of(errno)) {
            _ if errno == Errno::CANCELED => {}
            (Phase::Accepting, AcceptError::Exhausted) => {
                self.note.pause(worker, &errno.to_string());
                self.phase = Phase::Paused(worker.clock.now().after(ACCEPT_PAUSE));
            }
            (Phase::Accepting, AcceptError::Broken) => return Err(errno.into()),
            _ => {}
        }
        Ok(None)
    }

    fn accept_one(&mut self, ring: &mut Ring, listener: &TcpListener) -> io::Result<()> {
        let free = self.one_shots.iter().position(|one_shot| !one_shot.in_flight);
        let number = free.expect("fewer are in flight than there are");
        let OneShot { in_flight, address } = &mut self.one_shots[number];
        *in_flight = true;
        self.in_flight += 1;
        let (address, len) = if self.wants_peers {
            address.1 = address.0.size_of();
            // SAFETY: any bytes the kernel writes there are a sockaddr to whoever reads it.
            (std::ptr::from_mut(unsafe { address.0.view_as::<libc::sockaddr>() }), &raw mut address.1)
        } else {
            (std::ptr::null_mut(), std::ptr::null_mut())
        };
        let entry = opcode::Accept::new(Fd(listener.as_raw_fd()), address, len)
            .file_index(Some(DestinationSlot::auto_target()))
            .build()
            .user_data(mark(number));
        // SAFETY: the address is boxed and untouched while `in_flight` is set; the loop leaks it if that
        // never ends.
        unsafe { ring.push(&entry) }
    }

    fn cancel(&mut self, ring: &mut Ring) -> io::Result<()> {
        if std::mem::replace(&mut self.cancelled, true) {
            return Ok(());
        }
        for number in 0..ONE_SHOTS {
            if self.one_shots[number].in_flight || (self.multishot && number == 0) {
                let entry = opcode::AsyncCancel::new(mark(number)).build().user_data(ASIDE.into());
                // SAFETY: a cancellation points to nothing.
                unsafe { ring.push(&entry) }?;
            }
        }
        Ok(())
    }
}

impl OneShot {
    fn peer(&mut self) -> Option<IpAddr> {
        let (storage, len) = &mut *self.address;
        let storage = std::mem::replace(storage, SockAddrStorage::zeroed());
        // SAFETY: the kernel has written an address there and its length.
        let address = unsafe { SockAddr::new(storage, *len) };
        address.as_socket().map(|address| address.ip())
    }
}

fn mark(number: usize) -> u64 {
    Mark { operation: Operation::Accept, key: Key { index: number as u32, generation: 0 } }.into()
}
