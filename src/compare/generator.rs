//! The load generator: one thread, one loop, over any number of connections.
//!
//! It must be lighter than what it measures. So requests are prebuilt bytes, responses are read only as far
//! as their length, and bodies are thrown away in the kernel (`MSG_TRUNC`, tcp(7)), but for those samples
//! whose hash is compared with the file's. What varies is a value, the [`Pace`] and the [`Stop`]; the loop is
//! one.
//!
//! Every response is checked: its status, its length, now and then its bytes. A check that fails is an error
//! of the run, and so is a connection that ends too early or on which nothing comes any more.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

// By another name, for `epoll` is an engine's.
use queue::{EventData, EventFlags};
use rustix::event::epoll as queue;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use twox_hash::XxHash3_64;

use super::load::{Clients, Outcome, Rhythm, Target};
use super::response::{Event, Known, Parser};
use super::schedule::{Pace, Stop};

/// Bytes asked of the kernel at once where they are thrown away. They are never written to.
const DISCARD_MAX: usize = 4 << 20;
/// Bytes read at once otherwise.
const READ_MAX: usize = 64 * 1024;
/// Bytes read at once where a large body follows that is to be thrown away.
const READ_HEAD: usize = 1024;
/// A body larger than this is not read together with its head.
const BODY_WITH_HEAD: u64 = 8 * 1024;
/// Pieces of one connection that are read before the others have their turn.
const READS_PER_TURN: usize = 16;
/// One in so many responses has its body compared.
const SAMPLE_EVERY: u64 = 64;
/// The same for bodies too large to be compared often.
const SAMPLE_EVERY_LARGE: u64 = 512;
/// How long answers under way may take when the load has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// A server from which nothing has come for so long is taken for stuck.
const STUCK: Duration = Duration::from_secs(10);
/// How often the loop looks up even if nothing happens.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A run with so many errors shows nothing any more.
const ERRORS_MAX: u64 = 1000;
/// How often the hot client asks.
const HOT_RATE: f64 = 1000.0;
/// Idle clients that are connected at once, so that no backlog overflows.
const SETTLE_BATCH: usize = 64;
/// What is told of every connection. Room to send is asked about only once there was none.
const WATCHED: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);
/// Stands for the timer where other events have the number of a connection.
const TIMER: u64 = u64::MAX;

/// Clients, connected.
pub struct Generator<'a> {
    address: SocketAddr,
    clients: Clients,
    targets: &'a [Target],
    interrupted: &'a AtomicBool,
    epoll: OwnedFd,
    timer: OwnedFd,
    connections: Vec<Connection>,
    known: Known,
    buffer: Vec<u8>,
    events: Vec<queue::Event>,
    scratch: Vec<u8>,
    /// Connections on which more may be read at once.
    again: Vec<usize>,
    /// Connections that have failed, and how many requests each of them may send anew.
    retry: Vec<(usize, usize)>,
    /// Connections that have room for a request, at a fixed rate: one mention per request.
    free: VecDeque<usize>,
    rhythm: Option<Rhythm>,
    hot_rhythm: Option<Rhythm>,
    pace: Pace,
    /// Requests that may still be sent.
    budget: u64,
    next_target: usize,
    in_flight: usize,
    /// Idle clients who have had their one answer.
    settled: usize,
    last_byte: Instant,
    checked: u64,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Active,
    Idle,
    Hot,
}

struct Connection {
    kind: Kind,
    socket: Option<OwnedFd>,
    parser: Parser,
    /// Requests that wait for their responses, in order.
    pending: VecDeque<Pending>,
    /// Responses that have ended, and for which no new request was sent yet.
    owed: usize,
    /// What the kernel would not take yet.
    unsent: Vec<u8>,
    /// The hash of the present body, if it is a sample.
    sample: Option<Box<XxHash3_64>>,
    /// The present response is the last.
    closing: bool,
    heard_at: Instant,
}

#[derive(Clone, Copy)]
struct Pending {
    since: Instant,
    target: usize,
}

impl<'a> Generator<'a> {
    /// Connects all clients, and lets each idle one ask once.
    ///
    /// # Errors
    /// What the system refuses; that nobody listens.
    pub fn connect(
        address: SocketAddr,
        clients: Clients,
        targets: &'a [Target],
        interrupted: &'a AtomicBool,
    ) -> Result<Generator<'a>, String> {
        let refused = |error: Errno| format!("cannot make an event queue: {error}");
        let epoll = queue::create(queue::CreateFlags::CLOEXEC).map_err(refused)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(refused)?;
        queue::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)
            .map_err(refused)?;
        let now = Instant::now();
        let kinds = std::iter::repeat_n(Kind::Active, clients.active)
            .chain(std::iter::repeat_n(Kind::Idle, clients.idle))
            .chain(clients.hot.then_some(Kind::Hot));
        let mut generator = Generator {
            address,
            clients,
            targets,
            interrupted,
            epoll,
            timer,
            connections: kinds.map(|kind| Connection::new(kind, now)).collect(),
            known: Known::default(),
            buffer: vec![0; DISCARD_MAX],
            events: Vec::with_capacity(1024),
            scratch: Vec::new(),
            again: Vec::new(),
            retry: Vec::new(),
            free: VecDeque::new(),
            rhythm: None,
            hot_rhythm: None,
            pace: Pace::Closed,
            budget: 0,
            next_target: usize::from(clients.hot),
            in_flight: 0,
            settled: 0,
            last_byte: now,
            checked: 0,
            outcome: Outcome::default(),
        };
        generator.settle_idle()?;
        Ok(generator)
    }

    /// Idle clients that are connected and have been served.
    pub fn idle(&self) -> usize {
        self.settled
    }

    /// Loads the server until it is time to stop, and waits for what is under way then.
    pub fn drive(&mut self, pace: Pace, stop: Stop) -> Outcome {
        let begin = Instant::now();
        let cpu = thread_cpu();
        self.outcome = Outcome::default();
        self.last_byte = begin;
        self.pace = pace;
        let (end, budget) = match stop {
            Stop::After(time) => (Some(begin + time), u64::MAX),
            Stop::Requests(requests) => (None, requests),
        };
        self.budget = budget;
        self.start(begin);
        loop {
            self.turn();
            let now = Instant::now();
            let over = match end {
                Some(end) => now >= end,
                None => self.budget == 0 && self.in_flight == 0,
            };
            if over || self.is_hopeless(now) {
                break;
            }
        }
        self.finish(end);
        self.outcome.elapsed = self.last_byte.max(end.unwrap_or(begin)) - begin;
        self.outcome.cpu = thread_cpu() - cpu;
        std::mem::take(&mut self.outcome)
    }

    /// Has every idle client ask once. Who is not answered soon is left waiting: the engine has no room.
    fn settle_idle(&mut self) -> Result<(), String> {
        let all = self.clients.active + self.clients.idle;
        self.budget = self.clients.idle as u64;
        for begin in (self.clients.active..all).step_by(SETTLE_BATCH) {
            let end = (begin + SETTLE_BATCH).min(all);
            for number in begin..end {
                self.submit(number, 1, Instant::now());
            }
            let patience = Instant::now() + DRAIN;
            let wanted = end - self.clients.active;
            while self.settled < wanted && self.outcome.errors == 0 && Instant::now() < patience {
                self.turn();
            }
            if self.settled < wanted {
                break;
            }
        }
        self.abandon();
        self.retry.clear();
        match self.outcome.first_error.take() {
            Some(error) if self.settled == 0 => Err(error),
            _ => Ok(()),
        }
    }

    fn start(&mut self, now: Instant) {
        for connection in &mut self.connections {
            connection.heard_at = now;
        }
        self.free.clear();
        match self.pace {
            Pace::Closed => {
                for number in 0..self.clients.active {
                    self.submit(number, self.clients.pipeline, now);
                }
            }
            Pace::Fixed { rate } => {
                self.rhythm = Some(Rhythm::new(now, rate));
                for _ in 0..self.clients.pipeline {
                    self.free.extend(0..self.clients.active);
                }
            }
        }
        self.hot_rhythm = self.clients.hot.then(|| Rhythm::new(now, HOT_RATE));
    }

    /// Waits for events, and does what they allow.
    fn turn(&mut self) {
        for (number, count) in std::mem::take(&mut self.retry) {
            self.release(number, count, Instant::now());
        }
        self.send_due(Instant::now());
        let mut events = std::mem::take(&mut self.events);
        let timeout = if self.again.is_empty() { LOOK_UP } else { Timespec { tv_sec: 0, tv_nsec: 0 } };
        let room = rustix::buffer::spare_capacity(&mut events);
        // An interrupted wait has brought no events; the loop looks at the reason.
        let _ = queue::wait(&self.epoll, room, Some(&timeout));
        for event in events.drain(..) {
            let number = event.data.u64();
            if number != TIMER {
                self.serve(number as usize, event.flags);
            }
        }
        self.events = events;
        for number in std::mem::take(&mut self.again) {
            self.serve(number, EventFlags::IN);
        }
    }

    fn serve(&mut self, number: usize, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) && !self.connections[number].unsent.is_empty() {
            self.flush(number);
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.receive(number, flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR));
        }
    }

    /// Sends what is due, at a fixed rate, as long as there are connections with room.
    fn send_due(&mut self, now: Instant) {
        let mut wake = None;
        if let Some(mut rhythm) = self.rhythm {
            while rhythm.next() <= now && self.budget > 0 {
                let Some(number) = self.free.pop_front() else { break };
                self.submit(number, 1, rhythm.take());
            }
            wake = (!self.free.is_empty()).then(|| rhythm.next());
            self.rhythm = Some(rhythm);
        }
        if let Some(mut rhythm) = self.hot_rhythm {
            let hot = self.connections.len() - 1;
            if self.connections[hot].pending.is_empty() {
                if rhythm.next() <= now {
                    self.submit(hot, 1, rhythm.take());
                } else {
                    wake = Some(wake.unwrap_or(rhythm.next()).min(rhythm.next()));
                }
            }
            self.hot_rhythm = Some(rhythm);
        }
        if let Some(wake) = wake {
            self.set_timer(wake.saturating_duration_since(now));
        }
    }

    fn set_timer(&self, time: Duration) {
        // Zero would switch it off.
        let nanoseconds = time.as_nanos().max(1) as i64;
        let value = Timespec { tv_sec: nanoseconds / 1_000_000_000, tv_nsec: nanoseconds % 1_000_000_000 };
        let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let set = Itimerspec { it_interval: interval, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &set).expect("the time is a valid one");
    }

    /// Sends so many requests on a connection, which is made first if there is none.
    fn submit(&mut self, number: usize, count: usize, since: Instant) {
        let connection = &mut self.connections[number];
        let hot = connection.kind == Kind::Hot;
        let count = if hot { count } else { count.min(usize::try_from(self.budget).unwrap_or(usize::MAX)) };
        if count == 0 {
            return;
        }
        self.scratch.clear();
        for _ in 0..count {
            let target = if connection.kind == Kind::Active { self.next_target } else { 0 };
            if connection.kind == Kind::Active {
                self.next_target += 1;
                if self.next_target == self.targets.len() {
                    // The first target is the hot client's, where there is one.
                    self.next_target = usize::from(self.clients.hot);
                }
            }
            self.scratch.extend_from_slice(&self.targets[target].request);
            connection.pending.push_back(Pending { since, target });
        }
        if !hot {
            self.budget -= count as u64;
            self.in_flight += count;
        }
        self.transmit(number);
    }

    /// Sends what stands in `scratch`.
    fn transmit(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        if connection.socket.is_none() {
            match open(self.address, &self.epoll, number, self.clients.keep_alive) {
                Ok(socket) => connection.socket = Some(socket),
                Err(error) => return self.fail(number, &format!("cannot connect: {error}")),
            }
        }
        let socket = connection.socket.as_ref().expect("it was just made");
        if !connection.unsent.is_empty() {
            connection.unsent.extend_from_slice(&self.scratch);
            return;
        }
        let sent = match rustix::net::send(socket, &self.scratch, SendFlags::NOSIGNAL) {
            Ok(sent) => sent,
            // The connection is still being made, or the server reads more slowly than we write.
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return self.fail(number, &format!("cannot send: {error}")),
        };
        if sent < self.scratch.len() {
            connection.unsent.extend_from_slice(&self.scratch[sent..]);
            let flags = WATCHED | EventFlags::OUT;
            if let Err(error) = queue::modify(&self.epoll, socket, EventData::new_u64(number as u64), flags) {
                self.fail(number, &format!("cannot wait for room: {error}"));
            }
        }
    }

    fn flush(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        let Some(socket) = &connection.socket else { return };
        match rustix::net::send(socket, &connection.unsent, SendFlags::NOSIGNAL) {
            Ok(sent) => drop(connection.unsent.drain(..sent)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => self.fail(number, &format!("cannot send: {error}")),
        }
    }

    /// Reads until there is nothing more. `ended`: the kernel has said that the other side is done.
    fn receive(&mut self, number: usize, ended: bool) {
        for reads in 1.. {
            let connection = &self.connections[number];
            let Some(socket) = &connection.socket else { return };
            let left = connection.parser.left();
            let discard = connection.sample.is_none() && left > 0;
            let (limit, flags) = if discard {
                (DISCARD_MAX.min(usize::try_from(left).unwrap_or(usize::MAX)), RecvFlags::TRUNC)
            } else if left == 0 && self.expects_large(connection) {
                (READ_HEAD, RecvFlags::empty())
            } else {
                (READ_MAX, RecvFlags::empty())
            };
            match rustix::net::recv(socket, &mut self.buffer[..limit], flags).map(|(_, n)| n) {
                Ok(0) => {
                    self.peer_closed(number);
                    break;
                }
                Ok(n) => {
                    let now = Instant::now();
                    self.last_byte = now;
                    self.outcome.bytes += n as u64;
                    self.connections[number].heard_at = now;
                    if let Err(error) = self.take_in(number, n, discard, now) {
                        return self.fail(number, &error);
                    }
                    if n < limit && !ended {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return self.fail(number, &format!("the connection broke: {error}")),
            }
            if reads == READS_PER_TURN {
                self.again.push(number);
                break;
            }
        }
        self.go_on(number);
    }

    fn expects_large(&self, connection: &Connection) -> bool {
        connection.pending.front().is_some_and(|next| self.targets[next.target].length > BODY_WITH_HEAD)
    }

    /// Takes in `n` bytes of the buffer.
    fn take_in(&mut self, number: usize, n: usize, discard: bool, now: Instant) -> Result<(), String> {
        let Generator { connections, known, buffer, targets, outcome, checked, in_flight, .. } = self;
        let connection = &mut connections[number];
        let mut input = &buffer[..n];
        if discard {
            connection.parser.discard(n as u64);
            input = &[];
        }
        while let Some(event) = connection.parser.next(known, &mut input)? {
            let Some(&Pending { since, target }) = connection.pending.front() else {
                return Err("a response to nothing".into());
            };
            let target = &targets[target];
            match event {
                Event::Head(head) => {
                    if head.status != 200 {
                        return Err(format!("status {} instead of 200", head.status));
                    }
                    if head.length != target.length {
                        return Err(format!("{} bytes instead of {}", head.length, target.length));
                    }
                    connection.closing = head.close || !self.clients.keep_alive;
                    let large = head.length > READ_MAX as u64;
                    let every = if large { SAMPLE_EVERY_LARGE } else { SAMPLE_EVERY };
                    if target.hash.is_some() && checked.is_multiple_of(every) {
                        connection.sample = Some(Box::default());
                    }
                    *checked += 1;
                }
                Event::Body(bytes) => {
                    if let Some(sample) = &mut connection.sample {
                        sample.write(bytes);
                    }
                }
                Event::End => {
                    if connection.sample.take().is_some_and(|sample| Some(sample.finish()) != target.hash) {
                        return Err("a body that is not the file's".into());
                    }
                    connection.pending.pop_front();
                    connection.owed += 1;
                    let nanoseconds = (now - since).as_nanos() as u64;
                    if connection.kind == Kind::Hot {
                        outcome.hot.saturating_record(nanoseconds);
                    } else {
                        *in_flight -= 1;
                        outcome.requests += 1;
                        outcome.latency.saturating_record(nanoseconds);
                    }
                }
            }
        }
        Ok(())
    }

    /// The server has closed: as it said it would, or for want of questions, or too early.
    fn peer_closed(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        if !connection.parser.is_between() || !(connection.closing || connection.pending.is_empty()) {
            return self.fail(number, "the connection ended before the response did");
        }
        if connection.kind == Kind::Idle {
            self.settled -= 1;
        }
        connection.hang_up();
    }

    /// Does what comes next on a connection that was read.
    fn go_on(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        // Who closes first keeps the port for a minute. That is to be the server, so its end is waited for.
        if connection.owed == 0 || (connection.closing && connection.socket.is_some()) {
            return;
        }
        let owed = std::mem::take(&mut connection.owed);
        let mut now = self.last_byte;
        if connection.socket.is_none() {
            now = Instant::now();
            if !connection.pending.is_empty() {
                // The server has had its number of requests on that connection; the others come anew.
                self.scratch.clear();
                for pending in &connection.pending {
                    self.scratch.extend_from_slice(&self.targets[pending.target].request);
                }
                self.transmit(number);
            }
        }
        self.release(number, owed, now);
    }

    /// A connection has room for so many requests more.
    fn release(&mut self, number: usize, count: usize, now: Instant) {
        match (self.connections[number].kind, self.pace) {
            (Kind::Idle, _) => self.settled += count,
            (Kind::Hot, _) => {}
            (Kind::Active, Pace::Closed) => self.submit(number, count, now),
            (Kind::Active, Pace::Fixed { .. }) => self.free.extend(std::iter::repeat_n(number, count)),
        }
    }

    /// A request has gone wrong, and with it all that were sent behind it.
    fn fail(&mut self, number: usize, error: &str) {
        let connection = &mut self.connections[number];
        let lost = connection.pending.len();
        if connection.kind != Kind::Hot {
            self.in_flight -= lost;
        }
        if connection.kind != Kind::Idle {
            self.retry.push((number, lost + connection.owed));
        }
        connection.pending.clear();
        connection.owed = 0;
        connection.hang_up();
        self.outcome.errors += lost.max(1) as u64;
        self.outcome.first_error.get_or_insert_with(|| error.to_owned());
    }

    /// Whether to go on would show nothing more.
    fn is_hopeless(&self, now: Instant) -> bool {
        self.interrupted.load(Ordering::Relaxed)
            || self.outcome.errors >= ERRORS_MAX
            || (self.in_flight > 0 && now - self.last_byte > STUCK)
    }

    /// Sends nothing more, and waits for what is under way.
    fn finish(&mut self, end: Option<Instant>) {
        let begin = Instant::now();
        self.budget = 0;
        for (rhythm, hot) in [(self.rhythm.take(), false), (self.hot_rhythm.take(), true)] {
            let (Some(mut rhythm), end) = (rhythm, end.unwrap_or(begin)) else { continue };
            // What was due and could not be sent has waited so long already.
            while rhythm.next() < end {
                let waited = (end - rhythm.take()).as_nanos() as u64;
                if hot {
                    self.outcome.hot.saturating_record(waited);
                } else {
                    self.outcome.behind += 1;
                    self.outcome.latency.saturating_record(waited);
                }
            }
        }
        let is_interrupted = || self.interrupted.load(Ordering::Relaxed);
        let patience = begin + DRAIN;
        if is_interrupted() {
            return self.abandon();
        }
        while self.in_flight > 0 && Instant::now() < patience && self.outcome.errors < ERRORS_MAX {
            self.turn();
        }
        // A large body that is still coming is no error; silence is.
        let silent = |connection: &&Connection| {
            connection.kind == Kind::Active && !connection.pending.is_empty() && connection.heard_at < begin
        };
        let silent: usize =
            self.connections.iter().filter(silent).map(|connection| connection.pending.len()).sum();
        if silent > 0 {
            self.outcome.errors += silent as u64;
            self.outcome.first_error.get_or_insert_with(|| format!("no answer for {DRAIN:?}"));
        }
        self.abandon();
    }

    /// Gives up what is under way.
    fn abandon(&mut self) {
        for connection in &mut self.connections {
            // One that the server is about to close would take the next request with it.
            if connection.closing || !connection.pending.is_empty() {
                connection.pending.clear();
                connection.hang_up();
            }
            connection.owed = 0;
        }
        self.in_flight = 0;
        self.again.clear();
    }
}

impl Connection {
    fn new(kind: Kind, now: Instant) -> Connection {
        Connection {
            kind,
            socket: None,
            parser: Parser::default(),
            pending: VecDeque::new(),
            owed: 0,
            unsent: Vec::new(),
            sample: None,
            closing: false,
            heard_at: now,
        }
    }

    fn hang_up(&mut self) {
        self.socket = None;
        self.parser = Parser::default();
        self.unsent.clear();
        self.sample = None;
        self.closing = false;
    }
}

/// Begins to connect.
fn open(address: SocketAddr, epoll: &OwnedFd, number: usize, keep_alive: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    if keep_alive {
        // A request must not wait for the acknowledgement of the one before it.
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error),
    }
    queue::add(epoll, &socket, EventData::new_u64(number as u64), WATCHED)?;
    Ok(socket)
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests;
