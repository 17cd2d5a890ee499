//! The access log: formatted by the worker, written by a thread of its own.
//!
//! The queue between them is bounded. When whoever reads the log is stuck, lines are dropped and counted, and
//! a worker never waits. Whatever a client has sent is escaped, so that no field can forge a line.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::Tick;
use crate::http::{Status, date};
use crate::sys;

/// Lines that may wait for the writer.
const QUEUE_MAX: usize = 4096;
/// The longest piece of a client's text in a line; the rest is cut.
const FIELD_MAX: usize = 1024;
/// How long the end of the server waits for a reader of the log that may be stuck.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Formats of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// None.
    #[default]
    Off,
    /// Common Log Format.
    Common,
    /// The same with Referer and User-Agent.
    Combined,
    /// A JSON object per line.
    Json,
}

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The client.
    pub peer: Option<IpAddr>,
    /// When.
    pub unix_seconds: u64,
    /// The request line; empty where the bytes were none.
    pub request: &'a [u8],
    /// The status of the answer.
    pub status: Status,
    /// Bytes of its body.
    pub length: u64,
    /// `Referer`
    pub referer: Option<&'a [u8]>,
    /// `User-Agent`
    pub user_agent: Option<&'a [u8]>,
}

/// One worker's end of the log.
#[derive(Clone, Debug)]
pub struct AccessLog {
    format: Format,
    /// Whether lines go to standard output as they come, instead of to the writer.
    is_direct: bool,
    queue: SyncSender<String>,
    losses: Losses,
    /// Losses are told no sooner.
    quiet_until: Tick,
}

/// What became of lines, in memory that processes forked from this one share.
#[derive(Clone, Copy, Debug)]
struct Losses {
    /// Lines for which there was no room.
    dropped: &'static AtomicU64,
    /// Why the last line that was written directly could not be, as an errno.
    error: &'static AtomicU64,
}

/// The thread that writes; it ends when the last [`AccessLog`] is gone.
#[derive(Debug)]
pub struct Writer {
    ended: Receiver<()>,
}

impl Writer {
    /// Waits until everything is written, but not for long.
    pub fn join(self) {
        if self.ended.recv_timeout(LAST_LINES) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("nobody reads the access log; its last lines are lost");
        }
    }
}

/// Starts a log that goes to `sink`; `None` where the format is `Off`.
///
/// # Errors
/// The thread could not be started, or no memory be mapped.
pub fn start(format: Format, sink: impl Write + Send + 'static) -> io::Result<Option<(AccessLog, Writer)>> {
    if format == Format::Off {
        return Ok(None);
    }
    let (queue, lines) = sync_channel(QUEUE_MAX);
    let [dropped, error] = sys::share_words(None, 2)? else { unreachable!("two were asked for") };
    let losses = Losses { dropped, error };
    let log = AccessLog { format, is_direct: false, queue, losses, quiet_until: Tick::default() };
    // Nothing is sent; that the other end is gone is the message.
    let (running, ended) = sync_channel(0);
    let write = move || {
        write_all(&lines, io::BufWriter::new(sink), dropped);
        drop(running);
    };
    std::thread::Builder::new().name("access-log".into()).spawn(write)?;
    Ok(Some((log, Writer { ended })))
}

fn write_all(lines: &Receiver<String>, mut sink: impl Write, dropped: &AtomicU64) {
    let mut failing = false;
    while let Ok(first) = lines.recv() {
        // Whatever waits is written together, then flushed before the next wait.
        let mut result = sink.write_all(first.as_bytes());
        for line in lines.try_iter().take(QUEUE_MAX) {
            result = result.and_then(|()| sink.write_all(line.as_bytes()));
        }
        result = result.and_then(|()| sink.flush());
        if let Err(error) = &result
            && !failing
        {
            cannot_write(error);
        }
        failing = result.is_err();
        tell_dropped(dropped);
    }
}

fn cannot_write(error: &io::Error) {
    tracing::warn!("the access log cannot be written: {error}; lines are lost until it can");
}

fn tell_dropped(dropped: &AtomicU64) {
    let lost = dropped.swap(0, Ordering::Relaxed);
    if lost > 0 {
        tracing::warn!("the access log could not keep up: {lost} lines were dropped");
    }
}

impl AccessLog {
    /// From now on writes lines to standard output, each in one piece, as a process must that was forked from
    /// the writer's. What is lost it tells nobody; the writer's process does, by [`AccessLog::tell_losses`].
    pub fn write_directly(&mut self) {
        self.is_direct = true;
    }

    /// Tells the operator what those have lost who write directly, once a second at the most.
    pub fn tell_losses(&mut self, now: Tick) {
        if self.quiet_until > now {
            return;
        }
        self.quiet_until = now.after(Duration::from_secs(1));
        tell_dropped(self.losses.dropped);
        let error = self.losses.error.swap(0, Ordering::Relaxed);
        if error != 0 {
            cannot_write(&io::Error::from_raw_os_error(error as i32));
            self.quiet_until = now.after(Duration::from_secs(60));
        }
    }

    /// Queues a line; drops it where the queue is full.
    pub fn record(&mut self, line: &Line) {
        if self.is_direct {
            write_directly(io::stdout().as_fd(), self.format.line(line).as_bytes(), self.losses);
        } else if self.queue.try_send(self.format.line(line)).is_err() {
            self.losses.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes a line unless it would have to wait. No lock is taken, for nobody might release it.
fn write_directly(sink: BorrowedFd, line: &[u8], losses: Losses) {
    let mut asked = [PollFd::from_borrowed_fd(sink, PollFlags::OUT)];
    if poll(&mut asked, Some(&Timespec::default())) == Ok(0) {
        losses.dropped.fetch_add(1, Ordering::Relaxed);
    } else if let Err(errno) = rustix::io::write(sink, line) {
        losses.error.store(errno.raw_os_error() as u64, Ordering::Relaxed);
    }
}

impl Format {
    fn line(self, line: &Line) -> String {
        let mut text = String::with_capacity(160);
        let peer = line.peer.map_or_else(|| "-".to_owned(), |peer| peer.to_canonical().to_string());
        let status = line.status.code();
        match self {
            Format::Off => {}
            Format::Common | Format::Combined => {
                let _ = write!(text, "{peer} - - [{}] \"", clf_date(line.unix_seconds));
                escape(&mut text, if line.request.is_empty() { b"-" } else { line.request });
                let _ = write!(text, "\" {status} {}", line.length);
                if self == Format::Combined {
                    for field in [line.referer, line.user_agent] {
                        text.push_str(" \"");
                        escape(&mut text, field.unwrap_or(b"-"));
                        text.push('"');
                    }
                }
            }
            Format::Json => {
                let string = |bytes: &[u8]| {
                    let cut = &bytes[..bytes.len().min(FIELD_MAX)];
                    serde_json::Value::from(String::from_utf8_lossy(cut)).to_string()
                };
                let _ = write!(
                    text,
                    "{{\"time\":{},\"remote\":\"{peer}\",\"request\":{},\"status\":{status},\"bytes\":{}",
                    line.unix_seconds,
                    string(line.request),
                    line.length
                );
                for (name, field) in [("referer", line.referer), ("user_agent", line.user_agent)] {
                    if let Some(field) = field {
                        let _ = write!(text, ",\"{name}\":{}", string(field));
                    }
                }
                text.push('}');
            }
        }
        text.push('\n');
        text
    }
}

/// Printable ASCII as it is; quotes, backslashes, controls and all else as `\xHH`, as nginx does.
fn escape(text: &mut String, bytes: &[u8]) {
    for &b in bytes.iter().take(FIELD_MAX) {
        match b {
            b'"' | b'\\' | ..=0x1f | 0x7f.. => {
                let _ = write!(text, "\\x{b:02X}");
            }
            _ => text.push(char::from(b)),
        }
    }
}

/// `06/Nov/1994:08:49:37 +0000`, out of an IMF-fixdate.
fn clf_date(unix_seconds: u64) -> String {
    let date = date::format(unix_seconds);
    let text = std::str::from_utf8(&date).expect("a date is ASCII");
    format!("{}/{}/{}:{} +0000", &text[5..7], &text[8..11], &text[12..16], &text[17..25])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(request: &'a [u8], agent: &'a [u8]) -> Line<'a> {
        Line {
            peer: Some("::ffff:192.0.2.7".parse().unwrap()),
            unix_seconds: 784_111_777,
            request,
            status: Status::Ok,
            length: 5,
            referer: None,
            user_agent: Some(agent),
        }
    }

    #[test]
    fn the_three_formats() {
        let line = line(b"GET / HTTP/1.1", b"curl/8");
        assert_eq!(
            Format::Common.line(&line),
            "192.0.2.7 - - [06/Nov/1994:08:49:37 +0000] \"GET / HTTP/1.1\" 200 5\n"
        );
        assert!(Format::Combined.line(&line).ends_with("\" 200 5 \"-\" \"curl/8\"\n"));
        let json: serde_json::Value = serde_json::from_str(&Format::Json.line(&line)).unwrap();
        assert_eq!((json["status"].as_u64(), json["user_agent"].as_str()), (Some(200), Some("curl/8")));
    }

    #[test]
    fn a_field_cannot_forge_a_line() {
        let evil = b"x\" 200 5\n10.0.0.1 - - \\ \xff\x1b[31m";
        for format in [Format::Common, Format::Combined, Format::Json] {
            let text = format.line(&line(b"GET /\xc3\xa9\"\n HTTP/1.1", evil));
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(!text.contains('\x1b'), "{text}");
        }
        assert!(
            Format::Combined
                .line(&line(b"-", evil))
                .contains(r"x\x22 200 5\x0A10.0.0.1 - - \x5C \xFF\x1B[31m")
        );
    }

    #[test]
    fn a_stuck_reader_never_stops_a_worker() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut log, thread) = start(Format::Common, writer).unwrap().unwrap();
        for _ in 0..QUEUE_MAX * 4 {
            log.record(&line(b"GET / HTTP/1.1", b"x"));
        }
        assert!(log.losses.dropped.load(Ordering::Relaxed) > 0);
        drop(reader);
        drop(log);
        thread.join();
    }
}
