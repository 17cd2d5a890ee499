//! A rollout as Kubernetes does it: three replicas behind a balancer are replaced one after the other, while
//! clients go on asking. The balancer tries nothing twice, so that each request that a replica loses is seen.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ringserve::engines::{AUTO, Engine};
use rustix::process::Signal;

use crate::common::{Client, PATIENCE, Server, Setup, Site, eventually, numbered_bytes, request};

mod common;

const REPLICAS: usize = 3;
/// Clients that keep their connections, and those that take a new one for each request.
const CLIENTS: (usize, usize) = (8, 2);
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(1);
/// What is asked for in turn.
const FILES: [(&str, usize); 3] = [("small.bin", 1_000), ("middle.bin", 100_000), ("large.bin", 3_000_000)];

/// Whether there is a balancer.
fn has_haproxy() -> bool {
    let found = Command::new("haproxy").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        println!("skipped: haproxy is not installed");
    }
    is_there
}

/// Ports that are free now.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// HAProxy before the replicas; it ends with this.
struct Balancer {
    child: Child,
    port: u16,
    statistics: u16,
}

impl Balancer {
    /// Asks each replica's admin address whether it is ready, ten times a second.
    fn start(site: &Site, replicas: &[(u16, u16); REPLICAS]) -> Balancer {
        let [port, statistics] = free_ports();
        let servers = std::array::from_fn::<_, REPLICAS, _>(|number| {
            let (port, admin) = replicas[number];
            format!("    server replica{number} 127.0.0.1:{port} check port {admin}\n")
        });
        let timeouts = "timeout connect 2s\n    timeout client 10s\n    timeout server 10s";
        let configuration = format!(
            "defaults\n    mode http\n    {timeouts}\n    \
             retries 0\n    no option redispatch\n    http-reuse always\n\
             frontend public\n    bind 127.0.0.1:{port}\n    default_backend replicas\n\
             frontend statistics\n    bind 127.0.0.1:{statistics}\n    stats enable\n    stats uri /\n\
             backend replicas\n    balance roundrobin\n    option httpchk GET /readyz\n    \
             default-server inter 100ms fall 1 rise 1\n{}",
            servers.concat()
        );
        let path = site.outside().join("haproxy.cfg");
        fs::write(&path, configuration).unwrap();
        let log = File::create(site.outside().join("haproxy.log")).unwrap();
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let balancer = Balancer { child, port, statistics };
        balancer.waits_for_all();
        balancer
    }

    /// Waits until it has found every replica ready.
    fn waits_for_all(&self) {
        eventually("the balancer has found all replicas ready", || {
            let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.statistics)) else {
                return false;
            };
            stream.write_all(b"GET /;csv HTTP/1.0\r\n\r\n").unwrap();
            let mut table = String::new();
            stream.read_to_string(&mut table).unwrap();
            let ready =
                |line: &&str| line.contains(",replica") && line.contains(",UP,") && line.contains(",L7OK,");
            table.lines().filter(ready).count() == REPLICAS
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    failed: AtomicUsize,
}

/// Asks for one thing, and must get all of it. Whether the connection is to be used again.
fn ask(stream: &mut TcpStream, name: &str, expected: &[u8]) -> io::Result<bool> {
    stream.write_all(request("GET", &format!("/{name}"), &[]).as_bytes())?;
    let mut answer = Vec::new();
    let mut room = vec![0; 64 * 1024];
    let head_ends = loop {
        if let Some(at) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut room)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&room[..n]),
        }
    };
    let head = String::from_utf8_lossy(&answer[..head_ends]).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        return Err(io::Error::other(head));
    }
    let mut body = answer.split_off(head_ends);
    while body.len() < expected.len() {
        match stream.read(&mut room)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => body.extend_from_slice(&room[..n]),
        }
    }
    if body != expected {
        return Err(io::Error::other("other bytes"));
    }
    Ok(!head.contains("connection: close"))
}

/// One client, until it is told to stop.
fn go_on_asking(port: u16, number: usize, seen: &Seen, stop: &AtomicBool) {
    let bodies = FILES.map(|(_, size)| numbered_bytes(size));
    let keeps = number < CLIENTS.0;
    let mut kept = None;
    for turn in number.. {
        if stop.load(SeqCst) {
            return;
        }
        // The large one is one in sixteen.
        let which = if turn % 16 == 0 { 2 } else { turn % 2 };
        let asked = kept.take().map_or_else(|| connect(port), Ok).and_then(|mut stream| {
            let again = ask(&mut stream, FILES[which].0, &bodies[which])?;
            Ok((again && keeps).then_some(stream))
        });
        match asked {
            Ok(stream) => {
                kept = stream;
                seen.answered.fetch_add(1, SeqCst);
            }
            Err(error) => {
                if seen.failed.fetch_add(1, SeqCst) < 3 {
                    println!("a request has failed: {error}");
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn replica(engine: &Engine, site: &Site, (port, admin): (u16, u16)) -> Server {
    let setup = Setup::new().arg(site.root()).args(["--engine", engine.name, "--host", "127.0.0.1"]);
    let addresses =
        ["--port", &port.to_string(), "--admin", &format!("127.0.0.1:{admin}")].map(str::to_owned);
    setup.args(addresses).args(["--shutdown-delay", "1s", "--grace-period", "10s"]).start()
}

/// Replaces so many replicas under load, each ended by that signal; how many requests were answered, and how
/// many failed.
fn roll(engine: &Engine, signal: Signal, replaced: usize) -> (usize, usize) {
    let site = Site::with(&FILES.map(|(name, size)| (name, numbered_bytes(size))));
    let ports: [u16; 2 * REPLICAS] = free_ports();
    let addresses: [(u16, u16); REPLICAS] =
        std::array::from_fn(|number| (ports[2 * number], ports[2 * number + 1]));
    let mut servers = addresses.map(|address| replica(engine, &site, address));
    let balancer = Balancer::start(&site, &addresses);
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stops = StopsAtEnd(&stop);
        for number in 0..CLIENTS.0 + CLIENTS.1 {
            let (seen, stop, port) = (&seen, &stop, balancer.port);
            scope.spawn(move || go_on_asking(port, number, seen, stop));
        }
        let asked = || seen.answered.load(SeqCst) + seen.failed.load(SeqCst);
        let goes_on = || {
            let before = asked();
            eventually("clients go on asking", || asked() > before + 100);
        };
        for (server, address) in servers.iter_mut().zip(addresses).take(replaced) {
            goes_on();
            server.signal(signal);
            let code = server.exit_code(PATIENCE);
            assert_eq!(code, (signal == Signal::TERM).then_some(0), "{}", server.stderr());
            *server = replica(engine, &site, address);
            balancer.waits_for_all();
            assert_eq!(Client::connect(address.1).get("/readyz").status, 200);
        }
        goes_on();
    });
    // The new ones serve, every one of them.
    for server in &servers {
        assert_eq!(server.get("/small.bin").body.len(), FILES[0].1);
    }
    (seen.answered.into_inner(), seen.failed.into_inner())
}

/// The clients must stop, or a test that fails would never end.
struct StopsAtEnd<'a>(&'a AtomicBool);

impl Drop for StopsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn loses_nothing(engine: &Engine) {
    if !has_haproxy() {
        return;
    }
    if let Err(refusal) = (engine.available)() {
        println!("skipped on {}: {refusal}", engine.name);
        return;
    }
    let (answered, failed) = roll(engine, Signal::TERM, REPLICAS);
    println!("{}: {answered} requests answered, {failed} failed", engine.name);
    assert_eq!(failed, 0, "of {answered}");
    assert!(answered > 3_000, "{answered}");
}

#[test]
fn a_rollout_on_the_preferred_engine_loses_no_request() {
    loses_nothing(AUTO.0);
}

#[test]
fn a_rollout_on_the_fallback_loses_no_request() {
    loses_nothing(AUTO.1);
}

/// Were nothing to be lost here either, the others would say nothing.
#[test]
fn replicas_that_are_killed_lose_requests() {
    if has_haproxy() {
        let (answered, failed) = roll(AUTO.1, Signal::KILL, 1);
        println!("killed: {answered} requests answered, {failed} failed");
        assert!(failed > 0, "of {answered}");
    }
}
