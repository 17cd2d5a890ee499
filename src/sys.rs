//! The system calls that no library has in a safe form, outside the engines.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has a listener keep back clients who have sent nothing yet, for about so many seconds at the most
/// (`TCP_DEFER_ACCEPT`, tcp(7)): whoever is accepted has a request to read.
///
/// # Errors
/// What `setsockopt(2)` says; a kernel need not know the option.
pub fn defer_accept(listener: &impl AsFd, seconds: i32) -> io::Result<()> {
    let size = size_of_val(&seconds) as libc::socklen_t;
    // SAFETY: the value lives across the call and is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has a write beyond the limit on the size of files (`RLIMIT_FSIZE`, getrlimit(2)) fail instead of ending
/// the process: a file in memory that is too large for it is then held otherwise.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is set; to ignore a signal touches nothing of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn who_sends_is_accepted_at_once_and_who_does_not_a_little_later() {
        use std::io::Write;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        defer_accept(&listener, 1).unwrap();
        let address = listener.local_addr().unwrap();
        let silent = TcpStream::connect(address).unwrap();
        let mut talker = TcpStream::connect(address).unwrap();
        talker.write_all(b"x").unwrap();
        assert_eq!(listener.accept().unwrap().1, talker.local_addr().unwrap());
        let begin = Instant::now();
        assert_eq!(listener.accept().unwrap().1, silent.local_addr().unwrap());
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
