//! A ring that breaks while the server runs: its worker says so in one line, lets its connections go, and
//! serves on through the engine for places without io_uring. What breaks it comes from outside, from a
//! supervisor of the program's system calls.

use std::io;
use std::time::{Duration, Instant};

use ringserve::engines::AUTO;
use rustix::process::Signal;

use crate::common::confine::is_permitted_at_all;
use crate::common::supervise::{Supervisor, Verdict};
use crate::common::{Client, HUGE, Server, Setup, Site, eventually, metric, numbered_bytes};

mod common;

/// `IORING_REGISTER_PBUF_RING`
const REGISTER_BUFFERS: u64 = 22;

fn site() -> Site {
    Site::with(&[("a.txt", b"alpha\n".to_vec()), ("huge.bin", numbered_bytes(HUGE))])
}

/// A server whose calls for its rings can be made to fail, and the port of its admin address.
fn supervised(site: &Site, args: &[&str]) -> (Setup, Supervisor) {
    let setup = Setup::new().serving("auto", site).args(["--admin", "127.0.0.1:0"]).args(args);
    Supervisor::of(setup, [libc::SYS_io_uring_enter, libc::SYS_io_uring_register])
}

/// The lines that tell of an engine that broke.
fn lines_about_it(server: &Server) -> Vec<String> {
    server.stderr().lines().filter(|line| line.contains("broke")).map(str::to_owned).collect()
}

/// The lines of the metric that names the engines in use.
fn engines_in_use(admin: u16) -> Vec<String> {
    let text = Client::connect(admin).get("/metrics").text();
    text.lines().filter(|line| line.starts_with("ringserve_engine_info{")).map(str::to_owned).collect()
}

fn ends_well(mut server: Server) {
    server.signal(Signal::TERM);
    server.ends_well();
}

#[test]
fn a_ring_that_breaks_is_replaced() {
    if !is_permitted_at_all() {
        return;
    }
    let site = site();
    let (best, fallback) = (AUTO.0.name, AUTO.1.name);
    for errno in [libc::EBADF, libc::EINVAL, libc::EPERM, libc::ENOMEM, libc::ENXIO] {
        let (setup, supervisor) = supervised(&site, &["--workers", "1"]);
        let server = setup.start();
        let admin = server.admin_port();
        let mut idle = server.connect();
        assert_eq!(idle.get("/a.txt").text(), "alpha\n");
        let mut slow = Client::connect_slow(server.port);
        slow.request("GET", "/huge.bin", &[]);
        assert_eq!(slow.head().status, 200);
        assert!(engines_in_use(admin)[0].contains(&format!("name=\"{best}\"")));
        assert_eq!(metric(admin, "ringserve_engine_failures_total"), 0);

        supervisor.fail_next(libc::SYS_io_uring_enter, errno);
        // It is answered or not; in any case it comes to an end.
        let mut last = server.connect();
        last.request("GET", "/a.txt", &[]);
        let _ = last.try_response();
        server.wait_for_stderr("broke");
        assert!(
            idle.try_send("GET /a.txt HTTP/1.1\r\nHost: test\r\n\r\n").is_err()
                || idle.try_response().is_err()
        );
        let (rest, _) = slow.rest();
        assert!(rest.len() < HUGE);

        let error = io::Error::from_raw_os_error(errno);
        let lines = lines_about_it(&server);
        assert_eq!(lines.len(), 1, "{lines:?}");
        for words in [best, &error.to_string(), &format!("goes on with {fallback}")] {
            assert!(lines[0].contains(words), "no {words:?}: {lines:?}");
        }
        let asked = supervisor.asked();
        let mut client = server.connect();
        for _ in 0..100 {
            assert_eq!(client.get("/a.txt").text(), "alpha\n");
        }
        assert!(client.get("/huge.bin").body == numbered_bytes(HUGE));
        for _ in 0..20 {
            assert_eq!(server.get("/a.txt").text(), "alpha\n");
        }
        assert_eq!(supervisor.asked(), asked, "it still uses a ring");
        assert_eq!(metric(admin, "ringserve_engine_failures_total"), 1);
        let in_use = engines_in_use(admin);
        assert_eq!(in_use.len(), 1, "{in_use:?}");
        let words = format!("name=\"{fallback}\",reason=\"{best} broke: {error}\"");
        assert!(in_use[0].contains(&words), "no {words}: {in_use:?}");
        drop(last);
        // The one that is asking, and no ghosts of those that the ring had.
        eventually("one client is left", || metric(admin, "ringserve_connections_open") == 1);
        drop(client);
        eventually("nobody is left", || metric(admin, "ringserve_connections_open") == 0);
        ends_well(server);
    }
}

#[test]
fn the_other_workers_keep_their_rings() {
    if !is_permitted_at_all() {
        return;
    }
    let site = site();
    let (setup, supervisor) = supervised(&site, &["--workers", "4"]);
    let server = setup.start();
    let admin = server.admin_port();
    supervisor.fail_next(libc::SYS_io_uring_enter, libc::EBADF);
    let mut answered = 0;
    for _ in 0..200 {
        let mut client = server.connect();
        client.request("GET", "/a.txt", &[]);
        answered += u32::from(client.try_response().is_ok_and(|response| response.text() == "alpha\n"));
    }
    server.wait_for_stderr("broke");
    // The one request that the broken ring had.
    assert!(answered >= 199, "{answered}");
    assert_eq!(lines_about_it(&server).len(), 1);
    assert_eq!(metric(admin, "ringserve_engine_failures_total"), 1);
    let in_use = engines_in_use(admin);
    let named =
        |engine: &str| in_use.iter().filter(|line| line.contains(&format!("name=\"{engine}\""))).count();
    assert_eq!((in_use.len(), named(AUTO.0.name), named(AUTO.1.name)), (2, 1, 1), "{in_use:?}");
    ends_well(server);
}

/// A ring that answers each receive by "there is no buffer" is broken, too: it would ask for ever.
#[test]
fn a_ring_without_its_buffers_is_replaced() {
    if !is_permitted_at_all() {
        return;
    }
    let site = site();
    let (setup, supervisor) = supervised(&site, &["--workers", "1"]);
    let mut registered = 0;
    supervisor.judge(move |call, arguments| {
        if call == libc::SYS_io_uring_register && arguments[1] == REGISTER_BUFFERS {
            registered += 1;
            // The first is the probe's.
            if registered > 1 {
                return Verdict::Pretend;
            }
        }
        Verdict::GoOn
    });
    let server = setup.start();
    let admin = server.admin_port();
    let begin = Instant::now();
    let mut client = server.connect();
    client.request("GET", "/a.txt", &[]);
    assert!(client.try_response().is_err());
    server.wait_for_stderr("broke");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(server.get("/a.txt").text(), "alpha\n");
    assert_eq!(metric(admin, "ringserve_engine_failures_total"), 1);
    assert!(lines_about_it(&server)[0].contains("buffers"), "{}", server.stderr());
    ends_well(server);
}

/// There is nothing to go on with but the end, and it is a good one.
#[test]
fn a_ring_that_breaks_while_the_server_drains_does_not_keep_it_from_ending_well() {
    if !is_permitted_at_all() {
        return;
    }
    let site = site();
    let (setup, supervisor) = supervised(&site, &["--workers", "1"]);
    let mut server = setup.start();
    let mut slow = Client::connect_slow(server.port);
    slow.request("GET", "/huge.bin", &[]);
    assert_eq!(slow.head().status, 200);
    server.begin_to_drain();
    // The listener has ended with the drain.
    eventually("nobody is let in", || Client::try_connect(server.port).is_none());
    supervisor.fail_next(libc::SYS_io_uring_enter, libc::EBADF);
    slow.rest();
    server.ends_well();
    assert_eq!(lines_about_it(&server).len(), 1, "{}", server.stderr());
}
