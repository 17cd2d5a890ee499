//! The real program: started with a clean environment, listened to, and never left behind.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ringserve::engines::Engine;
use rustix::process::{Pid, Signal, kill_process};

use super::client::{Client, Response, request};
use super::{PATIENCE, Site};

const MOUNT_DISK: &str = r#"mount -o loop,ro "$2" "$0""#;
const MOUNT_OVERLAY: &str = r#"mount -t overlay -o lowerdir="$0:$1" site "$0""#;

/// A command line of the program, before it is started.
pub struct Setup {
    pub command: Command,
    holds_stdout: bool,
}

impl Setup {
    /// The program with no arguments and no environment.
    pub fn new() -> Setup {
        Setup::of(Command::new(env!("CARGO_BIN_EXE_ringserve")))
    }

    /// The program under a limit, in the words of the shell's `ulimit`, such as `-n 64`.
    pub fn limited(limit: &str) -> Setup {
        let mut command = Command::new("/bin/sh");
        let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_ringserve")]);
        Setup::of(command)
    }

    /// The program started by somebody who ignores his children's ends, which is inherited.
    pub fn ignoring_children() -> Setup {
        let mut command = Command::new("/usr/bin/env");
        command.args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_ringserve")]);
        Setup::of(command)
    }

    /// The program without any of a superuser's capabilities.
    pub fn unprivileged() -> Setup {
        let mut command = Command::new("/usr/bin/setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]);
        command.arg(env!("CARGO_BIN_EXE_ringserve"));
        Setup::of(command)
    }

    /// The program where the site is on overlayfs, as what is within a container's image is. Nobody else sees
    /// it so.
    pub fn on_overlayfs(site: &Site) -> Setup {
        Setup::with_mounts(MOUNT_OVERLAY, site, Path::new("none"))
    }

    /// The program where the site is on a disk of its own, made of a file; or on overlayfs above that.
    pub fn on_disk(site: &Site, disk: &Path, is_overlaid: bool) -> Setup {
        let mount_both = format!("{MOUNT_DISK} && {MOUNT_OVERLAY}");
        Setup::with_mounts(if is_overlaid { &mount_both } else { MOUNT_DISK }, site, disk)
    }

    /// The program with mounts that a script makes for it alone: of the root `$0`, an empty folder `$1` and a
    /// disk `$2`.
    fn with_mounts(script: &str, site: &Site, disk: &Path) -> Setup {
        let nothing = site.outside().join("nothing");
        std::fs::create_dir_all(&nothing).unwrap();
        let mut command = Command::new("/usr/bin/unshare");
        let script = format!("{script} && shift 2 && exec \"$@\"");
        command.args(["--mount", "/bin/sh", "-c", &script]).args([site.root(), &nothing, disk]);
        command.arg(env!("CARGO_BIN_EXE_ringserve"));
        Setup::of(command)
    }

    /// The program under strace, which writes a summary of all system calls into a file; but for read(2),
    /// by which the end of a server goes through the lists of all connections of the machine.
    pub fn traced(summary: &Path) -> Setup {
        let mut command = Command::new("strace");
        // The tracer steps aside, so that the process that was started is the server.
        command
            .args(["-D", "-c", "-f", "-e", "trace=!read", "-o"])
            .arg(summary)
            .arg(env!("CARGO_BIN_EXE_ringserve"));
        let path = std::env::var_os("PATH");
        let mut setup = Setup::of(command);
        if let Some(path) = path {
            setup.command.env("PATH", path);
        }
        setup
    }

    /// The program under strace, which keeps each call of that name for some seconds.
    pub fn stuck_in(call: &str) -> Setup {
        let mut command = Command::new("strace");
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
        command.arg("-e").arg(format!("inject={call}:delay_enter=6s"));
        command.arg(env!("CARGO_BIN_EXE_ringserve"));
        let path = std::env::var_os("PATH");
        let mut setup = Setup::of(command);
        if let Some(path) = path {
            setup.command.env("PATH", path);
        }
        setup
    }

    fn of(mut command: Command) -> Setup {
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Setup { command, holds_stdout: false }
    }

    /// Serving a site, with this `--engine`, on a free port of the loopback interface.
    #[must_use]
    pub fn serving(self, engine: &str, site: &Site) -> Setup {
        self.arg(site.root()).args(["--engine", engine, "--host", "127.0.0.1", "--port", "0"])
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Setup {
        self.command.arg(arg);
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Setup {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Setup {
        self.command.env(name, value);
        self
    }

    /// Reads standard output up to the URL and no further, until [`Server::read_on`].
    #[must_use]
    pub fn holding_stdout(mut self) -> Setup {
        self.holds_stdout = true;
        self
    }

    /// Starts it, and waits for nothing.
    pub fn spawn(mut self) -> Server {
        let mut child = self.command.spawn().unwrap();
        let stdout = Output::collect(child.stdout.take().unwrap(), self.holds_stdout);
        let stderr = Output::collect(child.stderr.take().unwrap(), false);
        Server { child, port: 0, stdout, stderr }
    }

    /// Starts it, and waits until it says where it listens.
    #[track_caller]
    pub fn start(self) -> Server {
        let mut server = self.spawn();
        let url = server.stdout.wait_for(|text| url_of(text).map(str::to_owned));
        let Some(url) = url else {
            let status = server.child.try_wait();
            panic!("the server did not start: {status:?}: {}{}", server.stdout(), server.stderr());
        };
        let port = url.trim_end_matches('/').rsplit(':').next().unwrap();
        server.port = port.parse().unwrap_or_else(|_| panic!("no port in {url:?}"));
        server
    }

    /// Starts it, and waits until it ends well by itself; `None` where it does not, or cannot be started.
    pub fn try_run(mut self) -> Option<()> {
        let status = self.command.stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        status.success().then_some(())
    }

    /// Starts it, and waits until it ends by itself.
    #[track_caller]
    pub fn run(self) -> Ended {
        let mut server = self.spawn();
        let code = server.exit_code(PATIENCE);
        server.stdout.wait_for(|_| None::<()>);
        server.stderr.wait_for(|_| None::<()>);
        Ended { code, stdout: server.stdout(), stderr: server.stderr() }
    }
}

/// The first line that is a URL, once it is complete.
fn url_of(text: &str) -> Option<&str> {
    text.split_inclusive('\n')
        .find(|line| line.starts_with("http://") && line.ends_with('\n'))
        .map(str::trim_end)
}

/// What is left of a program that has ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// `None`, where a signal has ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A running server. It is killed when it goes out of scope, and must not have panicked until then.
pub struct Server {
    child: Child,
    pub port: u16,
    stdout: Output,
    stderr: Output,
}

impl Server {
    /// Starts an engine on a free port.
    pub fn start(engine: &Engine, site: &Site, args: &[&str]) -> Server {
        Setup::new().serving(engine.name, site).args(args).start()
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.port)
    }

    /// One GET on a connection of its own.
    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.ask("GET", target, &[])
    }

    /// One request, of any method but HEAD, on a connection of its own.
    #[track_caller]
    pub fn ask(&self, method: &str, target: &str, fields: &[&str]) -> Response {
        let mut client = self.connect();
        client.send(request(method, target, fields));
        client.response()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for words on standard output.
    #[track_caller]
    pub fn wait_for_stdout(&self, is_there: impl Fn(&str) -> bool) -> String {
        let found = self.stdout.wait_for(|text| is_there(text).then(|| text.to_owned()));
        found.unwrap_or_else(|| panic!("not on standard output: {}", self.stdout()))
    }

    /// Waits for words on standard error.
    #[track_caller]
    pub fn wait_for_stderr(&self, words: &str) {
        let found = self.stderr.wait_for(|text| text.contains(words).then_some(()));
        assert!(found.is_some(), "no {words:?} on standard error: {}", self.stderr());
    }

    /// The port of its admin address, as the log line tells it.
    #[track_caller]
    pub fn admin_port(&self) -> u16 {
        self.wait_for_stderr("/healthz");
        let log = self.stderr();
        let address = log.split("admin: http://").nth(1).and_then(|rest| rest.split('/').next());
        address.and_then(|address| address.rsplit(':').next()?.parse().ok()).expect("a port in the log line")
    }

    /// Goes on reading standard output.
    pub fn read_on(&self) {
        self.stdout.release(false);
    }

    /// Closes this end of its standard output.
    pub fn close_stdout(&self) {
        self.stdout.release(true);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The signal to end, and until its effect can be seen on standard error.
    #[track_caller]
    pub fn begin_to_drain(&self) {
        self.signal(Signal::TERM);
        self.wait_for_stderr("draining");
    }

    /// Waits until it has ended; its exit code, or `None` where a signal has ended it.
    #[track_caller]
    pub fn exit_code(&mut self, patience: Duration) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < patience, "it has not ended within {patience:?}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It must end by itself, and well.
    #[track_caller]
    pub fn ends_well(&mut self) {
        assert_eq!(self.exit_code(PATIENCE), Some(0), "{}", self.stderr());
    }

    /// It must still be running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stdout.release(false);
        self.stderr.wait_for(|_| None::<()>);
        let stderr = self.stderr();
        if std::thread::panicking() {
            println!("--- standard error of the server:\n{stderr}---");
        } else {
            assert!(!stderr.contains("panicked"), "the server has panicked:\n{stderr}");
        }
    }
}

/// A stream of the program's output, collected by a thread.
#[derive(Clone)]
struct Output(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    /// Not to be read beyond the URL.
    held: bool,
    /// Not to be read at all any more.
    closed: bool,
    ended: bool,
}

impl Output {
    fn collect(source: impl Read + Send + 'static, held: bool) -> Output {
        let output =
            Output(Arc::new((Mutex::new(Collected { held, ..Collected::default() }), Condvar::new())));
        let to = output.clone();
        std::thread::spawn(move || to.read_from(source));
        output
    }

    fn read_from(&self, mut source: impl Read) {
        let (collected, changed) = &*self.0;
        let mut room = [0; 4096];
        loop {
            let mut state = collected.lock().unwrap();
            while state.held && !state.closed && url_of(&String::from_utf8_lossy(&state.bytes)).is_some() {
                state = changed.wait(state).unwrap();
            }
            let closed = state.closed;
            drop(state);
            let n = if closed { 0 } else { source.read(&mut room).unwrap_or(0) };
            let mut state = collected.lock().unwrap();
            state.bytes.extend_from_slice(&room[..n]);
            state.ended = n == 0;
            changed.notify_all();
            if n == 0 {
                return;
            }
        }
    }

    fn release(&self, close: bool) {
        let (collected, changed) = &*self.0;
        let mut state = collected.lock().unwrap();
        (state.held, state.closed) = (false, close);
        changed.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until `find` finds something; `None` where the stream has ended before, or patience has.
    fn wait_for<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let (collected, changed) = &*self.0;
        let begin = Instant::now();
        let mut state = collected.lock().unwrap();
        loop {
            if let Some(found) = find(&String::from_utf8_lossy(&state.bytes)) {
                return Some(found);
            }
            let left = PATIENCE.saturating_sub(begin.elapsed());
            if state.ended || left.is_zero() {
                return None;
            }
            state = changed.wait_timeout(state, left).unwrap().0;
        }
    }
}
