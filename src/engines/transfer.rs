//! Emptying an outbox into a socket with system calls that may say "not yet".

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::http::outbox::PIECE;
use crate::http::{Chunk, Outbox, Source};

use super::calls::{self, poll, send, sendfile, sendmsg};

/// Bytes of files handed to one socket before others have their turn. They are not copied.
const FILE_SHARE: u64 = 4 << 20;
/// Slices shown to the kernel at once.
const SLICES: usize = 8;

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Everything, the outbox is empty.
    All,
    /// Until the socket was full.
    UntilFull,
    /// Until its share was used up.
    Share,
    /// Until a span of a file that is not in memory.
    UntilDisk,
    /// The client has gone, or a file was cut short: the answer cannot be completed.
    Failed,
}

/// Sends what the outbox holds until something must be waited for, and says whether anything was sent.
/// `resident` says how many bytes of a span on a disk, from its start, can be had without waiting for it.
pub fn send_now(
    socket: impl AsFd,
    outbox: &mut Outbox,
    mut resident: impl FnMut(&Arc<Source>, u64, u64) -> u64,
) -> (Sent, bool) {
    let socket = socket.as_fd();
    let (mut share, mut copied) = (FILE_SHARE, 0);
    let mut progress = false;
    loop {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let result = match outbox.front(&mut slices) {
            Chunk::Empty => return (Sent::All, progress),
            Chunk::Memory { .. } if copied >= PIECE => return (Sent::Share, progress),
            Chunk::Memory { slices: count, more } => {
                let shown: usize = slices[..count].iter().map(|slice| slice.len()).sum();
                let more = if more { SendFlags::MORE } else { SendFlags::empty() };
                let flags = SendFlags::NOSIGNAL | more;
                let result = match &slices[..count] {
                    [one] => send(socket, one, flags),
                    several => sendmsg(socket, several, flags),
                };
                // Less than was shown: most likely the socket is full, and asking costs less than trying.
                if let Ok(n) = result
                    && n < shown
                    && is_full(socket)
                {
                    outbox.sent(n as u64);
                    return (Sent::UntilFull, true);
                }
                copied += result.unwrap_or(0);
                result
            }
            Chunk::File { .. } if share == 0 => return (Sent::Share, progress),
            Chunk::File { file, at, len } => {
                let len = if file.is_in_memory() { len } else { resident(file, at, len) };
                if len == 0 {
                    return (Sent::UntilDisk, progress);
                }
                let mut offset = at;
                match sendfile(socket, file, &mut offset, len.min(share) as usize) {
                    // The file has become shorter than was promised.
                    Ok(0) => return (Sent::Failed, progress),
                    result => {
                        share -= result.unwrap_or(0) as u64;
                        result
                    }
                }
            }
        };
        match result {
            Ok(n) => {
                outbox.sent(n as u64);
                progress = true;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return (Sent::UntilFull, progress),
            Err(_) => return (Sent::Failed, progress),
        }
    }
}

/// Whether the socket has no room. If so the kernel marks it, and tells of it when there is some again.
fn is_full(socket: BorrowedFd) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    poll(&mut asked, Some(Duration::ZERO)) == Ok(0)
}

/// Bytes in the socket's own queue that the client has not acknowledged yet.
pub fn queued(socket: impl AsFd) -> u32 {
    // Unknown is as good as unchanged.
    calls::queued(socket).unwrap_or(u32::MAX)
}
