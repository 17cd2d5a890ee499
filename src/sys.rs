//! The system calls that no library has in a safe form, outside the engines.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::sync::atomic::AtomicU64;

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

/// Maps so many numbers that other processes can see: those this one forks, or, where a file is given, all
/// that map it too. They are zero at first, and never unmapped. The file must be long enough and stay so.
///
/// # Errors
/// What `mmap(2)` says.
pub fn share_words(file: Option<&File>, words: usize) -> io::Result<&'static [AtomicU64]> {
    let (flags, descriptor) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing of ours.
    let at = unsafe {
        libc::mmap(ptr::null_mut(), words * size_of::<AtomicU64>(), protection, flags, descriptor, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is so long, aligned to a page and never unmapped. All bits are a valid number, and
    // whoever else has it mapped changes it by atomic operations too.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), words) })
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
