//! What one connection remembers between two turns: unread bytes, the end of the last body, its deadline.
//!
//! A connection is small, since thousands of idle ones are kept: no buffer stands ready, and bytes are only
//! held while a request is unfinished.

use core::net::IpAddr;
use std::time::Duration;

use crate::clock::Tick;

use super::chunked::{Chunks, Malformed};
use super::parse::{Framing, Request};
use super::reply::Persistence;

/// The longest request body that is passed over to reach the next request; behind a longer one the connection
/// ends instead.
pub const BODY_MAX: u64 = 64 * 1024;
/// How long a closing connection waits for the next bytes of a client that is still sending.
const LINGER_PAUSE: Duration = Duration::from_secs(2);
/// A send that is stuck is looked at so many times within its timeout.
const SEND_CHECKS: u32 = 8;

/// Times and sizes a connection is held to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a head, or the start of a body, to its end.
    pub header_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// Without any progress of a send.
    pub send_timeout: Duration,
    /// In which what a client still sends behind the last answer is read and dropped.
    pub linger_timeout: Duration,
    /// Bytes of a head.
    pub head_max: usize,
    /// Whether connections may persist at all.
    pub keep_alive: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(30),
            linger_timeout: Duration::from_secs(10),
            head_max: 16 * 1024,
            keep_alive: true,
        }
    }
}

/// One client's connection.
#[derive(Debug)]
pub struct Connection {
    leftovers: Vec<u8>,
    skip: Skip,
    stage: Stage,
    ending: Ending,
    /// Whether `leftovers` is a head whose end has not come yet.
    partial: bool,
    deadline: Tick,
    /// Boxed, since only the access log wants it.
    peer: Option<Box<IpAddr>>,
}

/// How the connection ends once the outbox is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not at all.
    Not,
    /// At once: the client has said that it is done.
    Close,
    /// By ending our side and reading on for a while, so that what the client still sends does not make the
    /// kernel reset the answer away (RFC 9112 section 9.6).
    Linger,
}

/// What of the last request's body is still to be passed over.
#[derive(Debug)]
enum Skip {
    Nothing,
    Bytes(u64),
    /// The second is what was passed over. Both are boxed: most connections never have such a body.
    Chunks(Box<(Chunks, u64)>),
}

/// What the deadline was set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing yet.
    New,
    Idle,
    Head,
    Body,
    Load,
    /// Given up at `until`; `queued` bytes were in the socket's own queue when that was last looked at.
    Send {
        queued: u32,
        until: Tick,
    },
    Linger {
        until: Tick,
    },
}

impl Connection {
    /// A connection that was just accepted.
    pub fn new(peer: Option<IpAddr>) -> Connection {
        Connection {
            leftovers: Vec::new(),
            skip: Skip::Nothing,
            stage: Stage::New,
            ending: Ending::Not,
            partial: false,
            deadline: Tick::NEVER,
            peer: peer.map(Box::new),
        }
    }

    /// When [`late`](crate::serve::Worker::late) is to be called.
    #[inline]
    pub fn deadline(&self) -> Tick {
        self.deadline
    }

    /// The client's address, where it was asked for.
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer.as_deref().copied()
    }

    /// How it ends.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// Decides that it ends; a decision made stays.
    pub fn end(&mut self, ending: Ending) {
        if self.ending == Ending::Not {
            self.ending = ending;
        }
    }

    /// Ends without waiting for what the client may still send: it has had its time.
    pub fn end_now(&mut self) {
        self.ending = Ending::Close;
    }

    /// Ends by lingering after all: the client is still sending.
    pub fn linger(&mut self) {
        self.ending = Ending::Linger;
    }

    /// Takes the bytes out that were held back.
    pub(crate) fn take_leftovers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.leftovers)
    }

    /// Whether bytes are held back.
    pub(crate) fn has_leftovers(&self) -> bool {
        !self.leftovers.is_empty()
    }

    /// Whether the next thing is to hear from the client, once what is to be sent has been.
    pub(crate) fn is_heard_next(&self) -> bool {
        self.ending == Ending::Not && !self.has_leftovers()
    }

    /// Holds bytes back for the next turn. `partial`: they are a head whose end has not come yet.
    pub(crate) fn hold(&mut self, bytes: Vec<u8>, partial: bool) {
        self.leftovers = bytes;
        self.partial = partial;
    }

    /// Whether a head has begun whose end has not come yet.
    pub fn is_partial(&self) -> bool {
        self.partial && !self.leftovers.is_empty()
    }

    /// Whether a request's body is under way.
    pub fn in_body(&self) -> bool {
        !matches!(self.skip, Skip::Nothing)
    }

    /// Passes over what belongs to the last request's body; says how many bytes that was.
    ///
    /// # Errors
    /// [`Malformed`], where a chunked body is malformed or too long.
    #[inline]
    pub fn pass_body(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match &mut self.skip {
            Skip::Nothing => Ok(0),
            Skip::Bytes(left) => {
                let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= n as u64;
                if *left == 0 {
                    self.skip = Skip::Nothing;
                }
                Ok(n)
            }
            Skip::Chunks(boxed) => {
                let (chunks, passed) = &mut **boxed;
                let (n, ended) = chunks.pass(bytes)?;
                *passed += n as u64;
                if *passed > BODY_MAX {
                    return Err(Malformed);
                }
                if ended {
                    self.skip = Skip::Nothing;
                }
                Ok(n)
            }
        }
    }

    /// Takes note of a request that is being answered: what its body means for the bytes behind it, and
    /// whether the connection goes on. `closing`: the server wants it to end.
    pub fn accept(&mut self, request: &Request, closing: bool) -> Persistence {
        self.stage = Stage::New;
        // Whether the body behind an expectation will come can no longer be told once the final answer is
        // sent.
        let doubtful = request.expects_continue;
        match request.framing {
            Framing::None => {}
            Framing::Length(n) if n <= BODY_MAX && !doubtful => self.skip = Skip::Bytes(n),
            Framing::Chunked if !doubtful => self.skip = Skip::Chunks(Box::default()),
            Framing::Length(_) | Framing::Chunked => self.end(Ending::Linger),
        }
        if closing {
            self.end(Ending::Linger);
        } else if !request.keep_alive {
            // What is still to come of the body must not reset the answer away.
            self.end(if self.in_body() { Ending::Linger } else { Ending::Close });
        }
        match self.ending {
            Ending::Not if request.minor == 0 => Persistence::KeepAlive,
            Ending::Not => Persistence::Implied,
            Ending::Close | Ending::Linger => Persistence::Close,
        }
    }

    /// Sets the deadline for waiting for bytes.
    #[inline]
    pub fn wait_for_bytes(&mut self, now: Tick, limits: &Limits) {
        let (stage, time) = if self.in_body() {
            (Stage::Body, limits.header_timeout)
        } else if self.is_partial() {
            (Stage::Head, limits.header_timeout)
        } else {
            (Stage::Idle, limits.idle_timeout)
        };
        // The clock runs from the first byte; the next ones do not set it back.
        if self.stage != stage {
            self.stage = stage;
            self.deadline = now.after(time);
        }
    }

    /// Sets the deadline for a send; called again whenever it has made progress.
    #[inline]
    pub fn wait_for_send(&mut self, now: Tick, limits: &Limits) {
        self.stage = Stage::Send { queued: u32::MAX, until: now.after(limits.send_timeout) };
        self.deadline = now.after(limits.send_timeout / SEND_CHECKS);
    }

    /// A send has been stuck until the deadline, while `queued` bytes are in the socket's queue. Says whether
    /// it may go on, and sets the deadline anew: a slow client takes from that queue long before the socket
    /// has room for more.
    pub fn is_still_taking(&mut self, now: Tick, limits: &Limits, queued: u32) -> bool {
        let Stage::Send { queued: before, until } = self.stage else { return true };
        let until = if queued < before { now.after(limits.send_timeout) } else { until };
        self.stage = Stage::Send { queued: queued.min(before), until };
        self.deadline = now.after(limits.send_timeout / SEND_CHECKS).min(until);
        now < until
    }

    /// A load has no deadline: a disk answers when it answers.
    pub fn wait_for_load(&mut self) {
        self.stage = Stage::Load;
        self.deadline = Tick::NEVER;
    }

    /// Sets the deadline of the lingering close; called again whenever bytes have been dropped.
    pub fn wait_for_end(&mut self, now: Tick, limits: &Limits) {
        let until = match self.stage {
            Stage::Linger { until } => until,
            _ => now.after(limits.linger_timeout),
        };
        self.stage = Stage::Linger { until };
        self.deadline = now.after(LINGER_PAUSE).min(until);
    }

    /// Whether the peer has been told that no more will be sent.
    pub fn is_lingering(&self) -> bool {
        matches!(self.stage, Stage::Linger { .. })
    }

    /// Whether it waits for the first byte of a request.
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::New | Stage::Idle)
    }

    /// Whether a head or a body that has begun is waited for.
    pub fn is_receiving(&self) -> bool {
        matches!(self.stage, Stage::Head | Stage::Body)
    }

    /// The server is draining: an idle connection gets no more than `wait` for a request already on its way.
    pub fn hasten(&mut self, now: Tick, wait: Duration) {
        if self.is_idle() {
            self.deadline = self.deadline.min(now.after(wait));
        }
    }
}
