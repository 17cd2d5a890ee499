//! From options to a running server: listeners, engine threads, and the end.

use std::env;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{PTracer, Pid, Signal, getppid, set_parent_process_death_signal, set_ptracer};
use signal_hook::iterator::Signals;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cgroup;
use crate::cli::{EngineChoice, Options};
use crate::content::Site;
use crate::content::cache::Budget;
use crate::content::site::Rules;
use crate::descriptors::Descriptors;
use crate::doors::Doors;
use crate::engines::{AUTO, BACKLOG, Engine, Seat, Start, Threads};
use crate::host::{self, ALLOW_MEMLOCK};
use crate::observe::access_log::{self, AccessLog};
use crate::observe::admin::Admin;
use crate::observe::counters::{Board, Counter};
use crate::observe::metrics::{EnginesInUse, Overview};
use crate::program;
use crate::serve::Worker;
use crate::shutdown::{ENDING, Phase, Shutdown};
use crate::sys;

/// Files that a thread may be loading at once, however many descriptors there are.
const LOADS_MAX: usize = 32;
/// Memory of so many bytes and more is not kept when it is free. It is what bodies are read into that do not
/// stay in plain memory: between what does it would leave holes, of which there are more and more.
const GIVEN_BACK_MIN: usize = 9 << 10;
/// Memory for files, where neither an option nor a control group says otherwise.
const CACHE_SIZE: u64 = 256 << 20;
/// How often it is looked whether another folder has come to have the root's name.
const ROOT_CHECK: Duration = Duration::from_secs(1);
/// How long a port may still be in use by a server that was killed: the kernel closes the sockets of a ring
/// some time after its process has gone. And how often that is looked at.
const ENDING_MAX: Duration = Duration::from_millis(500);
const ENDING_CHECK: Duration = Duration::from_millis(10);
/// The kernel is not to take more of an answer ahead than one part in so many of the memory there is.
const UNSENT_SHARE: u64 = 256;
/// It takes no more than that anyway.
const UNSENT_MAX: u64 = 4 << 20;
/// How long a client who sends nothing is not accepted, about.
const DEFER_SECONDS: i32 = 1;
/// How long the threads may take to end that have been told to cut what is left.
const CUT_MAX: Duration = Duration::from_secs(3);
/// How often is looked whether somebody is left in the doorway.
const DOORWAY_CHECK: Duration = Duration::from_millis(20);

/// Serves until a signal ends it. The error is one line for the user.
///
/// # Errors
/// What kept the server from starting, or has broken it.
pub fn run(mut options: Options) -> Result<(), String> {
    if let Some(parent) = options.end_with_parent {
        set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(|error| format!("cannot watch the parent process: {error}"))?;
        // It may have ended before it was watched.
        if getppid() != Pid::from_raw(parent) {
            return Err(format!("the parent process, {parent}, has ended"));
        }
        // Whoever has started this server to measure it may have strace look on, which the security module
        // Yama would otherwise forbid to all but ancestors. Kernels without it do not know the call.
        let _ = Pid::from_raw(parent).map(|parent| set_ptracer(PTracer::ProcessID(parent)));
    }
    let cache_size = options.cache_size.unwrap_or_else(default_cache_size);
    let descriptor_max = match options.engine {
        EngineChoice::Named(engine) => engine.capabilities.descriptor_max,
        EngineChoice::Auto => None,
    };
    let descriptors = Descriptors::raise(descriptor_max, options.connections_max);
    options.rules.memory_max = cache_size.saturating_mul(2);
    options.rules.memory_files_max = descriptors.for_memory();
    options.rules.open_files_max = (descriptors.for_cache() + descriptors.for_answers()) as u64;
    options.rules.shares_looks = !options.fresh_for.is_zero();
    let site = open_site(&options.root, options.rules.clone()).map_err(|obstacle| obstacle.to_string())?;

    let board = match &options.counters_file {
        Some(path) => Board::in_file(path).map_err(|error| {
            format!("cannot count into {}: {error}; give a writable file", path.display())
        })?,
        None => Board::new().map_err(|error| format!("cannot map memory to count in: {error}"))?,
    };

    sys::survive_file_size_limit();
    keep_program();
    let (events, inbox) = channel();
    // From here on a signal is an event, and no longer the end of the process.
    watch_signals(events.clone())?;
    let shutdown =
        Arc::new(Shutdown::new().map_err(|error| format!("cannot make an event descriptor: {error}"))?);
    let (log, log_writer) = match access_log::start(options.access_log, io::stdout()) {
        Ok(started) => started.unzip(),
        Err(error) => return Err(format!("cannot start the access log: {error}")),
    };
    let site = Arc::new(site);
    let launcher = Launcher { options, site, descriptors, cache_size, shutdown, events, log, board };
    let result = launcher.serve(&inbox);
    drop(launcher);
    if let Some(writer) = log_writer {
        writer.join();
    }
    result
}

/// Keeps the program in memory, and says so if that cannot be done where it is needed most.
fn keep_program() {
    let kept = program::keep();
    if !kept.is_all() && cgroup::memory_limit().is_some() {
        tracing::info!(
            "{} of the program's {} KiB can be locked in memory; where memory is short the rest is read from \
             the disk again; to allow it: {ALLOW_MEMLOCK}",
            kept.locked >> 10,
            kept.all >> 10,
        );
    }
}

/// What happens while the server runs.
enum Event {
    Signal(i32),
    /// An engine thread has all it needs.
    Ready,
    /// An engine thread could not get what it needs; its listener comes back.
    Refused(TcpListener, String),
    /// An engine thread has ended.
    Ended(Result<(), String>),
}

struct Launcher {
    options: Options,
    site: Arc<Site>,
    descriptors: Descriptors,
    cache_size: u64,
    shutdown: Arc<Shutdown>,
    events: Sender<Event>,
    log: Option<AccessLog>,
    board: Board,
}

impl Launcher {
    fn serve(&self, inbox: &Receiver<Event>) -> Result<(), String> {
        let refused =
            |engine: &Engine, refusal| format!("the engine {} cannot run here: {refusal}", engine.name);
        let (mut engine, mut why) = match self.options.engine {
            EngineChoice::Named(engine) => {
                (engine.available)().map_err(|refusal| refused(engine, refusal.to_string()))?;
                (engine, "as asked for".to_owned())
            }
            EngineChoice::Auto => match (AUTO.0.available)() {
                Ok(()) => (AUTO.0, "the kernel permits it".to_owned()),
                Err(refusal) => (AUTO.1, fallback_reason(&refusal.to_string())),
            },
        };
        let admin = self.options.admin.as_deref().map(Admin::bind).transpose()?;
        // A worker that may hold no connection would only leave its clients waiting.
        let count = self.threads(engine).min(self.connections_max(engine));
        let mut listeners =
            bind(&self.options.host, self.options.port, count).map_err(|obstacle| obstacle.to_string())?;
        let count = listeners.len();
        // As many as workers, and one more for all who help them, unless somebody has said otherwise.
        if env::var_os("MALLOC_ARENA_MAX").is_none() {
            sys::limit_heaps(count + 1);
        }
        if env::var_os("MALLOC_MMAP_THRESHOLD_").is_none() {
            sys::give_back_from(GIVEN_BACK_MIN);
        }
        let address =
            listeners[0].local_addr().map_err(|error| format!("cannot find the port out: {error}"))?;
        let doors = Doors::of(&listeners).map_err(|error| format!("cannot start: {error}"))?;
        let engines = EnginesInUse::default();
        loop {
            engines.all(count, engine.name, &why);
            match self.start(engine, &engines, listeners, inbox)? {
                Started::All => break,
                // `auto` decides when every worker holds its ring: memory that may be locked is counted per
                // user, so the second worker can be refused what the first has got.
                Started::Refused(refusal, returned)
                    if matches!(self.options.engine, EngineChoice::Auto) && engine.name != AUTO.1.name =>
                {
                    (engine, why, listeners) = (AUTO.1, fallback_reason(&refusal), returned);
                }
                Started::Refused(refusal, _) => return Err(refused(engine, refusal)),
            }
        }
        tracing::info!("engine {}: {why}", engine.name);
        self.watch_root();
        if let Some(admin) = admin {
            let overview = Overview {
                engines,
                workers: count,
                board: self.board,
                site: self.site.clone(),
                shutdown: self.shutdown.clone(),
            };
            let address = admin.address();
            admin
                .serve(overview, self.descriptors.for_admin())
                .map_err(|error| format!("cannot serve --admin: {error}"))?;
            if let Ok(address) = address {
                tracing::info!("admin: http://{address}/healthz, /readyz and /metrics");
            }
        }
        self.announce(engine, &why, count, address);
        self.wait(count, inbox, doors)
    }

    /// Has a thread look for another folder of the root's name now and then.
    fn watch_root(&self) {
        let (site, name) = (self.site.clone(), self.options.root.display().to_string());
        let watch = move || {
            loop {
                std::thread::sleep(ROOT_CHECK);
                // Where there is none at the moment, one may come.
                if site.renew_root().unwrap_or(false) {
                    tracing::info!("{name} is another folder now, and that is served");
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("root".into()).spawn(watch) {
            tracing::warn!("cannot start the thread that looks for another root: {error}");
        }
    }

    /// Starts the threads and waits until each has all it needs. If one has not, none serves.
    fn start(
        &self,
        engine: &'static Engine,
        engines: &EnginesInUse,
        listeners: Vec<TcpListener>,
        inbox: &Receiver<Event>,
    ) -> Result<Started, String> {
        let count = listeners.len();
        let gate = Arc::new(Gate::default());
        for (number, listener) in listeners.into_iter().enumerate() {
            let seat = Seat {
                listener,
                worker: self.worker(engine, number, count),
                shutdown: self.shutdown.clone(),
                connections_max: share(self.connections_max(engine), number, count),
                loads_max: (self.descriptors.for_loads() / count).clamp(1, LOADS_MAX),
                start: start_line(self.events.clone(), gate.clone()),
            };
            let (events, gate) = (self.events.clone(), gate.clone());
            let thread = std::thread::Builder::new().name(format!("{}-{number}", engine.name));
            let (waiting, engines) = (gate.clone(), engines.clone());
            let replaced = move |by: &Engine, why| engines.replace(number, by.name, why);
            thread.spawn(move || run_seat(engine, seat, &waiting, &events, replaced)).map_err(|error| {
                gate.open(false);
                format!("cannot start thread {} of {count}: {error}", number + 1)
            })?;
        }
        let mut ready = 0;
        let mut refusal = String::new();
        let mut returned = Vec::new();
        loop {
            if ready == count {
                gate.open(true);
                return Ok(Started::All);
            }
            if !returned.is_empty() && ready + returned.len() >= count {
                gate.open(false);
            }
            if returned.len() == count {
                return Ok(Started::Refused(refusal, returned));
            }
            match inbox.recv().expect("the launcher holds a sender itself") {
                Event::Ready => ready += 1,
                Event::Refused(listener, error) => {
                    returned.push(listener);
                    if !error.is_empty() {
                        refusal = error;
                    }
                }
                Event::Ended(result) => result?,
                Event::Signal(_) => self.shutdown.advance(Phase::Draining),
            }
        }
    }

    /// Waits for signals and for the threads to end.
    fn wait(&self, count: usize, inbox: &Receiver<Event>, doors: Doors) -> Result<(), String> {
        let mut doors = Some(doors);
        let mut running = count;
        let mut failure = None;
        // When the next phase begins by itself.
        let mut next_phase = match self.shutdown.phase() {
            Phase::Serving => None,
            // A signal came while the threads were starting.
            _ => self.drain(&mut doors),
        };
        while running > 0 {
            let event = match next_phase {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some((when, _)) => inbox.recv_timeout(when.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(Event::Ended(result)) => {
                    running -= 1;
                    // A thread that ends while the others serve has failed; they finish what they have begun.
                    if let Err(error) = result {
                        failure = Some(error);
                        if self.shutdown.phase() == Phase::Serving {
                            next_phase = self.drain(&mut doors);
                        }
                    }
                }
                Ok(Event::Signal(signal)) => {
                    self.shutdown.expect();
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                    next_phase = if next_phase.is_some() || self.shutdown.phase() == Phase::Draining {
                        tracing::warn!("{name} again: cutting what is left");
                        self.begin(Phase::Cut)
                    } else if self.options.shutdown_delay.is_zero() {
                        self.shutdown.announce();
                        tracing::info!("{name}: draining, {:?} at the most", self.options.grace_period);
                        self.drain(&mut doors)
                    } else {
                        tracing::info!("{name}: draining in {:?}", self.options.shutdown_delay);
                        Some((Instant::now() + self.options.shutdown_delay, Phase::Draining))
                    };
                }
                Ok(Event::Ready | Event::Refused(..)) => {}
                Err(_) if self.shutdown.is_cut() => {
                    // Most likely the kernel does not give it back, as where a disk hangs. Whoever has asked
                    // for the end is not to wait for that as well.
                    tracing::warn!("{running} of {count} workers have not ended; ending without them");
                    break;
                }
                Err(_) => {
                    next_phase = if let Some((_, Phase::Draining)) = next_phase {
                        self.drain(&mut doors)
                    } else {
                        tracing::warn!("the grace period is over: cutting what is left");
                        self.begin(Phase::Cut)
                    };
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Begins to drain as soon as nobody is left in the doorway; says what comes next, and when.
    fn drain(&self, doors: &mut Option<Doors>) -> Option<(Instant, Phase)> {
        self.shutdown.announce();
        if doors.as_mut().is_some_and(Doors::close) {
            return Some((Instant::now() + DOORWAY_CHECK, Phase::Draining));
        }
        // A descriptor kept would keep the listener open.
        *doors = None;
        self.begin(Phase::Draining)
    }

    /// Begins a phase; says when the next one begins by itself.
    fn begin(&self, phase: Phase) -> Option<(Instant, Phase)> {
        self.shutdown.advance(phase);
        match phase {
            Phase::Draining => Some((Instant::now() + self.options.grace_period, Phase::Cut)),
            Phase::Cut => Some((Instant::now() + CUT_MAX, Phase::Cut)),
            Phase::Serving => None,
        }
    }

    fn worker(&self, engine: &Engine, number: usize, count: usize) -> Worker {
        let budget = Budget {
            bytes: usize::try_from(self.cache_size).unwrap_or(usize::MAX) / count,
            descriptors: (self.descriptors.for_cache() / count).max(1),
            fresh_for: self.options.fresh_for,
        };
        let worker = Worker::new(
            self.site.clone(),
            budget,
            self.options.limits.clone(),
            self.shutdown.draining(),
            self.log.clone(),
            self.board.tally(number),
        );
        if engine.threads == Threads::PerConnection { worker.sharing() } else { worker }
    }

    fn threads(&self, engine: &Engine) -> usize {
        match engine.threads {
            Threads::One | Threads::PerConnection => 1,
            Threads::PerCore => self.options.workers.unwrap_or_else(cgroup::cpus),
        }
    }

    fn connections_max(&self, engine: &Engine) -> usize {
        let admin = if self.options.admin.is_some() { self.descriptors.for_admin() } else { 0 };
        let possible = self.descriptors.for_clients(engine, self.threads(engine), admin);
        self.options.connections_max.map_or(possible, |max| max.min(possible))
    }

    fn announce(&self, engine: &Engine, why: &str, count: usize, address: SocketAddr) {
        let plural = if count == 1 { "" } else { "s" };
        let root = self.options.root.display();
        let mut text =
            format!("ringserve serves {root} with {} ({why}), {count} worker{plural}\n", engine.name);
        for host in shown_hosts(address.ip()) {
            text += &format!("http://{}/\n", SocketAddr::new(host, address.port()));
        }
        // Nobody need read it.
        let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    }
}

/// One listener for each thread, all on one port. The kernel spreads the clients over them.
pub(crate) fn bind(host: &str, port: u16, count: usize) -> Result<Vec<TcpListener>, Obstacle> {
    let mut address = resolve(host, port)?;
    let mut first = listen(address);
    if let Err(error) = &first
        && host::lacks_ipv6(address.ip(), error)
    {
        tracing::warn!("IPv6 is off on this machine; listening on 0.0.0.0 instead of ::");
        address.set_ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        first = listen(address);
    }
    let cannot = |error: io::Error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another server has it; choose another with --port, or 0 for a free one"
            }
            _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                "raise the limit on descriptors, as in ulimit -n 1024"
            }
            io::ErrorKind::PermissionDenied => "ports below 1024 want privileges; choose another with --port",
            _ => "choose an address of this machine with --host",
        };
        Obstacle { cause: format!("cannot listen on {address}: {error}"), advice }
    };
    let first = first.map_err(cannot)?;
    // The first was bound without it, so that a port in use, be it by another ringserve, was an error.
    if count > 1 {
        first.set_reuse_port(true).map_err(cannot)?;
    }
    first.listen(BACKLOG as i32).map_err(cannot)?;
    let mut listeners = vec![TcpListener::from(first)];
    let address = listeners[0].local_addr().map_err(cannot)?;
    while listeners.len() < count {
        let socket = socket_for(address).map_err(cannot)?;
        socket.set_reuse_port(true).map_err(cannot)?;
        socket.bind(&address.into()).map_err(cannot)?;
        socket.listen(BACKLOG as i32).map_err(cannot)?;
        listeners.push(socket.into());
    }
    Ok(listeners)
}

/// How starting the threads has gone.
enum Started {
    All,
    /// Why not, and the listeners of all threads.
    Refused(String, Vec<TcpListener>),
}

/// One engine thread, from its start to its end. Says so where another engine takes the place of its own.
fn run_seat(
    engine: &'static Engine,
    mut seat: Seat,
    gate: &Gate,
    events: &Sender<Event>,
    replaced: impl FnOnce(&Engine, String),
) {
    let run = |engine: &Engine, seat: &mut Seat| {
        let run = std::panic::AssertUnwindSafe(|| (engine.run)(seat));
        std::panic::catch_unwind(run).unwrap_or_else(|_| Err(io::Error::other("it panicked, which is a bug")))
    };
    let mut result = run(engine, &mut seat);
    if gate.is_open() != Some(true) {
        let refusal = result.err().map(|error| error.to_string()).unwrap_or_default();
        let _ = events.send(Event::Refused(seat.listener, refusal));
        return;
    }
    // While it drains there may be somebody in the backlog.
    if let Err(error) = &result
        && engine.name != AUTO.1.name
        && !seat.shutdown.is_cut()
    {
        let why = format!("{} broke: {error}", engine.name);
        tracing::error!("engine {why}; this worker goes on with {}", AUTO.1.name);
        seat.worker.tally.add(Counter::EngineFailures, 1);
        replaced(AUTO.1, why);
        result = run(AUTO.1, &mut seat);
    }
    let result = result.map_err(|error| format!("the engine {} broke: {error}", engine.name));
    let _ = events.send(Event::Ended(result));
}

/// What lets all threads go on together, or none.
#[derive(Default)]
struct Gate {
    open: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Gate {
    fn open(&self, go: bool) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(go);
        self.changed.notify_all();
    }

    fn is_open(&self) -> Option<bool> {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *open {
                Some(go) => return go,
                None => open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

fn start_line(events: Sender<Event>, gate: Arc<Gate>) -> Start {
    Box::new(move || {
        // An engine that takes over finds the gate open.
        if gate.is_open().is_none() {
            let _ = events.send(Event::Ready);
        }
        gate.wait()
    })
}

/// The share of one of `count` threads in a total.
fn share(total: usize, number: usize, count: usize) -> usize {
    total / count + usize::from(number < total % count)
}

fn fallback_reason(refusal: &str) -> String {
    format!("{} cannot run here: {refusal}", AUTO.0.name)
}

fn watch_signals(events: Sender<Event>) -> Result<(), String> {
    let cannot = |error: io::Error| format!("cannot watch for signals: {error}");
    // One that came while the handlers are being set up would be lost.
    sys::hold_signals(&ENDING).map_err(cannot)?;
    let mut signals = Signals::new(ENDING).map_err(cannot)?;
    let thread = std::thread::Builder::new().name("signals".into());
    let watch = move || {
        for signal in signals.forever() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    thread.spawn(watch).map_err(|error| format!("cannot start a thread: {error}"))?;
    sys::release_signals(&ENDING).map_err(cannot)
}

/// What keeps a server from starting, and what the user can do about it.
#[derive(Debug)]
pub(crate) struct Obstacle {
    pub(crate) cause: String,
    pub(crate) advice: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.advice)
    }
}

/// Opens the folder to serve.
pub(crate) fn open_site(root: &Path, rules: Rules) -> Result<Site, Obstacle> {
    Site::open(root, rules).map_err(|error| Obstacle {
        cause: format!("cannot serve {}: {error}", root.display()),
        advice: match error.kind() {
            io::ErrorKind::PermissionDenied => "let this user read the folder, as in chmod o+rx",
            _ => "give an existing folder",
        },
    })
}

/// The address to listen on.
pub(crate) fn resolve(host: &str, port: u16) -> Result<SocketAddr, Obstacle> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let found = (bare, port).to_socket_addrs().map(|mut addresses| addresses.next());
    let advice = "give an address or a name with --host";
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(Obstacle { cause: format!("cannot find {host}: the name has no address"), advice }),
        Err(error) => Err(Obstacle { cause: format!("cannot find {host}: {error}"), advice }),
    }
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let begin = Instant::now();
    loop {
        let socket = socket_for(address)?;
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && begin.elapsed() < ENDING_MAX => {
                std::thread::sleep(ENDING_CHECK);
            }
            result => return result.map(|()| socket),
        }
    }
}

fn socket_for(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart need not wait for old connections to time out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    // Accepted sockets inherit it. Answers leave in one piece, so there is nothing to wait for.
    socket.set_tcp_nodelay(true)?;
    // A client who has connected and asked for something is accepted and answered in one go. It saves a
    // third of the work for a short connection; where it cannot be had, all works without.
    let _ = sys::defer_accept(&socket, DEFER_SECONDS);
    // What the kernel has taken no cache is charged for, and no other client can do without.
    let unsent = cgroup::memory_limit().map_or(UNSENT_MAX, |limit| limit / UNSENT_SHARE);
    if unsent < UNSENT_MAX {
        let _ = sys::bound_unsent(&socket, unsent as i32);
    }
    if address.ip().to_canonical().is_loopback() {
        unpace(&socket);
    }
    Ok(socket)
}

/// Takes the pacing from all connections of a listener that only clients on this machine can reach, such as
/// a proxy for TLS. Where the system's congestion control is BBR, the kernel spaces what it sends by timers,
/// in step with the bottleneck on the way; over loopback there is none, and the timers cost more than what
/// they space: without, 64 MiB cost 0.6 times the processor time and arrive in 0.6 times the time. It must
/// be asked of the listener, for a connection that has begun to be paced stays so. Where it cannot be had,
/// all works without; a listener for other addresses too is left to what the operator chose.
fn unpace(listener: &Socket) {
    if listener.tcp_congestion().is_ok_and(|name| name.starts_with(b"bbr")) {
        // Every kernel has it, and permits it to everybody (tcp(7), tcp_allowed_congestion_control).
        let _ = listener.set_tcp_congestion(b"reno");
    }
}

/// The addresses a user can type for one that was bound.
pub(crate) fn shown_hosts(bound: IpAddr) -> Vec<IpAddr> {
    match bound {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => vec![Ipv4Addr::LOCALHOST.into()],
        one => vec![one],
    }
}

/// Memory for files in bytes, where the user has not said.
pub(crate) fn default_cache_size() -> u64 {
    cgroup::memory_share().map_or(CACHE_SIZE, |share| CACHE_SIZE.min(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_only_come_from_this_machine_is_not_paced() {
        let name = |host: &str| {
            let socket = socket_for(resolve(host, 0).unwrap()).unwrap();
            String::from_utf8(socket.tcp_congestion().unwrap()).unwrap().trim_end_matches('\0').to_owned()
        };
        let chosen = name("0.0.0.0");
        let expected = if chosen.starts_with("bbr") { "reno" } else { &*chosen };
        assert_eq!(name("127.0.0.1"), expected);
        assert_eq!(name("127.9.9.9"), expected);
    }

    #[test]
    fn a_port_in_use_is_an_error_even_where_its_owner_shares_it() {
        let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        first.set_reuse_port(true).unwrap();
        first.listen(1).unwrap();
        let address = first.local_addr().unwrap().as_socket().unwrap();
        let own = socket_for(address).unwrap();
        own.set_reuse_port(true).unwrap();
        own.bind(&address.into()).unwrap();
        own.listen(1).unwrap();
        assert_eq!(listen(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
