//! What the server counts of itself, against what strace counts of it.

use std::fs;
use std::path::Path;

use ringserve::engines::{Engine, Threads};
use ringserve::observe::counters::{Board, Counter};
use rustix::process::Signal;

use crate::common::{Client, Server, Setup, Site, eventually, on_every_engine, serves_several};

mod common;

/// Requests, one after the other, until the file is in the cache to stay.
const FIRST: usize = 3;
/// Requests on connections that last, and on connections of one request.
const LASTING: usize = 4000;
const SHORT: usize = 300;
/// One in so many calls may be missing, or too much: 2 %.
const TOLERANCE: u64 = 50;
/// The same for those who serve one client each: 5 %. Threads that wait for the lock on what they share call
/// futex(2), which nobody counts, and under strace they wait often.
const TOLERANCE_OF_CREWS: u64 = 20;

/// System calls of a whole run, by strace and by the server.
#[derive(Clone, Copy, Debug)]
struct Calls {
    seen: u64,
    counted: u64,
}

/// Runs the server under strace while something is asked of it.
fn trace(engine: &Engine, site: &Site, ask: impl FnOnce(&Server)) -> (Calls, Board) {
    let (summary, counters) = (site.outside().join("summary"), site.outside().join("counters"));
    for file in [&summary, &counters] {
        fs::write(file, "").unwrap();
    }
    let board = Board::in_file(&counters).unwrap();
    let setup = Setup::traced(&summary).serving(engine.name, site).arg("--counters-file").arg(&counters);
    let mut server = setup.args(["--workers", "1", "--fresh", "1h"]).start();
    ask(&server);
    server.signal(Signal::TERM);
    server.ends_well();
    let mut seen = None;
    eventually("strace has written its summary", || {
        seen = total(&summary);
        seen.is_some()
    });
    (Calls { seen: seen.unwrap(), counted: board.total(Counter::SystemCalls) }, board)
}

/// The number of calls in the last line of a summary, but for those by which threads wait for each other: how
/// many that are hangs on how slow a build is while it holds a lock.
fn total(summary: &Path) -> Option<u64> {
    let text = fs::read_to_string(summary).ok()?;
    let calls = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.ends_with(name))?;
        line.split_ascii_whitespace().nth(3)?.parse().ok()
    };
    Some(calls(" total")? - calls(" futex").unwrap_or(0))
}

/// As many clients as the engine serves at once ask again and again, then others come for one thing each.
fn ask(engine: &Engine, server: &Server) {
    // Loading is not the engine's, and clients who come at the same time each load what nobody has yet.
    for _ in 0..FIRST {
        assert_eq!(server.get("/a.txt").status, 200);
    }
    ask_lastingly(engine, server, LASTING);
    for _ in 0..SHORT {
        assert_eq!(server.ask("GET", "/a.txt", &["Connection: close"]).status, 200);
    }
}

fn ask_lastingly(engine: &Engine, server: &Server, requests: usize) {
    let count = if serves_several(engine) { 8 } else { 1 };
    let mut clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    for _ in 0..requests / count {
        for client in &mut clients {
            client.request("GET", "/a.txt", &[]);
        }
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
    }
}

/// Both have counted the same, but for what starting and ending takes.
fn agree(busy: Calls, idle: Calls, tolerance: u64) {
    let seen = busy.seen - (idle.seen - idle.counted);
    let off = busy.counted.abs_diff(seen);
    assert!(off <= seen / tolerance, "{off} off of {seen}: idle {idle:?}, busy {busy:?}");
}

#[test]
fn the_system_calls_counted_are_those_that_strace_sees() {
    if Setup::traced(Path::new("/dev/null")).arg("--version").try_run().is_none() {
        println!("skipped: strace is missing, or may not trace");
        return;
    }
    // One after the other: they count, but so slowly that side by side they would run out of patience.
    let turn = std::sync::Mutex::new(());
    on_every_engine(|engine| {
        let _turn = turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let (busy, board) = trace(engine, &site, |server| ask(engine, server));
        let requests = [Counter::Answered2xx, Counter::Submissions, Counter::Completions, Counter::Enters]
            .map(|counter| board.total(counter));
        // What starting and ending takes is not the engine's. It is looked at last, since the end reads a
        // list of connections that those of before still stand on.
        let (idle, _) = trace(engine, &site, |_| {});
        println!("{}: idle {idle:?}, busy {busy:?}", engine.name);
        let [answered, submissions, completions, enters] = requests;
        assert_eq!(answered, (FIRST + LASTING + SHORT) as u64);
        assert!(enters <= busy.counted && completions >= submissions / 2, "{requests:?}");
        if engine.runtime_counted {
            agree(busy, idle, TOLERANCE);
        } else {
            assert!(busy.counted <= busy.seen, "{busy:?}");
        }
        // To start and end a thread or a process is the C library's affair, by some sixty calls; what lies
        // between is the engine's.
        if engine.threads == Threads::PerConnection {
            let (lasting, _) = trace(engine, &site, |server| ask_lastingly(engine, server, 4 * LASTING));
            println!("{}: lasting {lasting:?}", engine.name);
            agree(lasting, idle, TOLERANCE_OF_CREWS);
        }
    });
}

#[test]
fn an_answer_from_a_file_in_memory_takes_as_many_calls_whatever_its_size() {
    const ROUNDS: usize = 500;
    on_every_engine(|engine| {
        if engine.name == "spin" {
            return; // its calls tell how long it has waited
        }
        let bodies = ["a", "b"].map(|letter| letter.repeat(28 * 1024));
        let site = Site::with(&[("short.txt", bodies[0].as_str()), ("long.txt", &bodies[1].repeat(2))]);
        let counters = site.outside().join("counters");
        fs::write(&counters, "").unwrap();
        let board = Board::in_file(&counters).unwrap();
        let setup = Setup::new().serving(engine.name, &site).arg("--counters-file").arg(&counters);
        let server = setup.args(["--workers", "1", "--fresh", "1h"]).start();
        let mut client = server.connect();
        let calls = ["/long.txt", "/short.txt"].map(|target| {
            let mut ask = |times| {
                for _ in 0..times {
                    client.request("GET", target, &[]);
                    assert_eq!(client.response().status, 200);
                }
            };
            ask(FIRST);
            let before = board.total(Counter::SystemCalls);
            ask(ROUNDS);
            board.total(Counter::SystemCalls) - before
        });
        println!("{}: {calls:?} for {ROUNDS} answers each", engine.name);
        let [long, short] = calls;
        assert!(short <= long + long / 20, "{calls:?}");
    });
}
