//! Completion: what is wanted is submitted to the kernel, and the kernel says when it is done.
//!
//! **How it waits.** All other engines ask *when* they may do something and then do it. This one asks for the
//! thing itself: accept a client, receive from this one, open that file, read it, send this, close that. The
//! requests stand in a queue in memory shared with the kernel; one `io_uring_enter` hands over all that have
//! gathered and sleeps until something is done; the results stand in a second queue. A whole turn of the
//! loop, for however many clients, is one system call.
//!
//! **What it costs.** The kernel works on our memory while we are away. So memory in flight must neither move
//! nor change: a connection has at most one operation in flight that borrows its memory, and `turn` is only
//! called when there is none. A slot is freed when its last completion is in.
//!
//! **What it gives.** Opening and reading files are operations like any other: a disk that takes its time
//! holds up those who asked for that file, and nobody else. No readiness engine can say that of its own loop.
//! (Bytes of a small file that are in memory are read at once: there is nothing to wait for.)
//!
//! Receiving takes a buffer from a ring of buffers only when bytes have come ([`ring`]), so an idle client
//! holds none. Sockets are *direct descriptors*: a slot in a table of this ring, with no file descriptor of
//! the process, which saves the kernel a look-up for each operation. The slot's number is the connection's
//! number here, too.
//!
//! **Where it breaks.** Linux before 6.1, and wherever io_uring is forbidden ([`probe`] finds that out).
#![allow(unsafe_code)]

mod accept;
mod fetch;
mod files;
mod load;
mod operation;
pub(super) mod probe;
mod receive;
mod ring;
mod send;
mod timer;
mod turns;

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed, OpenHow};
use io_uring::{cqueue, opcode, squeue};
use rustix::net::SocketFlags;

use crate::clock::Tick;
use crate::content::{Load, Step};
use crate::deadlines::Deadlines;
use crate::http::outbox::PIECE;
use crate::http::{Connection, Outbox};
use crate::serve::Want;
use crate::shutdown::Phase;

use self::accept::Acceptor;
use self::fetch::is_much_left;
use self::files::{Files, Line};
use self::operation::{ASIDE, Key, Mark, Operation};
pub use self::probe::trials;
use self::receive::receive;
use self::ring::{Completion, Ring};
use self::send::Message;
use self::timer::Timer;
use self::turns::Turns;
use super::resident::{Resident, take_in_short_spans};
use super::{Capabilities, Engine, Family, HEAVY_MIN, LIGHT_PER_HEAVY, Seat, Threads, calls, next_waiting};

/// The table's row.
pub const ENGINE: Engine = Engine {
    name: "uring",
    summary: "completion: submit to io_uring, be told when it is done",
    family: Family::Completion,
    threads: Threads::PerCore,
    capabilities: Capabilities::UNLIMITED,
    runtime_counted: true,
    available: probe::available,
    run,
};

/// Empty outboxes kept.
const SPARE_MAX: usize = 256;
/// How long a send waits where readiness cannot be waited for.
const SEND_PAUSE: Duration = Duration::from_millis(50);
/// How long until what cannot be cancelled at its deadline is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Completions up to which a turn brings so little that its calls count for more than what a receive costs
/// that finds nothing yet. In a longer one, who was sent an answer first has asked again by the end.
const QUIET_MAX: usize = 4;

fn run(seat: &mut Seat) -> io::Result<()> {
    let acceptor = Acceptor::new(seat.connections_max, seat.worker.wants_peers());
    let ring = Ring::to_serve(acceptor.files());
    let ring = ring.map_err(|refused| io::Error::other(probe::explain(&refused).to_string()))?;
    if !seat.ready() {
        return Ok(());
    }
    let mut turn = Loop {
        seat,
        ring,
        slots: Vec::new(),
        connections: 0,
        generation: 0,
        deadlines: Deadlines::default(),
        timer: Timer::default(),
        acceptor,
        loads: 0,
        loads_waiting: VecDeque::new(),
        files: Files::default(),
        spare: Vec::new(),
        unserved: 0,
        can_install: true,
        presumed: Vec::new(),
        paused: Vec::new(),
        paused_until: Tick::NEVER,
        completions: Vec::with_capacity(1024),
        heavy: Turns::default(),
        is_quiet: false,
    };
    turn.run()
}

/// One connection.
struct Slot {
    conn: Connection,
    outbox: Outbox,
    generation: u32,
    /// When the live entry in the wheel comes up.
    entered: Tick,
    /// What is in flight: one operation, or a short send and the receive behind it, whose name it then has.
    /// `turn` is only called when nothing is.
    in_flight: Option<Operation>,
    /// The deadline has passed, and what is in flight is being cancelled.
    late: bool,
    /// Nothing but a close is wanted behind the send in flight.
    then_close: bool,
    /// The same socket as a descriptor of the process, once a file has been sent. Boxed, as most never are.
    installed: Option<Box<Installed>>,
    task: Task,
}

/// A direct descriptor as one of the process.
struct Installed {
    socket: OwnedFd,
    resident: Resident,
    /// When the ring was told to read ahead, if that is what it is waited for.
    begun: Option<Instant>,
}

impl Drop for Installed {
    /// The descriptor is closed with it.
    fn drop(&mut self) {
        calls::closed();
    }
}

/// What an operation in flight borrows beside the outbox. Boxed, so that it stays in place.
enum Task {
    None,
    Load(Box<Load>, Box<OpenHow>),
    /// A load that waits until fewer are in flight.
    LoadWaiting,
    /// A span of a file that waits until fewer are on their way from the disk.
    FileWaiting,
    /// It has a place, in this line.
    FileCalled(Line),
    /// It has a place, and should be in the page cache, for it was waited for.
    FileFetched,
    /// It has a place, in this line, and a buffer: so many bytes of it were read.
    File(Line, Box<[u8]>, usize),
    /// A send that is tried again after [`SEND_PAUSE`].
    SendPaused,
    /// Not all was sent, but the receive that was to follow is in flight, and has to end first.
    Unsent {
        is_broken: bool,
    },
    Message {
        _in_flight: Box<Message>,
    },
}

struct Loop<'a> {
    seat: &'a mut Seat,
    ring: Ring,
    /// By direct descriptor.
    slots: Vec<Option<Box<Slot>>>,
    connections: usize,
    /// Of the youngest connection.
    generation: u32,
    deadlines: Deadlines<Key>,
    timer: Timer,
    acceptor: Acceptor,
    loads: usize,
    loads_waiting: VecDeque<Key>,
    files: Files,
    /// Outboxes of connections that have nothing to send, so that idle ones hold no memory.
    spare: Vec<Outbox>,
    /// Receives that found no buffer since the last that found one.
    unserved: usize,
    /// Whether the kernel can install descriptors (Linux 6.8), as far as is known.
    can_install: bool,
    /// Who has been sent so many bytes since the last wait, and a receive submitted behind them.
    presumed: Vec<(Key, usize)>,
    /// Sends to be tried again, and when.
    paused: Vec<Key>,
    paused_until: Tick,
    completions: Vec<Completion>,
    /// Completions that bring much to do.
    heavy: Turns,
    /// Whether this turn brings little.
    is_quiet: bool,
}

impl Loop<'_> {
    fn run(&mut self) -> io::Result<()> {
        self.watch_shutdown()?;
        self.arm_acceptor()?;
        loop {
            let mut completions = std::mem::take(&mut self.completions);
            self.ring.count_into(&mut self.seat.worker.tally);
            calls::publish(&mut self.seat.worker);
            self.set_timer()?;
            let could_load = self.loads < self.seat.loads_max && !self.loads_waiting.is_empty();
            let could_go_on = could_load || !self.heavy.is_empty();
            self.ring.wait(could_go_on.then_some(Duration::ZERO), &mut completions)?;
            self.seat.worker.clock.read();
            self.settle(&completions);
            self.is_quiet = completions.len() <= QUIET_MAX;
            let mut light = 0;
            for completion in completions.drain(..) {
                if self.is_heavy(&completion) {
                    self.heavy.add(completion);
                } else {
                    light += 1;
                    self.complete(completion)?;
                }
            }
            self.completions = completions;
            for _ in 0..=light / LIGHT_PER_HEAVY {
                let Some(completion) = self.heavy.next() else { break };
                self.complete(completion)?;
            }
            self.expire()?;
            self.wake_waiting()?;
            if self.acceptor.is_due(self.seat.worker.clock.now()) {
                self.arm_acceptor()?;
            }
            if self.acceptor.is_idle() {
                self.empty_backlog()?;
            }
            if self.acceptor.has_ended() && (self.connections == 0 || self.seat.shutdown.is_cut()) {
                return Ok(());
            }
        }
    }

    /// Whether a completion brings as much to do as a large piece of a file does.
    fn is_heavy(&mut self, completion: &Completion) -> bool {
        let Mark { operation, key } = completion.user_data.into();
        match operation {
            Operation::Writable => true,
            Operation::FileFetch | Operation::FileRead => {
                live(&mut self.slots, key).is_some_and(|slot| is_much_left(slot))
            }
            // As much as is sent at once, so there is more as a rule.
            Operation::Send => completion.result as usize == PIECE,
            Operation::Open | Operation::Read => live(&mut self.slots, key).is_some_and(|slot| {
                let Task::Load(load, _) = &mut slot.task else { return false };
                load.size() >= HEAVY_MIN && !matches!(load.next(), Step::Note { .. })
            }),
            _ => false,
        }
    }

    fn complete(&mut self, completion: Completion) -> io::Result<()> {
        let Mark { operation, key } = completion.user_data.into();
        match operation {
            Operation::Aside => return Ok(()),
            Operation::Signal => return self.drain(),
            Operation::Timer => return self.timer.ended(completion.result),
            Operation::Accept => return self.accepted(key.index, completion),
            _ => {}
        }
        let Some(slot) = live(&mut self.slots, key) else {
            // A close may be told of only after its descriptor was given out again; see `open`.
            debug_assert_eq!(operation, Operation::Close, "a completion for a dead slot, {key:?}");
            return Ok(());
        };
        if operation == Operation::Send && slot.in_flight == Some(Operation::Receive) {
            return self.sent_too_little(key, completion.result);
        }
        debug_assert_eq!(slot.in_flight, Some(operation));
        slot.in_flight = None;
        let late = std::mem::take(&mut slot.late);
        let result = completion.result;
        match operation {
            Operation::Receive => self.received(key, completion, late),
            Operation::Send => self.sent(key, result),
            Operation::Install => self.installed(key, result),
            Operation::FileFetch => self.file_fetched(key, result),
            Operation::FileRead => self.file_read(key, result),
            Operation::FileSend => self.file_sent(key, result),
            // It was waited for in vain.
            Operation::Writable if late => self.ask_queued(key),
            Operation::Queued => self.queued(key, result),
            // Linux before 6.7 closes it as any other.
            Operation::Abandon => self.carry_out(key, Want::Close),
            // A client that has ended its own side and yet does not read: the ring's poll always tells of the
            // first and so cannot be used to wait for the second.
            Operation::Writable if result == libc::EPOLLRDHUP => {
                slot.task = Task::SendPaused;
                if self.paused.is_empty() {
                    self.paused_until = self.seat.worker.clock.now().after(SEND_PAUSE);
                }
                self.paused.push(key);
                Ok(())
            }
            Operation::Open | Operation::Read | Operation::Gather => self.loaded(key, operation, result),
            Operation::Turn if matches!(slot.task, Task::Load(..)) => self.load(key),
            // Writable or broken: the next send will tell.
            Operation::Writable | Operation::Turn => self.send(key),
            // The client has gone already.
            Operation::Shutdown if result < 0 => self.carry_out(key, Want::Close),
            Operation::Shutdown => self.carry_out(key, Want::Read),
            Operation::Close => {
                self.slots[key.index as usize] = None;
                self.connection_ended();
                self.acceptor.connection_ended();
                Ok(())
            }
            Operation::Aside | Operation::Signal | Operation::Timer | Operation::Accept => {
                unreachable!("dealt with above")
            }
        }
    }

    /// Submits what a connection wants.
    fn carry_out(&mut self, key: Key, want: Want) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        let now = self.seat.worker.clock.now();
        self.deadlines.cover(key, slot.conn.deadline(), now, &mut slot.entered);
        match want {
            Want::Read => {
                take_back(&mut slot.outbox, &mut self.spare);
                self.submit(key, Operation::Receive, receive(key))
            }
            Want::Send { then_close } => {
                slot.then_close = then_close;
                let may_begin = self.files.may_begin();
                take_in_short_spans(&mut slot.outbox, may_begin, |took| self.files.begun_early(took));
                // As long as few have something to do, it is worth a receive that finds nothing yet.
                if self.is_quiet && self.presumed.len() < QUIET_MAX && self.send_and_receive(key)? {
                    return Ok(());
                }
                self.send(key)
            }
            Want::Load(load) => self.begin_load(key, load),
            Want::Shutdown => {
                let entry = opcode::Shutdown::new(Fixed(key.index), libc::SHUT_WR).build();
                self.submit(key, Operation::Shutdown, entry)
            }
            Want::Close => {
                self.files.give_back(&mut slot.task);
                let entry = opcode::Close::new(Fixed(key.index)).build();
                self.submit(key, Operation::Close, entry)
            }
        }
    }

    /// Queues an operation of a connection.
    fn submit(&mut self, key: Key, operation: Operation, entry: squeue::Entry) -> io::Result<()> {
        let slot = slot(&mut self.slots, key);
        assert_eq!(slot.in_flight, None);
        slot.in_flight = Some(operation);
        let entry = entry.user_data(Mark { operation, key }.into());
        // SAFETY: what an entry points to belongs to the slot: its outbox's memory or its task, on the heap
        // and thus in place; or it is bytes that are never freed, nor read by anybody. Neither is touched nor
        // dropped while `in_flight` is set, but by `settle`, when the send is done: `turn` and the task's
        // next step only come with the completion, and a slot is only freed by the completion of its close,
        // when nothing of it is in flight. If the loop ends before that, its drop leaks them. Receive buffers
        // belong to the ring.
        unsafe { self.ring.push(&entry) }
    }

    /// Puts off the next step of a load or of sending, in which a disk may be made to begin, until its turn
    /// among what a heavy completion brings, which is as much to do.
    fn await_turn(&mut self, key: Key) {
        let slot = slot(&mut self.slots, key);
        debug_assert_eq!(slot.in_flight, None);
        slot.in_flight = Some(Operation::Turn);
        let user_data = Mark { operation: Operation::Turn, key }.into();
        self.heavy.add_beginning(Completion { user_data, result: 0, flags: 0 });
    }

    /// Those who waited for a load or a place of somebody else's get theirs, and pauses end.
    fn wake_waiting(&mut self) -> io::Result<()> {
        self.call_loads()?;
        let paused = if self.paused_until > self.seat.worker.clock.now() {
            Vec::new()
        } else {
            std::mem::take(&mut self.paused)
        };
        for key in paused {
            // It may stand here twice: it is taken out of the pause by its deadline, too, and paused again.
            if let Some(Slot { task: task @ Task::SendPaused, in_flight: None, .. }) =
                live(&mut self.slots, key)
            {
                *task = Task::None;
                self.send(key)?;
            }
        }
        // Behind all that may have somebody wait for a place.
        self.call_waiting()
    }

    fn expire(&mut self) -> io::Result<()> {
        let now = self.seat.worker.clock.now();
        while let Some((tick, keys)) = self.deadlines.take_due(now) {
            for key in keys {
                let Some(slot) = live(&mut self.slots, key).filter(|slot| slot.entered == tick) else {
                    continue;
                };
                slot.entered = Tick::NEVER;
                let deadline = slot.conn.deadline();
                if deadline > now {
                    self.deadlines.cover(key, deadline, now, &mut slot.entered);
                    continue;
                }
                self.deadlines.cover(key, now.after(LOOK_AGAIN), now, &mut slot.entered);
                match slot.in_flight {
                    Some(operation @ (Operation::Receive | Operation::Writable)) => {
                        slot.late = true;
                        self.cancel(Mark { operation, key })?;
                    }
                    // These end by themselves, and soon.
                    Some(_) => {}
                    // It waits for a disk as well, if not for its own read.
                    None if matches!(slot.task, Task::FileWaiting) => {}
                    // It waits for a pause to end.
                    None => {
                        slot.task = Task::None;
                        self.ask_queued(key)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn cancel(&mut self, mark: Mark) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(mark.into()).build().user_data(ASIDE.into());
        // SAFETY: a cancellation points to nothing.
        unsafe { self.ring.push(&entry) }
    }

    fn watch_shutdown(&mut self) -> io::Result<()> {
        let signal = Mark { operation: Operation::Signal, key: Key::NONE };
        let descriptor = Fd(self.seat.shutdown.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(descriptor, libc::POLLIN as u32).build().user_data(signal.into());
        // SAFETY: a poll points to nothing.
        unsafe { self.ring.push(&entry) }
    }

    /// Stops accepting, and gives idle connections their last second.
    fn drain(&mut self) -> io::Result<()> {
        debug_assert!(self.seat.shutdown.phase() > Phase::Serving);
        self.acceptor.drain(&mut self.ring)?;
        let now = self.seat.worker.clock.now();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot {
                self.seat.worker.hasten(&mut slot.conn);
                let key = Key { index: index as u32, generation: slot.generation };
                self.deadlines.cover(key, slot.conn.deadline(), now, &mut slot.entered);
            }
        }
        Ok(())
    }

    fn accepted(&mut self, number: u32, completion: Completion) -> io::Result<()> {
        let more = cqueue::more(completion.flags);
        let worker = &mut self.seat.worker;
        if let Some((index, peer)) = self.acceptor.completed(number, completion.result, more, worker)? {
            self.open(index, peer)?;
        }
        self.arm_acceptor()
    }

    fn arm_acceptor(&mut self) -> io::Result<()> {
        let room = self.seat.connections_max.saturating_sub(self.connections);
        self.acceptor.arm(&mut self.ring, &self.seat.listener, room, &mut self.seat.worker)
    }

    /// Who waits in the backlog already has a connection as far as he can tell, and is served. Then the
    /// listener ends. This is the one place with an accept(2): the ring's own would wait for more to come.
    fn empty_backlog(&mut self) -> io::Result<()> {
        self.seat.listener.set_nonblocking(true)?;
        let mut free = 0;
        let wants_peers = self.seat.worker.wants_peers();
        while let Some((stream, peer)) =
            next_waiting(|| calls::accept(&self.seat.listener, SocketFlags::empty(), wants_peers))
        {
            while self.slots.get(free).is_some_and(Option::is_some) {
                free += 1;
            }
            let index = u32::try_from(free).expect("there are fewer slots than descriptors");
            // Where the table is full he is turned away after all.
            if self.ring.install(index, &stream).is_ok() {
                self.open(index, peer)?;
            }
            calls::close(stream);
        }
        self.acceptor.end();
        Ok(calls::shutdown(&self.seat.listener, rustix::net::Shutdown::Both)?)
    }

    fn open(&mut self, index: u32, peer: Option<IpAddr>) -> io::Result<()> {
        self.generation = Key::next(self.generation);
        let mut conn = Connection::new(peer);
        let want = self.seat.worker.accepted(&mut conn);
        let slot = Slot {
            conn,
            outbox: Outbox::default(),
            generation: self.generation,
            entered: Tick::NEVER,
            in_flight: None,
            late: false,
            then_close: false,
            installed: None,
            task: Task::None,
        };
        let at = index as usize;
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, || None);
        }
        if let Some(slot) = &self.slots[at] {
            // On some kernels a descriptor is given out again before the completion of its close is seen.
            debug_assert_eq!(slot.in_flight, Some(Operation::Close), "a descriptor was given out twice");
            self.connection_ended();
        }
        self.slots[at] = Some(Box::new(slot));
        self.connections += 1;
        self.carry_out(Key { index, generation: self.generation }, want)
    }

    fn connection_ended(&mut self) {
        self.connections -= 1;
        calls::connections_ended(1);
    }
}

impl Drop for Loop<'_> {
    /// Cut short, or broken, there may be operations in flight. The kernel ends them, and closes the sockets,
    /// some time after the ring is closed; so the memory it works on must stay, and is given up, not freed.
    fn drop(&mut self) {
        calls::connections_ended(self.connections);
        if self.connections > 0 || self.acceptor.is_in_flight() {
            // These are not the ring's: they would keep clients waiting for ever.
            for slot in self.slots.iter_mut().flatten() {
                slot.installed = None;
            }
            self.ring.leak_buffers();
            self.acceptor.leak_addresses();
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// Takes an empty outbox from a connection: idle, it holds no memory.
fn take_back(outbox: &mut Outbox, spare: &mut Vec<Outbox>) {
    debug_assert!(outbox.is_empty());
    let outbox = std::mem::take(outbox);
    if spare.len() < SPARE_MAX {
        spare.push(outbox);
    }
}

/// The slot of a connection, if that connection is still the one.
fn live(slots: &mut [Option<Box<Slot>>], key: Key) -> Option<&mut Slot> {
    let slot = slots.get_mut(key.index as usize)?.as_deref_mut()?;
    (slot.generation == key.generation).then_some(slot)
}

/// The slot of a connection that something was in flight for, so that it cannot be gone.
fn slot(slots: &mut [Option<Box<Slot>>], key: Key) -> &mut Slot {
    live(slots, key).expect("a slot is freed when its last completion is in")
}
