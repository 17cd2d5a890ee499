//! The I/O models, each an engine in a file of its own, and the table that lists them.
//!
//! Every engine serves the same [`Worker`]; they differ in how one thread waits for many clients. An engine
//! does what a connection [wants](crate::serve::Want), and nothing else: it parses nothing and decides
//! nothing about HTTP. To add one, write its file and add a line to [`ENGINES`]; help, tests and comparisons
//! walk the table.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::clock::Tick;
use crate::observe::counters::Counter;
use crate::serve::Worker;
use crate::shutdown::Shutdown;

mod blocking;
mod calls;
mod crew;
mod crowd;
mod epoll;
mod epoll_level;
mod family;
mod helpers;
mod interests;
mod one_client;
mod poll;
mod processes;
mod queue;
mod resident;
mod select;
mod session;
mod spin;
mod tasks;
mod threads;
mod tokio;
mod tokio_uring;
mod transfer;
pub mod uring;

pub use family::Family;

/// Every engine, in the order in which help and tests show them.
pub static ENGINES: &[Engine] = &[
    blocking::ENGINE,
    processes::ENGINE,
    threads::ENGINE,
    spin::ENGINE,
    select::ENGINE,
    poll::ENGINE,
    epoll_level::ENGINE,
    epoll::ENGINE,
    tokio::ENGINE,
    tokio_uring::ENGINE,
    uring::ENGINE,
];

/// For each piece of news that brings much to do, so many that bring little have their turn.
const LIGHT_PER_HEAVY: usize = 32;
/// To load or to send on so many bytes of a file is as much to do as answering many requests.
const HEAVY_MIN: u64 = 64 * 1024;
/// Clients the kernel may have waiting for us to accept them; it takes no more than net.core.somaxconn.
pub const BACKLOG: usize = 4096;
/// How long accepting pauses when there is no room for another connection, unless one ends before.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often a draining thread looks whether it is to cut what is left.
const CUT_CHECK: Duration = Duration::from_millis(50);

/// The engine `auto` takes where the kernel permits it, and the one it takes elsewhere.
pub const AUTO: (&Engine, &Engine) = (&uring::ENGINE, &epoll::ENGINE);

/// For what few ask, beside the others: the simplest that has one thread serve several clients.
pub const SIMPLEST: &Engine = &poll::ENGINE;

/// An I/O model.
#[derive(Debug)]
pub struct Engine {
    /// What `--engine` calls it.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// What it does while it waits.
    pub family: Family,
    /// How many threads run it.
    pub threads: Threads,
    /// What the model cannot do.
    pub capabilities: Capabilities,
    /// Whether [`Counter::SystemCalls`](crate::observe::counters::Counter) has all of its system calls for
    /// what is in the cache. The calls that a runtime makes of itself are not seen. With none are those seen
    /// by which the content is looked at and held, once in a while.
    pub runtime_counted: bool,
    /// Whether this kernel lets it run: tried, not guessed from a version.
    pub available: fn() -> Result<(), Refusal>,
    /// Serves until the shutdown is over. It says [`Seat::ready`] once it holds all that it needs.
    pub run: fn(&mut Seat) -> io::Result<()>,
}

/// How many threads run an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One; the model knows no more.
    One,
    /// One per core, or as many as `--workers` says, each with a listener of its own.
    PerCore,
    /// One that accepts, and one more for each client, be it a process. Threads share one store of entries.
    PerConnection,
}

/// What a model cannot do, said beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Clients served at once; a further one waits until one of them leaves.
    pub clients_max: Option<usize>,
    /// The largest descriptor the process can have. Clients wait where there is none below it.
    pub descriptor_max: Option<usize>,
    /// Descriptors that each of its threads takes for itself, beyond the few that every engine takes.
    pub own_descriptors: usize,
    /// Whether it uses no processor while there is nothing to do.
    pub sleeps: bool,
}

impl Capabilities {
    /// Of an engine that can do everything.
    const UNLIMITED: Capabilities =
        Capabilities { clients_max: None, descriptor_max: None, own_descriptors: 0, sleeps: true };
}

/// Why an engine cannot run here, and what would let it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was refused, and by what.
    pub cause: String,
    /// What would allow it.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}; to allow it: {}", self.cause, self.remedy)
    }
}

/// One thing that the engine `auto` prefers asks of the kernel, and what came of it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The system call, operation or flag.
    pub step: &'static str,
    /// Whether the engine relies on it; else it only profits.
    pub needed: bool,
    /// Whether it was had; if not, who is to blame, as far as can be seen.
    pub result: Result<(), (Culprit, Refusal)>,
}

/// Who refuses something to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The kernel does not know it, or is built without it.
    Kernel,
    /// `kernel.io_uring_disabled`.
    Sysctl,
    /// The process's filter of system calls.
    Seccomp,
    /// A security module.
    Module,
    /// The limit on memory that may be locked.
    Memlock,
    /// The limit on descriptors.
    Descriptors,
    /// It cannot be seen from inside.
    Unknown,
}

/// Tries all that the engine `auto` prefers asks of the kernel, with so many threads. The list ends where it
/// is refused what it relies on, for the rest cannot be tried then.
pub fn try_preferred(threads: usize) -> Vec<Trial> {
    uring::trials(threads)
}

/// What one engine thread is given.
pub struct Seat {
    /// Where clients come from. Lent, so that another engine can take over if this one breaks.
    pub listener: TcpListener,
    /// Answers them.
    pub worker: Worker,
    /// When to stop.
    pub shutdown: Arc<Shutdown>,
    /// Connections this thread may hold at once; beyond it, accepting pauses.
    pub connections_max: usize,
    /// Loads it may have under way at once: each holds a descriptor, and the memory of a body.
    pub loads_max: usize,
    /// Says that the thread has all it needs, and waits for the others; see [`Seat::ready`].
    pub start: Start,
}

/// The line at which all engine threads wait for each other.
pub type Start = Box<dyn FnMut() -> bool + Send>;

impl Seat {
    /// The engine holds all that it needs: waits until every thread does. `false`: one of them does not, and
    /// this engine must return without serving.
    pub fn ready(&mut self) -> bool {
        (self.start)()
    }
}

/// The engine of that name.
pub fn by_name(name: &str) -> Option<&'static Engine> {
    ENGINES.iter().find(|engine| engine.name == name)
}

/// An engine that needs nothing a kernel could refuse.
fn always_available() -> Result<(), Refusal> {
    Ok(())
}

/// Tells the operator that accepting pauses, once a minute at the most.
#[derive(Debug, Default)]
struct PauseNote {
    quiet_until: Tick,
}

impl PauseNote {
    /// There are as many connections as there may be.
    fn pause_full(&mut self, worker: &mut Worker, connections_max: usize) {
        self.pause(worker, &format!("there are {connections_max}, as many as there may be"));
    }

    fn pause(&mut self, worker: &mut Worker, why: &str) {
        worker.tally.add(Counter::AcceptPauses, 1);
        // Some do nothing else until the pause is over.
        calls::publish(worker);
        let now = worker.clock.now();
        if self.quiet_until <= now {
            self.quiet_until = now.after(Duration::from_secs(60));
            tracing::warn!("accepting pauses, for there is no room for another connection: {why}");
        }
    }
}

/// The next who waits in the backlog when the server ends, if anybody does. Who has gone is passed over.
fn next_waiting<T>(mut accept: impl FnMut() -> Result<T, Errno>) -> Option<T> {
    for _ in 0..BACKLOG {
        match accept() {
            Ok(client) => return Some(client),
            Err(errno) if AcceptError::of(errno) == AcceptError::Passing => {}
            Err(_) => break,
        }
    }
    None
}

/// What an error of `accept(2)` means for the accepting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptError {
    /// Nobody is waiting.
    Empty,
    /// That one client has gone or was refused; go on.
    Passing,
    /// There are no descriptors or there is no memory for another: wait until a connection ends.
    Exhausted,
    /// The listener itself is broken.
    Broken,
}

impl AcceptError {
    fn of(errno: Errno) -> AcceptError {
        match errno {
            Errno::AGAIN => AcceptError::Empty,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => AcceptError::Exhausted,
            Errno::BADF | Errno::NOTSOCK | Errno::INVAL | Errno::OPNOTSUPP | Errno::FAULT => {
                AcceptError::Broken
            }
            // accept(2): Linux passes network errors of the new socket on; they are to be treated like
            // EAGAIN.
            _ => AcceptError::Passing,
        }
    }
}
