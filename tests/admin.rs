//! The address for an operator's tools: alive, ready, and what was counted.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ringserve::engines::SIMPLEST;
use rustix::process::Signal;

use crate::common::{
    Client, Server, Setup, Site, eventually, metric, on_every_engine, request, serves_several,
};

mod common;

fn ask(port: u16, target: &str) -> (u16, String) {
    let response = Client::connect(port).get(target);
    (response.status, response.text())
}

#[test]
fn it_tells_what_was_counted() {
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let server = Server::start(engine, &site, &["--admin", "127.0.0.1:0"]);
        let port = server.admin_port();
        let mut client = server.connect();
        for _ in 0..20 {
            assert_eq!(client.get("/a.txt").text(), "alpha\n");
        }
        assert_eq!(client.get("/none").status, 404);
        drop(client);
        // A worker publishes what it has counted with the next turn of its loop.
        assert_eq!(server.get("/metrics").status, 404, "never at the public port");
        let ok = "ringserve_answers_total{class=\"2xx\"}";
        eventually("twenty answers", || metric(port, ok) == 20);
        let bytes = 20 * 6 + 2 * "404 Not Found\n".len() as u64;
        eventually("two more, of errors", || metric(port, "ringserve_body_bytes_total") == bytes);
        assert_eq!(metric(port, "ringserve_ready"), 1);
        let (status, text) = ask(port, "/metrics");
        assert_eq!(status, 200);
        assert!(text.contains(&format!("ringserve_engine_info{{name=\"{}\"", engine.name)), "{text}");
        assert!(text.contains("reason=\"as asked for\""), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        let head = Client::connect(port).get("/metrics").head;
        assert!(head.value("content-type").starts_with("application/openmetrics-text;"));
        assert_eq!(head.value("cache-control"), "no-store");
    });
}

/// A probe has a time limit of its own, behind which the server is taken for dead.
#[test]
fn who_says_nothing_or_does_not_leave_holds_up_nobody() {
    let site = Site::new();
    let server = Server::start(SIMPLEST, &site, &["--admin", "127.0.0.1:0"]);
    let port = server.admin_port();
    let mut others: Vec<_> = (0..20).map(|_| Client::connect(port)).collect();
    for stays in &mut others[10..] {
        assert_eq!(stays.get("/healthz").status, 200);
        stays.send_pieces_aside(vec![b"x".to_vec(); 120], Duration::from_millis(100));
    }
    let begin = Instant::now();
    assert_eq!(ask(port, "/healthz").0, 200);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    // None of them stays for long.
    for mut other in others {
        let _ = other.rest();
    }
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

#[test]
fn it_tells_how_many_clients_there_are() {
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let server = Server::start(engine, &site, &["--admin", "127.0.0.1:0"]);
        let port = server.admin_port();
        let clients_max = engine.capabilities.clients_max.unwrap_or(3).min(3);
        let mut clients: Vec<_> = (0..clients_max).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/a.txt").status, 200);
        }
        let open = || metric(port, "ringserve_connections_open");
        eventually("all are open", || open() == clients_max as u64);
        clients.pop();
        eventually("one less", || open() == clients_max as u64 - 1);
        drop(clients);
        eventually("none", || open() == 0);
        assert_eq!(metric(port, "ringserve_connections_total"), clients_max as u64);
    });
}

#[test]
fn it_tells_that_accepting_pauses() {
    on_every_engine(|engine| {
        if !serves_several(engine) {
            return;
        }
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let args = ["--admin", "127.0.0.1:0", "--max-connections", "2", "--workers", "1"];
        let server = Server::start(engine, &site, &args);
        let port = server.admin_port();
        let pauses = || metric(port, "ringserve_accept_pauses_total");
        let mut first = server.connect();
        assert_eq!(first.get("/a.txt").status, 200);
        assert_eq!(pauses(), 0);
        let mut others = [server.connect(), server.connect()];
        for other in &mut others {
            other.request("GET", "/a.txt", &[]);
        }
        server.wait_for_stderr("accepting pauses");
        eventually("a pause is counted", || pauses() >= 1);
        // Whoever waits has his turn when another leaves.
        drop(first);
        for other in &mut others {
            assert_eq!(other.response().text(), "alpha\n");
        }
        assert_eq!(server.stderr().matches("accepting pauses").count(), 1, "{}", server.stderr());
    });
}

#[test]
fn it_is_not_ready_from_the_signal_on_and_yet_clients_are_served() {
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let args = ["--admin", "127.0.0.1:0", "--shutdown-delay", "2s"];
        let mut server = Server::start(engine, &site, &args);
        let port = server.admin_port();
        assert_eq!(ask(port, "/healthz"), (200, "alive\n".into()));
        assert_eq!(ask(port, "/readyz"), (200, "ready\n".into()));
        server.signal(Signal::TERM);
        eventually("not ready", || ask(port, "/readyz").0 == 503);
        assert_eq!(ask(port, "/healthz").0, 200);
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
        server.ends_well();
    });
}

#[test]
fn who_stalls_holds_nobody_up_for_long() {
    let site = Site::new();
    let server = Setup::new().serving("auto", &site).args(["--admin", "127.0.0.1:0"]).start();
    let port = server.admin_port();
    let mut stalled = Client::connect(port);
    stalled.send("GET /hea");
    let begin = Instant::now();
    assert_eq!(ask(port, "/healthz").0, 200);
    assert!(begin.elapsed() < Duration::from_secs(15));
    for (method, status) in [("HEAD", 200), ("POST", 405), ("OPTIONS", 204)] {
        let mut client = Client::connect(port);
        client.send(request(method, "/healthz", &[]));
        assert_eq!(client.head().status, status, "{method}");
    }
    assert_eq!(ask(port, "/").0, 404);
    assert_eq!(ask(port, "/../etc/passwd").0, 400);
    assert_eq!(ask(port, "/etc/passwd").0, 404);
}

#[test]
fn an_address_that_cannot_be_had_is_one_line() {
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for address in [&*format!("127.0.0.1:{port}"), "127.0.0.1", "nowhere", "192.0.2.1:80", "127.0.0.1:99999"]
    {
        let ended = Setup::new().serving("auto", &site).args(["--admin", address]).run();
        assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{address}: {ended:?}");
        assert_eq!(ended.stderr.lines().count(), 1, "{address}: {ended:?}");
        assert!(ended.stderr.contains("--admin") && ended.stderr.contains(address), "{address}: {ended:?}");
    }
}
