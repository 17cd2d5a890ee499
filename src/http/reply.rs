//! An answer as a value that borrows everything, and the one place where it becomes bytes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use super::blob::{Blob, Source};
use super::outbox::{Outbox, Queue};
use super::status::Status;

/// A body in memory up to this size is copied behind its head, so that both leave in one piece; a larger one
/// is lent. Copying 16 KiB costs less than a second slice costs the kernel.
pub const COPY_MAX: usize = 16 * 1024;

/// The same for each part of several, which together may be many.
const COPY_IN_PARTS_MAX: usize = 512;

/// `Allow` for a static site.
const ALLOW: &[u8] = b"Allow: GET, HEAD, OPTIONS\r\n";

/// Fields of an answer whose body is one of the short texts of [`Status::page`].
const PAGE_FIELDS: &[u8] = b"Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n";

/// One answer. `Date` and `Connection` are added when it is written.
#[derive(Debug)]
pub struct Reply<'a> {
    /// The status.
    pub status: Status,
    /// Field lines, each with its line end.
    pub fields: &'a [u8],
    /// Field lines that only some answers have, behind the others.
    pub more_fields: Cow<'a, [u8]>,
    /// `Content-Range`, where there is one.
    pub content_range: Option<ContentRange>,
    /// `Content-Length` to write; `None` where `fields` has it already or the status forbids it.
    pub length: Option<u64>,
    /// What follows the head, unless the method is HEAD.
    pub body: Body<'a>,
}

/// The value of a `Content-Range` field (RFC 9110 section 14.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// The span that is sent, of so many bytes.
    Span(Range<u64>, u64),
    /// `*/size`, in a 416.
    Unsatisfied(u64),
}

/// Where the bytes of a representation are.
#[derive(Clone, Copy, Debug)]
pub enum Bytes<'a> {
    /// In memory.
    Memory(&'a Blob),
    /// Behind a descriptor.
    File(&'a Arc<Source>),
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body<'a> {
    /// None.
    Empty,
    /// A short text.
    Text(&'a [u8]),
    /// A span of a representation.
    Span(Bytes<'a>, Range<u64>),
    /// Several spans, as multipart/byteranges.
    Parts(Bytes<'a>, Vec<(Vec<u8>, Range<u64>)>, Vec<u8>),
}

/// What is said about the connection (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It persists, and HTTP/1.1 takes that for granted.
    Implied,
    /// It persists, and a client of HTTP/1.0 must be told.
    KeepAlive,
    /// It ends behind this answer.
    Close,
}

impl Reply<'_> {
    /// An answer that shows its status as a short text.
    pub fn page(status: Status) -> Reply<'static> {
        let page = status.page();
        let more_fields = match status {
            Status::MethodNotAllowed => ALLOW,
            Status::Unavailable => b"Retry-After: 1\r\n",
            _ => b"",
        };
        Reply {
            status,
            fields: PAGE_FIELDS,
            more_fields: Cow::Borrowed(more_fields),
            content_range: None,
            length: Some(page.len() as u64),
            body: Body::Text(page),
        }
    }

    /// An answer without a body.
    pub fn empty(status: Status) -> Reply<'static> {
        Reply {
            status,
            fields: b"",
            more_fields: Cow::Borrowed(b""),
            content_range: None,
            length: None,
            body: Body::Empty,
        }
    }

    /// The answer to OPTIONS (RFC 9110 section 9.3.7).
    pub fn options() -> Reply<'static> {
        Reply { fields: ALLOW, ..Reply::empty(Status::NoContent) }
    }

    /// Bytes of the body, as the access log wants them.
    pub fn body_length(&self) -> u64 {
        match &self.body {
            Body::Empty => 0,
            Body::Text(text) => text.len() as u64,
            Body::Span(_, span) => span.end - span.start,
            Body::Parts(_, parts, end) => {
                parts.iter().map(|(head, span)| head.len() as u64 + span.end - span.start).sum::<u64>()
                    + end.len() as u64
            }
        }
    }

    /// Writes the answer behind what the outbox holds already. `date` is the whole `Date` line.
    #[inline]
    pub fn write(&self, out: &mut Outbox, date: &[u8], persistence: Persistence, with_body: bool) {
        let out = out.end();
        out.text(self.status.line());
        out.text(self.fields);
        out.text(&self.more_fields);
        if let Some(range) = &self.content_range {
            out.text(b"Content-Range: bytes ");
            match range {
                ContentRange::Span(span, size) => {
                    number(out, span.start);
                    out.text(b"-");
                    number(out, span.end - 1);
                    out.text(b"/");
                    number(out, *size);
                }
                ContentRange::Unsatisfied(size) => {
                    out.text(b"*/");
                    number(out, *size);
                }
            }
            out.text(b"\r\n");
        }
        if let Some(length) = self.length {
            out.text(b"Content-Length: ");
            number(out, length);
            out.text(b"\r\n");
        }
        out.text(date);
        out.text(match persistence {
            Persistence::Implied => b"\r\n",
            Persistence::KeepAlive => b"Connection: keep-alive\r\n\r\n",
            Persistence::Close => b"Connection: close\r\n\r\n",
        });
        if !with_body {
            return;
        }
        match &self.body {
            Body::Empty => {}
            Body::Text(text) => out.text(text),
            Body::Span(bytes, span) => bytes.write(out, span.clone(), COPY_MAX),
            Body::Parts(bytes, parts, end) => {
                for (head, span) in parts {
                    out.text(head);
                    bytes.write(out, span.clone(), COPY_IN_PARTS_MAX);
                }
                out.text(end);
            }
        }
    }
}

impl Bytes<'_> {
    /// How many there are.
    pub fn size(&self) -> u64 {
        match self {
            Bytes::Memory(blob) => blob.bytes().len() as u64,
            Bytes::File(file) => file.size(),
        }
    }

    #[inline]
    fn write(&self, out: &mut Queue, span: Range<u64>, copy_max: usize) {
        let place = span.start as usize..span.end as usize;
        match self {
            Bytes::Memory(blob) if place.len() <= copy_max => out.text(&blob.bytes()[place]),
            Bytes::Memory(blob) => out.shared(blob, place),
            Bytes::File(file) => out.file(file, span),
        }
    }
}

fn number(out: &mut Queue, n: u64) {
    out.text(itoa::Buffer::new().format(n).as_bytes());
}
