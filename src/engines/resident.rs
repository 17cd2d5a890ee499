//! What of a file can be had without waiting for a disk.
//!
//! To look may be to begin: where the kernel does not tell what it has, a read that may not wait is tried,
//! and has the kernel read what is missing. Nobody waits for that, unless the queue of the disk is full: then
//! the kernel makes whoever adds to it wait. So the functions here are told whether they may begin
//! (`may_begin`), which is up to who knows how much is on its way already. Of files of which nothing is told,
//! what has been [read lately](recent) counts as being there.
#![allow(unsafe_code)]

mod recent;

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FsWord, fstat, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::clock::Tick;
use crate::http::{Outbox, Residence, Source};

use super::calls::counted;

/// Bytes of a file that are looked for in the page cache at once.
pub const SPAN_MAX: u64 = 2 << 20;

/// And those of them, at the most, that are waited for at once when the kernel is reading them.
const PIECE: u64 = 256 * 1024;

/// Bytes that samples reach at first, and how often these are doubled at the most. By default the kernel
/// reads as many ahead.
const REACH_MIN: u64 = 128 * 1024;
const DOUBLED_MAX: u32 = (SPAN_MAX / REACH_MIN).ilog2();

/// Bytes that the kernel is made to begin with at once. It finds pages for them there and then.
const BEGUN: u64 = 1 << 20;

/// How long a span that was found is taken to be there. What nobody reads the kernel throws out when it needs
/// memory, and a client may take a span as slowly as it likes.
const TRUSTED: Duration = Duration::from_secs(1);

/// The span of a file that was last found in the page cache. It is not asked for again each time that a
/// socket has taken a part of it. To be forgotten with the answer: by the next it may have gone.
#[derive(Debug, Default)]
pub struct Resident {
    /// And until when it is trusted to be there.
    found: Option<(Weak<Source>, Range<u64>, Tick)>,
    /// Bytes that the kernel has begun to read, from where nothing was found.
    coming: u64,
    /// How often what samples reach has been doubled.
    doubled: u32,
}

impl Resident {
    /// How much of a span is in the page cache, from its start.
    pub fn find(&mut self, file: &Arc<Source>, at: u64, len: u64, may_begin: bool) -> u64 {
        if let Some((known, span, until)) = &self.found
            && ptr::eq(known.as_ptr(), Arc::as_ptr(file))
            && span.contains(&at)
            && Tick::now() < *until
        {
            return len.min(span.end - at);
        }
        self.coming = 0;
        let len = len.min(SPAN_MAX);
        let found = match residence(file) {
            Residence::InMemory => return len,
            // Not noted again here, or it would be trusted for longer.
            Residence::Untold(number) => return recent::find(number, at, len),
            Residence::Told => self.look(file.as_fd(), at, len, may_begin),
        };
        if found > 0 {
            self.found(file, at..at + found);
        }
        found
    }

    fn look(&mut self, file: BorrowedFd, at: u64, len: u64, may_begin: bool) -> u64 {
        let there = match present(file, at, len) {
            None if may_begin || self.doubled > 0 => return self.sample(file, at, len),
            None => return 0,
            Some(begun) if begun < len => begun.min(PIECE),
            Some(_) => len,
        };
        // That many may also be somewhere else in the span.
        if there == 0 || there < len && present(file, at, there) != Some(there) {
            return 0;
        }
        match has_come(file, at, there) {
            Some(true) => return there,
            Some(false) => {}
            None => return 0,
        }
        // Where the kernel reads far ahead, the end of a span is on its way for long after its beginning.
        let piece = there.min(PIECE);
        if piece < there && has_come(file, at, piece) == Some(true) {
            return piece;
        }
        self.coming = piece;
        0
    }

    /// The same by samples. The one behind what is there has the kernel begin with more, which nobody counts,
    /// so that they reach farther only from one time to the next, as long as all of it was there. As long,
    /// they are taken also by who may not begin: he would wait for what has come already as a rule.
    fn sample(&mut self, file: BorrowedFd, at: u64, len: u64) -> u64 {
        let len = len.min(REACH_MIN << self.doubled);
        let there = seem_resident(file, at, len);
        self.doubled = if there == len { DOUBLED_MAX.min(self.doubled + 1) } else { 0 };
        there
    }

    /// Where nothing was found: how many bytes the kernel is reading already, from there on.
    pub fn coming(&self) -> u64 {
        self.coming
    }

    /// Has the kernel begin to read a span of which nothing is in the page cache, and does not wait for it: a
    /// read that may not wait has it read ahead as much as is asked for.
    pub fn begin(&mut self, file: &Arc<Source>, at: u64, len: u64) {
        self.coming = 0;
        // Of what is there in part, the last byte does not tell when the rest has come.
        let piece = len.min(PIECE);
        if residence(file) != Residence::Told
            || present(file.as_fd(), at, piece).is_some_and(|there| there > 0)
        {
            return;
        }
        let is_on_its_way = match read_into_nothing(file.as_fd(), at, len.min(BEGUN)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            // A quick disk may have given the first page by now.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                byte(file.as_fd(), at + piece - 1) == Err(Errno::AGAIN)
            }
            _ => false,
        };
        if is_on_its_way {
            self.coming = piece;
        }
    }

    /// A span has just been read from the disk. It is taken to be there, so that progress is made whatever
    /// the kernel throws out.
    pub fn read(&mut self, file: &Arc<Source>, span: Range<u64>) {
        was_read(file, span.clone());
        self.found(file, span);
    }

    fn found(&mut self, file: &Arc<Source>, span: Range<u64>) {
        self.found = Some((Arc::downgrade(file), span, Tick::now().after(TRUSTED)));
    }
}

/// A span of a file has just been read from the disk, and not for [`Resident::read`].
pub fn was_read(file: &Source, span: Range<u64>) {
    if let Residence::Untold(number) = residence(file) {
        recent::note(number, file.size(), span);
    }
}

/// What can be learnt of a file.
fn residence(file: &Source) -> Residence {
    if file.is_in_memory() {
        return Residence::InMemory;
    }
    file.residence(|| found_out(file.as_fd(), file.size()))
}

/// Whether there are reads of a file that do not wait for a disk.
pub fn is_told(file: &Source) -> bool {
    !matches!(residence(file), Residence::Untold(_))
}

/// The same of one of so many bytes that was just opened. At its end there is nothing to wait for.
pub fn tells(file: BorrowedFd, size: u64) -> bool {
    byte(file, size) != Err(Errno::OPNOTSUPP)
}

fn found_out(file: BorrowedFd, size: u64) -> Residence {
    if tells(file, size) {
        Residence::Told
    } else if is_on_tmpfs(file) {
        Residence::InMemory
    } else {
        Residence::Untold(recent::number())
    }
}

/// A span up to this is copied behind its head: that costs less than an operation or a call of its own.
pub const SHORT_MAX: u64 = 32 * 1024;

/// The same for one of a file in memory, for which a call that copies nothing pays sooner.
const SHORT_IN_MEMORY_MAX: u64 = 4 * 1024;

/// Before a longer span is read it is asked for. A read that may not wait still has the kernel read ahead,
/// and finding the pages for that takes longer the more there are.
const ASK_MIN: usize = 64 * 1024;

/// Seconds after which nothing is on its way any more that was missing before.
const WARY: u64 = 60;

/// When anything was last missing in the page cache that a thread of this process looked for, in seconds
/// since 1970. What one has begun to read may be asked for by another.
static MISSED: AtomicU64 = AtomicU64::new(0);

/// Bytes of a span for each sample of it.
const SAMPLE_EVERY: u64 = 64 * 1024;

/// Has short spans that are in the page cache leave in one piece with their heads. `begun` is told how long
/// it took where the disk was made to begin with one.
pub fn take_in_short_spans(outbox: &mut Outbox, may_begin: bool, mut begun: impl FnMut(Duration)) {
    let len_max = |file: &Source| if file.is_in_memory() { SHORT_IN_MEMORY_MAX } else { SHORT_MAX };
    outbox.take_in(len_max, |file, text, at, len| take_in(file, text, at, len, may_begin, &mut begun));
}

/// Appends a short span to the text, if that can be had.
fn take_in(
    file: &Source,
    text: &mut Vec<u8>,
    at: u64,
    len: usize,
    may_begin: bool,
    begun: &mut impl FnMut(Duration),
) {
    text.reserve(len);
    let is_there = match residence(file) {
        Residence::Told => {
            let before = Instant::now();
            let is_end = at + len as u64 == file.size();
            if read_resident(file.as_fd(), text, at, len, is_end, may_begin).is_none() && may_begin {
                begun(before.elapsed());
            }
            return;
        }
        Residence::Untold(number) => recent::find(number, at, len as u64) == len as u64,
        Residence::InMemory => true,
    };
    if is_there {
        // What was not read stays where it is.
        let _ = append(file.as_fd(), text, at, len, 0);
    }
}

/// Appends bytes of a file to a buffer, at most `len` and as many as there is capacity for and as are in the
/// page cache; `None` where the disk must be waited for, or the kernel cannot tell. `is_end`: nothing of the
/// file comes behind them.
pub fn read_resident(
    file: BorrowedFd,
    buffer: &mut Vec<u8>,
    at: u64,
    len: usize,
    is_end: bool,
    may_begin: bool,
) -> Option<usize> {
    let len = len.min(buffer.capacity() - buffer.len());
    let is_there = match len {
        ..ASK_MIN if may_begin => Some(true),
        // What is on its way a read that may not wait leaves alone, and there is nothing to read ahead.
        ..ASK_MIN if is_end => present(file, at, len as u64).map(|present| present == len as u64),
        _ => is_resident(file, at, len as u64),
    };
    if !is_there.unwrap_or(may_begin) {
        return None;
    }
    read_without_waiting(file, buffer, at, len).ok()
}

/// Appends at most `len` bytes of a file to a buffer that has the capacity, as many as are in the page cache.
fn read_without_waiting(file: BorrowedFd, buffer: &mut Vec<u8>, at: u64, len: usize) -> io::Result<usize> {
    append(file, buffer, at, len, libc::RWF_NOWAIT)
}

/// Appends at most `len` bytes of a file to a buffer that has the capacity, with flags of `preadv2(2)`.
fn append(file: BorrowedFd, buffer: &mut Vec<u8>, at: u64, len: usize, flags: i32) -> io::Result<usize> {
    let room = &mut buffer.spare_capacity_mut()[..len];
    let slice = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: the one slice is within the buffer's spare capacity, which lives across the call.
    let n = counted(|| unsafe { libc::preadv2(file.as_raw_fd(), &raw const slice, 1, at, flags) });
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has written so many bytes behind those there were.
    unsafe { buffer.set_len(buffer.len() + n) };
    Ok(n)
}

/// Reads where nothing can be written, and thus copies nothing: where the first byte is not in the page cache
/// the kernel begins to read, as much as is asked for, and it fails with `EAGAIN`; and if that byte is there,
/// or has come by then, with `EFAULT`.
fn read_into_nothing(file: BorrowedFd, at: u64, len: u64) -> io::Result<usize> {
    let nothing = libc::iovec { iov_base: ptr::null_mut(), iov_len: len as usize };
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: nothing is ever mapped at address 0, so the kernel writes nowhere.
    let n =
        counted(|| unsafe { libc::preadv2(file.as_raw_fd(), &raw const nothing, 1, at, libc::RWF_NOWAIT) });
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// cachestat(2), Linux 6.5; the same number on every architecture this is built for.
const SYS_CACHESTAT: libc::c_long = 451;

/// A file system in memory, by statfs(2).
const TMPFS_MAGIC: FsWord = 0x0102_1994;

/// `struct cachestat_range`
#[repr(C)]
struct Span {
    offset: u64,
    len: u64,
}

/// `struct cachestat`, of which only the first counter is of interest.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    others: [u64; 4],
}

/// How many bytes of a span are in the page cache or on their way to it, if they are those at its start.
/// `None` where the kernel does not tell: before Linux 6.5, and to who neither owns the file nor may write
/// it.
pub fn present(file: BorrowedFd, at: u64, len: u64) -> Option<u64> {
    debug_assert!(len > 0);
    let page = rustix::param::page_size() as u64;
    let span = Span { offset: at, len };
    let mut counts = Counts::default();
    // SAFETY: both structs live across the call and have the layout that cachestat(2) gives.
    let result = counted(|| unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const span, &raw mut counts, 0 as libc::c_uint)
    });
    let present = (counts.cached * page).saturating_sub(at % page).min(len);
    if result == 0 && present < len {
        MISSED.store(seconds(), Relaxed);
    }
    (result == 0).then_some(present)
}

/// Whether all of a span is in the page cache; `None` as above.
fn is_resident(file: BorrowedFd, at: u64, len: u64) -> Option<bool> {
    Some(present(file, at, len)? == len && has_come(file, at, len) == Some(true))
}

/// Whether a span is in the page cache by the signs that are had for little; where the kernel does not give
/// them it is not.
pub fn seems_there(file: BorrowedFd, at: u64, len: u64) -> bool {
    present(file, at, len) == Some(len) && byte(file, at + len - 1) == Ok(1)
}

/// Whether a disk must be waited for to read all of a file of so many bytes, or may have to be.
pub fn is_cold(file: BorrowedFd, size: u64) -> bool {
    match found_out(file, size) {
        Residence::Told => !is_resident(file, 0, size).unwrap_or_else(|| seems_resident(file, 0, size)),
        Residence::Untold(_) => true,
        Residence::InMemory => false,
    }
}

/// Whether samples of a span are in the page cache, the last byte among them: that first, since the start of
/// one that is missing is left alone, for the kernel to read far ahead from there.
fn seems_resident(file: BorrowedFd, at: u64, len: u64) -> bool {
    byte(file, at + len - 1) == Ok(1) && seem_resident(file, at, len) == len
}

/// How much of a span, from its start, is in the page cache as far as samples say: a byte of each piece, a
/// random one, so that no client can have just those read beforehand; and the last of all.
fn seem_resident(file: BorrowedFd, at: u64, len: u64) -> u64 {
    let end = at + len;
    let pieces = (at..end).step_by(SAMPLE_EVERY as usize).map(|start| start..end.min(start + SAMPLE_EVERY));
    let mut there = at..at;
    for piece in pieces {
        if byte(file, fastrand::u64(piece.clone())) != Ok(1) {
            break;
        }
        there = piece;
    }
    // They arrive in order, as a rule.
    let is_whole = !there.is_empty() && byte(file, there.end - 1) == Ok(1);
    if is_whole { there.end - at } else { there.start - at }
}

/// Whether a span that counts as present is there, for pages that are just being read count so, too. They
/// arrive in order, as a rule, so that the last byte tells for all; but that may have been there before, or
/// be a hole, or the disk may do otherwise, and so all are looked at where anything was missing lately.
/// `None` where the kernel cannot tell.
fn has_come(file: BorrowedFd, at: u64, len: u64) -> Option<bool> {
    let is_wary = || seconds().saturating_sub(MISSED.load(Relaxed)) < WARY;
    match byte(file, at + len - 1) {
        Ok(0) => Some(false),
        Ok(_) if is_wary() => {
            Some(come(file, at, len).unwrap_or_else(|| seem_resident(file, at, len)) == len)
        }
        Ok(_) => Some(true),
        Err(Errno::AGAIN) => {
            MISSED.store(seconds(), Relaxed);
            Some(false)
        }
        Err(_) => is_on_tmpfs(file).then_some(true),
    }
}

/// Whether a file is in memory, as all of its file system: that knows no read that does not wait, and has
/// nothing to wait for.
fn is_on_tmpfs(file: BorrowedFd) -> bool {
    /// Devices that hold another file system: one of user space may take its time to say what it is.
    static OTHERS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let Ok(device) = fstat(file).map(|stat| stat.st_dev) else { return false };
    let other = &OTHERS[device as usize % OTHERS.len()];
    if other.load(Relaxed) == device {
        return false;
    }
    let is_it = fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC);
    if !is_it {
        other.store(device, Relaxed);
    }
    is_it
}

/// How many bytes of a span, from its start, have been read (mincore(2)). To who neither owns the file nor
/// may write it the kernel says so of all; `None` where it cannot say.
fn come(file: BorrowedFd, at: u64, len: u64) -> Option<u64> {
    let page = rustix::param::page_size();
    // No page is smaller than 4 KiB.
    let mut pages = [0; (SPAN_MAX / 4096) as usize];
    let end = at + len;
    let mut next = at - at % page as u64;
    while next < end {
        let mapped = (end - next).min(SPAN_MAX) as usize;
        let (nowhere, offset) = (ptr::null_mut(), libc::off_t::try_from(next).ok()?);
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing of ours.
        let place = counted(|| unsafe {
            libc::mmap(nowhere, mapped, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), offset)
        });
        if place == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: so much is mapped, and there is a byte for each page of it.
        let result = counted(|| unsafe { libc::mincore(place, mapped, pages.as_mut_ptr()) });
        // SAFETY: it is ours, and nobody has looked into it.
        counted(|| unsafe { libc::munmap(place, mapped) });
        if result != 0 {
            return None;
        }
        // Nothing is said of the other bits.
        if let Some(there) = pages[..mapped.div_ceil(page)].iter().position(|page| page & 1 == 0) {
            return Some((next + (there * page) as u64).saturating_sub(at));
        }
        next += mapped as u64;
    }
    Some(len)
}

/// The same for who has the time to try each page, whoever owns the file; `None` where that does not tell.
pub fn readable(file: BorrowedFd, at: u64, len: u64) -> Option<u64> {
    let page = rustix::param::page_size() as u64;
    let end = at + len;
    let mut next = at;
    while next < end {
        match byte(file, next) {
            Err(Errno::AGAIN) => break,
            Err(Errno::OPNOTSUPP) => return None,
            _ => next = (next / page + 1) * page,
        }
    }
    Some(next.min(end) - at)
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads a byte, if that is possible without waiting for a disk.
fn byte(file: BorrowedFd, at: u64) -> Result<usize, Errno> {
    counted(|| preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT))
}

#[cfg(test)]
pub(super) mod tests;
