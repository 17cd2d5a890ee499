//! The harness: a fresh folder for each test, the real program in front of it, a client that trusts nothing.
//!
//! A case is a closure that is given an engine; [`on_every_engine`] walks the table with it. Nothing in these
//! suites waits for a fixed time where it can wait for an event, and nothing waits without end: see
//! [`PATIENCE`].
#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use ringserve::engines::{ENGINES, Engine};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

mod client;
pub mod confine;
mod server;
pub mod supervise;

#[allow(unused_imports, reason = "as above")]
pub use client::{Client, End, Head, Response, request};
#[allow(unused_imports, reason = "as above")]
pub use server::{Ended, Server, Setup};

/// How long a test waits for what must happen. Far more than it takes, so that a busy machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// More bytes than the buffers between server and client hold.
pub const HUGE: usize = 16 << 20;

/// Cases that run at once, over all tests of a suite. With more of them times would be missed for want of a
/// processor.
const CASES_MAX: usize = 24;

/// Runs a case once per engine of the table, side by side, for most cases mostly wait. Each runs to its end;
/// then the test fails if one of them has. Where `RINGSERVE_ONLY` names an engine, it is run on that one
/// alone.
pub fn on_every_engine(case: impl Fn(&'static Engine) + Sync) {
    let only = std::env::var("RINGSERVE_ONLY").ok();
    // Some cases bring hundreds of clients for each engine.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for engine in ENGINES.iter().filter(|engine| only.as_deref().is_none_or(|only| only == engine.name)) {
            if let Err(refusal) = (engine.available)() {
                println!("skipped on {}: {refusal}", engine.name);
                continue;
            }
            let (case, failed) = (&case, &failed);
            let run = move || {
                let _turn = Turn::take();
                // The thread's name, which a panic prints, is the engine's.
                let case = std::panic::AssertUnwindSafe(|| case(engine));
                if std::panic::catch_unwind(case).is_err() {
                    failed.lock().unwrap().push(engine.name);
                }
            };
            std::thread::Builder::new().name(engine.name.to_owned()).spawn_scoped(scope, run).unwrap();
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed on {}", failed.join(", "));
}

/// One of the cases that may run at once, until it is dropped.
struct Turn;

static RUNNING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Turn {
        let (running, ended) = &RUNNING;
        let mut running = running.lock().unwrap();
        while *running >= CASES_MAX {
            running = ended.wait(running).unwrap();
        }
        *running += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (running, ended) = &RUNNING;
        *running.lock().unwrap() -= 1;
        ended.notify_one();
    }
}

/// Whether the engine serves more than one client at once. Where it does not, a line says what is skipped.
pub fn serves_several(engine: &Engine) -> bool {
    let several = engine.capabilities.clients_max != Some(1);
    if !several {
        println!("skipped on {}: it serves one client at a time", engine.name);
    }
    several
}

/// Asks again and again until the answer is yes.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The value of a metric, asked for at an admin address.
#[track_caller]
pub fn metric(admin: u16, name: &str) -> u64 {
    let text = Client::connect(admin).get("/metrics").text();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// Bytes in which every eight tell their place, so that no piece can be mistaken for another.
pub fn numbered_bytes(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (number, eight) in bytes.chunks_mut(8).enumerate() {
        eight.copy_from_slice(&(number as u64 * 2 + 1).to_le_bytes()[..eight.len()]);
    }
    bytes
}

/// A folder to serve, in a temporary one that holds nothing else. What lies beside it must never be served.
pub struct Site {
    dir: TempDir,
    root: PathBuf,
}

impl Site {
    /// An empty one.
    pub fn new() -> Site {
        let dir = TempDir::with_prefix("ringserve-").unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        Site { dir, root }
    }

    /// One with files.
    pub fn with<B: AsRef<[u8]>>(files: &[(&str, B)]) -> Site {
        let site = Site::new();
        for (name, bytes) in files {
            site.write(name, bytes);
        }
        site
    }

    /// The folder to serve.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder around it.
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a file in place, and makes the folders it needs.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Puts a new file in the place of another, as a careful deployment does.
    pub fn replace(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let new = self.dir.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }
}
