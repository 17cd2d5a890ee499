//! Closing the doors: nobody new comes in, and whoever stands in the doorway is let in first.
//!
//! A client who has connected and sent nothing yet is not accepted for about a second
//! ([`sys::defer_accept`]), though for all he knows he is in. Were the listener closed now, the request he
//! sends next would be answered by a reset.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use socket2::{SockFilter, Socket};

use crate::sys;

/// The kernel asks again after a second who has sent nothing, and then lets him in.
const WAIT_MAX: Duration = Duration::from_millis(1500);

/// What a packet filter is made of (linux/bpf_common.h).
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Where the flags stand in a TCP header (RFC 9293 section 3.1), and two of them.
const FLAGS_AT: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// The listeners of all threads.
#[derive(Debug)]
pub struct Doors {
    listeners: Vec<Socket>,
    port: u16,
    closed: Option<Instant>,
}

impl Doors {
    /// The doors of these listeners.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn of(listeners: &[TcpListener]) -> io::Result<Doors> {
        let port = listeners.first().map_or(Ok(0), |one| one.local_addr().map(|address| address.port()))?;
        let listeners =
            listeners.iter().map(|one| one.try_clone().map(Socket::from)).collect::<Result<_, _>>()?;
        Ok(Doors { listeners, port, closed: None })
    }

    /// Closes them, and says whether somebody is still to be let in.
    pub fn close(&mut self) -> bool {
        let closed = *self.closed.get_or_insert_with(|| {
            for listener in &self.listeners {
                // Where it cannot be had, whoever comes now is served as well.
                let _ = listener.attach_filter(&drop_newcomers());
                let _ = sys::defer_accept(listener, 0);
            }
            Instant::now()
        });
        closed.elapsed() < WAIT_MAX && self.is_somebody_in_the_doorway()
    }

    /// Whether the kernel has a connection to our port that is not accepted, in state SYN_RECV.
    fn is_somebody_in_the_doorway(&self) -> bool {
        let port = format!(":{:04X}", self.port);
        ["/proc/net/tcp", "/proc/net/tcp6"].iter().filter_map(|table| fs::read_to_string(table).ok()).any(
            |table| {
                table.lines().any(|line| {
                    let mut words = line.split_ascii_whitespace();
                    words.nth(1).is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("03")
                })
            },
        )
    }
}

/// Drops every packet that would open a connection.
fn drop_newcomers() -> [SockFilter; 5] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_AT),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn whoever_has_connected_is_let_in_and_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        sys::defer_accept(&listener, 1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut doors = Doors::of(&[listener.try_clone().unwrap()]).unwrap();
        let silent = TcpStream::connect(address).unwrap();
        let mut talker = TcpStream::connect(address).unwrap();
        assert!(doors.close());
        let patience = Duration::from_millis(200);
        assert!(TcpStream::connect_timeout(&address, patience).is_err());
        talker.write_all(b"x").unwrap();
        let (mut accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, talker.local_addr().unwrap());
        accepted.read_exact(&mut [0]).unwrap();
        assert!(doors.close());
        assert_eq!(listener.accept().unwrap().1, silent.local_addr().unwrap());
        assert!(!doors.close());
    }
}
