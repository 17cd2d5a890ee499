//! The system calls of the engines, each a thin wrapper that counts: what a model costs is told by them.
//!
//! A thread counts into a number of its own, which [`publish`] moves to its worker's tally. What a thread
//! does for another, as helpers do for a loop, comes back with what it has done: [`taken`] there, [`add`]
//! here.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::CStr;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::Buffer;
use rustix::event::{PollFd, Timespec};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Result;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags};

use crate::observe::counters::Counter;
use crate::serve::Worker;

thread_local! {
    static MADE: Cell<u64> = const { Cell::new(0) };
    static ENDED: Cell<u64> = const { Cell::new(0) };
}

/// To be called before an engine's loop waits: what was counted in this turn is to be seen by others.
pub fn publish(worker: &mut Worker) {
    worker.tally.add(Counter::SystemCalls, taken());
    worker.tally.add(Counter::ConnectionsEnded, ENDED.take());
    worker.tally.publish();
}

/// Counts calls that were made elsewhere.
#[inline]
pub fn add(calls: u64) {
    MADE.set(MADE.get() + calls);
}

/// What this thread has counted since it was last asked.
pub fn taken() -> u64 {
    MADE.take()
}

/// So many connections of this thread have ended.
#[inline]
pub fn connections_ended(number: usize) {
    ENDED.set(ENDED.get() + number as u64);
}

/// Makes a call, and counts it.
#[inline]
pub fn counted<T>(call: impl FnOnce() -> T) -> T {
    add(1);
    call()
}

/// `accept4(2)`; the client's address is only found out where it is wanted.
pub fn accept(
    listener: impl AsFd,
    flags: SocketFlags,
    wants_peer: bool,
) -> Result<(OwnedFd, Option<IpAddr>)> {
    let flags = flags | SocketFlags::CLOEXEC;
    if !wants_peer {
        return Ok((counted(|| rustix::net::accept_with(listener, flags))?, None));
    }
    let (socket, address) = counted(|| rustix::net::acceptfrom_with(listener, flags))?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    Ok((socket, address.map(|address| address.ip())))
}

/// `recv(2)`
#[inline]
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize> {
    counted(|| rustix::net::recv(socket, buffer, RecvFlags::empty())).map(|(n, _)| n)
}

/// `send(2)`
#[inline]
pub fn send(socket: impl AsFd, bytes: &[u8], flags: SendFlags) -> Result<usize> {
    counted(|| rustix::net::send(socket, bytes, flags))
}

/// `sendmsg(2)`
pub fn sendmsg(socket: impl AsFd, slices: &[IoSlice], flags: SendFlags) -> Result<usize> {
    counted(|| rustix::net::sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags))
}

/// `sendfile(2)`
pub fn sendfile(socket: impl AsFd, file: impl AsFd, at: &mut u64, len: usize) -> Result<usize> {
    counted(|| rustix::fs::sendfile(socket, file, Some(at), len))
}

/// `shutdown(2)`
pub fn shutdown(socket: impl AsFd, how: Shutdown) -> Result<()> {
    counted(|| rustix::net::shutdown(socket, how))
}

/// `close(2)`
pub fn close(descriptor: OwnedFd) {
    drop(descriptor);
    closed();
}

/// A descriptor has been closed, or is just about to be, by being dropped. A debug build looks first whether
/// it is open, by fcntl(2).
#[inline]
pub fn closed() {
    add(if cfg!(debug_assertions) { 2 } else { 1 });
}

/// `setsockopt(2)` of `SO_RCVTIMEO` or `SO_SNDTIMEO`
pub fn set_socket_timeout(socket: impl AsFd, direction: Timeout, time: Duration) -> Result<()> {
    counted(|| sockopt::set_socket_timeout(socket, direction, Some(time)))
}

/// Bytes in a socket's own queue that the client has not acknowledged yet (`SIOCOUTQ`, tcp(7)).
pub fn queued(socket: impl AsFd) -> Option<u32> {
    let mut bytes: libc::c_int = 0;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one int, which lives across the call.
    let result = counted(|| unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) });
    (result == 0).then(|| bytes.unsigned_abs())
}

/// The value of `SO_LINGER` (socket(7)) with which a close drops what the client has not taken. Otherwise the
/// kernel would keep it, megabytes for each, and go on offering it for minutes.
pub static NO_LINGER: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// `setsockopt(2)` of `SO_LINGER`: the client is given up for lost, and the close that follows drops what is
/// queued. Where that cannot be had it is a close like any other.
pub fn abandon(socket: impl AsFd) {
    let (value, size) = (&raw const NO_LINGER, size_of::<libc::linger>() as libc::socklen_t);
    let socket = socket.as_fd().as_raw_fd();
    counted(|| {
        // SAFETY: the value is a constant, and as long as is said.
        unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_LINGER, value.cast(), size) }
    });
}

/// `poll(2)`
pub fn poll(asked: &mut [PollFd], timeout: Option<Duration>) -> Result<usize> {
    let timeout = timeout.map(timespec);
    counted(|| rustix::event::poll(asked, timeout.as_ref()))
}

/// `openat2(2)`
pub fn openat2(root: BorrowedFd, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    counted(|| rustix::fs::openat2(root, path, flags, Mode::empty(), resolve))
}

/// `pread(2)`
pub fn pread<B: Buffer<u8>>(file: impl AsFd, buffer: B, at: u64) -> Result<B::Output> {
    counted(|| rustix::io::pread(file, buffer, at))
}

/// `read(2)`
pub fn read<B: Buffer<u8>>(descriptor: impl AsFd, buffer: B) -> Result<B::Output> {
    counted(|| rustix::io::read(descriptor, buffer))
}

/// `write(2)`
pub fn write(descriptor: impl AsFd, bytes: &[u8]) -> Result<usize> {
    counted(|| rustix::io::write(descriptor, bytes))
}

/// A time as the kernel takes it.
pub fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}
