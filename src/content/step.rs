//! What an engine does for a load.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{OFlags, ResolveFlags};

use super::body::Gathering;
use super::directory::Listing;

/// One disk operation.
#[derive(Debug)]
pub enum Step<'a> {
    /// `openat2(root, path, {flags, resolve})`; then call [`super::Load::opened`].
    Open {
        /// The directory `path` is relative to.
        root: BorrowedFd<'a>,
        /// What to open.
        path: &'a CStr,
        /// `open_how.flags`
        flags: OFlags,
        /// `open_how.resolve`
        resolve: ResolveFlags,
    },
    /// `pread(file, buffer, at)`; then call [`super::Load::read`].
    Read {
        /// The open file.
        file: BorrowedFd<'a>,
        /// The bytes are appended, as many as there is capacity for.
        buffer: &'a mut Vec<u8>,
        /// Offset in the file.
        at: u64,
    },
    /// `pread(file, a byte, at)`, where there is none: so that the file's access time is noted down now. That
    /// is a write, which may have to wait for the disk also where what is to be read is in memory. Then call
    /// [`super::Load::noted`], whatever came of it.
    Note {
        /// The open file.
        file: BorrowedFd<'a>,
        /// Its end.
        at: u64,
    },
    /// To put the pages of a body together, which may take a while; then call [`super::Load::gathered`],
    /// whatever came of it.
    Gather(&'a mut Gathering),
    /// To have a directory listed, for the sake of others; then call [`super::Load::listed`], without
    /// waiting.
    List(&'a Listing),
    /// Nothing more; call [`super::Load::finish`].
    Done,
}
