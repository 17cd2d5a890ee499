//! Readiness, edge-triggered: the fastest of the readiness family, and what runs wherever io_uring is
//! forbidden.
//!
//! **How it waits.** Each socket is registered once. The thread sleeps in `epoll_wait`, which hands it a list
//! of those sockets about which there is *news*: they have become readable or writable since it was last
//! told. So the cost grows with the clients that do something, not with those that are merely connected.
//!
//! **What it costs.** Being told is not being served: for every request the thread still makes a `recv` and a
//! `send` of its own, each a trip into the kernel and back, and an `epoll_wait` for each batch.
//!
//! **The trap.** Edge-triggered news comes once. Who stops reading before the socket is empty is never told
//! again; so each connection is advanced until its socket says "not yet", or until a receive brought less
//! than it had room for, which for a stream says the same (epoll(7)). Who has too much to do is put at the
//! end of a queue of this thread's own, since no event will bring it back.
//!
//! **Where it breaks.** Files are always "ready": a read from a slow disk would block the whole thread. So
//! this one does nothing with a file that may wait; [helpers](super::helpers) wait for it.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, acceptfrom_with};
use slab::Slab;

use crate::clock::Tick;
use crate::deadlines::Deadlines;
use crate::http::Connection;
use crate::shutdown::Phase;

use super::helpers::{Done, Helpers, Job};
use super::session::{Desk, Session, Wait};
use super::{AcceptError, Capabilities, Engine, LIGHT_PER_HEAVY, PauseNote, Seat, Threads, always_available};

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "epoll",
    summary: "readiness, edge-triggered: told once, then recv and send by itself",
    threads: Threads::PerCore,
    capabilities: Capabilities { clients_max: None },
    available: always_available,
    run,
};

/// News taken from the kernel at once.
const EVENTS_MAX: usize = 512;
/// Clients accepted before those already there have their turn.
const ACCEPTS_MAX: usize = 64;
/// How long accepting pauses when there is no descriptor left, unless a connection ends before.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often a draining thread looks whether it is to cut what is left.
const CUT_CHECK: Duration = Duration::from_millis(100);

const LISTENER: u64 = u64::MAX;
const SHUTDOWN: u64 = u64::MAX - 1;
const HELPERS: u64 = u64::MAX - 2;

/// A place in the slab, and which of the connections that have had this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    session: Session,
    generation: u32,
    /// When the live entry in the wheel comes up.
    entered: Tick,
    /// Whether it stands in `Loop::waiting`.
    queued: bool,
}

struct Loop<'a> {
    seat: &'a mut Seat,
    epoll: OwnedFd,
    slots: Slab<Slot>,
    next_generation: u32,
    deadlines: Deadlines<Key>,
    /// Those who have had their share of this turn and could go on.
    waiting: VecDeque<Key>,
    accepting: Accepting,
    note: PauseNote,
    desk: Desk,
    helpers: Helpers<Key>,
    /// What they have done and nobody has gone on with. Small requests do not wait behind all of it.
    done: VecDeque<(Key, Done)>,
    /// Connections whose loads were put off.
    put_off: VecDeque<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    Yes,
    /// Not until a connection ends, or this moment comes.
    Paused(Tick),
    /// Never again.
    Ended,
}

fn run(seat: &mut Seat) -> io::Result<()> {
    seat.listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &seat.listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    epoll::add(&epoll, &*seat.shutdown, EventData::new_u64(SHUTDOWN), EventFlags::IN)?;
    let helpers = Helpers::new()?;
    epoll::add(&epoll, &helpers, EventData::new_u64(HELPERS), EventFlags::IN)?;
    if !seat.ready() {
        return Ok(());
    }
    let mut turn = Loop {
        seat,
        epoll,
        slots: Slab::new(),
        next_generation: 0,
        deadlines: Deadlines::default(),
        waiting: VecDeque::new(),
        accepting: Accepting::Yes,
        note: PauseNote::default(),
        desk: Desk::new(),
        helpers,
        done: VecDeque::new(),
        put_off: VecDeque::new(),
    };
    turn.run()
}

impl Loop<'_> {
    fn run(&mut self) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.seat.worker.begin_turn();
            for event in &events {
                let flags = event.flags;
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    SHUTDOWN => self.drain()?,
                    HELPERS => self.done.extend(self.helpers.take_done()),
                    key => {
                        let news = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
                        self.wake(Key::from(key), flags.intersects(news));
                    }
                }
            }
            for _ in 0..=events.len() / LIGHT_PER_HEAVY {
                self.resume();
            }
            for _ in 0..self.waiting.len() {
                let key = self.waiting.pop_front().expect("no longer than it was");
                if let Some(slot) = self.slots.get_mut(key.index as usize)
                    && slot.generation == key.generation
                {
                    slot.queued = false;
                    self.advance(key);
                }
            }
            self.expire();
            self.resume_accepting()?;
            let draining = self.accepting == Accepting::Ended;
            if draining && (self.slots.is_empty() || self.seat.shutdown.is_cut()) {
                return Ok(());
            }
        }
    }

    /// How long to sleep: not at all if somebody could go on, else until the next deadline, else for ever.
    fn timeout(&self) -> Option<Timespec> {
        let now = self.seat.worker.clock.now();
        let mut sleep = self.deadlines.next().map(|next| now.until(next));
        match self.accepting {
            Accepting::Yes => {}
            Accepting::Paused(until) => sleep = earlier(sleep, now.until(until)),
            Accepting::Ended => sleep = earlier(sleep, CUT_CHECK),
        }
        if !self.waiting.is_empty() || !self.done.is_empty() {
            sleep = Some(Duration::ZERO);
        }
        sleep.map(|sleep| Timespec {
            tv_sec: sleep.as_secs() as i64,
            tv_nsec: i64::from(sleep.subsec_nanos()),
        })
    }

    fn accept(&mut self) -> io::Result<()> {
        if self.accepting != Accepting::Yes {
            return Ok(());
        }
        for _ in 0..ACCEPTS_MAX {
            if self.slots.len() >= self.seat.connections_max {
                return self.pause_accepting("--max-connections is reached");
            }
            match self.accept_one() {
                Ok((socket, peer)) => self.open(socket, peer),
                Err(errno) => match AcceptError::of(errno) {
                    AcceptError::Empty => return Ok(()),
                    AcceptError::Passing => {}
                    AcceptError::Exhausted => return self.pause_accepting(&errno.to_string()),
                    AcceptError::Broken => return Err(errno.into()),
                },
            }
        }
        Ok(())
    }

    fn accept_one(&self) -> Result<(OwnedFd, Option<IpAddr>), Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        if !self.seat.worker.wants_peers() {
            return Ok((accept_with(&self.seat.listener, flags)?, None));
        }
        let (socket, address) = acceptfrom_with(&self.seat.listener, flags)?;
        let address = address.and_then(|address| std::net::SocketAddr::try_from(address).ok());
        Ok((socket, address.map(|address| address.ip())))
    }

    fn open(&mut self, socket: OwnedFd, peer: Option<IpAddr>) {
        let worker = &mut self.seat.worker;
        let now = worker.clock.now();
        let mut session = Session::new(socket, Connection::new(peer), worker);
        // Most clients have sent their request by now. Who asks for one thing only is served and gone before
        // he was ever registered.
        let wait = session.advance(worker, &mut self.desk);
        if wait == Wait::Over {
            return;
        }
        self.next_generation = self.next_generation.wrapping_add(1);
        let generation = self.next_generation;
        let queued = wait == Wait::Turn;
        let index = self.slots.insert(Slot { session, generation, entered: Tick::NEVER, queued });
        let key = Key { index: index as u32, generation };
        let news = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let slot = &mut self.slots[index];
        if epoll::add(&self.epoll, &slot.session, EventData::new_u64(key.into()), news).is_err() {
            // No memory to watch it: it cannot be served.
            self.slots.remove(index);
            return;
        }
        if queued {
            self.waiting.push_back(key);
        }
        self.deadlines.cover(key, slot.session.deadline(), now, &mut slot.entered);
        self.ask_disk(key);
    }

    /// Hands out what a connection wants of a disk, or puts it off while too much is under way.
    fn ask_disk(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key.index as usize) else { return };
        match slot.session.take_job() {
            Some(Job::Load(load)) if self.helpers.are_busy() => {
                self.seat.worker.put_off(&load);
                self.put_off.push_back(key);
            }
            Some(job) => self.helpers.submit(key, job),
            None => {}
        }
    }

    fn wake(&mut self, key: Key, hung_up: bool) {
        if let Some(slot) = self.slots.get_mut(key.index as usize)
            && slot.generation == key.generation
        {
            slot.session.wake(hung_up);
            self.advance(key);
        }
    }

    /// Goes on with the next one whose disk has answered.
    fn resume(&mut self) {
        if let Some((key, done)) = self.done.pop_front()
            && let Some(slot) = self.slots.get_mut(key.index as usize)
            && slot.generation == key.generation
        {
            slot.session.resume(done, &mut self.seat.worker);
            self.advance(key);
        }
        while !self.helpers.are_busy()
            && let Some(key) = self.put_off.pop_front()
        {
            if let Some(slot) = self.slots.get_mut(key.index as usize)
                && slot.generation == key.generation
            {
                slot.session.take_up(&mut self.seat.worker);
                self.advance(key);
            }
        }
    }

    fn advance(&mut self, key: Key) {
        let index = key.index as usize;
        let now = self.seat.worker.clock.now();
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.generation != key.generation {
            return;
        }
        match slot.session.advance(&mut self.seat.worker, &mut self.desk) {
            Wait::Over => {
                self.slots.remove(index);
                if let Accepting::Paused(_) = self.accepting {
                    self.accepting = Accepting::Paused(Tick::default());
                }
                return;
            }
            Wait::Turn if slot.queued => {}
            Wait::Turn => {
                slot.queued = true;
                self.waiting.push_back(key);
            }
            Wait::Disk | Wait::Readable | Wait::Writable => {}
        }
        self.deadlines.cover(key, slot.session.deadline(), now, &mut slot.entered);
        self.ask_disk(key);
    }

    fn expire(&mut self) {
        let now = self.seat.worker.clock.now();
        while let Some((tick, keys)) = self.deadlines.take_due(now) {
            for key in keys {
                let Some(slot) = self.slots.get_mut(key.index as usize) else { continue };
                if slot.generation != key.generation || slot.entered != tick {
                    continue;
                }
                slot.entered = Tick::NEVER;
                if slot.session.deadline() <= now {
                    slot.session.late(&mut self.seat.worker);
                    self.advance(key);
                } else {
                    self.deadlines.cover(key, slot.session.deadline(), now, &mut slot.entered);
                }
            }
        }
    }

    /// Takes the listener out of the set: while nobody may be accepted, its readiness is no news.
    fn pause_accepting(&mut self, why: &str) -> io::Result<()> {
        self.note.pause(self.seat.worker.clock.now(), why);
        epoll::delete(&self.epoll, &self.seat.listener)?;
        self.accepting = Accepting::Paused(self.seat.worker.clock.now().after(ACCEPT_PAUSE));
        Ok(())
    }

    fn resume_accepting(&mut self) -> io::Result<()> {
        if let Accepting::Paused(until) = self.accepting
            && until <= self.seat.worker.clock.now()
        {
            if self.slots.len() >= self.seat.connections_max {
                self.accepting = Accepting::Paused(self.seat.worker.clock.now().after(ACCEPT_PAUSE));
                return Ok(());
            }
            let data = EventData::new_u64(LISTENER);
            epoll::add(&self.epoll, &self.seat.listener, data, EventFlags::IN)?;
            self.accepting = Accepting::Yes;
        }
        Ok(())
    }

    /// Stops accepting. Who waits in the backlog already has a connection as far as he can tell, and is
    /// served.
    fn drain(&mut self) -> io::Result<()> {
        debug_assert!(self.seat.shutdown.phase() > Phase::Serving);
        while let Ok((socket, peer)) = self.accept_one() {
            self.open(socket, peer);
        }
        if self.accepting == Accepting::Yes {
            epoll::delete(&self.epoll, &self.seat.listener)?;
        }
        self.accepting = Accepting::Ended;
        rustix::net::shutdown(&self.seat.listener, rustix::net::Shutdown::Both)?;
        // It stays readable for ever; from here on the clock tells when to look.
        epoll::delete(&self.epoll, &*self.seat.shutdown)?;
        let now = self.seat.worker.clock.now();
        for (index, slot) in &mut self.slots {
            slot.session.hasten(&self.seat.worker);
            let key = Key { index: index as u32, generation: slot.generation };
            self.deadlines.cover(key, slot.session.deadline(), now, &mut slot.entered);
        }
        Ok(())
    }
}

fn earlier(sleep: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(sleep.map_or(other, |sleep| sleep.min(other)))
}

impl From<u64> for Key {
    fn from(data: u64) -> Key {
        Key { index: data as u32, generation: (data >> 32) as u32 }
    }
}

impl From<Key> for u64 {
    fn from(key: Key) -> u64 {
        u64::from(key.generation) << 32 | u64::from(key.index)
    }
}
