//! The generator against servers of canned answers.

use super::*;
use std::io::{Read, Write};
use std::net::TcpListener;

/// A server of canned answers: each request, ended by an empty line, gets the next one of `answers`. An
/// empty answer closes the connection.
fn serve(answers: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut next = answers.iter().cycle();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            let mut room = [0; 4096];
            'client: while let Ok(n @ 1..) = stream.read(&mut room) {
                seen.extend_from_slice(&room[..n]);
                while let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                    seen.drain(..at + 4);
                    let answer = next.next().unwrap();
                    if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                        break 'client;
                    }
                    if answer.contains("close") {
                        break 'client;
                    }
                }
            }
        }
    });
    address
}

fn target(body: &str) -> Vec<Target> {
    vec![Target {
        request: b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".to_vec(),
        length: body.len() as u64,
        hash: Some(XxHash3_64::oneshot(body.as_bytes())),
    }]
}

const ONE: Clients = Clients { active: 1, idle: 0, hot: false, pipeline: 1, keep_alive: true };
const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn load(answers: &'static [&'static str], clients: Clients, pace: Pace, stop: Stop) -> Outcome {
    let targets = target("hello");
    let interrupted = AtomicBool::new(false);
    Generator::connect(serve(answers), clients, &targets, &interrupted).unwrap().drive(pace, stop)
}

#[test]
fn so_many_requests_and_no_more() {
    for pipeline in [1, 4] {
        let clients = Clients { pipeline, ..ONE };
        let outcome = load(&[GOOD], clients, Pace::Closed, Stop::Requests(10));
        assert_eq!((outcome.requests, outcome.errors), (10, 0), "{:?}", outcome.first_error);
        assert_eq!(outcome.latency.len(), 10);
        assert_eq!(outcome.bytes, 10 * GOOD.len() as u64);
    }
}

#[test]
fn what_is_wrong_is_counted_and_named() {
    for (answer, part) in [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello", "status 404"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell", "4 bytes instead of 5"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhallo", "not the file's"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: close\r\n\r\nhel", "ended before"),
        ("", "ended before"),
    ] {
        let answers = Box::leak(Box::new([answer]));
        let outcome = load(answers, ONE, Pace::Closed, Stop::Requests(1));
        let error = outcome.first_error.unwrap_or_default();
        assert!(error.contains(part), "{answer:?}: {error}");
        assert!(outcome.errors > 0);
    }
}

#[test]
fn a_server_that_announces_its_close_makes_no_error() {
    const LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    for keep_alive in [true, false] {
        let clients = Clients { keep_alive, ..ONE };
        let outcome = load(&[LAST], clients, Pace::Closed, Stop::Requests(5));
        assert_eq!((outcome.requests, outcome.errors), (5, 0), "{:?}", outcome.first_error);
    }
}

#[test]
fn a_second_load_begins_anew() {
    const LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let clients = Clients { active: 4, keep_alive: false, ..ONE };
    let targets = target("hello");
    let interrupted = AtomicBool::new(false);
    let address = serve(&[LAST]);
    let mut generator = Generator::connect(address, clients, &targets, &interrupted).unwrap();
    for _ in 0..50 {
        let outcome = generator.drive(Pace::Closed, Stop::Requests(9));
        assert_eq!((outcome.requests, outcome.errors), (9, 0), "{:?}", outcome.first_error);
    }
}

#[test]
fn at_a_fixed_rate_as_many_as_are_due() {
    let stop = Stop::After(Duration::from_millis(200));
    let outcome = load(&[GOOD], ONE, Pace::Fixed { rate: 100.0 }, stop);
    assert_eq!((outcome.requests + outcome.behind, outcome.errors), (20, 0));
}

#[test]
fn the_time_that_a_stuck_server_was_not_asked_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let targets = target("hello");
    let interrupted = AtomicBool::new(false);
    let address = listener.local_addr().unwrap();
    let mut generator = Generator::connect(address, ONE, &targets, &interrupted).unwrap();
    let pace = Pace::Fixed { rate: 100.0 };
    let outcome = generator.drive(pace, Stop::After(Duration::from_millis(100)));
    assert_eq!((outcome.requests, outcome.errors, outcome.behind), (0, 1, 9));
    assert!(outcome.latency.max() >= 80_000_000);
}

#[test]
fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let interrupted = AtomicBool::new(false);
    let targets = target("");
    let mut generator = Generator::connect(address, ONE, &targets, &interrupted).unwrap();
    let outcome = generator.drive(Pace::Closed, Stop::Requests(1));
    assert!(outcome.first_error.unwrap().contains("refused"));
}

#[test]
fn idle_clients_are_served_once_and_stay() {
    let clients = Clients { idle: 1, active: 0, ..ONE };
    let targets = target("hello");
    let interrupted = AtomicBool::new(false);
    let generator = Generator::connect(serve(&[GOOD]), clients, &targets, &interrupted).unwrap();
    assert_eq!(generator.idle(), 1);
}
