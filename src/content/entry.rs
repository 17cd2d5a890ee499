//! What is known about a target: a file with its head written ahead, a directory to redirect to, or nothing.

use std::ffi::{CStr, CString};
use std::fmt::Write;
use std::ops::Range;

use rustix::fs::{Stat, fstat};

use crate::http::conditional::Validators;
use crate::http::negotiate::{Coding, Codings};
use crate::http::reply::Bytes;
use crate::http::{Ledger, Reply, Status, date};

use super::body::Body;
use super::directory::Stamp;
use super::load::LEFT_MIN;
use super::mime;
use super::pages::Page;
use super::path;

/// Seconds a file must have lain unchanged before an equal `stat` proves equal bytes: two writes within one
/// tick of the file system's clock look the same.
pub(super) const SETTLED_SECONDS: u64 = 2;

/// What a target means.
#[derive(Debug)]
pub enum Entry {
    /// A file.
    File(File),
    /// A directory asked for without its slash; the field line that says where it is.
    Redirect(Redirect),
    /// Nothing to send but a status.
    Nothing(Status),
}

/// Where a directory is.
#[derive(Debug)]
pub struct Redirect {
    /// `Location: /dir/` without the line end, so that a query can follow.
    pub location: Box<[u8]>,
}

/// A file: its bytes or its descriptor, and all that is said about it.
#[derive(Debug)]
pub struct File {
    /// `Content-Length`, then `Content-Type`, then what 200 and 206 say, then what a 304 says, too.
    head: Box<[u8]>,
    type_line: Range<u16>,
    /// Where the part begins that a 304 repeats.
    repeated: u16,
    etag: Range<u16>,
    modified_text: Range<u16>,
    modified: u64,
    body: Body,
    coding: Option<Coding>,
    /// The name beneath the root, for finding its siblings.
    pub name: Box<CStr>,
    /// Precompressed siblings that exist beside it.
    pub siblings: Codings,
    /// The state of the file whose bytes these are.
    pub identity: Identity,
    /// Whether an equal identity proves equal bytes.
    pub settled: bool,
    /// Of the directory, before the siblings were looked for.
    pub(super) stamp: Stamp,
    /// Whether its body is to be held otherwise once it is asked for again.
    pub on_trial: bool,
}

/// What tells one state of a file from another, as far as `fstat(2)` can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) device: u64,
    inode: u64,
    /// Bytes.
    pub size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Identity {
    /// Reads it off a `stat`.
    pub fn of(stat: &Stat) -> Identity {
        Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Of what was made now, in seconds since 1970.
    pub(super) fn made(size: u64, now: u64) -> Identity {
        Identity { device: 0, inode: 0, size, modified: (now as i64, 0), changed: (now as i64, 0) }
    }

    /// All of it, as bytes.
    pub(super) fn to_bytes(self) -> [u8; 56] {
        let words = [
            self.device,
            self.inode,
            self.size,
            self.modified.0 as u64,
            self.modified.1,
            self.changed.0 as u64,
            self.changed.1,
        ];
        let mut bytes = [0; 56];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether the file had lain still long enough at `now` for its identity to prove its bytes.
    pub fn is_settled(&self, now: u64) -> bool {
        u64::try_from(self.changed.0).unwrap_or(0) + SETTLED_SECONDS <= now
    }
}

/// All that a file entry is made of.
pub(super) struct Parts<'a> {
    pub name: CString,
    pub identity: Identity,
    pub body: Body,
    /// `None` for what the name says.
    pub content_type: Option<&'a str>,
    pub coding: Option<Coding>,
    pub siblings: Codings,
    pub settled: bool,
    pub stamp: Stamp,
    pub on_trial: bool,
    /// Whether the bytes are so few that they are held where there is memory.
    pub is_short: bool,
    pub cache_control: Option<&'a str>,
    /// Seconds since 1970.
    pub now: u64,
}

impl File {
    pub(super) fn new(parts: Parts) -> File {
        let size = parts.body.bytes().size();
        // A date in the future is sent as the present (RFC 9110 section 8.8.2.1).
        let modified = u64::try_from(parts.identity.modified.0).unwrap_or(0).min(parts.now);
        let etag = etag(&parts);
        // A coding does not change what the file is: page.html.gz is text/html, coded.
        let name = parts.name.as_bytes();
        let plain =
            parts.coding.map_or(name, |coding| name.strip_suffix(coding.suffix().as_bytes()).unwrap_or(name));

        let mut head = format!("Content-Length: {size}\r\n");
        let type_start = head.len();
        let content_type = parts.content_type.map_or_else(|| mime::content_type(plain), str::to_owned);
        let _ = write!(head, "Content-Type: {content_type}\r\n");
        let type_end = head.len();
        head.push_str("Last-Modified: ");
        let modified_start = head.len();
        head.push_str(std::str::from_utf8(&date::format(modified)).expect("a date is ASCII"));
        let modified_end = head.len();
        head.push_str("\r\nAccept-Ranges: bytes\r\nX-Content-Type-Options: nosniff\r\n");
        if let Some(coding) = parts.coding {
            let _ = write!(head, "Content-Encoding: {}\r\n", coding.name());
        }
        let repeated = head.len();
        head.push_str("ETag: ");
        let etag_start = head.len();
        head.push_str(&etag);
        let etag_end = head.len();
        head.push_str("\r\n");
        if parts.coding.is_some() || !parts.siblings.is_empty() {
            head.push_str("Vary: Accept-Encoding\r\n");
        }
        if let Some(value) = parts.cache_control {
            let _ = write!(head, "Cache-Control: {value}\r\n");
        }
        File {
            head: head.into_bytes().into_boxed_slice(),
            type_line: type_start as u16..type_end as u16,
            repeated: repeated as u16,
            etag: etag_start as u16..etag_end as u16,
            modified_text: modified_start as u16..modified_end as u16,
            modified,
            body: parts.body,
            coding: parts.coding,
            name: parts.name.into_boxed_c_str(),
            siblings: parts.siblings,
            identity: parts.identity,
            settled: parts.settled,
            stamp: parts.stamp,
            on_trial: parts.on_trial,
        }
    }

    /// Whether it may have been left on the disk at first.
    #[inline]
    pub fn may_have_been_left(&self) -> bool {
        self.identity.size >= LEFT_MIN && self.settled && self.body.hash().is_some()
    }

    /// The tag it was told by then.
    pub fn first_tag(&self) -> String {
        first_tag(&self.identity, self.coding)
    }

    /// An answer of this file's, told by another tag.
    pub fn retold<'a>(&self, reply: Reply<'a>, etag: &str) -> Reply<'a> {
        // All that is said of a file goes up to the end of its head.
        let behind = |at: u16| reply.fields.len() + usize::from(at) - self.head.len();
        let (before, after) = (behind(self.repeated), behind(self.etag.end));
        let more_fields = [b"ETag: ", etag.as_bytes(), &reply.fields[after..], &reply.more_fields].concat();
        Reply { fields: &reply.fields[..before], more_fields: more_fields.into(), ..reply }
    }

    /// Its bytes.
    #[inline]
    pub fn bytes(&self) -> Bytes<'_> {
        self.body.bytes()
    }

    /// Whether its bytes are on the disk, and not in memory.
    pub(super) fn is_on_disk(&self) -> bool {
        self.body.is_on_disk()
    }

    /// Whether they are on the disk though they have been read: there is no room for them.
    pub(super) fn is_kept(&self) -> bool {
        self.is_on_disk() && self.body.hash().is_some()
    }

    /// Whether the file that is kept open is still in the state that its bytes were read in. Its file system
    /// is one that says so without waiting.
    pub(super) fn is_as_it_was(&self) -> bool {
        match self.bytes() {
            Bytes::File(source) => fstat(source).is_ok_and(|stat| Identity::of(&stat) == self.identity),
            Bytes::Memory(_) => true,
        }
    }

    /// The same file with its bytes held elsewhere.
    pub(super) fn with(&self, body: Body) -> File {
        File {
            head: self.head.clone(),
            type_line: self.type_line.clone(),
            etag: self.etag.clone(),
            modified_text: self.modified_text.clone(),
            body,
            name: self.name.clone(),
            stamp: self.stamp.clone(),
            on_trial: false,
            ..*self
        }
    }

    /// Its body, to be taken over by an entry that takes the place of this one.
    pub(super) fn body(&self) -> &Body {
        &self.body
    }

    /// Whether the pages of its body should be put together, after it was asked for so often.
    pub(super) fn is_worth_gathering(&self, asked: u32) -> bool {
        self.body.is_worth_gathering(asked)
    }

    /// All field lines of a 200.
    #[inline]
    pub fn fields(&self) -> &[u8] {
        &self.head
    }

    /// The field lines of a 206: all but `Content-Length`.
    pub fn fields_of_span(&self) -> &[u8] {
        &self.head[self.type_line.start as usize..]
    }

    /// The field lines of a multipart 206: all but `Content-Length` and `Content-Type`.
    pub fn fields_of_parts(&self) -> &[u8] {
        &self.head[self.type_line.end as usize..]
    }

    /// The field lines that a 304 repeats (RFC 9110 section 15.4.5).
    #[inline]
    pub fn fields_repeated(&self) -> &[u8] {
        &self.head[self.repeated as usize..]
    }

    /// The `Content-Type` line.
    pub fn type_line(&self) -> &[u8] {
        &self.head[self.type_line.start as usize..self.type_line.end as usize]
    }

    /// What preconditions are weighed against; `now` in seconds since 1970.
    #[inline]
    pub fn validators(&self, now: u64) -> Validators<'_> {
        let piece = |range: &Range<u16>| &self.head[range.start as usize..range.end as usize];
        Validators {
            etag: piece(&self.etag),
            first_etag: None,
            modified_text: piece(&self.modified_text),
            modified: self.modified,
            now,
        }
    }
}

impl Entry {
    /// A directory asked for without its slash.
    pub(super) fn redirect(path: &[u8]) -> Entry {
        let location = format!("Location: {}/", path::encode(path)).into_bytes();
        Entry::Redirect(Redirect { location: location.into_boxed_slice() })
    }

    /// What was made for one answer.
    pub(super) fn made(page: Page, cache_control: Option<&str>, ledger: &Ledger, now: u64) -> Entry {
        match page {
            Page::Status(status) => Entry::Nothing(status),
            Page::Text { content_type, text } => Entry::File(File::new(Parts {
                name: CString::default(),
                identity: Identity::made(text.len() as u64, now),
                body: Body::in_memory(text.into_bytes(), ledger),
                content_type: Some(content_type),
                coding: None,
                siblings: Codings::default(),
                settled: false,
                stamp: Stamp::default(),
                on_trial: false,
                is_short: true,
                cache_control,
                now,
            })),
        }
    }

    /// Whether a client would be told the same by both.
    pub(super) fn is_same(&self, other: &Entry) -> bool {
        match (self, other) {
            (Entry::File(one), Entry::File(other)) => one.head == other.head,
            (Entry::Redirect(one), Entry::Redirect(other)) => one.location == other.location,
            (Entry::Nothing(one), Entry::Nothing(other)) => one == other,
            _ => false,
        }
    }

    /// Bytes of memory it takes, about.
    pub fn weight(&self) -> usize {
        let held = match self {
            Entry::File(file) => file.body.weight() + file.head.len() + file.name.count_bytes(),
            Entry::Redirect(redirect) => redirect.location.len(),
            Entry::Nothing(_) => 0,
        };
        held + size_of::<Entry>()
    }

    /// Whether its body is to be held otherwise once it is asked for again.
    pub(super) fn is_on_trial(&self) -> bool {
        matches!(self, Entry::File(file) if file.on_trial)
    }

    /// Whether it keeps a file of the file system open.
    pub fn holds_descriptor(&self) -> bool {
        matches!(self, Entry::File(file) if file.is_on_disk())
    }
}

/// An entity tag (RFC 9110 section 8.8.3): of the bytes where they are in memory, so that it is the same on
/// every replica and changes with every change; of larger files, of size and modification time. Behind either
/// stands the coding, since two siblings may agree in all else (section 8.8.3.3).
fn etag(parts: &Parts) -> String {
    let coding = parts.coding.map_or("", Coding::name);
    match parts.body.hash() {
        Some(hash) => format!("\"{hash:032x}{coding}\""),
        None if parts.is_short => first_tag(&parts.identity, parts.coding),
        None => {
            let (seconds, nanoseconds) = parts.identity.modified;
            format!("\"{:x}-{seconds:x}.{nanoseconds:x}{coding}\"", parts.identity.size)
        }
    }
}

/// Of bytes that have not been read yet and may be told by their hash later: it is to change with all that
/// their hash changes with, so it is of the time of change, too, which nobody can set.
fn first_tag(identity: &Identity, coding: Option<Coding>) -> String {
    let Identity { device: _, inode, size, modified, changed } = identity;
    let coding = coding.map_or("", Coding::name);
    let ((seconds, nanoseconds), (at, and)) = (modified, changed);
    format!("\"{size:x}-{inode:x}-{seconds:x}.{nanoseconds:x}-{at:x}.{and:x}{coding}\"")
}
