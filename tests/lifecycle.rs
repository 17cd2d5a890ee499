//! From the command line to the exit code: starting, refusing to start, draining, ending.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use ringserve::engines::{AUTO, ENGINES, Threads};
use rustix::process::Signal;

use crate::common::{
    Client, End, HUGE, PATIENCE, Server, Setup, Site, eventually, numbered_bytes, on_every_engine,
    serves_several,
};

mod common;

fn site() -> Site {
    let site = Site::with(&[("a.txt", "alpha\n"), (".env", "hidden\n"), ("other/a.txt", "other\n")]);
    site.write("huge.bin", numbered_bytes(HUGE));
    site
}

/// A client in the middle of a huge answer, of which it has taken the head and a little.
fn stalled(server: &Server) -> Client {
    let mut client = Client::connect_slow(server.port);
    client.request("GET", "/huge.bin", &[]);
    assert_eq!(client.head().body_length(), HUGE);
    client.take(1000);
    client
}

#[test]
fn it_says_what_it_serves_and_where() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &["--workers", "3"]);
        let stdout = server.stdout();
        let lines: Vec<_> = stdout.lines().collect();
        let workers = if engine.threads == Threads::PerCore { "3 workers" } else { "1 worker" };
        for part in [&*site.root().to_string_lossy(), &format!("with {} ", engine.name), workers] {
            assert!(lines[0].contains(part), "{part:?} is not in {stdout}");
        }
        assert_eq!(lines[1..], [format!("http://127.0.0.1:{}/", server.port)]);
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
        server.signal(Signal::TERM);
        server.ends_well();
        assert_eq!(server.stdout(), stdout, "nothing more belongs there");
    });
}

#[test]
fn every_address_is_shown_with_a_line_of_its_own() {
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    on_every_engine(|engine| {
        let site = site();
        for (host, hosts) in [
            ("127.0.0.1", &["127.0.0.1"][..]),
            ("localhost", &["127.0.0.1"]),
            ("::1", &["[::1]"]),
            ("[::1]", &["[::1]"]),
            ("::", &["127.0.0.1", "[::1]"]),
            ("0.0.0.0", &["127.0.0.1"]),
        ] {
            if host.contains(':') && !has_ipv6 {
                println!("skipped: --host {host}, for there is no IPv6 here");
                continue;
            }
            let args = ["--engine", engine.name, "--port", "0", "--host", host];
            let server = Setup::new().arg(site.root()).args(args).start();
            let shown: Vec<_> = server.stdout().lines().skip(1).map(str::to_owned).collect();
            // A name may stand for either address.
            if host != "localhost" {
                let wanted: Vec<_> =
                    hosts.iter().map(|host| format!("http://{host}:{}/", server.port)).collect();
                assert_eq!(shown, wanted, "--host {host}");
            }
            for url in shown {
                let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
                assert_eq!(Client::connect_to(address).get("/a.txt").text(), "alpha\n", "{url}");
            }
        }
    });
}

/// The kernel closes the sockets of a ring some time after its process has gone.
#[test]
fn who_was_killed_can_be_started_again_at_once() {
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let start = |port: u16| {
            let args = ["--engine", engine.name, "--host", "127.0.0.1", "--port", &port.to_string()];
            Setup::new().arg(site.root()).args(args).start()
        };
        let mut server = start(0);
        for _ in 0..5 {
            let mut client = server.connect();
            assert_eq!(client.get("/a.txt").text(), "alpha\n");
            let port = server.port;
            // That is by SIGKILL.
            drop(server);
            server = start(port);
        }
    });
}

#[test]
fn what_it_cannot_serve_is_one_line_and_exit_code_1() {
    let site = site();
    let (missing, file) = (site.path("missing"), site.path("a.txt"));
    on_every_engine(|engine| {
        let owner = Server::start(engine, &site, &["--workers", "2"]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let by_other = listener.local_addr().unwrap().port().to_string();
        let by_ringserve = owner.port.to_string();
        for (root, port, host, words) in [
            (&*missing, "0", "127.0.0.1", "missing"),
            (&*file, "0", "127.0.0.1", "a.txt"),
            (site.root(), &*by_other, "127.0.0.1", &*by_other),
            (site.root(), &*by_ringserve, "127.0.0.1", &*by_ringserve),
            (site.root(), "0", "192.0.2.1", "192.0.2.1"),
        ] {
            let args = ["--engine", engine.name, "--port", port, "--host", host, "--workers", "2"];
            let ended = Setup::new().arg(root).args(args).run();
            assert_eq!((ended.code, &*ended.stdout), (Some(1), ""), "{ended:?}");
            assert!(ended.stderr.starts_with("ringserve: ") && ended.stderr.contains(words), "{ended:?}");
            assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
        }
        // Whoever came first goes on.
        assert_eq!(owner.get("/a.txt").status, 200);
        // Without a word, the root is `static`.
        let mut setup = Setup::new().args(["--engine", engine.name, "--port", "0"]);
        setup.command.current_dir(site.root());
        let ended = setup.run();
        assert!(ended.code == Some(1) && ended.stderr.contains("static"), "{ended:?}");
    });
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for (args, env, words) in [
        (&["--nonsense"][..], None, "--nonsense"),
        (&["a", "b"], None, "b"),
        (&["a", "--root", "b"], None, "twice"),
        (&["--engine", "warp"], None, "warp"),
        (&["--port", "65536"], None, "65536"),
        (&["--port", "http"], None, "http"),
        (&["--workers", "0"], None, "--workers"),
        (&["--idle-timeout", "soon"], None, "--idle-timeout"),
        (&["--idle-timeout", "0"], None, "--idle-timeout"),
        (&["--keep-alive", "maybe"], None, "--keep-alive"),
        (&["--cache-size", "lots"], None, "--cache-size"),
        (&["--symlinks", "some"], None, "--symlinks"),
        (&["--access-log", "xml"], None, "--access-log"),
        (&["--max-connections", "0"], None, "--max-connections"),
        (&["--cache-control", "a\nb"], None, "--cache-control"),
        (&["--index-files", "../x"], None, "--index-files"),
        (&[], Some(("SERVER_ENGINE", "warp")), "SERVER_ENGINE"),
        (&[], Some(("SERVER_PORT", "-1")), "SERVER_PORT"),
        (&[], Some(("SERVER_KEEP_ALIVE", "maybe")), "SERVER_KEEP_ALIVE"),
        (&[], Some(("SERVER_INDEX_FILES", "a.html,b/c")), "SERVER_INDEX_FILES"),
        (&[], Some(("PORT", "http")), "PORT"),
    ] {
        let mut setup = Setup::new().args(args);
        if let Some((name, value)) = env {
            setup = setup.env(name, value);
        }
        let ended = setup.run();
        assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{args:?} {env:?}: {ended:?}");
        assert!(ended.stderr.contains(words), "{args:?} {env:?}: {ended:?}");
    }
}

#[test]
fn help_names_every_engine_and_is_no_mistake() {
    let help = Setup::new().arg("--help").run();
    assert_eq!((help.code, &*help.stderr), (Some(0), ""));
    for engine in ENGINES {
        assert!(help.stdout.contains(engine.name) && help.stdout.contains(engine.summary), "{}", engine.name);
    }
    let version = Setup::new().arg("--version").run();
    let wanted = format!("ringserve {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!((version.code, version.stdout), (Some(0), wanted));
}

#[test]
fn the_environment_is_heard_and_the_command_line_wins() {
    let site = site();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = listener.local_addr().unwrap().port();
    let other = site.path("other");
    let setup = || {
        Setup::new()
            .env("SERVER_HOST", "127.0.0.1")
            .env("SERVER_PORT", "0")
            .env("SERVER_ENGINE", AUTO.1.name)
            .env("SERVER_ROOT", site.root())
            .env("SERVER_WORKERS", "3")
            .env("SERVER_KEEP_ALIVE", "off")
            .env("SERVER_INCLUDE_HIDDEN", "true")
            .env("SERVER_CACHE_CONTROL", "no-cache")
            .env("SERVER_INDEX_FILES", "a.txt")
            .env("SERVER_ACCESS_LOG", "common")
            // The flag of the port stands above it in any case.
            .env("PORT", taken.to_string())
    };
    let server = setup().start();
    assert!(server.stdout().contains(&format!("with {} ", AUTO.1.name)), "{}", server.stdout());
    assert!(server.stdout().contains("3 workers"), "{}", server.stdout());
    assert_eq!(server.get("/.env").text(), "hidden\n");
    let index = server.get("/");
    assert_eq!((index.text(), index.value("cache-control")), ("alpha\n".into(), "no-cache"));
    assert!(index.head.says_close());
    server.wait_for_stdout(|text| text.contains("GET / HTTP/1.1"));
    assert_ne!(server.port, taken);

    let args = ["--workers", "1", "--keep-alive", "on", "--cache-control", "no-store", "--access-log", "off"];
    let server =
        setup().env("SERVER_PORT", taken.to_string()).arg(&other).args(["--port", "0"]).args(args).start();
    assert!(server.stdout().contains("1 worker\n"), "{}", server.stdout());
    let index = server.get("/");
    assert_eq!((index.text(), index.value("cache-control")), ("other\n".into(), "no-store"));
    assert!(!index.head.says_close());
    assert_eq!(server.stdout().lines().count(), 2);

    let server = setup().arg("--root").arg(&other).start();
    assert_eq!(server.get("/").text(), "other\n");
    let server = setup().env("SERVER_INCLUDE_HIDDEN", "false").start();
    assert_eq!(server.get("/.env").status, 404);
}

#[test]
fn the_bare_port_stands_above_the_default_only() {
    let site = site();
    let setup = || Setup::new().arg(site.root()).args(["--host", "127.0.0.1", "--engine", AUTO.1.name]);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = listener.local_addr().unwrap().port().to_string();
    // Port 0 is any free port, and never the default.
    assert_ne!(setup().env("PORT", "0").start().port, 8080);
    setup().env("PORT", &taken).env("SERVER_PORT", "0").start();
    setup().env("PORT", &taken).args(["-p", "0"]).start();
}

#[test]
fn each_signal_to_end_ends_an_idle_server_at_once() {
    let site = site();
    on_every_engine(|engine| {
        for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
            let mut server = Server::start(engine, &site, &["--shutdown-delay", "0"]);
            assert_eq!(server.get("/a.txt").status, 200);
            let begin = Instant::now();
            server.signal(signal);
            server.ends_well();
            assert!(begin.elapsed() < Duration::from_secs(5), "{signal:?}: {:?}", begin.elapsed());
        }
    });
}

#[test]
fn a_signal_may_come_at_any_moment_of_the_start() {
    let site = site();
    on_every_engine(|engine| {
        for wait in [0, 1000, 2000, 4000, 8000, 16_000] {
            let mut server = Setup::new().serving(engine.name, &site).spawn();
            std::thread::sleep(Duration::from_micros(wait));
            server.signal(Signal::TERM);
            let code = server.exit_code(PATIENCE);
            // Before the server watches for signals, the signal itself ends the process.
            assert!(matches!(code, None | Some(0)), "after {wait} us: {code:?} {}", server.stderr());
        }
    });
}

#[test]
fn the_port_is_free_again_at_once() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &[]);
        // The server closes first, so that its end of the connection lingers in the kernel (TIME_WAIT).
        assert_eq!(server.ask("GET", "/a.txt", &["Connection: close"]).status, 200);
        let (port, mut client) = (server.port.to_string(), stalled(&server));
        server.begin_to_drain();
        server.signal(Signal::TERM);
        server.ends_well();
        client.rest();
        // The kernel takes a moment to end a ring, and the listener with it.
        eventually("the port is free", || TcpListener::bind((Ipv4Addr::LOCALHOST, server.port)).is_ok());
        let args = ["--engine", engine.name, "--host", "127.0.0.1", "--port", &port];
        let server = Setup::new().arg(site.root()).args(args).start();
        assert_eq!(server.get("/a.txt").status, 200);
    });
}

#[test]
fn an_answer_under_way_is_finished_and_the_next_is_the_last() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &[]);
        let mut client = Client::connect_slow(server.port);
        // The second and third stand behind it already.
        for target in ["/huge.bin", "/a.txt", "/a.txt"] {
            client.request("GET", target, &[]);
        }
        client.head();
        let mut body = client.take(1000);
        server.begin_to_drain();
        std::thread::sleep(Duration::from_millis(100));
        assert!(server.is_running());
        body.extend(client.take(HUGE - 1000));
        assert!(body == numbered_bytes(HUGE));
        let last = client.response();
        assert_eq!((last.text(), last.head.says_close()), ("alpha\n".into(), true));
        client.closes();
        drop(client);
        server.ends_well();
    });
}

#[test]
fn an_idle_connection_still_gets_one_answer_while_draining() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        assert!(!client.get("/a.txt").head.says_close());
        server.begin_to_drain();
        std::thread::sleep(Duration::from_millis(100));
        let response = client.get("/a.txt");
        assert_eq!((response.status, response.head.says_close()), (200, true), "{:?}", response.head);
        client.closes();
        drop(client);
        server.ends_well();
    });
}

#[test]
fn idle_connections_are_closed_without_a_reset() {
    let site = site();
    on_every_engine(|engine| {
        let count = engine.capabilities.clients_max.map_or(20, |max| max.min(20));
        let mut server = Server::start(engine, &site, &[]);
        let mut clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
        for client in clients.iter_mut().step_by(2) {
            assert_eq!(client.get("/a.txt").status, 200);
        }
        let begin = Instant::now();
        server.signal(Signal::TERM);
        clients.iter_mut().for_each(Client::closes);
        server.ends_well();
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    });
}

#[test]
fn a_request_that_has_begun_is_answered_while_draining() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        client.send("GET /a.txt HTTP/1.1\r\nHo");
        std::thread::sleep(Duration::from_millis(50));
        server.begin_to_drain();
        // More than the second that idle connections get, and the one that a blocking engine needs to notice.
        std::thread::sleep(Duration::from_millis(2500));
        client.send("st: x\r\n\r\n");
        let response = client.response();
        assert_eq!((response.text(), response.head.says_close()), ("alpha\n".into(), true));
        client.closes();
        drop(client);
        server.ends_well();
    });
}

/// As far as they can tell, they have a connection already: none may meet a reset.
#[test]
fn who_has_connected_before_the_signal_is_answered() {
    let site = site();
    on_every_engine(|engine| {
        for round in 0..5 {
            let mut server = Server::start(engine, &site, &[]);
            let mut clients: Vec<_> = (0..30).map(|_| server.connect()).collect();
            for client in &mut clients[..round * 6] {
                client.request("GET", "/a.txt", &["Connection: close"]);
            }
            server.signal(Signal::TERM);
            for client in &mut clients[round * 6..] {
                client.request("GET", "/a.txt", &["Connection: close"]);
            }
            for (number, mut client) in clients.into_iter().enumerate() {
                match client.try_response() {
                    Ok(response) => assert_eq!(response.text(), "alpha\n"),
                    Err(end) => panic!("client {number} of round {round}: {end:?} instead of an answer"),
                }
                client.closes();
            }
            server.ends_well();
        }
    });
}

/// More than are accepted at once, and the signal is there before the first of them is.
#[test]
fn who_waits_to_be_accepted_is_answered() {
    let site = site();
    on_every_engine(|engine| {
        // An engine that logs clients' addresses may accept in another way, and so may one with little room.
        for option in [["--workers", "1"], ["--access-log", "common"], ["--max-connections", "8"]] {
            let mut server = Server::start(engine, &site, &option);
            assert_eq!(server.get("/a.txt").status, 200);
            server.signal(Signal::STOP);
            let clients: Vec<_> = (0..200)
                .map(|_| {
                    let mut client = server.connect();
                    client.request("GET", "/a.txt", &["Connection: close"]);
                    client
                })
                .collect();
            server.signal(Signal::TERM);
            server.signal(Signal::CONT);
            for (number, mut client) in clients.into_iter().enumerate() {
                match client.try_response() {
                    Ok(response) => assert_eq!(response.text(), "alpha\n"),
                    Err(end) => panic!("client {number}: {end:?} instead of an answer"),
                }
            }
            server.ends_well();
        }
    });
}

#[test]
fn nobody_new_is_served_while_draining() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &["--grace-period", "60s"]);
        let mut client = stalled(&server);
        server.begin_to_drain();
        if serves_several(engine) {
            eventually("new connections are refused", || Client::try_connect(server.port).is_none());
        }
        assert!(server.is_running());
        client.take(HUGE - 1000);
        client.closes();
        drop(client);
        server.ends_well();
        assert!(Client::try_connect(server.port).is_none());
    });
}

#[test]
fn a_second_signal_cuts_what_is_left() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &["--grace-period", "60s"]);
        let mut client = stalled(&server);
        server.begin_to_drain();
        std::thread::sleep(Duration::from_millis(100));
        assert!(server.is_running(), "it waits for the answer under way");
        server.signal(Signal::INT);
        server.ends_well();
        assert!(client.rest().0.len() < HUGE - 1000);
    });
}

#[test]
fn the_grace_period_has_an_end() {
    let site = site();
    on_every_engine(|engine| {
        for (period, least) in [("0", 0), ("1s", 900)] {
            let mut server = Server::start(engine, &site, &["--grace-period", period]);
            let mut client = stalled(&server);
            let begin = Instant::now();
            server.signal(Signal::TERM);
            server.ends_well();
            let took = begin.elapsed();
            assert!(
                took >= Duration::from_millis(least) && took < Duration::from_secs(8),
                "{period}: {took:?}"
            );
            assert!(client.rest().0.len() < HUGE - 1000);
        }
    });
}

/// A client that makes progress, but so slowly that no call waiting for it ever gives up, is cut like any
/// other.
#[test]
fn who_takes_little_by_little_does_not_outlast_the_grace_period() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &["--grace-period", "500ms"]);
        let mut client = stalled(&server);
        let (server_is_gone, gone) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while gone.recv_timeout(Duration::from_millis(200)) == Err(RecvTimeoutError::Timeout) {
                    let _ = client.try_take(10_000);
                }
            });
            server.signal(Signal::TERM);
            let code = server.exit_code(Duration::from_secs(5));
            drop(server_is_gone);
            assert_eq!(code, Some(0));
        });
    });
}

#[test]
fn during_the_shutdown_delay_everything_goes_on() {
    let site = site();
    on_every_engine(|engine| {
        let mut server = Server::start(engine, &site, &["--shutdown-delay", "1s"]);
        let begin = Instant::now();
        server.begin_to_drain();
        for _ in 0..10 {
            let asked = begin.elapsed();
            if asked > Duration::from_millis(500) {
                break;
            }
            let response = server.get("/a.txt");
            assert_eq!((response.status, response.head.says_close()), (200, false), "after {asked:?}");
        }
        server.ends_well();
        assert!(begin.elapsed() >= Duration::from_secs(1));
        // A second signal does not wait for it.
        let mut server = Server::start(engine, &site, &["--shutdown-delay", "60s", "--grace-period", "60s"]);
        let mut client = stalled(&server);
        server.begin_to_drain();
        server.signal(Signal::TERM);
        server.ends_well();
        assert!(client.rest().0.len() < HUGE - 1000);
    });
}

#[test]
fn a_root_that_moves_is_still_served() {
    on_every_engine(|engine| {
        let site = Site::with(&[("a.txt", "alpha\n")]);
        let server = Server::start(engine, &site, &["--fresh", "0"]);
        fs::rename(site.root(), site.outside().join("moved")).unwrap();
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
        fs::remove_dir_all(site.outside().join("moved")).unwrap();
        assert_eq!(server.get("/a.txt").status, 404);
        let mut client = server.connect();
        client.send("GET /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert_eq!(client.response().status, 404);
        assert_eq!(client.ends(), End::Closed);
    });
}
