//! What tells one engine from another: what each declares of itself is so, and what none may do none does.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringserve::engines::Engine;
use rustix::process::Signal;

use crate::common::{Client, End, Server, Setup, Site, eventually, on_every_engine};

mod common;

/// Clients beyond what an engine can serve at once.
const TOO_MANY: usize = 20;

fn site() -> Site {
    Site::with(&[("a.txt", "alpha\n"), ("b.txt", "beta\n")])
}

/// A process as /proc shows it.
struct Process {
    state: char,
    parent: i32,
    /// Spent working.
    work: Duration,
}

impl Process {
    fn read(folder: &Path) -> Option<Process> {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // The fields from the third on (proc_pid_stat(5)); times are in ticks of 1/100 s on every Linux.
        let fields: Vec<&str> = stat[stat.rfind(')')? + 2..].split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?;
        Some(Process {
            state: fields[0].chars().next()?,
            parent: fields[1].parse().ok()?,
            work: Duration::from_millis(ticks * 10),
        })
    }

    /// A server and its children.
    fn family(server: &Server) -> Vec<Process> {
        let pid = server.pid().as_raw_nonzero().get();
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let path = entry.ok()?.path();
            let number: i32 = path.file_name()?.to_str()?.parse().ok()?;
            Process::read(&path).filter(|process| number == pid || process.parent == pid)
        });
        all.collect()
    }
}

fn work(server: &Server) -> Duration {
    Process::family(server).iter().map(|process| process.work).sum()
}

#[test]
fn only_an_engine_that_says_so_works_while_there_is_nothing_to_do() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--workers", "1"]);
        let mut idle = server.connect();
        assert_eq!(idle.get("/a.txt").status, 200);
        std::thread::sleep(Duration::from_millis(200));
        let begin = work(&server);
        std::thread::sleep(Duration::from_secs(1));
        let worked = work(&server) - begin;
        // Half of the cores may well be somebody else's.
        let as_declared = if engine.capabilities.sleeps {
            worked <= Duration::from_millis(20)
        } else {
            worked >= Duration::from_millis(100)
        };
        assert!(as_declared, "{worked:?} in a second");
    });
}

#[test]
fn no_child_is_left_unreaped() {
    on_every_engine(|engine| {
        let site = site();
        let mut server = Server::start(engine, &site, &[]);
        for _ in 0..50 {
            assert_eq!(server.ask("GET", "/a.txt", &["Connection: close"]).status, 200);
        }
        let is_alone = || Process::family(&server).len() == 1;
        eventually("only the server itself is left", is_alone);
        let client = server.connect();
        assert_eq!(server.get("/a.txt").status, if clients_max(engine) == 1 { return } else { 200 });
        server.signal(Signal::TERM);
        drop(client);
        server.ends_well();
    });
}

/// Where SIGCHLD is ignored, as a supervisor may leave it, the kernel forgets children by itself, and a
/// server that counts on being told of their ends would wait for them for ever.
#[test]
fn a_server_knows_of_its_childrens_ends_though_it_inherits_that_they_are_ignored() {
    if Setup::ignoring_children().arg("--version").try_run().is_none() {
        println!("skipped: env(1) cannot have a signal ignored");
        return;
    }
    on_every_engine(|engine| {
        let site = site();
        let mut server = Setup::ignoring_children().serving(engine.name, &site).start();
        for _ in 0..5 {
            assert_eq!(server.ask("GET", "/a.txt", &["Connection: close"]).status, 200);
        }
        server.signal(Signal::TERM);
        server.ends_well();
    });
}

/// A worker whom the kernel does not give back, as where a disk hangs, keeps nobody from ending the server.
/// To shut a socket down stands for the disk: most engines do so to their listener as the first thing of the
/// end. That the process ends before the call does cannot be seen here, for strace holds it until then.
#[test]
fn a_worker_that_is_stuck_is_not_waited_for() {
    const CALL: &str = "shutdown";
    if Setup::stuck_in(CALL).arg("--version").try_run().is_none() {
        println!("skipped: strace is missing, or may not trace");
        return;
    }
    let stuck = AtomicUsize::new(0);
    on_every_engine(|engine| {
        let site = site();
        let mut server = Setup::stuck_in(CALL).serving(engine.name, &site).args(["--workers", "1"]).start();
        assert_eq!(server.ask("GET", "/a.txt", &["Connection: close"]).status, 200);
        for _ in 0..2 {
            server.signal(Signal::TERM);
            std::thread::sleep(Duration::from_millis(100));
        }
        server.ends_well();
        let is_told = server.stderr().contains("1 of 1 workers have not ended; ending without them");
        stuck.fetch_add(usize::from(is_told), Ordering::Relaxed);
    });
    let stuck = stuck.into_inner();
    assert!(stuck >= 3, "{stuck} engines were stuck");
}

/// A child that dies takes nobody with it, and is reaped like any other.
#[test]
fn a_server_whose_children_are_killed_serves_on() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").status, 200);
        let pid = server.pid().as_raw_nonzero().get();
        let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_child = Process::read(&path)?.parent == pid;
            is_child.then(|| path.file_name()?.to_str()?.parse::<i32>().ok()).flatten()
        });
        let children: Vec<i32> = children.collect();
        for &child in &children {
            let child = rustix::process::Pid::from_raw(child).unwrap();
            rustix::process::kill_process(child, Signal::KILL).unwrap();
        }
        if children.is_empty() {
            return;
        }
        assert_ne!(client.ends(), End::Reset, "the kernel closes what a process leaves behind");
        assert_eq!(server.get("/b.txt").text(), "beta\n");
        eventually("nobody is a zombie", || Process::family(&server).iter().all(|one| one.state != 'Z'));
    });
}

#[test]
fn without_keep_alive_every_connection_carries_one_answer() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--keep-alive", "off"]);
        for _ in 0..20 {
            let mut client = server.connect();
            client.request("GET", "/a.txt", &[]);
            client.request("GET", "/b.txt", &[]);
            let response = client.response();
            assert_eq!((response.text(), response.head.says_close()), ("alpha\n".into(), true));
            client.finish_sending();
            client.closes();
        }
    });
}

fn clients_max(engine: &Engine) -> usize {
    engine.capabilities.clients_max.unwrap_or(usize::MAX)
}

/// Whoever comes when there is no more room waits, the operator is told, and who waits is served when others
/// leave.
fn fill(engine: &Engine, room: impl Fn(usize) -> bool, count: usize) {
    let site = site();
    let server = Server::start(engine, &site, &["--workers", "1", "--idle-timeout", "10m"]);
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..count {
        let mut client = server.connect();
        client.request("GET", "/a.txt", &[]);
        clients.push(client);
    }
    let is_served = |client: &Client| client.is_answered_within(Duration::from_millis(1));
    server.wait_for_stderr("accepting pauses");
    eventually("as many as there is room for are served", || {
        room(clients.iter().filter(|client| is_served(client)).count())
    });
    let (lucky, mut waiting): (Vec<_>, Vec<_>) = clients.into_iter().partition(is_served);
    assert!(room(lucky.len()), "{} are served at once", lucky.len());
    drop(lucky);
    for client in &mut waiting {
        assert_eq!(client.response().text(), "alpha\n");
    }
}

#[test]
fn as_many_clients_as_declared_are_served_at_once_and_no_more() {
    on_every_engine(|engine| {
        if let Some(max) = engine.capabilities.clients_max
            && max > 1
        {
            fill(engine, |served| served == max, max + TOO_MANY);
        }
    });
}

#[test]
fn beyond_the_largest_descriptor_clients_wait() {
    on_every_engine(|engine| {
        if let Some(max) = engine.capabilities.descriptor_max {
            fill(engine, |served| (max / 2..max).contains(&served), max + TOO_MANY);
        }
    });
}
