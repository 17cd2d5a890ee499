//! The runs: a server is started, loaded, measured and stopped, again and again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::descriptors::Descriptors;
use crate::engines::{Engine, Family, Threads};
use crate::observe::counters::{Board, Counter};

use super::environment::Environment;
use super::generator::Generator;
use super::is_set;
use super::load::{Clients, Outcome, Target};
use super::measure::{Processes, Usage};
use super::options::Plan;
use super::progress::Progress;
use super::samples::{CallSource, Calls, Cost, Latency, Refused, Run, Samples};
use super::schedule::{self, Case, Stop, plan};
use super::server::{Bench, Cores, Server, allowed_cores, counters_file};
use super::site::Site;
use super::table::{plan_text, thousands};
use super::tracer::Tracer;
use super::url::Url;

/// Load before anything is measured: connections are made, caches filled.
const WARM_UP: Duration = Duration::from_millis(100);
/// A larger file needs no such thing, and would take long.
const WARM_UP_SIZE_MAX: u64 = 1 << 20;
/// How long the servers are watched with nobody asking.
const IDLE_WATCH: Duration = Duration::from_millis(150);
/// How long after its last answer a server may be busy with the end of a connection.
const AFTERMATH: Duration = Duration::from_millis(10);
/// Descriptors of this process beside its connections.
const DESCRIPTORS: usize = 64;

/// Whoever is loaded.
enum Subject {
    Engine(&'static Engine),
    Server(Box<Foreign>),
}

/// A server that was there before.
struct Foreign {
    url: Url,
    address: SocketAddr,
    target: Target,
    processes: Option<Processes>,
}

/// Makes all runs, or those until the interrupt, and saves them in the folder after each.
///
/// # Errors
/// Why nothing can be measured, or what was measured cannot be saved.
pub fn measure(wanted: &Plan, folder: Option<&Path>, interrupted: &AtomicBool) -> Result<Samples, String> {
    let mut refusals = Vec::new();
    let mut subjects = Vec::new();
    for &engine in &wanted.engines {
        match (engine.available)() {
            Ok(()) => subjects.push(Subject::Engine(engine)),
            Err(refusal) => refusals.push(Refused::new(engine, refusal.to_string())),
        }
    }
    for url in &wanted.urls {
        let (address, target) = url.look_up()?;
        let processes = Processes::that_listen(address);
        let url = url.clone();
        subjects.push(Subject::Server(Box::new(Foreign { url, address, target, processes })));
    }
    if subjects.is_empty() {
        let mut why =
            "there is nothing to compare; name an engine with --engines or a server with --url".to_owned();
        for Refused { engine, reason } in refusals {
            why += &format!("; {engine} cannot run: {reason}");
        }
        return Err(why);
    }
    let cases = cases_for(wanted, &subjects);
    check_descriptors(&cases)?;
    let takes_part = |target: usize, case: &Case| match &subjects[target] {
        Subject::Engine(_) => wanted.cases().contains(case),
        Subject::Server(server) => !case.cold && case.size == server.target.length,
    };
    let runs = plan(&cases, subjects.len(), wanted.rounds, takes_part);
    if runs.is_empty() {
        return Err("there is nothing to measure: a connection of one request has no pipeline and no idle \
                    clients, so --pipeline and --idle want --keep-alive on"
            .to_owned());
    }
    let traced = runs.iter().filter(|run| subjects[run.target].wants_strace(&run.case)).count();
    let duration = if wanted.dimensions.is_some() {
        wanted.duration
    } else {
        schedule::quick_duration(runs.len(), traced)
    };
    let own_cases = wanted.cases();
    let mut sizes: Vec<_> = own_cases.iter().filter(|case| !case.cold).map(|case| case.size).collect();
    sizes.push(own_cases[0].size);
    sizes.sort_unstable();
    sizes.dedup();
    let site = Site::generate(&sizes, cases.iter().any(|case| case.cold))?;
    let counters = counters_file(site.outside())?;
    let board = Board::in_file(&counters).map_err(|error| format!("cannot map the counters: {error}"))?;
    let cores = Cores::share(&allowed_cores(), wanted.workers);
    let environment = Environment::read(cores.as_ref());
    if let Some(cores) = &cores {
        cores.take_own();
    }
    let root = site.root().to_owned();
    let bench = Bench { root, counters, workers: wanted.workers, cores };
    let runner = Runner { bench, board, site, hot_size: sizes[0], duration, interrupted };

    let mut samples = Samples::new(environment, runs.len());
    samples.refusals = refusals;
    let seconds = (duration + schedule::OVERHEAD).as_secs_f64() * runs.len() as f64
        + schedule::TRACE.as_secs_f64() * traced as f64;
    let mut progress = Progress::begin(runs.len(), &plan_text(runs.len(), seconds, &sizes));
    for run in runs {
        if is_set(interrupted) {
            break;
        }
        let subject = &subjects[run.target];
        let name = subject.name();
        if samples.refusals.iter().any(|refused| refused.engine == name) {
            samples.planned -= 1;
            continue;
        }
        let what = format!("{}: {name}", run.case.title());
        progress.start(&what);
        match runner.run(subject, run.case, run.round) {
            // A run that was cut short is not like the others.
            _ if is_set(interrupted) => break,
            Ok(done) => {
                let rate = thousands(done.requests as f64 / done.seconds.max(1e-9));
                progress.end(&format!("{what}: {rate} requests/s"));
                samples.runs.push(done);
            }
            Err(reason) => {
                progress.end(&format!("{what} did not start: {reason}"));
                samples.refusals.push(Refused { engine: name, reason });
                samples.planned -= 1;
            }
        }
        // What was saved there before is worth more than nothing.
        if let Some(folder) = folder
            && !samples.runs.is_empty()
        {
            samples.save(folder)?;
        }
    }
    Ok(samples)
}

/// The cases of the engines, and for each server whose file has another size, the like of them.
fn cases_for(wanted: &Plan, subjects: &[Subject]) -> Vec<Case> {
    let own = wanted.cases();
    let has_engine = subjects.iter().any(|subject| matches!(subject, Subject::Engine(_)));
    let mut cases = if has_engine { own.clone() } else { Vec::new() };
    for subject in subjects {
        let Subject::Server(server) = subject else { continue };
        let like = own.iter().filter(|case| !case.cold && case.size == own[0].size);
        for case in like.map(|case| Case { size: server.target.length, ..case.clone() }) {
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
    }
    cases
}

/// Raises the limit on descriptors, and sees that it is enough.
fn check_descriptors(cases: &[Case]) -> Result<(), String> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let wanted = cases.iter().map(|case| case.connections + case.idle).max().unwrap_or(0) + DESCRIPTORS;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < wanted as u64 => Err(format!(
            "so many clients need {wanted} descriptors and the limit is {limit}; raise it, as in ulimit -n \
             {wanted}, or have fewer --connections and --idle"
        )),
        _ => Ok(()),
    }
}

impl Subject {
    fn name(&self) -> String {
        match self {
            Subject::Engine(engine) => engine.name.to_owned(),
            Subject::Server(server) => server.url.to_string(),
        }
    }

    /// Whether strace is to count what an engine does not see; not with cold files, which are so only once.
    fn wants_strace(&self, case: &Case) -> bool {
        matches!(self, Subject::Engine(engine) if !engine.runtime_counted) && !case.cold
    }
}

impl Refused {
    fn new(engine: &Engine, reason: String) -> Refused {
        Refused { engine: engine.name.to_owned(), reason }
    }
}

struct Runner<'a> {
    bench: Bench,
    board: Board,
    site: Site,
    /// The file of the hot client.
    hot_size: u64,
    duration: Duration,
    interrupted: &'a AtomicBool,
}

impl Runner<'_> {
    fn run(&self, subject: &Subject, case: Case, round: usize) -> Result<Run, String> {
        match subject {
            Subject::Engine(engine) => {
                let was_cold = if case.cold { Some(self.chill()?) } else { None };
                let server = Server::start(&self.bench, engine, case.keep_alive)?;
                let mut targets = Vec::new();
                if case.cold {
                    targets.push(self.site.target(self.hot_size, true));
                    targets.extend(self.site.cold_targets());
                } else {
                    targets.push(self.site.target(case.size, case.keep_alive));
                }
                let one = engine.threads == Threads::One;
                let cores = self.bench.cores.as_ref().map(|cores| if one { 1 } else { cores.server.len() });
                let clients_max = match engine.capabilities.descriptor_max {
                    Some(max) => Some(Descriptors::up_to(max).for_clients(engine, self.bench.workers, 0)),
                    None => engine.capabilities.clients_max,
                };
                let counts = Some(if engine.runtime_counted { Counts::All } else { Counts::Own });
                let load = Load { name: subject.name(), case, round, targets, clients_max, cores, counts };
                let run = self.load(load, server.address, Some(&server.processes()));
                Ok(Run { family: engine.family, was_cold, ..run })
            }
            Subject::Server(server) => {
                let request = server.url.request(case.keep_alive);
                let targets = vec![Target { request, ..server.target.clone() }];
                let (name, clients_max, cores, counts) = (subject.name(), None, None, None);
                let load = Load { name, case, round, targets, clients_max, cores, counts };
                Ok(self.load(load, server.address, server.processes.as_ref()))
            }
        }
    }

    fn chill(&self) -> Result<bool, String> {
        self.site.chill().map_err(|error| format!("cannot drop files from the page cache: {error}"))
    }

    fn load(&self, load: Load, address: SocketAddr, processes: Option<&Processes>) -> Run {
        let Load { name, case, round, targets, clients_max, cores, counts } = load;
        let (active, idle) = case.clients(clients_max);
        let clients = Clients {
            active,
            idle,
            hot: case.cold && clients_max != Some(1),
            pipeline: case.pipeline,
            keep_alive: case.keep_alive,
        };
        let mut outcome = Outcome::default();
        let (mut connected, mut idle_cpu, mut memory) = (0, 0.0, None);
        let mut spent = Usage::default();
        let mut counters = BTreeMap::new();
        let mut calls = None;
        match Generator::connect(address, clients, &targets, self.interrupted) {
            Err(error) => {
                outcome.errors = 1;
                outcome.first_error = Some(error);
            }
            Ok(mut generator) => {
                if !case.cold && case.size <= WARM_UP_SIZE_MAX {
                    generator.drive(case.pace(), Stop::After(WARM_UP.min(self.duration)));
                }
                connected = generator.idle();
                let usage = || processes.map(Processes::usage).unwrap_or_default();
                let (watched, before) = (Instant::now(), usage());
                std::thread::sleep(IDLE_WATCH);
                let (counted, between) = (self.counted(), usage());
                idle_cpu = (between - before).cpu() / watched.elapsed().as_secs_f64();
                let stop = if case.cold {
                    Stop::Requests(targets.len() as u64 - 1)
                } else {
                    Stop::After(self.duration)
                };
                outcome = generator.drive(case.pace(), stop);
                spent = usage() - between;
                counters = self.counted();
                for (name, count) in &mut counters {
                    *count -= counted[name];
                }
                counters.retain(|_, count| *count > 0);
                memory = processes.and_then(Processes::memory);
                let counted = counters.get("system_calls").copied().unwrap_or(0);
                let own = counted as f64 / outcome.requests.max(1) as f64;
                calls = match counts.filter(|_| outcome.requests > 0) {
                    None => None,
                    Some(Counts::All) => Some(Calls::new(own, CallSource::Engine)),
                    Some(Counts::Own) => Some(match self.trace(&mut generator, &case, processes) {
                        Ok(per_request) => Calls::new(per_request, CallSource::Strace),
                        Err(why) => Calls { refusal: Some(why), ..Calls::new(own, CallSource::EngineInPart) },
                    }),
                };
            }
        }
        Run {
            target: name,
            family: Family::Other,
            round,
            active,
            idle: connected,
            waiting: case.connections - active + case.idle - connected,
            seconds: outcome.elapsed.as_secs_f64(),
            requests: outcome.requests,
            bytes: outcome.bytes,
            errors: outcome.errors,
            first_error: outcome.first_error,
            behind: outcome.behind,
            was_cold: None,
            latency: Latency::from(&outcome.latency),
            hot: (!outcome.hot.is_empty()).then(|| Latency::from(&outcome.hot)),
            cost: processes.map(|_| Cost {
                user: spent.user,
                system: spent.system,
                involuntary: spent.involuntary,
                memory,
                idle: idle_cpu,
                cores,
            }),
            counters,
            calls,
            generator_cpu: outcome.cpu.as_secs_f64(),
            case,
        }
    }

    /// System calls per request as strace sees them, in a short load of the same kind.
    fn trace(
        &self,
        generator: &mut Generator,
        case: &Case,
        processes: Option<&Processes>,
    ) -> Result<f64, String> {
        if case.cold {
            return Err("files are cold only once, so strace has not looked on".to_owned());
        }
        let processes = processes.ok_or("the server's processes cannot be seen")?;
        let tracer = Tracer::attach(&self.bench, processes, self.site.outside())?;
        let outcome = generator.drive(case.pace(), Stop::Requests(case.sample()));
        // Those of the last connections' ends are among them.
        std::thread::sleep(AFTERMATH);
        let calls = tracer.detach()?;
        match outcome {
            Outcome { requests: 1.., errors: 0, .. } => Ok(calls as f64 / outcome.requests as f64),
            _ => Err("requests failed while strace looked on".to_owned()),
        }
    }

    /// What the servers have counted so far.
    fn counted(&self) -> BTreeMap<String, u64> {
        Counter::ALL.iter().map(|&counter| (counter.name().to_owned(), self.board.total(counter))).collect()
    }
}

/// What is put on one server.
struct Load {
    name: String,
    case: Case,
    round: usize,
    targets: Vec<Target>,
    /// Clients it serves at once.
    clients_max: Option<usize>,
    /// Cores it may use.
    cores: Option<usize>,
    /// What it counts of its system calls, if anything.
    counts: Option<Counts>,
}

/// Which of its system calls an engine counts.
#[derive(Clone, Copy)]
enum Counts {
    All,
    /// Those that it makes itself, and not a runtime for it.
    Own,
}
