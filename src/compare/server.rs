//! A server under test: this same program, started as a child on a free port, and stopped again.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::engines::Engine;

use super::measure::Processes;

/// How long a server may take until it says where it listens.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end when it is asked to. Nothing of it is wanted any more.
const STOP: Duration = Duration::from_millis(200);
/// Bytes that it may say before its address.
const GREETING_MAX: usize = 64 * 1024;

/// What all servers of a comparison have in common.
#[derive(Debug)]
pub struct Bench {
    /// The folder they serve.
    pub root: PathBuf,
    /// The file they count into.
    pub counters: PathBuf,
    /// Threads for each that can have several.
    pub workers: usize,
    /// Where they run, and where this process does; `None` where there is only one core.
    pub cores: Option<Cores>,
}

/// Cores set apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// For the server.
    pub server: Vec<usize>,
    /// For the load generator.
    pub generator: usize,
}

impl Cores {
    /// The last core for the generator, and so many of the others as the server has threads.
    pub fn share(allowed: &[usize], workers: usize) -> Option<Cores> {
        let (&generator, others) = allowed.split_last()?;
        let server = others[..workers.min(others.len())].to_vec();
        (!server.is_empty()).then_some(Cores { server, generator })
    }

    /// Moves this thread to the core of the generator.
    pub fn take_own(&self) {
        pin(&[self.generator]);
    }
}

impl Bench {
    /// Starts a child on the cores of the servers.
    ///
    /// # Errors
    /// What the system says.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // A child inherits its parent's cores.
        if let Some(cores) = &self.cores {
            pin(&cores.server);
        }
        let child = command.spawn();
        if let Some(cores) = &self.cores {
            cores.take_own();
        }
        child
    }
}

/// A child that serves. It is killed when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts an engine and waits until it serves.
    ///
    /// # Errors
    /// Why it does not, in its own words.
    pub fn start(bench: &Bench, engine: &Engine, keep_alive: bool) -> Result<Server, String> {
        let cannot = |error: io::Error| format!("cannot start a server: {error}");
        let program = std::env::current_exe().map_err(cannot)?;
        let mut complaints = tempfile::tempfile().map_err(cannot)?;
        let mut command = Command::new(program);
        command.arg("--root").arg(&bench.root).arg("--counters-file").arg(&bench.counters);
        command.args(["--host", "127.0.0.1", "--port", "0"]);
        command.args(["--end-with-parent", &std::process::id().to_string()]);
        command.args(["--engine", engine.name, "--workers", &bench.workers.to_string()]);
        command.args(["--keep-alive", if keep_alive { "on" } else { "off" }]);
        command.args(["--idle-timeout", "1h", "--grace-period", "1s", "--log-level", "error"]);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("SERVER_") || name == "PORT") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(complaints.try_clone().map_err(cannot)?);
        // All its processes form a group of their own: to be measured, and to be stopped, together.
        command.process_group(0);
        let child = bench.spawn(&mut command).map_err(cannot)?;
        let mut server = Server { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        match server.listening_at() {
            Some(address) => {
                server.address = address;
                Ok(server)
            }
            None => Err(last_line(&mut complaints)
                .unwrap_or_else(|| format!("it did not say within {START:?} where it listens"))),
        }
    }

    /// All its processes.
    pub fn processes(&self) -> Processes {
        Processes::Group(self.child.id() as i32)
    }

    /// Reads what it says until that is an address.
    fn listening_at(&mut self) -> Option<SocketAddr> {
        let output = self.child.stdout.as_mut().expect("it was asked for");
        let begin = Instant::now();
        let mut said = Vec::new();
        let mut room = [0; 1024];
        while said.len() < GREETING_MAX {
            let left = Timespec::try_from(START.saturating_sub(begin.elapsed())).ok()?;
            match poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&left)) {
                Ok(0) => return None,
                Ok(_) => {}
                // The time left has become shorter; that is all.
                Err(_) => continue,
            }
            let n = output.read(&mut room).ok().filter(|&n| n > 0)?;
            said.extend_from_slice(&room[..n]);
            if let Some(address) = address_in(&String::from_utf8_lossy(&said)) {
                return Some(address);
            }
        }
        None
    }

    /// Asks it to end, and insists after a while.
    fn stop(&mut self) {
        let Some(id) = Pid::from_raw(self.child.id() as i32) else { return };
        let _ = kill_process(id, Signal::TERM);
        let begin = Instant::now();
        // Not reaped yet, so that its number belongs to nobody else.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        while begin.elapsed() < STOP && matches!(waitid(WaitId::Pid(id), look), Ok(None)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = kill_process_group(id, Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The cores this process may run on.
pub fn allowed_cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Keeps this thread on those cores. Where that is forbidden, all runs where it will.
fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core);
    }
    let _ = sched_setaffinity(None, &set);
}

/// The first whole line that is a URL.
fn address_in(said: &str) -> Option<SocketAddr> {
    let (whole, _) = said.rsplit_once('\n')?;
    whole.lines().find_map(|line| line.strip_prefix("http://")?.strip_suffix('/')?.parse().ok())
}

fn last_line(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.strip_prefix("ringserve: ").unwrap_or(line).to_owned())
}

/// Makes the empty file that servers count into.
///
/// # Errors
/// What the system says.
pub fn counters_file(folder: &Path) -> Result<PathBuf, String> {
    let path = folder.join("counters");
    File::create(&path).map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_a_line_of_its_own() {
        let whole = "ringserve serves x with y\nhttp://127.0.0.1:4711/\n";
        assert_eq!(address_in(whole), Some(SocketAddr::from(([127, 0, 0, 1], 4711))));
        for end in 0..whole.len() {
            assert_eq!(address_in(&whole[..end]), None);
        }
    }

    #[test]
    fn server_and_generator_share_no_core() {
        assert_eq!(Cores::share(&[], 1), None);
        assert_eq!(Cores::share(&[3], 1), None);
        assert_eq!(Cores::share(&[0, 1], 4), Some(Cores { server: vec![0], generator: 1 }));
        assert_eq!(Cores::share(&[0, 2, 4, 6], 2), Some(Cores { server: vec![0, 2], generator: 6 }));
    }
}
