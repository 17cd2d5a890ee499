//! What this kernel and container allow, why not, and how to allow it: `ringserve doctor`.
//!
//! Everything is tried in the way the server itself does it, on a ring, a folder and a port of its own, in
//! the order in which a ring needs it. What the server says at its start about a refusal is said here in the
//! same words.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::cgroup;
use crate::content::Site;
use crate::content::site::Rules;
use crate::descriptors::{self, Descriptors};
use crate::engines::{AUTO, Culprit, Refusal, Trial, try_preferred};
use crate::host::{ALLOW_DESCRIPTORS, ALLOW_MEMLOCK, Host, Module, RING_SINCE, SERVING_SINCE};
use crate::launch::{Obstacle, bind, default_cache_size, open_site};
use crate::program;
use crate::sys;

pub mod seccomp;

/// Fewer connections than that are worth a word.
const CONNECTIONS_FEW: usize = 512;

/// What is to be examined.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder to serve.
    pub root: PathBuf,
    /// The address or name to listen on.
    pub host: String,
    /// The port; 0 for any.
    pub port: u16,
    /// Threads; `None` for one per CPU.
    pub workers: Option<usize>,
    /// Whether the report is to be JSON.
    pub json: bool,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    checks: Vec<Check>,
    fitness: Fitness,
}

/// What can serve here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fitness {
    /// The engine that `auto` prefers.
    Best,
    /// The one it takes elsewhere.
    Fallback,
    Nothing,
}

#[derive(Debug)]
struct Check {
    subject: &'static str,
    status: Status,
    /// What is so, or what was refused and by what.
    text: String,
    /// The ways to allow it, each with its tool.
    remedies: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    Warning,
    Refused,
}

impl Report {
    /// 0 where the preferred engine runs, 3 where only the fallback does, 1 where nothing can serve.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.fitness.code())
    }

    /// As JSON, in one line.
    pub fn json(&self) -> String {
        let check = |check: &Check| {
            json!({
                "subject": check.subject,
                "status": check.status.name(),
                "text": check.text,
                "remedies": check.remedies,
            })
        };
        let checks: Vec<Value> = self.checks.iter().map(check).collect();
        json!({ "engine": self.fitness.engine(), "exit_code": self.fitness.code(), "checks": checks })
            .to_string()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for Check { subject, status, text, remedies } in &self.checks {
            writeln!(f, "{:<8} {subject}: {text}", status.name())?;
            for (number, remedy) in remedies.iter().enumerate() {
                let lead = if number == 0 { "remedy:" } else { "" };
                writeln!(f, "{:<9}{lead:<8}{remedy}", "")?;
            }
        }
        let (best, fallback) = (AUTO.0.name, AUTO.1.name);
        match self.fitness {
            Fitness::Best => write!(f, "{best} runs here"),
            Fitness::Fallback => write!(f, "only {fallback} runs here, and serves all the same"),
            Fitness::Nothing => write!(f, "nothing can serve here until what is refused above is allowed"),
        }
    }
}

impl Fitness {
    fn code(self) -> u8 {
        match self {
            Fitness::Best => 0,
            Fitness::Nothing => 1,
            Fitness::Fallback => 3,
        }
    }

    fn engine(self) -> Option<&'static str> {
        match self {
            Fitness::Best => Some(AUTO.0.name),
            Fitness::Fallback => Some(AUTO.1.name),
            Fitness::Nothing => None,
        }
    }
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Refused => "refused",
        }
    }
}

impl Check {
    fn ok(subject: &'static str, text: impl Into<String>) -> Check {
        Check { subject, status: Status::Ok, text: text.into(), remedies: Vec::new() }
    }

    fn warning(subject: &'static str, text: impl Into<String>, remedy: &str) -> Check {
        Check { status: Status::Warning, remedies: ways(remedy), ..Check::ok(subject, text) }
    }

    fn refused(subject: &'static str, text: impl Into<String>, remedy: &str) -> Check {
        Check { status: Status::Refused, remedies: ways(remedy), ..Check::ok(subject, text) }
    }

    fn obstacle(subject: &'static str, obstacle: Obstacle) -> Check {
        let remedies = vec![obstacle.advice.to_owned()];
        Check { status: Status::Refused, remedies, ..Check::ok(subject, obstacle.cause) }
    }
}

/// The ways to allow something stand in one line, each behind a semicolon.
fn ways(remedy: &str) -> Vec<String> {
    remedy.split("; ").map(str::to_owned).collect()
}

/// Examines kernel, container, folder and port.
pub fn examine(options: &Options) -> Report {
    let host = Host::look();
    let workers = options.workers.unwrap_or_else(cgroup::cpus);
    let trials = try_preferred(workers);
    let refusal = trials.iter().find_map(|trial| trial.result.as_ref().err().filter(|_| trial.needed));
    let serving = [opening(&host), root(options), port(options, workers)];
    let fitness = if serving.iter().any(|check| check.status == Status::Refused) {
        Fitness::Nothing
    } else if refusal.is_some() {
        Fitness::Fallback
    } else {
        Fitness::Best
    };
    let [opening, root, port] = serving;
    let mut checks = vec![
        kernel(&host),
        sysctl(&host, refusal),
        seccomp(&host, refusal),
        module(&host, refusal),
        memlock(refusal),
        cpu(options.workers),
        memory(),
        descriptors(refusal, workers),
    ];
    checks.extend(trials.iter().map(ring));
    if refusal.is_some() {
        let text = "the rest was not tried, for it needs what was refused";
        checks.push(Check { status: Status::Warning, ..Check::ok("ring", text) });
    }
    checks.extend([opening, landlock(), root, port]);
    Report { checks, fitness }
}

fn kernel(host: &Host) -> Check {
    let release = host.shown_release();
    let Some(version) = host.version() else {
        let text = format!("Linux {release}: the number cannot be read");
        return Check::warning("kernel", text, "a readable /proc");
    };
    let engine = AUTO.0.name;
    if version < SERVING_SINCE {
        let text = format!("Linux {release} is older than 5.6, which has openat2");
        Check::refused("kernel", text, "Linux 6.1 or later")
    } else if version < RING_SINCE {
        let text = format!("Linux {release} is older than 6.1, which {engine} needs");
        Check::warning("kernel", text, "Linux 6.1 or later")
    } else {
        Check::ok("kernel", format!("Linux {release}"))
    }
}

fn sysctl(host: &Host, refused: Refused) -> Check {
    let subject = "sysctl";
    let Some(value) = host.io_uring_disabled else {
        return Check::ok(subject, "this kernel has no kernel.io_uring_disabled (Linux 6.6), or hides it");
    };
    let group = host.io_uring_group.map_or("none".to_owned(), |group| group.to_string());
    let text = format!("kernel.io_uring_disabled is {value}, kernel.io_uring_group is {group}");
    match remedy_for(refused, Culprit::Sysctl) {
        Some(remedy) => Check::refused(subject, text, remedy),
        None => Check::ok(subject, text),
    }
}

type Refused<'a> = Option<&'a (Culprit, Refusal)>;

/// What allows it, where that one is to blame.
fn remedy_for(refused: Refused<'_>, culprit: Culprit) -> Option<&str> {
    refused.filter(|(found, _)| *found == culprit).map(|(_, refusal)| &*refusal.remedy)
}

fn seccomp(host: &Host, refused: Refused) -> Check {
    let subject = "seccomp";
    match host.seccomp {
        None => Check::warning(subject, "whether a filter is in force cannot be read", "a readable /proc"),
        Some(2) => match (remedy_for(refused, Culprit::Seccomp), refused) {
            (Some(remedy), _) => Check::refused(subject, "a filter is in force and forbids io_uring", remedy),
            (None, None) => Check::ok(subject, "a filter is in force and permits io_uring"),
            (None, Some(_)) => Check {
                status: Status::Warning,
                ..Check::ok(subject, "a filter is in force; others forbid io_uring before it is asked")
            },
        },
        Some(_) => Check::ok(subject, "no filter is in force"),
    }
}

fn module(host: &Host, refused: Refused) -> Check {
    let subject = "security module";
    let text = match &host.module {
        None => "none is seen to confine this process".to_owned(),
        Some(Module::Selinux(context)) => format!("SELinux, in the context {context}"),
        Some(Module::AppArmor(profile)) => format!("AppArmor, under the profile {profile}"),
    };
    match remedy_for(refused, Culprit::Module) {
        Some(remedy) => Check::refused(subject, text, remedy),
        None => Check::ok(subject, text),
    }
}

fn memlock(refused: Refused) -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    let text = limit.map_or("no limit".to_owned(), |bytes| format!("{} KiB may be locked", bytes >> 10));
    if let Some(remedy) = remedy_for(refused, Culprit::Memlock) {
        return Check::refused("memlock", text, remedy);
    }
    let kept = program::keep();
    if kept.all == 0 {
        let text = format!("{text}; whether the program stays in memory cannot be told");
        return Check::warning("memlock", text, "a readable /proc");
    }
    let (locked, all) = (kept.locked >> 10, kept.all >> 10);
    if kept.is_all() {
        return Check::ok("memlock", format!("{text}; the program's {all} KiB stay in memory"));
    }
    let text = format!(
        "{text}; of the program's {all} KiB, {locked} stay in memory, and the rest is read from the disk \
         again where it is short"
    );
    Check::warning("memlock", text, ALLOW_MEMLOCK)
}

fn cpu(workers: Option<usize>) -> Check {
    let cpus = cgroup::cpus();
    let quota = cgroup::cpu_quota().map_or("no quota".to_owned(), |quota| format!("a quota of {quota} CPUs"));
    let count = workers.unwrap_or(cpus);
    let text = format!("{quota}; threads that can run at the same time: {cpus}; workers: {count}");
    if count > cpus {
        return Check::warning("cpu", text, "leave --workers out, and SERVER_WORKERS");
    }
    Check::ok("cpu", text)
}

fn memory() -> Check {
    let limit = cgroup::memory_limit().map_or("the control group sets no limit".to_owned(), |limit| {
        format!("a limit of {} MiB", limit >> 20)
    });
    Check::ok("memory", format!("{limit}; for files in memory: {} MiB", default_cache_size() >> 20))
}

fn descriptors(refused: Refused, workers: usize) -> Check {
    let descriptors = Descriptors::raise(None, None);
    let connections = descriptors.for_connections(workers * descriptors::OF_THREAD);
    let text = format!("a limit of {}; connections at the same time: {connections}", descriptors.limit);
    if let Some(remedy) = remedy_for(refused, Culprit::Descriptors) {
        return Check::refused("descriptors", text, remedy);
    }
    if connections < CONNECTIONS_FEW {
        return Check::warning("descriptors", text, ALLOW_DESCRIPTORS);
    }
    Check::ok("descriptors", text)
}

fn ring(trial: &Trial) -> Check {
    match &trial.result {
        Ok(()) => Check::ok("ring", trial.step),
        Err((_, refusal)) if trial.needed => Check::refused("ring", &*refusal.cause, &refusal.remedy),
        Err((_, refusal)) => Check::warning("ring", &*refusal.cause, &refusal.remedy),
    }
}

fn opening(host: &Host) -> Check {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Err(error) = openat2(CWD, c".", flags, Mode::empty(), ResolveFlags::BENEATH) else {
        return Check::ok("openat2", "paths are resolved beneath the root");
    };
    match error {
        Errno::NOSYS | Errno::PERM if host.is_filtered() => Check::refused(
            "openat2",
            format!("{error}, most likely by a seccomp filter that is older than the call"),
            "a newer container engine (libseccomp 2.5); docker run --security-opt seccomp=seccomp.json; \
             compose security_opt: [\"seccomp=seccomp.json\"]; \
             Kubernetes securityContext.seccompProfile: {type: Localhost, localhostProfile: ringserve.json}",
        ),
        Errno::NOSYS => Check::refused("openat2", error.to_string(), "Linux 5.6 or later"),
        // It is there, and the folder this program was started in is another matter.
        _ => Check::ok("openat2", "the kernel has it"),
    }
}

fn landlock() -> Check {
    match sys::landlock_abi() {
        Ok(abi) => Check::ok("landlock", format!("version {abi}; nothing here needs it yet")),
        Err(error) => Check::ok("landlock", format!("not to be had ({error}); nothing here needs it yet")),
    }
}

fn root(options: &Options) -> Check {
    let shown = options.root.display();
    let rules = Rules::default();
    let index = rules.index_files[0].clone();
    let site = match open_site(&options.root, rules) {
        Ok(site) => site,
        Err(obstacle) => return Check::obstacle("root", obstacle),
    };
    match openat2(site.root(), &*index, Site::OPEN, Mode::empty(), site.resolve()) {
        Ok(_) => Check::ok("root", format!("{shown} can be read, {index} too")),
        Err(Errno::ACCESS | Errno::PERM) => {
            let user = rustix::process::geteuid();
            let text = format!("{shown}/{index} cannot be read by user {user}");
            Check::warning("root", text, "chmod -R o+rX on the folder; or run as its owner")
        }
        Err(_) => Check::ok("root", format!("{shown} can be read; it has no {index}, so / is 404")),
    }
}

fn port(options: &Options, workers: usize) -> Check {
    match bind(&options.host, options.port, workers) {
        Ok(_) => Check::ok("port", format!("{} port {} is free to listen on", options.host, options.port)),
        Err(obstacle) => Check::obstacle("port", obstacle),
    }
}
