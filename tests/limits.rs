//! Limits: times, sizes, connections, descriptors. Whoever exceeds one is refused or closed, and nobody else
//! suffers.

use std::time::{Duration, Instant};

use crate::common::{Client, End, HUGE, PATIENCE, Server, Setup, Site, eventually, numbered_bytes};
use crate::common::{on_every_engine, serves_several};

mod common;

/// The time limit that the tests set, as an argument; deadlines are kept to within a second.
const LIMIT: &str = "500ms";
const AT_LEAST: Duration = Duration::from_millis(450);
const AT_MOST: Duration = Duration::from_secs(6);

fn site() -> Site {
    let site = Site::with(&[("a.txt", "alpha\n"), ("b.txt", "beta\n")]);
    site.write("huge.bin", numbered_bytes(HUGE));
    site
}

/// Waits until the connection ends; what was sent until then, and how long it took.
fn until_the_end(client: &mut Client) -> (String, End, Duration) {
    let begin = Instant::now();
    let (rest, end) = client.rest();
    (String::from_utf8_lossy(&rest).into_owned(), end, begin.elapsed())
}

#[test]
fn who_asks_for_nothing_is_closed_after_the_idle_timeout() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--idle-timeout", LIMIT]);
        // From the start; after an answer; after empty lines.
        for sent in ["", "GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n\r\n"] {
            let mut client = server.connect();
            client.send(sent);
            if sent.starts_with("GET") {
                client.response();
            }
            let (rest, end, took) = until_the_end(&mut client);
            assert_eq!((&*rest, end), ("", End::Closed), "{sent:?}");
            assert!((AT_LEAST..AT_MOST).contains(&took), "{sent:?}: {took:?}");
        }
    });
}

#[test]
fn who_uses_the_connection_is_not_idle() {
    on_every_engine(|engine| {
        let site = site();
        let server =
            Server::start(engine, &site, &["--idle-timeout", "1500ms", "--header-timeout", "1500ms"]);
        let mut client = server.connect();
        for _ in 0..8 {
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(client.get("/a.txt").status, 200);
        }
    });
}

#[test]
fn a_head_that_does_not_end_in_time_is_refused() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--header-timeout", LIMIT]);
        let begin = Instant::now();
        let mut client = server.connect();
        client.send("GET /a.txt HTTP/1.1\r\nHost: x\r\nX: ");
        // A byte now and then wins no time.
        while !client.is_answered_within(Duration::from_millis(100)) && client.try_send("x").is_ok() {
            assert!(begin.elapsed() < AT_MOST, "still waiting for {:?}", begin.elapsed());
        }
        assert!(begin.elapsed() >= AT_LEAST);
        let response = client.response();
        assert_eq!((response.status, response.head.says_close()), (408, true));
        client.ends();

        // A second request on the connection has its own time, and is told when that is over.
        let mut client = server.connect();
        assert_eq!(client.get("/a.txt").status, 200);
        client.send("GET");
        assert_eq!(client.response().status, 408);
        client.closes();
    });
}

#[test]
fn a_body_that_does_not_end_in_time_ends_the_connection() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--header-timeout", LIMIT]);
        for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"] {
            let mut client = server.connect();
            client.send(format!("GET /a.txt HTTP/1.1\r\nHost: x\r\n{framing}"));
            assert_eq!(client.response().text(), "alpha\n");
            let (rest, _, took) = until_the_end(&mut client);
            assert_eq!(rest, "", "{framing}");
            assert!(took < AT_MOST, "{framing}: {took:?}");
        }
    });
}

/// Whether the kernel still has something to send from that port to a client who was closed (state
/// FIN_WAIT1, proc_net(5)).
fn is_still_offered(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == "04"
    })
}

/// One client has the only place. When it is given up for lost, the next one gets it.
#[test]
fn who_takes_nothing_of_the_answer_is_given_up() {
    on_every_engine(|engine| {
        let site = site();
        let args = ["--send-timeout", LIMIT, "--max-connections", "1", "--workers", "1"];
        let server = Server::start(engine, &site, &args);
        for request in ["GET /huge.bin HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n"]
        {
            let mut stalled = Client::connect_slow(server.port);
            // A flood of small answers stalls no less than a large one.
            let count = if request.contains("huge") { 1 } else { 100_000 };
            stalled.send_aside(request.repeat(count).into_bytes());
            stalled.head();
            assert_eq!(server.get("/b.txt").text(), "beta\n");
            eventually("what it did not take is gone", || !is_still_offered(server.port));
            let (rest, _, _) = until_the_end(&mut stalled);
            assert!(rest.len() < HUGE / 2, "all was sent, or more than buffers hold");
        }
    });
}

/// Bytes between a server at that port and its clients, in either direction (proc_net(5)).
fn on_their_way(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let end = format!(":{port:04X}");
    let queues = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // What counts for a listener (0A) is clients.
    let queues = queues.filter(|row| row[3] != "0A" && (row[1].ends_with(&end) || row[2].ends_with(&end)));
    let size = |queue| usize::from_str_radix(queue, 16).unwrap();
    queues.map(|row| row[4].split_once(':').map_or(0, |(sends, receives)| size(sends) + size(receives))).sum()
}

/// Each answer is short and fits at once, but for the last: who leaves that one is given up like anybody,
/// though the server may have looked forward to the next request.
#[test]
fn who_takes_nothing_of_many_short_answers_is_given_up() {
    on_every_engine(|engine| {
        let site = site();
        site.write("short.bin", numbered_bytes(15_000));
        // Should it only be slow, and none of its answers stuck, it is idle in the end.
        let args =
            ["--send-timeout", "3s", "--idle-timeout", "3s", "--max-connections", "1", "--workers", "1"];
        let server = Server::start(engine, &site, &args);
        for has_finished in [false, true] {
            let mut stalled = Client::connect_narrow(server.port);
            for number in 1..100 {
                stalled.request("GET", "/short.bin", &[]);
                let begin = Instant::now();
                let mut fits = false;
                while !fits && begin.elapsed() < Duration::from_millis(500) {
                    // What is under way, or not acknowledged, is counted at both ends.
                    std::thread::sleep(Duration::from_millis(50));
                    fits = on_their_way(server.port) >= number * 15_000;
                }
                if !fits {
                    break;
                }
            }
            if has_finished {
                stalled.finish_sending();
            }
            assert_eq!(server.get("/b.txt").text(), "beta\n");
        }
    });
}

#[test]
fn who_takes_little_by_little_is_served_to_the_end() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--send-timeout", "1s"]);
        let mut client = Client::connect_slow(server.port);
        client.request("GET", "/huge.bin", &[]);
        let length = client.head().body_length();
        let begin = Instant::now();
        let steps = 16;
        for _ in 0..steps {
            client.take(length / steps);
            std::thread::sleep(Duration::from_millis(150));
        }
        assert!(begin.elapsed() > Duration::from_secs(2));
        assert_eq!(client.get("/a.txt").text(), "alpha\n");
    });
}

/// A socket that was full has room for more only when much of it is empty. Who empties it more slowly than
/// that within the timeout is slow, not gone.
#[test]
fn who_takes_next_to_nothing_at_a_time_is_served_to_the_end() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--send-timeout", "1s"]);
        let mut client = Client::connect_slow(server.port);
        client.request("GET", "/huge.bin", &[]);
        let length = client.head().body_length();
        let begin = Instant::now();
        let mut taken = 0;
        while begin.elapsed() < Duration::from_secs(4) {
            taken += client.take(8 * 1024).len();
            std::thread::sleep(Duration::from_millis(100));
        }
        client.take(length - taken);
        assert_eq!(client.get("/a.txt").text(), "alpha\n");
    });
}

#[test]
fn heads_have_a_size() {
    let long = |size: usize| "x".repeat(size);
    let fields = |count: usize| "X: y\r\n".repeat(count);
    on_every_engine(|engine| {
        let site = site();
        let (common, small) = (
            Server::start(engine, &site, &[]),
            Server::start(engine, &site, &["--head-size", "1KiB", "--header-timeout", "2s"]),
        );
        for (server, head, status) in [
            (&common, format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", long(12_000)), 404),
            (&common, format!("GET /a.txt?{} HTTP/1.1\r\nHost: x\r\n\r\n", long(12_000)), 200),
            (&common, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", long(12_000)), 200),
            (&common, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(99)), 200),
            (&common, format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", long(17_000)), 414),
            (&common, format!("GET /{}", long(100_000)), 414),
            (&common, long(100_000), 414),
            (&common, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", long(17_000)), 431),
            (&common, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\nX: {}", long(100_000)), 431),
            (&common, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(5000)), 431),
            (&common, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(100)), 431),
            (&small, format!("GET /a.txt?{} HTTP/1.1\r\nHost: x\r\n\r\n", long(900)), 200),
            (&small, format!("GET /a.txt?{} HTTP/1.1\r\nHost: x\r\n\r\n", long(1100)), 414),
            (&small, format!("GET /a.txt HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", long(1100)), 431),
        ] {
            let mut client = server.connect();
            client.send_aside(head.clone().into_bytes());
            let response = client.response();
            let case = format!("{} bytes: {}", head.len(), &head[..40.min(head.len())]);
            assert_eq!((response.status, response.head.says_close()), (status, status > 404), "{case}");
            if status > 404 {
                client.closes();
            }
        }
    });
}

#[test]
fn beyond_the_limit_on_connections_clients_wait_and_are_served_in_the_end() {
    const LIMIT: usize = 4;
    on_every_engine(|engine| {
        if !serves_several(engine) {
            return;
        }
        let site = site();
        for workers in ["1", "2"] {
            let args = ["--max-connections", "4", "--workers", workers];
            let server = Server::start(engine, &site, &args);
            let mut waiting: Vec<_> = (0..LIMIT + 5).map(|_| server.connect()).collect();
            for client in &mut waiting {
                client.request("GET", "/a.txt", &[]);
            }
            while !waiting.is_empty() {
                let is_served = |client: &Client| client.is_answered_within(Duration::from_millis(1));
                eventually("somebody is served", || waiting.iter().any(is_served));
                // Time for those who must not be.
                std::thread::sleep(Duration::from_millis(50));
                let count = waiting.iter().filter(|client| is_served(client)).count();
                assert!(count <= LIMIT, "{count} are served at once");
                // One of them leaves, and makes room.
                let first = waiting.iter().position(is_served).unwrap();
                let mut client = waiting.swap_remove(first);
                assert_eq!(client.response().text(), "alpha\n");
            }
        }
    });
}

#[test]
fn connections_that_end_badly_take_no_place_with_them() {
    on_every_engine(|engine| {
        let site = site();
        let args = ["--max-connections", "4", "--workers", "1", "--header-timeout", "2s"];
        let mut server = Server::start(engine, &site, &args);
        for round in 0..100 {
            let mut client = Client::connect_slow(server.port);
            match round % 5 {
                0 => {}
                1 => client.send("GET /a.t"),
                2 => client.request("GET", "/huge.bin", &[]),
                3 => client.send("nonsense\r\n\r\n"),
                _ => {
                    client.request("GET", "/huge.bin", &[]);
                    client.head();
                }
            }
            client.abort();
        }
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
        server.signal(rustix::process::Signal::TERM);
        server.ends_well();
    });
}

/// A table of descriptors that grows has all clients of a thread wait for the kernel to be done with the old.
#[test]
fn there_is_room_for_descriptors_from_the_beginning() {
    on_every_engine(|engine| {
        for (limit, room) in [("-n 900", 900), ("-n 20000", 16 * 1024)] {
            let server = Setup::limited(limit).serving(engine.name, &site()).start();
            let status = format!("/proc/{}/status", server.pid().as_raw_nonzero());
            let status = std::fs::read_to_string(status).unwrap();
            let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
            let room = engine.capabilities.descriptor_max.map_or(room, |max| room.min(max + 1));
            assert!(size.trim().parse::<usize>().unwrap() >= room, "{size} for {limit}");
        }
    });
}

#[test]
fn out_of_descriptors_it_recovers() {
    on_every_engine(|engine| {
        let site = site();
        for number in 0..100 {
            site.write(&format!("{number}.bin"), vec![b'x'; 3000]);
        }
        let setup = Setup::limited("-n 64").serving(engine.name, &site);
        let mut server = setup.args(["--workers", "2", "--cache-file-max", "1KiB"]).start();
        let count = if serves_several(engine) { 200 } else { 1 };
        let mut clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.request("GET", "/a.txt", &[]);
        }
        // Those who have got a place are served, new files too.
        assert!(clients[0].is_answered_within(PATIENCE));
        let mut lucky: Vec<_> =
            clients.iter_mut().filter(|client| client.is_answered_within(Duration::from_millis(5))).collect();
        let many = lucky.len();
        for (number, client) in lucky.iter_mut().enumerate() {
            assert_eq!(client.response().text(), "alpha\n");
            for step in 0..5 {
                let target = format!("/{}.bin", (number * 5 + step) % 100);
                let response = client.get(&target);
                assert_eq!((response.status, response.body.len()), (200, 3000), "{target} for one of {many}");
            }
        }
        assert!(server.is_running());
        drop(clients);
        for number in 0..100 {
            assert_eq!(server.get(&format!("/{number}.bin")).status, 200, "{number}");
        }
        server.signal(rustix::process::Signal::TERM);
        server.ends_well();
    });
}

#[test]
fn a_crowd_that_waits_is_served_when_the_others_leave() {
    on_every_engine(|engine| {
        if !serves_several(engine) {
            return;
        }
        let site = site();
        let server = Setup::limited("-n 64").serving(engine.name, &site).args(["--workers", "1"]).start();
        let crowd: Vec<_> = (0..150)
            .map(|_| {
                let mut client = server.connect();
                client.request("GET", "/a.txt", &["Connection: close"]);
                client
            })
            .collect();
        let begin = Instant::now();
        for mut client in crowd {
            assert_eq!(client.response().text(), "alpha\n");
        }
        assert!(begin.elapsed() < PATIENCE);
    });
}

/// A client that has taken the head of a huge answer and leaves the rest.
fn stalled(server: &Server) -> Client {
    let mut client = Client::connect_slow(server.port);
    client.request("GET", "/huge.bin", &[]);
    client.head();
    client
}

/// How much of half a second the server spends working.
fn work_in_half_a_second(server: &Server) -> Duration {
    let path = format!("/proc/{}/stat", server.pid().as_raw_nonzero());
    let used = || {
        let stat = std::fs::read_to_string(&path).unwrap();
        // The 14th and 15th fields (proc_pid_stat(5)), in ticks of 1/100 s on every Linux there is.
        let behind_name = &stat[stat.rfind(')').unwrap() + 2..];
        let ticks = behind_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    };
    // What was under way comes to rest.
    std::thread::sleep(Duration::from_millis(200));
    let begin = used();
    std::thread::sleep(Duration::from_millis(500));
    used() - begin
}

/// Every way to wait is one to spin in, for a server that does not mean to.
#[test]
fn who_makes_a_server_wait_does_not_make_it_work() {
    type Way = fn(&Server) -> Vec<Client>;
    const HARDLY_ANY: Duration = Duration::from_millis(100);
    fn one(server: &Server, bytes: &str, answered: bool) -> Vec<Client> {
        let mut client = server.connect();
        client.send(bytes);
        if answered {
            client.response();
        }
        vec![client]
    }
    let ways: [(&str, Way); 9] = [
        ("nobody is there", |_| Vec::new()),
        ("nothing is said", |server| one(server, "", false)),
        ("nothing more is said", |server| one(server, "GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n", true)),
        ("half a head", |server| one(server, "GET /a.txt HTTP/1.1\r\nHo", false)),
        ("half a body", |server| {
            one(server, "POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", true)
        }),
        ("a refusal whose client does not leave", |server| one(server, "nonsense\r\n\r\n", true)),
        ("an answer that is not taken", |server| vec![stalled(server)]),
        ("one that is not taken by who has finished sending", |server| {
            let mut client = stalled(server);
            client.finish_sending();
            vec![client]
        }),
        ("more clients than there is room for", |server| {
            let get = "GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n";
            (0..12).flat_map(|_| one(server, get, false)).collect()
        }),
    ];
    on_every_engine(|engine| {
        if !engine.capabilities.sleeps {
            println!("skipped on {}: it never waits, and so is always at work", engine.name);
            return;
        }
        let site = site();
        let args = ["--max-connections", "4", "--workers", "2", "--grace-period", "60s"];
        for (case, way) in &ways {
            let server = Server::start(engine, &site, &args);
            let clients = way(&server);
            let work = work_in_half_a_second(&server);
            assert!(work < HARDLY_ANY, "{case}: {work:?}");
            drop(clients);
        }
        let mut server = Server::start(engine, &site, &args);
        let client = stalled(&server);
        server.begin_to_drain();
        let work = work_in_half_a_second(&server);
        assert!(work < HARDLY_ANY, "while draining: {work:?}");
        drop(client);
        server.ends_well();
    });
}
