//! Requests: methods, versions, framing, pipelines, refusals, and how a connection goes on or ends.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};
use ringserve::serve::READ_MAX;
use twox_hash::XxHash3_128;

use crate::common::{
    Client, End, HUGE, Response, Server, Site, numbered_bytes, on_every_engine, request, serves_several,
};

mod common;

/// Small, middle and large: copied behind the head, lent from memory, sent from a descriptor.
const MIDDLE: usize = 40_000;
const LARGE: usize = 3_000_000;

fn site() -> Site {
    let site = Site::with(&[("a.txt", "alpha\n"), ("b.txt", "beta\n"), ("sub/index.html", "<p>sub\n")]);
    site.write("empty.txt", "");
    site.write("middle.bin", numbered_bytes(MIDDLE));
    site.write("large.bin", numbered_bytes(LARGE));
    site
}

/// A GET as simple as can be.
fn get(target: &str) -> String {
    request("GET", target, &[])
}

/// Sends bytes on a connection of their own; all that is answered, and how it ends. The client says that it
/// is done, so that the connection ends in any case.
fn exchange(server: &Server, bytes: &[u8]) -> (Vec<Response>, End) {
    let mut client = server.connect();
    client.send(bytes);
    client.finish_sending();
    let mut responses = Vec::new();
    loop {
        match client.try_response() {
            Ok(response) => responses.push(response),
            Err(end) => return (responses, end),
        }
    }
}

fn statuses(responses: &[Response]) -> Vec<u16> {
    responses.iter().map(|response| response.status).collect()
}

#[test]
fn every_method_has_its_answer() {
    on_every_engine(|engine| {
        let (site, allowed) = (site(), "GET, HEAD, OPTIONS");
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        for (method, target, status, body) in [
            ("GET", "/a.txt", 200, "alpha\n"),
            ("OPTIONS", "/a.txt", 204, ""),
            ("OPTIONS", "*", 204, ""),
            ("POST", "/a.txt", 405, "405 Method Not Allowed\n"),
            ("PUT", "/a.txt", 405, "405 Method Not Allowed\n"),
            ("DELETE", "/none", 405, "405 Method Not Allowed\n"),
            ("PATCH", "/a.txt", 405, "405 Method Not Allowed\n"),
            ("TRACE", "/a.txt", 405, "405 Method Not Allowed\n"),
            ("BREW", "/a.txt", 501, "501 Not Implemented\n"),
            ("get", "/a.txt", 501, "501 Not Implemented\n"),
            ("GET", "/none", 404, "404 Not Found\n"),
            ("GET", "/a.txt?a=1", 200, "alpha\n"),
            ("GET", "http://test/b.txt?", 200, "beta\n"),
            ("GET", "HTTPS://test:8443/b.txt", 200, "beta\n"),
        ] {
            client.request(method, target, &[]);
            let response = client.response();
            assert_eq!((response.status, response.text()), (status, body.to_owned()), "{method} {target}");
            let wanted = matches!(status, 204 | 405).then_some(allowed);
            assert_eq!(response.field("allow"), wanted, "{method} {target}");
            assert!(!response.head.says_close(), "{method} {target}");
        }
        client.request("CONNECT", "test:443", &[]);
        assert_eq!(client.response().status, 405);
        client.closes();
    });
}

#[test]
fn head_says_what_get_does_and_sends_nothing() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", "1MiB"]);
        for (target, field) in [
            ("/a.txt", "Accept: */*"),
            ("/empty.txt", "Accept: */*"),
            ("/middle.bin", "Accept: */*"),
            ("/large.bin", "Accept: */*"),
            ("/sub/", "Accept: */*"),
            ("/sub", "Accept: */*"),
            ("/none", "Accept: */*"),
            ("/a.txt", "If-None-Match: *"),
            ("/a.txt", "If-Match: \"x\""),
        ] {
            let mut client = server.connect();
            client.request("HEAD", target, &[field]);
            let head = client.head();
            client.request("GET", target, &[field]);
            let response = client.response();
            assert_eq!(head.status, response.status, "{target} {field}");
            assert!(head.lasting_fields().eq(response.head.lasting_fields()), "{head:?} {:?}", response.head);
        }
    });
}

#[test]
fn a_version_decides_whether_the_connection_persists() {
    const KEPT: Option<&str> = None;
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        for (version, fields, said) in [
            ("HTTP/1.1", "Host: x\r\n", KEPT),
            ("HTTP/1.1", "Host: x\r\nConnection: keep-alive\r\n", KEPT),
            ("HTTP/1.1", "Host: x\r\nConnection: close\r\n", Some("close")),
            ("HTTP/1.1", "Host: x\r\nConnection: x, CLOSE\r\n", Some("close")),
            ("HTTP/1.1", "Host: x\r\nConnection: x\r\nConnection: close\r\n", Some("close")),
            ("HTTP/1.1", "Host: x\r\nConnection: keep-alive, close\r\n", Some("close")),
            ("HTTP/1.2", "Host: x\r\n", KEPT),
            ("HTTP/1.9", "Host: x\r\nConnection: close\r\n", Some("close")),
            ("HTTP/1.0", "", Some("close")),
            ("HTTP/1.0", "Host: x\r\n", Some("close")),
            ("HTTP/1.0", "Connection: Keep-Alive\r\n", Some("keep-alive")),
            ("HTTP/1.0", "Connection: keep-alive, close\r\n", Some("close")),
        ] {
            let mut client = server.connect();
            client.send(format!("GET /a.txt {version}\r\n{fields}\r\n"));
            let response = client.response();
            let case = format!("{version} {fields:?}");
            assert_eq!((response.status, response.text()), (200, "alpha\n".into()), "{case}");
            assert_eq!(response.field("connection"), said, "{case}");
            if said == Some("close") {
                client.closes();
            } else {
                assert_eq!(client.get("/b.txt").text(), "beta\n", "{case}");
            }
        }
    });
}

#[test]
fn with_keep_alive_off_every_answer_is_the_last() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--keep-alive", "off"]);
        for target in ["/a.txt", "/none", "/large.bin"] {
            let mut client = server.connect();
            assert!(client.get(target).head.says_close());
            client.closes();
        }
        // A second request in the same packet is not answered, nor does it reset the first answer away.
        let two = "GET /a.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".repeat(2);
        let (responses, end) = exchange(&server, two.as_bytes());
        assert_eq!((statuses(&responses), end), (vec![200], End::Closed));
    });
}

#[test]
fn a_thousand_pipelined_requests_are_answered_in_order() {
    on_every_engine(|engine| {
        let site = Site::new();
        for number in 0..10 {
            site.write(&format!("{number}.txt"), format!("file {number}"));
        }
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        let target = |number: usize| format!("/{}.txt?{number}", number * 7 % 10);
        let requests: Vec<_> = (0..1000).map(|number| get(&target(number))).collect();
        client.send_aside(requests.concat().into_bytes());
        for number in 0..1000 {
            let response = client.response();
            assert_eq!(response.text(), format!("file {}", number * 7 % 10), "request {number}");
        }
        assert_eq!(client.get("/1.txt").text(), "file 1");
    });
}

#[test]
fn bodies_of_all_sizes_leave_in_order_behind_each_other() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        let targets =
            ["/a.txt", "/large.bin", "/middle.bin", "/none", "/large.bin", "/empty.txt", "/sub", "/b.txt"];
        let alone: Vec<_> = targets.iter().map(|target| server.get(target).body).collect();
        assert_eq!(alone[1], numbered_bytes(LARGE));
        let mut client = server.connect();
        client.send_aside(targets.map(get).concat().repeat(3).into_bytes());
        for round in 0..3 {
            for (target, body) in targets.iter().zip(&alone) {
                assert!(client.response().body == *body, "{target} in round {round}");
            }
        }
    });
}

#[test]
fn a_body_is_passed_over_to_the_next_request() {
    let long = format!("Content-Length: 60000\r\n\r\n{}", "GET / HTTP/1.1\r\n".repeat(60_000 / 16));
    let chunks = "1000\r\n".to_owned() + &"x".repeat(0x1000) + "\r\n";
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunks.repeat(8));
    let cases = [
        ("GET", "Content-Length: 0\r\n\r\n"),
        ("GET", "Content-Length: 30\r\n\r\nGET /b.txt HTTP/1.1\r\nHost: x\r\n"),
        ("HEAD", "Content-Length: 3\r\n\r\nabc"),
        ("OPTIONS", "Content-Length: 3\r\n\r\nabc"),
        ("POST", "Content-Length: 3\r\n\r\nabc"),
        ("BREW", "Content-Length: 3\r\n\r\nabc"),
        ("GET", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            "GET",
            "Transfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nT: x\r\n\r\n",
        ),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n15\r\nGET /b.txt HTTP/1.1\r\n\r\n000\r\n\r\n"),
        ("GET", &long),
        ("POST", &chunked),
    ];
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        for (method, rest) in cases {
            client.send(format!("{method} /a.txt HTTP/1.1\r\nHost: x\r\n{rest}"));
            let head = client.head();
            if method != "HEAD" {
                client.take(head.body_length());
            }
            let case = &rest[..rest.len().min(60)];
            assert!(!head.says_close(), "{method} {case}");
            assert_eq!(client.get("/a.txt").text(), "alpha\n", "behind {method} {case}");
        }
        // And in pieces, with the next request behind the last one.
        for piece in [
            "Transfer-Encoding: chunked\r\n\r",
            "\n5",
            "\r\nhel",
            "lo\r",
            "\n0\r\n",
            "T: x\r\n",
            "\r\nGET /b",
        ] {
            if piece.starts_with("Transfer") {
                client.send("GET /a.txt HTTP/1.1\r\nHost: x\r\n");
            }
            client.send(piece);
            std::thread::sleep(Duration::from_millis(3));
        }
        assert_eq!(client.response().text(), "alpha\n");
        client.send(".txt HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.response().text(), "beta\n");
    });
}

#[test]
fn behind_a_body_that_cannot_be_passed_over_nothing_is_a_request() {
    let next = "GET /b.txt HTTP/1.1\r\nHost: x\r\n\r\n";
    let cases = [
        ("too long", format!("Content-Length: 1000000\r\n\r\n{next}"), vec![200]),
        ("no chunk", format!("Transfer-Encoding: chunked\r\n\r\nxyz\r\n{next}"), vec![200]),
        (
            "a chunk too long",
            format!("Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{next}"),
            vec![200],
        ),
        (
            "a chunk size beyond 64 bits",
            format!("Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n{next}"),
            vec![200],
        ),
        (
            "perhaps no body at all",
            format!("Expect: 100-continue\r\nContent-Length: 3\r\n\r\n{next}"),
            vec![200],
        ),
        ("the client wants to close", format!("Connection: close\r\n\r\n{next}"), vec![200]),
        ("an expectation", format!("Expect: teapot\r\n\r\n{next}"), vec![417, 200]),
    ];
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        for (case, rest, wanted) in &cases {
            let request = format!("GET /a.txt HTTP/1.1\r\nHost: x\r\n{rest}");
            let (responses, end) = exchange(&server, request.as_bytes());
            assert_eq!((statuses(&responses), end), (wanted.clone(), End::Closed), "{case}");
        }
    });
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let request = "GET /a.txt HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nX-Long: aaaaaaaaaaaaaaaa\r\n\r\n";
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        for at in 1..request.len() {
            client.send(&request[..at]);
            // So that the pieces do not arrive as one.
            std::thread::sleep(Duration::from_millis(1));
            client.send(&request[at..]);
            assert_eq!(client.response().text(), "alpha\n", "cut at {at}");
        }
        for byte in request.repeat(2).bytes() {
            client.send([byte]);
            std::thread::sleep(Duration::from_micros(300));
        }
        assert_eq!(client.response().text(), "alpha\n");
        assert_eq!(client.response().text(), "alpha\n");
    });
}

#[test]
fn what_is_no_request_is_refused_and_ends_the_connection() {
    const GET: &str = "GET /a.txt HTTP/1.1\r\n";
    let cases = [
        ("no host", format!("{GET}\r\n"), 400),
        ("two hosts", format!("{GET}Host: x\r\nHost: x\r\n\r\n"), 400),
        ("two hosts in one", format!("{GET}Host: x, y\r\n\r\n"), 400),
        ("a host with a path", format!("{GET}Host: x/y\r\n\r\n"), 400),
        ("a space before the colon", format!("{GET}Host : x\r\n\r\n"), 400),
        ("a folded line", format!("{GET}Host: x\r\n folded\r\n\r\n"), 400),
        ("a line without a colon", format!("{GET}Host: x\r\nnonsense\r\n\r\n"), 400),
        ("a field without a name", format!("{GET}Host: x\r\n: y\r\n\r\n"), 400),
        ("a NUL", format!("{GET}Host: x\r\nX: a\0b\r\n\r\n"), 400),
        ("a carriage return", format!("{GET}Host: x\r\nX: a\rb\r\n\r\n"), 400),
        ("two lengths", format!("{GET}Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 400),
        ("a list of lengths", format!("{GET}Host: x\r\nContent-Length: 1, 1\r\n\r\na"), 400),
        ("a signed length", format!("{GET}Host: x\r\nContent-Length: +1\r\n\r\na"), 400),
        ("a negative length", format!("{GET}Host: x\r\nContent-Length: -1\r\n\r\n"), 400),
        ("a length in hexadecimal", format!("{GET}Host: x\r\nContent-Length: 0x1\r\n\r\na"), 400),
        (
            "a length beyond 64 bits",
            format!("{GET}Host: x\r\nContent-Length: 18446744073709551616\r\n\r\n"),
            400,
        ),
        (
            "length and chunks",
            format!("{GET}Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "chunked twice",
            format!("{GET}Host: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "chunked not last",
            format!("{GET}Host: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("another coding", format!("{GET}Host: x\r\nTransfer-Encoding: gzip\r\n\r\n"), 501),
        ("chunks in 1.0", "GET /a.txt HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), 400),
        ("HTTP/2.0", "GET /a.txt HTTP/2.0\r\nHost: x\r\n\r\n".into(), 505),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("HTTP/0.9", "GET /a.txt\r\n\r\n".into(), 400),
        ("no HTTP", "GET /a.txt FTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a version in lower case", "GET /a.txt http/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("two spaces", "GET  /a.txt HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a target with a space", "GET /a b.txt HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a target without a slash", "GET a.txt HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("a fragment", "GET /a.txt#x HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("an asterisk", "GET * HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("an authority", "GET test:80 HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("user information", "GET http://me@test/ HTTP/1.1\r\nHost: x\r\n\r\n".into(), 400),
        ("the start of TLS", "\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03\r\n\r\n".into(), 400),
        ("half a request", "GET /a.txt HT".into(), 400),
    ];
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        let good = format!("{GET}Host: x\r\n\r\n");
        for (case, bytes, status) in &cases {
            // Behind a good request, and with one behind it that must not be answered.
            let (responses, end) = exchange(&server, format!("{good}{bytes}").as_bytes());
            assert_eq!((statuses(&responses), end), (vec![200, *status], End::Closed), "{case}");
            assert!(responses[1].head.says_close(), "{case}");
            if !case.starts_with("half") {
                let (responses, end) = exchange(&server, format!("{bytes}{good}").as_bytes());
                assert_eq!(
                    (statuses(&responses), end),
                    (vec![*status], End::Closed),
                    "{case}, then a good one"
                );
            }
        }
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
    });
}

#[test]
fn an_answer_is_not_reset_away_by_what_the_client_still_sends() {
    let refused = "GET /a.txt HTTP/1.1\r\n\r\n";
    let not_allowed = "POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n";
    let last = "GET /a.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        for (start, with_it, status) in [
            (refused, 100_000, 400),
            (not_allowed, 100_000, 405),
            (last, 100_000, 200),
            // What comes later than the answer, too, unless it was the client who said that it is done.
            (refused, 0, 400),
            (not_allowed, 0, 405),
        ] {
            let mut client = server.connect();
            client.send([start.as_bytes(), &numbered_bytes(with_it)].concat());
            for _ in 0..19 {
                std::thread::sleep(Duration::from_millis(3));
                client.send(numbered_bytes(100_000));
            }
            assert_eq!(client.response().status, status);
            client.finish_sending();
            client.closes();
        }
    });
}

#[test]
fn empty_lines_before_a_request_are_passed_over() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        let mut client = server.connect();
        for lines in ["\r\n", "\r\n\r\n\r\n", "\r\n"] {
            client.send(lines);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(client.get("/a.txt").text(), "alpha\n");
        }
    });
}

#[test]
fn who_has_finished_sending_is_still_answered() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        for target in ["/a.txt", "/middle.bin", "/large.bin"] {
            let (responses, end) = exchange(&server, get(target).as_bytes());
            let wanted = std::fs::read(site.path(&target[1..])).unwrap();
            assert!(responses[0].body == wanted, "{target}");
            assert_eq!((statuses(&responses), end), (vec![200], End::Closed), "{target}");
        }
        let (responses, end) = exchange(&server, b"");
        assert_eq!((responses.len(), end), (0, End::Closed));
    });
}

#[test]
fn many_clients_do_not_mix() {
    const COUNT: usize = 120;
    on_every_engine(|engine| {
        if !serves_several(engine) {
            return;
        }
        let site = Site::new();
        let body = |number: usize| vec![number as u8; number * number * 37 % 150_000];
        for number in 0..COUNT {
            site.write(&format!("{number}.bin"), body(number));
        }
        // With everything in the cache, and with everything to be looked at again for each request.
        for fresh in ["60s", "0"] {
            let server = Server::start(engine, &site, &["--cache-file-max", "64KiB", "--fresh", fresh]);
            let mut clients: Vec<_> = (0..COUNT).map(|number| (number, server.connect())).collect();
            for round in 0..3 {
                for (number, client) in &mut clients {
                    client.send(get(&format!("/{}.bin", (*number + round) % COUNT)));
                }
                for (number, client) in clients.iter_mut().rev() {
                    let wanted = (*number + round) % COUNT;
                    assert!(client.response().body == body(wanted), "file {wanted} for client {number}");
                }
            }
        }
    });
}

#[test]
fn every_engine_sends_the_same_bytes() {
    let site = site();
    let seen = std::sync::Mutex::new(Vec::new());
    on_every_engine(|engine| {
        let server = Server::start(engine, &site, &["--cache-control", "max-age=60"]);
        let mut client = server.connect();
        let asked = [
            ("GET", "/a.txt", "Accept: */*"),
            ("GET", "/sub?x", "Accept: */*"),
            ("GET", "/sub/", "Accept-Encoding: gzip"),
            ("GET", "/none", "Accept: */*"),
            ("GET", "/middle.bin", "Range: bytes=5-20000"),
            ("GET", "/large.bin", "Range: bytes=-30000"),
            ("GET", "/large.bin", "Range: bytes=99999999-"),
            ("GET", "/a.txt", "If-None-Match: *"),
            ("GET", "/a.txt", "If-Match: \"x\""),
            ("POST", "/a.txt", "Content-Length: 0"),
            ("OPTIONS", "*", "Accept: */*"),
            ("GET", "/large.bin", "Connection: close"),
        ];
        let answers = asked.map(|(method, target, field)| {
            client.request(method, target, &[field]);
            let response = client.response();
            let fields: Vec<_> = response.head.lasting_fields().cloned().collect();
            (response.status, fields, XxHash3_128::oneshot(&response.body))
        });
        seen.lock().unwrap().push((engine.name, answers));
    });
    let seen = seen.into_inner().unwrap();
    for (name, answers) in &seen[1..] {
        assert_eq!(*answers, seen[0].1, "{name} and {}", seen[0].0);
    }
}

/// However a pipeline is cut into pieces, the same answers come in the same order.
#[test]
fn the_pieces_of_a_pipeline_do_not_matter() {
    let kinds = [
        get("/a.txt"),
        get("/none"),
        get("/middle.bin"),
        "GET /b.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".into(),
        "POST /b.txt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".into(),
        "\r\nGET /sub?q HTTP/1.1\r\nHost: x\r\n\r\n".into(),
    ];
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &[]);
        let whole = |response: Response| {
            let fields: Vec<_> = response.head.lasting_fields().cloned().collect();
            (response.status, fields, response.body)
        };
        let alone: Vec<_> = kinds
            .iter()
            .map(|kind| {
                let mut client = server.connect();
                client.send(kind);
                whole(client.response())
            })
            .collect();
        let pipelines = vec(select((0..kinds.len()).collect::<Vec<_>>()), 1..12);
        let config = Config { cases: 20, failure_persistence: None, ..Config::default() };
        let cut = |(order, cuts): (Vec<usize>, Vec<usize>)| {
            let bytes: String = order.iter().map(|&kind| &*kinds[kind]).collect();
            let mut ends: Vec<_> = cuts.iter().map(|cut| cut % bytes.len()).chain([bytes.len()]).collect();
            ends.sort_unstable();
            let mut client = server.connect();
            let mut start = 0;
            for end in ends {
                client.send(&bytes[start..end]);
                start = end;
                std::thread::sleep(Duration::from_millis(1));
            }
            for &kind in &order {
                prop_assert!(whole(client.response()) == alone[kind], "{}", kinds[kind]);
            }
            Ok(())
        };
        TestRunner::new(config).run(&(pipelines, vec(any::<usize>(), 0..6)), cut).unwrap();
    });
}

/// Whatever bytes come, they are answered or refused, and the server goes on.
#[test]
fn no_bytes_bring_the_server_down() {
    let seed = "GET /a.txt HTTP/1.1\r\nHost: x\r\nRange: bytes=0-3,-2\r\nIf-None-Match: \"a\", W/\"b\"\r\n\
        Accept-Encoding: gzip;q=0.5\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\nabcd\r\n0\r\nT: x\r\n\r\n";
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--header-timeout", "1s"]);
        let change = (0..seed.len(), any::<u8>(), 0..4usize);
        let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
        let mangle = |changes: Vec<(usize, u8, usize)>| {
            let mut bytes = seed.as_bytes().to_vec();
            for (at, byte, how) in changes {
                let Some(last) = bytes.len().checked_sub(1) else { break };
                let at = at.min(last);
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at + 1),
                }
            }
            let mut client = server.connect();
            client.send(&bytes);
            client.finish_sending();
            // The strict client judges every answer; what matters beyond is that the connection ends.
            while client.try_response().is_ok() {}
            prop_assert_eq!(server.get("/a.txt").status, 200);
            Ok(())
        };
        TestRunner::new(config).run(&vec(change, 1..6), mangle).unwrap();
    });
}

/// What comes while an answer is stuck is asked behind it, and no byte of either is lost.
#[test]
fn who_goes_on_asking_while_nothing_fits_gets_all_answers_in_order() {
    const ANSWER: usize = 7_000;
    const REQUESTS: usize = HUGE / 2 / ANSWER;
    let bytes = numbered_bytes(4 * ANSWER);
    let at = |number: usize| number * 7 % (3 * ANSWER);
    let asked = |number: usize, length: usize| {
        let range = format!("Range: bytes={}-{}", at(number), at(number) + ANSWER - 1);
        let rest = length.saturating_sub(request("GET", "/some.bin", &[&range, "Padding: "]).len());
        request("GET", "/some.bin", &[&range, &format!("Padding: {}", "x".repeat(rest))]).into_bytes()
    };
    on_every_engine(|engine| {
        let site = Site::with(&[("some.bin", &bytes)]);
        let server = Server::start(engine, &site, &["--workers", "1"]);
        // Each when the last has been answered; or two fill what is received at once, and the next two are
        // there already when these are answered.
        for (length, at_once, pause) in [(0, 1, 200), (READ_MAX / 2, 6, 2000)] {
            let mut client = server.connect();
            let requests: Vec<_> = (0..REQUESTS).map(|number| asked(number, length)).collect();
            let pieces = requests.chunks(at_once).map(<[_]>::concat).collect();
            client.send_pieces_aside(pieces, Duration::from_micros(pause));
            // Until nothing fits.
            std::thread::sleep(Duration::from_millis(600));
            for number in 0..REQUESTS {
                let body = client.response().body;
                assert!(body == bytes[at(number)..][..ANSWER], "answer {number} of {at_once} at once");
            }
        }
    });
}

/// A client that goes away in the middle of anything disturbs nobody.
#[test]
fn clients_may_vanish() {
    on_every_engine(|engine| {
        let site = site();
        let server = Server::start(engine, &site, &["--cache-file-max", "64KiB"]);
        let vanish = |bytes: &str, taken: usize| {
            let mut client = Client::connect_slow(server.port);
            client.send(bytes);
            client.take(taken);
            client.abort();
        };
        for _ in 0..10 {
            vanish("", 0);
            vanish("GET /a.txt HT", 0);
            vanish(&get("/a.txt"), 0);
            vanish(&get("/large.bin"), 1000);
            vanish(&get("/large.bin").repeat(20), 1000);
            vanish("POST /a.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nabc", 10);
        }
        assert_eq!(server.get("/a.txt").text(), "alpha\n");
    });
}
