//! The access log: what stands in it, that nobody can forge it, and that whoever reads it can hold nobody up.

use ringserve::engines::Engine;
use rustix::process::Signal;
use serde_json::Value;

use crate::common::{Client, End, PATIENCE, Server, Setup, Site, on_every_engine, request};

mod common;

fn site() -> Site {
    Site::with(&[("a.txt", "alpha\n"), ("empty.txt", "")])
}

fn start(engine: &Engine, site: &Site, format: &str) -> Server {
    Server::start(engine, site, &["--access-log", format])
}

/// Waits for so many lines behind the summary and the URL.
#[track_caller]
fn lines(server: &Server, count: usize) -> Vec<String> {
    let text = server.wait_for_stdout(|text| text.matches('\n').count() >= 2 + count);
    let lines: Vec<_> = text.lines().skip(2).map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

/// The time in `[06/Nov/1994:08:49:37 +0000]` is well-formed; it is replaced by a `T`.
fn without_time(line: &str) -> String {
    let (start, end) = (line.find('[').unwrap(), line.find(']').unwrap());
    let shape: String = line[start..=end]
        .chars()
        .map(|c| match c {
            '0'..='9' => '9',
            'A'..='Z' => 'A',
            'a'..='z' => 'a',
            other => other,
        })
        .collect();
    assert_eq!(shape, "[99/Aaa/9999:99:99:99 +9999]", "{line}");
    format!("{}T{}", &line[..start], &line[end + 1..])
}

/// Requests of many kinds on one connection, what is logged as the request line, the status and the bytes.
const ASKED: [(&str, &str, u16, u64); 9] = [
    ("GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a.txt HTTP/1.1", 200, 6),
    ("HEAD /a.txt?q=1 HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD /a.txt?q=1 HTTP/1.1", 200, 0),
    ("GET /a.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\n", "GET /a.txt HTTP/1.1", 206, 2),
    ("GET /a.txt HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n", "GET /a.txt HTTP/1.1", 304, 0),
    ("GET /empty.txt HTTP/1.1\r\nHost: x\r\n\r\n", "GET /empty.txt HTTP/1.1", 200, 0),
    ("GET /none HTTP/1.1\r\nHost: x\r\n\r\n", "GET /none HTTP/1.1", 404, 14),
    ("POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "POST /a.txt HTTP/1.1", 405, 23),
    ("GET /a.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /a.txt HTTP/1.0", 200, 6),
    ("nonsense\r\n\r\n", "", 400, 16),
];

#[test]
fn common_and_combined() {
    on_every_engine(|engine| {
        let site = site();
        for format in ["common", "combined"] {
            let server = start(engine, &site, format);
            let mut client = server.connect();
            let all: String = ASKED.iter().map(|(bytes, ..)| *bytes).collect();
            client.send(all);
            client.finish_sending();
            client.rest();
            let tail = if format == "combined" { r#" "-" "-""# } else { "" };
            for (line, (_, request, status, bytes)) in lines(&server, ASKED.len()).iter().zip(ASKED) {
                let request = if request.is_empty() { "-" } else { request };
                let wanted = format!(r#"127.0.0.1 - - T "{request}" {status} {bytes}{tail}"#);
                assert_eq!(without_time(line), wanted);
            }
        }
        let server = start(engine, &site, "combined");
        server.ask("GET", "/a.txt", &["Referer: http://x/y?z", "User-Agent: test/1.0 (a; b)"]);
        let line = lines(&server, 1).remove(0);
        assert!(line.ends_with(r#" 200 6 "http://x/y?z" "test/1.0 (a; b)""#), "{line}");
    });
}

#[test]
fn json() {
    on_every_engine(|engine| {
        let site = site();
        let server = start(engine, &site, "json");
        let mut client = server.connect();
        let all: String = ASKED.iter().map(|(bytes, ..)| *bytes).collect();
        client.send(all);
        client.finish_sending();
        client.rest();
        for (line, (_, request, status, bytes)) in lines(&server, ASKED.len()).iter().zip(ASKED) {
            let json: Value = serde_json::from_str(line).unwrap();
            let number = |name: &str| json[name].as_u64().unwrap_or_else(|| panic!("{name} in {line}"));
            assert!(number("time") > 1_600_000_000, "{line}");
            assert_eq!((number("status"), number("bytes")), (u64::from(status), bytes), "{line}");
            assert_eq!(
                (json["remote"].as_str(), json["request"].as_str()),
                (Some("127.0.0.1"), Some(request))
            );
            assert_eq!((&json["referer"], &json["user_agent"]), (&Value::Null, &Value::Null));
        }
    });
}

#[test]
fn off_is_off() {
    on_every_engine(|engine| {
        let site = site();
        let mut server = Server::start(engine, &site, &[]);
        server.get("/a.txt");
        server.signal(Signal::TERM);
        server.ends_well();
        assert_eq!(server.stdout().lines().count(), 2);
    });
}

#[test]
fn nobody_can_forge_a_line() {
    let evil = [
        "x\" 200 5",
        "x\\",
        "\" \"-\" \"-\"\u{85}127.0.0.1 - - [",
        "\u{2028}\u{feff}\u{202e}",
        "a\tb",
        "{\"status\":200}",
        "\u{9b}31m",
    ];
    on_every_engine(|engine| {
        let site = site();
        for format in ["common", "combined", "json"] {
            let server = start(engine, &site, format);
            let mut client = server.connect();
            for evil in evil {
                let (agent, referer) = (format!("User-Agent: {evil}"), format!("Referer: {evil}"));
                // Not everything may stand in a target; what is logged of it, if it may, is as harmless.
                let target = format!("/{}", evil.replace(|c: char| !c.is_ascii_graphic(), ""));
                client.request("GET", &target, &[&agent, &referer]);
                if client.response().head.says_close() {
                    client = server.connect();
                }
                client.request("GET", "/a.txt", &[&agent, &referer]);
                assert_eq!(client.response().status, 200, "{evil:?}");
            }
            for line in lines(&server, 2 * evil.len()) {
                let is_plain = |c: char| matches!(c, ' '..='~');
                if format == "json" {
                    let json: Value = serde_json::from_str(&line).unwrap();
                    assert!(matches!(json["status"].as_u64(), Some(200 | 400 | 404)), "{line}");
                    assert!(!line.contains(|c: char| c.is_ascii_control()), "{line:?}");
                } else {
                    assert!(line.chars().all(is_plain), "{line:?}");
                    let quotes = if format == "common" { 2 } else { 6 };
                    assert_eq!(line.matches('"').count(), quotes, "{line}");
                }
            }
        }
    });
}

#[test]
fn bytes_that_are_no_request_do_not_reach_the_log() {
    on_every_engine(|engine| {
        let site = site();
        for format in ["combined", "json"] {
            let server = start(engine, &site, format);
            for bytes in [
                "GET /\x1b[31m HTTP/1.1\r\n\r\n",
                "GET /a\rb HTTP/1.1\r\n\r\n",
                "GET /a.txt HTTP/1.1\r\nX: \0\r\n\r\n",
            ] {
                let mut client = server.connect();
                client.send(bytes);
                assert_eq!(client.response().status, 400);
            }
            for line in lines(&server, 3) {
                assert!(!line.contains("GET") && !line.contains(|c: char| c.is_control()), "{line:?}");
            }
        }
    });
}

#[test]
fn the_client_is_who_it_is() {
    on_every_engine(|engine| {
        let site = site();
        // IPv4 clients of a listener on both families are shown as what they are.
        for host in ["127.0.0.1", "::"] {
            let args = ["--engine", engine.name, "--port", "0", "--host", host, "--access-log", "json"];
            let server = Setup::new().arg(site.root()).args(args).start();
            server.wait_for_stdout(|text| text.contains("127.0.0.1"));
            let before = server.stdout().lines().count();
            let addresses = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 1, 2, 3]];
            for address in addresses {
                let mut client = Client::connect_from(address, server.port);
                assert_eq!(client.get("/a.txt").status, 200);
                assert_eq!(client.get("/a.txt").status, 200);
            }
            let text = server.wait_for_stdout(|text| text.lines().count() >= before + 6);
            let logged: Vec<_> = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .map(|json| json["remote"].as_str().unwrap().to_owned())
                .collect();
            let wanted: Vec<_> =
                addresses.iter().flat_map(|&[a, b, c, d]| vec![format!("{a}.{b}.{c}.{d}"); 2]).collect();
            assert_eq!(logged, wanted, "--host {host}");
        }
    });
}

/// More requests than the queue and the pipe can hold lines.
const MANY: usize = 12_000;

/// Sends that many, and is answered each time.
fn ask_a_lot(server: &Server) {
    let mut client = server.connect();
    let last = request("GET", "/empty.txt", &["Connection: close"]);
    client.send_aside((request("GET", "/empty.txt", &[]).repeat(MANY - 1) + &last).into_bytes());
    let (answers, end) = client.rest();
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!((answers.matches("HTTP/1.1 200 OK\r\n").count(), end), (MANY, End::Closed));
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    on_every_engine(|engine| {
        let site = site();
        let setup = Setup::new().serving(engine.name, &site).args(["--access-log", "combined"]);
        let mut server = setup.holding_stdout().start();
        ask_a_lot(&server);
        assert_eq!(server.get("/a.txt").status, 200);
        // When it is read again, what is there is whole lines, and what is not is told.
        server.read_on();
        server.wait_for_stderr("lines were dropped");
        server.signal(Signal::TERM);
        server.ends_well();
        let stdout = server.wait_for_stdout(|text| text.ends_with('\n'));
        let logged: Vec<_> = stdout.lines().skip(2).collect();
        assert!((500..=MANY).contains(&logged.len()), "{}", logged.len());
        for line in logged {
            let line = without_time(line);
            assert!(line.starts_with("127.0.0.1 - - T \"GET /") && line.ends_with(r#" "-" "-""#), "{line}");
        }
    });
}

#[test]
fn a_log_that_nobody_reads_does_not_keep_the_server_from_ending() {
    on_every_engine(|engine| {
        let site = site();
        let setup = Setup::new().serving(engine.name, &site).args(["--access-log", "combined"]);
        let mut server = setup.args(["--grace-period", "1s"]).holding_stdout().start();
        ask_a_lot(&server);
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code(PATIENCE), Some(0));
    });
}

#[test]
fn a_log_whose_reader_has_gone_stops_nobody() {
    on_every_engine(|engine| {
        let site = site();
        let setup = Setup::new().serving(engine.name, &site).args(["--access-log", "json"]);
        let mut server = setup.holding_stdout().start();
        server.close_stdout();
        ask_a_lot(&server);
        assert_eq!(server.get("/a.txt").status, 200);
        server.wait_for_stderr("the access log cannot be written");
        server.signal(Signal::TERM);
        server.ends_well();
        let complaints = server.stderr().matches("cannot be written").count();
        assert!(complaints < 3, "{complaints} complaints about one thing");
    });
}

#[test]
fn what_was_answered_before_the_end_is_logged_before_the_end() {
    on_every_engine(|engine| {
        let site = site();
        let mut server = start(engine, &site, "common");
        let mut client = server.connect();
        for _ in 0..50 {
            client.get("/a.txt");
        }
        drop(client);
        server.signal(Signal::TERM);
        server.ends_well();
        assert_eq!(lines(&server, 50).len(), 50);
    });
}
