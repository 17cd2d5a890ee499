//! Whether a server answers: `ringserve healthcheck`, for images that have no curl.
//!
//! It asks the address that the same flags and variables would have the server listen on. Any answer of an
//! HTTP server below 500 is a sign of life: a static server that says 404 for `/` does what it is there for.
//! An answer of 500 or above, another protocol, or none in time is not.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::launch::{resolve, shown_hosts};

/// No status line is longer.
const LINE_MAX: usize = 1024;

/// Whom to ask, and what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address or name the server listens on.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What to ask for.
    pub path: String,
    /// Time for all of it.
    pub timeout: Duration,
}

/// Asks. What the server has answered, such as `200`, for the user.
///
/// # Errors
/// What is wrong, in one line for the user.
pub fn run(options: &Options) -> Result<u16, String> {
    let Options { host, port, path, timeout } = options;
    if *port == 0 {
        return Err("port 0 was chosen by the server: give the one it printed with --port".into());
    }
    let deadline = Instant::now() + *timeout;
    let bound = resolve(host, *port).map_err(|obstacle| obstacle.to_string())?;
    let mut failure = String::new();
    // An address that stands for all of them is asked on the loopback interface.
    for host in shown_hosts(bound.ip()) {
        let address = SocketAddr::new(host, *port);
        match status(address, path, deadline) {
            Ok(status @ 500..) => return Err(format!("http://{address}{path} answers {status}")),
            Ok(status) => return Ok(status),
            Err(error) if failure.is_empty() => {
                let why = match error.kind() {
                    io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                        format!("no answer within {timeout:?}")
                    }
                    _ => error.to_string(),
                };
                failure = format!("http://{address}{path}: {why}; is the server running, and on this port?");
            }
            Err(_) => {}
        }
    }
    Err(failure)
}

/// The status of the answer to one request on a connection of its own.
fn status(address: SocketAddr, path: &str, deadline: Instant) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let agent = concat!("ringserve-healthcheck/", env!("CARGO_PKG_VERSION"));
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut line = Vec::new();
    let mut room = [0; LINE_MAX];
    while !line.contains(&b'\n') && line.len() < LINE_MAX {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut room)? {
            0 => break,
            n => line.extend_from_slice(&room[..n]),
        }
    }
    status_of(&line).ok_or_else(|| io::Error::other("what answers does not speak HTTP/1.1"))
}

/// The time until the deadline, for a system call; none left is an error.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// The status in a status line (RFC 9112 section 4).
fn status_of(answer: &[u8]) -> Option<u16> {
    let digits = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_told_from_other_bytes() {
        for (answer, status) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 404 Not Found\r\n", Some(404)),
            (b"HTTP/1.1 503 \r\n", Some(503)),
            (b"HTTP/1.1 20", None),
            (b"HTTP/1.1 abc", None),
            (b"HTTP/2 200 \r\n", None),
            (b"SSH-2.0-OpenSSH_9.2\r\n", None),
            (b"", None),
        ] {
            assert_eq!(status_of(answer), status, "{answer:?}");
        }
    }
}
