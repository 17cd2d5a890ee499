//! What strace(1) counts: the system calls of an engine that does not see all of its own.
//!
//! A runtime's calls are its own affair, and so are those by which the C library starts a thread or a
//! process. An engine built on them counts what it calls itself, and no more. So strace looks on for a
//! moment: it is attached to the server that was just measured, counts a short load, and lets go again. It
//! slows whatever it looks at several times over, so that nothing else is taken from that load.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::measure::{Processes, tracers};
use super::server::Bench;

const PROGRAM: &str = "strace";
/// How long it may take to attach to every thread, or to let go of them.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// Threads it is attached to at the most: for every call of one it goes through all of them.
const THREADS_MAX: usize = 1024;
/// How often it is tried where processes come and go.
const ATTEMPTS: usize = 5;

/// A strace that counts.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    summary: PathBuf,
}

impl Tracer {
    /// Attaches to every thread of these processes, and to all that they start. It shares their cores, so
    /// that the load is not slowed as well. What it writes goes to the folder.
    ///
    /// # Errors
    /// Why it cannot, in half a sentence.
    pub fn attach(bench: &Bench, processes: &Processes, folder: &Path) -> Result<Tracer, String> {
        let mut ids = processes.ids();
        for _ in 1..ATTEMPTS {
            match Tracer::attach_to(bench, &ids, folder) {
                Ok(tracer) => return Ok(tracer),
                // One of them may have ended just then, upon which strace refuses them all.
                Err(why) => match processes.ids() {
                    now if now == ids => return Err(why),
                    now => ids = now,
                },
            }
        }
        Tracer::attach_to(bench, &ids, folder)
    }

    fn attach_to(bench: &Bench, ids: &[i32], folder: &Path) -> Result<Tracer, String> {
        if ids.is_empty() {
            return Err("strace has nobody to look at".to_owned());
        }
        let threads: usize = ids.iter().map(|&id| tracers(id).count()).sum();
        if threads > THREADS_MAX {
            return Err(format!("{threads} threads are too many for strace to look at"));
        }
        let (summary, complaints) = (folder.join("strace"), folder.join("strace-complaints"));
        let cannot = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => "strace is not installed".to_owned(),
            _ => format!("strace cannot be started: {error}"),
        };
        let said = fs::File::create(&complaints).map_err(cannot)?;
        let mut command = Command::new(PROGRAM);
        command.args(["-f", "-c", "-qq", "-o"]).arg(&summary);
        for id in ids {
            command.arg("-p").arg(id.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        // An interrupt from the keyboard is for this process, which then has it let go.
        command.process_group(0);
        let mut tracer = Tracer { child: bench.spawn(&mut command).map_err(cannot)?, summary };
        let own = u64::from(tracer.child.id());
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let has_ended = tracer.child.try_wait().is_ok_and(|status| status.is_some());
            // It also complains of what it can do without, and goes on.
            if has_ended {
                let complaint = fs::read_to_string(&complaints).unwrap_or_default();
                return Err(complaint.lines().next().map_or_else(
                    || "strace ended before it had begun".to_owned(),
                    |line| {
                        format!("strace may not look on ({})", line.strip_prefix("strace: ").unwrap_or(line))
                    },
                ));
            }
            if ids.iter().all(|&id| is_traced_by(own, id)) {
                return Ok(tracer);
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("strace has not attached itself within {PATIENCE:?}"))
    }

    /// Has it let go, and says how many calls have come to their end meanwhile.
    ///
    /// # Errors
    /// Why that is not known, in half a sentence.
    pub fn detach(mut self) -> Result<u64, String> {
        if let Some(id) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(id, Signal::INT);
        }
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                let text = fs::read_to_string(&self.summary).unwrap_or_default();
                return total(&text).ok_or_else(|| "strace has written no summary".to_owned());
            }
            std::thread::sleep(LOOK);
        }
        Err(format!("strace has not let go within {PATIENCE:?}"))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Whatever it traces goes on without it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process lives, and all its threads are traced by that one.
fn is_traced_by(tracer: u64, id: i32) -> bool {
    let mut tracers = tracers(id).peekable();
    tracers.peek().is_some() && tracers.all(|one| one == tracer)
}

/// Its version, where it is installed.
pub fn version() -> Option<String> {
    let output = Command::new(PROGRAM).arg("-V").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.split_ascii_whitespace().last()?.to_owned())
}

/// The number of calls, from the last line of a summary.
fn total(summary: &str) -> Option<u64> {
    let line = summary.lines().find(|line| line.ends_with(" total"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};

    /// Servers that may run anywhere.
    fn bench() -> Bench {
        Bench { root: PathBuf::new(), counters: PathBuf::new(), workers: 1, cores: None }
    }

    #[test]
    fn the_total_is_found_with_errors_and_without() {
        let head = "% time     seconds  usecs/call     calls    errors syscall\n";
        for line in ["100.00    0.000013           0      4711         2 total", "100.00 0.1 0 4711 total"] {
            assert_eq!(total(&format!("{head}{line}\n")), Some(4711));
        }
        assert_eq!(total(head), None);
    }

    #[test]
    fn calls_of_a_child_are_counted_and_it_lives_on() {
        let folder = tempfile::tempdir().unwrap();
        // It reads a line at a time, and answers each by a system call of its own.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "while read line; do echo $line; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answers = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut questions = child.stdin.take().unwrap();
        let mut ask = || {
            questions.write_all(b"hello\n").unwrap();
            assert_eq!(answers.next().unwrap().unwrap(), "hello");
        };
        // Once it answers, the calls by which it has started are over.
        ask();
        let processes = Processes::These(vec![child.id() as i32]);
        let tracer = match Tracer::attach(&bench(), &processes, folder.path()) {
            Ok(tracer) => tracer,
            Err(why) => {
                println!("skipped: {why}");
                drop(questions);
                child.wait().unwrap();
                return;
            }
        };
        (0..100).for_each(|_| ask());
        // A shell reads byte by byte: six reads and a write for each line. The call under way when strace
        // came, and the last one, may be counted or not.
        let calls = tracer.detach().unwrap();
        assert!((698..=702).contains(&calls), "{calls}");
        ask();
        drop(questions);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn nobody_to_look_at_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let nobody = Processes::These(vec![i32::MAX]);
        let error = Tracer::attach(&bench(), &nobody, folder.path()).unwrap_err();
        assert!(error.starts_with("strace "), "{error}");
    }
}
