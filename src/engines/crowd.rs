//! Many clients on one thread: all that the readiness engines share, which is everything but how they wait.
//!
//! The crowd holds the connections, accepts new ones, advances those whose sockets have news, keeps their
//! deadlines, hands to [helpers](super::helpers) what waits for a disk, and drains. An engine's own loop asks
//! it for the time it may wait, waits in its own manner, and tells what has come:
//!
//! ```text
//! loop {
//!     wait(crowd.timeout())                   for all that the crowd waits for, in the engine's manner
//!     crowd.begin_turn()
//!     crowd.accept(), wake(key), drain(), take_done()      as there is news
//!     if !crowd.end_turn(news) { return }
//! }
//! ```
//!
//! An engine that keeps a list of interests in the kernel is told of each change by its [`Watch`]; one that
//! asks for all of them every time walks [`Crowd::sessions`].

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use slab::Slab;

use crate::clock::Tick;
use crate::deadlines::Deadlines;
use crate::http::Connection;
use crate::shutdown::{Phase, Shutdown};

use super::helpers::{Done, Helpers, Job};
use super::session::{Desk, Session, Wait};
use super::{
    ACCEPT_PAUSE, AcceptError, CUT_CHECK, HEAVY_MIN, LIGHT_PER_HEAVY, PauseNote, Seat, calls, next_waiting,
};

/// Clients accepted before those already there have their turn.
const ACCEPTS_MAX: usize = 64;

/// A place in the slab, and which of the connections that have had this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    index: u32,
    generation: u32,
}

/// Keeps the kernel informed of whom an engine waits for.
pub trait Watch {
    /// Clients are accepted from now on, or are not.
    fn accepting(&self, listener: &TcpListener, is_on: bool) -> io::Result<()>;

    /// The server is draining: the descriptor that says so stays readable, and has no more news.
    fn draining(&self, shutdown: &Shutdown) -> io::Result<()>;

    /// A connection waits for this now, and has waited for something before unless it is new. Where there is
    /// no memory to watch it, it cannot be served.
    fn waiting(&self, key: Key, socket: BorrowedFd, now: Wait, before: Option<Wait>) -> Result<(), Errno>;
}

/// Nothing is kept in the kernel: it is told of everything each time that it is asked.
pub struct Unwatched;

impl Watch for Unwatched {
    fn accepting(&self, _: &TcpListener, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn draining(&self, _: &Shutdown) -> io::Result<()> {
        Ok(())
    }

    fn waiting(&self, _: Key, _: BorrowedFd, _: Wait, _: Option<Wait>) -> Result<(), Errno> {
        Ok(())
    }
}

#[derive(Debug)]
struct Slot {
    session: Session,
    generation: u32,
    /// What it was last found to wait for.
    wait: Wait,
    /// When the live entry in the wheel comes up.
    entered: Tick,
    /// Whether it stands in `Crowd::waiting`.
    queued: bool,
}

/// The clients of one thread.
pub struct Crowd<'a, W> {
    seat: &'a mut Seat,
    watch: W,
    slots: Slab<Slot>,
    next_generation: u32,
    deadlines: Deadlines<Key>,
    /// Those who have had their share of this turn and could go on.
    waiting: VecDeque<Key>,
    accepting: Accepting,
    note: PauseNote,
    desk: Desk,
    helpers: Helpers<Key>,
    /// What they have done that brings much to do, and nobody has gone on with. Small requests do not wait
    /// behind all of it.
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

impl<'a, W: Watch> Crowd<'a, W> {
    /// A crowd of nobody, which watches the listener already.
    ///
    /// # Errors
    /// What making an event descriptor or watching the listener says.
    pub fn new(seat: &'a mut Seat, watch: W) -> io::Result<Crowd<'a, W>> {
        seat.listener.set_nonblocking(true)?;
        let crowd = Crowd {
            helpers: Helpers::new(seat.loads_max)?,
            seat,
            watch,
            slots: Slab::new(),
            next_generation: 0,
            deadlines: Deadlines::default(),
            waiting: VecDeque::new(),
            accepting: Accepting::Yes,
            note: PauseNote::default(),
            desk: Desk::new(),
            done: VecDeque::new(),
            put_off: VecDeque::new(),
        };
        crowd.watch.accepting(&crowd.seat.listener, true)?;
        Ok(crowd)
    }

    /// The thread has all it needs; see [`Seat::ready`].
    pub fn ready(&mut self) -> bool {
        self.seat.ready()
    }

    /// The listener, while clients are accepted.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        (self.accepting == Accepting::Yes).then(|| self.seat.listener.as_fd())
    }

    /// The shutdown, until it has come.
    pub fn shutdown(&self) -> Option<&Shutdown> {
        (self.accepting != Accepting::Ended).then_some(&*self.seat.shutdown)
    }

    /// Readable when helpers have done something.
    pub fn helpers(&self) -> BorrowedFd<'_> {
        self.helpers.as_fd()
    }

    /// How an engine waits for them.
    pub fn watch(&self) -> &W {
        &self.watch
    }

    /// All connections, with what each waits for.
    pub fn sessions(&self) -> impl Iterator<Item = (Key, &Session, Wait)> {
        self.slots.iter().map(|(index, slot)| {
            (Key { index: index as u32, generation: slot.generation }, &slot.session, slot.wait)
        })
    }

    /// How long to wait: not at all if somebody could go on, else until the next deadline, else for ever.
    pub fn timeout(&self) -> Option<Duration> {
        let now = self.seat.worker.clock.now();
        let mut sleep = self.deadlines.next().map(|next| now.until(next));
        match self.accepting {
            Accepting::Yes => {}
            Accepting::Paused(until) => sleep = earlier(sleep, now.until(until)),
            Accepting::Ended => sleep = earlier(sleep, CUT_CHECK),
        }
        if let Some(patience) = self.helpers.patience() {
            sleep = earlier(sleep, patience);
        }
        let could_take_up = !self.put_off.is_empty() && !self.helpers.are_busy();
        if !self.waiting.is_empty() || !self.done.is_empty() || could_take_up {
            sleep = Some(Duration::ZERO);
        }
        sleep
    }

    /// To be called when the waiting is over.
    pub fn begin_turn(&mut self) {
        self.seat.worker.clock.read();
    }

    /// Accepts who waits to be, though not all of them at once.
    pub fn accept(&mut self) -> io::Result<()> {
        if self.accepting != Accepting::Yes {
            return Ok(());
        }
        for _ in 0..ACCEPTS_MAX {
            if self.slots.len() >= self.seat.connections_max {
                self.note.pause_full(&mut self.seat.worker, self.seat.connections_max);
                return self.pause_accepting();
            }
            match self.accept_one() {
                Ok((socket, peer)) => self.open(socket, peer),
                Err(errno) => match AcceptError::of(errno) {
                    AcceptError::Empty => return Ok(()),
                    AcceptError::Passing => {}
                    AcceptError::Exhausted => {
                        self.note.pause(&mut self.seat.worker, &errno.to_string());
                        return self.pause_accepting();
                    }
                    // The engine whose place this one has taken has ended the listener already.
                    AcceptError::Broken if self.is_to_drain() => return Ok(()),
                    AcceptError::Broken => return Err(errno.into()),
                },
            }
        }
        Ok(())
    }

    fn accept_one(&self) -> Result<(OwnedFd, Option<IpAddr>), Errno> {
        calls::accept(&self.seat.listener, SocketFlags::NONBLOCK, self.seat.worker.wants_peers())
    }

    fn open(&mut self, socket: OwnedFd, peer: Option<IpAddr>) {
        let worker = &mut self.seat.worker;
        let now = worker.clock.now();
        let mut session = Session::new(socket, Connection::new(peer), worker);
        // Most clients have sent their request by now. Who asks for one thing only is served and gone before
        // he was ever registered.
        self.desk.may_begin = self.helpers.have_room();
        let wait = session.advance(worker, &mut self.desk);
        if wait == Wait::Over {
            return;
        }
        self.next_generation = self.next_generation.wrapping_add(1);
        let generation = self.next_generation;
        let queued = wait == Wait::Turn;
        let index = self.slots.insert(Slot { session, generation, wait, entered: Tick::NEVER, queued });
        let key = Key { index: index as u32, generation };
        let slot = &mut self.slots[index];
        if self.watch.waiting(key, slot.session.as_fd(), wait, None).is_err() {
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

    /// A connection's socket has news, among them perhaps that its client has ended its own side.
    pub fn wake(&mut self, key: Key, hung_up: bool) {
        if let Some(slot) = self.slots.get_mut(key.index as usize)
            && slot.generation == key.generation
        {
            slot.session.wake(hung_up);
            self.advance(key);
        }
    }

    /// Takes what helpers have done. Connections that have much to do with it go on by and by, in
    /// [`Crowd::end_turn`].
    pub fn take_done(&mut self) {
        let done = self.helpers.take_done();
        // Before those who have had a load ask for the next.
        self.take_up_put_off();
        for (key, done) in done {
            if done.size() >= HEAVY_MIN { self.done.push_back((key, done)) } else { self.go_on(key, done) }
        }
    }

    /// Whether helpers have done something that was not taken out.
    pub fn is_anything_done(&self) -> bool {
        self.helpers.have_done()
    }

    /// To be called when all of so many pieces of news are dealt with: those who could go on do, and those
    /// whose time is over go. `false`: the server has ended.
    pub fn end_turn(&mut self, news: usize) -> io::Result<bool> {
        for _ in 0..=news / LIGHT_PER_HEAVY {
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
        self.helpers.look();
        self.resume_accepting()?;
        calls::publish(&mut self.seat.worker);
        let draining = self.accepting == Accepting::Ended;
        Ok(!draining || !(self.slots.is_empty() || self.seat.shutdown.is_cut()))
    }

    /// Goes on with the next one whose disk has answered with much.
    fn resume(&mut self) {
        if let Some((key, done)) = self.done.pop_front() {
            self.go_on(key, done);
        }
        self.take_up_put_off();
    }

    /// Goes on with those whose loads were put off, as far as there is room by now. A thousand may by now be
    /// answered from the cache, so that not all of them go on at once.
    fn take_up_put_off(&mut self) {
        for _ in 0..LIGHT_PER_HEAVY {
            if self.helpers.are_busy() {
                return;
            }
            let Some(key) = self.put_off.pop_front() else { return };
            if let Some(slot) = self.slots.get_mut(key.index as usize)
                && slot.generation == key.generation
            {
                slot.session.take_up(&mut self.seat.worker);
                self.advance(key);
            }
        }
    }

    /// Goes on with what was done for a connection.
    fn go_on(&mut self, key: Key, done: Done) {
        if let Some(slot) = self.slots.get_mut(key.index as usize)
            && slot.generation == key.generation
        {
            slot.session.resume(done, &mut self.seat.worker);
            self.advance(key);
        }
    }

    fn advance(&mut self, key: Key) {
        let index = key.index as usize;
        let now = self.seat.worker.clock.now();
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.generation != key.generation {
            return;
        }
        self.desk.may_begin = self.helpers.have_room();
        let wait = slot.session.advance(&mut self.seat.worker, &mut self.desk);
        let before = std::mem::replace(&mut slot.wait, wait);
        if wait == Wait::Over || self.watch.waiting(key, slot.session.as_fd(), wait, Some(before)).is_err() {
            self.slots.remove(index);
            if let Accepting::Paused(_) = self.accepting {
                self.accepting = Accepting::Paused(Tick::default());
            }
            return;
        }
        if wait == Wait::Turn && !slot.queued {
            slot.queued = true;
            self.waiting.push_back(key);
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

    /// Takes the listener out of what is waited for: while nobody may be accepted, its readiness is no news.
    fn pause_accepting(&mut self) -> io::Result<()> {
        self.watch.accepting(&self.seat.listener, false)?;
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
            self.watch.accepting(&self.seat.listener, true)?;
            self.accepting = Accepting::Yes;
        }
        Ok(())
    }

    /// Stops accepting. Who waits in the backlog already has a connection as far as he can tell, and is
    /// served.
    pub fn drain(&mut self) -> io::Result<()> {
        debug_assert!(self.seat.shutdown.phase() > Phase::Serving);
        while let Some((socket, peer)) = next_waiting(|| self.accept_one()) {
            self.open(socket, peer);
        }
        if self.accepting == Accepting::Yes {
            self.watch.accepting(&self.seat.listener, false)?;
        }
        self.accepting = Accepting::Ended;
        match calls::shutdown(&self.seat.listener, rustix::net::Shutdown::Both) {
            // It has ended already, by the engine whose place this one has taken.
            Ok(()) | Err(Errno::NOTCONN) => {}
            Err(errno) => return Err(errno.into()),
        }
        // From here on the clock tells when to look.
        self.watch.draining(&self.seat.shutdown)?;
        let now = self.seat.worker.clock.now();
        for (index, slot) in &mut self.slots {
            slot.session.hasten(&self.seat.worker);
            let key = Key { index: index as u32, generation: slot.generation };
            self.deadlines.cover(key, slot.session.deadline(), now, &mut slot.entered);
        }
        Ok(())
    }

    /// Whether the shutdown has come and nobody has been told yet.
    pub fn is_to_drain(&self) -> bool {
        self.accepting != Accepting::Ended && self.seat.shutdown.phase() > Phase::Serving
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::helpers::tests::{on_disk, span_of, stuck};
    use crate::engines::queue::PATIENCE;
    use crate::engines::session::tests::worker;
    use rustix::event::{PollFd, PollFlags};
    use std::path::Path;
    use std::sync::Arc;

    fn seat(root: &Path) -> Seat {
        Seat {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            worker: worker(root),
            shutdown: Arc::new(Shutdown::new().unwrap()),
            connections_max: 1,
            loads_max: 1,
            start: Box::new(|| true),
        }
    }

    #[test]
    fn who_wants_a_short_span_of_stuck_helpers_has_another_soon() {
        let root = tempfile::tempdir().unwrap();
        let mut seat = seat(root.path());
        let mut crowd = Crowd::new(&mut seat, Unwatched).unwrap();
        let key = Key { index: 0, generation: 0 };
        crowd.helpers = stuck(key);
        crowd.helpers.submit(key, span_of(&on_disk(), 1));
        assert_eq!(crowd.timeout(), Some(PATIENCE));
        for _ in 0..500 {
            // For ever once another was woken.
            let wait = crowd.timeout().map_or(PATIENCE, |wait| wait.min(PATIENCE));
            let ready = calls::poll(&mut [PollFd::new(&crowd.helpers(), PollFlags::IN)], Some(wait)).unwrap();
            crowd.begin_turn();
            if ready == 1 {
                crowd.take_done();
                assert!(!crowd.helpers.are_at_work());
                return;
            }
            assert!(crowd.end_turn(0).unwrap());
        }
        panic!("nobody came");
    }

    #[test]
    fn whose_loads_were_put_off_go_on_by_and_by_and_without_waiting() {
        let root = tempfile::tempdir().unwrap();
        let mut seat = seat(root.path());
        let mut crowd = Crowd::new(&mut seat, Unwatched).unwrap();
        assert_eq!(crowd.timeout(), None);
        // They have gone meanwhile, so that nothing else has the loop go on.
        crowd.put_off.extend((0..100).map(|index| Key { index, generation: 0 }));
        for left in [100 - LIGHT_PER_HEAVY, 100 - 2 * LIGHT_PER_HEAVY, 100 - 3 * LIGHT_PER_HEAVY, 0] {
            assert_eq!(crowd.timeout(), Some(Duration::ZERO));
            crowd.begin_turn();
            assert!(crowd.end_turn(0).unwrap());
            assert_eq!(crowd.put_off.len(), left);
        }
        assert_eq!(crowd.timeout(), None);
    }
}
