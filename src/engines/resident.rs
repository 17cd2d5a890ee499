//! What of a file can be had without waiting for a disk.
//!
//! To look may be to begin: where the kernel does not tell what it has, a read that may not wait is tried,
//! and has the kernel read what is missing. Nobody waits for that, unless the queue of the disk is full: then
//! the kernel makes whoever adds to it wait. So the functions here are told whether they may begin
//! (`may_begin`), which is up to who knows how much is on its way already.
#![allow(unsafe_code)]

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FsWord, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::clock::Tick;
use crate::http::{Outbox, Source};

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
    /// Whether the file system knows no read that does not wait.
    always_waits: bool,
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
        let found = self.look(file.as_fd(), at, len.min(SPAN_MAX), may_begin);
        if found > 0 {
            self.found(file, at..at + found);
        }
        found
    }

    fn look(&mut self, file: BorrowedFd, at: u64, len: u64, may_begin: bool) -> u64 {
        self.coming = 0;
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
        if self.always_waits || present(file.as_fd(), at, piece).is_some_and(|there| there > 0) {
            return;
        }
        match read_into_nothing(file.as_fd(), at, len.min(BEGUN)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.coming = piece,
            // A quick disk may have given the first page by now.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                if byte(file.as_fd(), at + piece - 1) == Err(Errno::AGAIN) {
                    self.coming = piece;
                }
            }
            _ => self.always_waits = true,
        }
    }

    /// A span has just been read from the disk.
    pub fn found(&mut self, file: &Arc<Source>, span: Range<u64>) {
        self.found = Some((Arc::downgrade(file), span, Tick::now().after(TRUSTED)));
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
    outbox.take_in(len_max, |file, text, at, len| {
        text.reserve(len);
        if file.is_in_memory() {
            // What was not read stays where it is.
            let _ = append(file.as_fd(), text, at, len, 0);
            return;
        }
        let before = Instant::now();
        let is_end = at + len as u64 == file.size();
        if read_resident(file.as_fd(), text, at, len, is_end, may_begin).is_none() && may_begin {
            begun(before.elapsed());
        }
    });
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

/// Whether a disk must be waited for to read all of a file of so many bytes. Where the kernel cannot tell, as
/// on overlayfs, it is not said.
pub fn is_cold(file: BorrowedFd, size: u64) -> bool {
    // At its end there is nothing to wait for.
    let can_tell = byte(file, size) != Err(Errno::OPNOTSUPP);
    can_tell && !is_resident(file, 0, size).unwrap_or_else(|| seems_resident(file, 0, size))
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
        // A file system in memory knows no read that does not wait, and has nothing to wait for.
        Err(_) => fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC).then_some(true),
    }
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

/// The same for who has the time to try each page, whoever owns the file.
pub fn readable(file: BorrowedFd, at: u64, len: u64) -> u64 {
    let page = rustix::param::page_size() as u64;
    let end = at + len;
    let mut next = at;
    // Where the kernel cannot tell, all of it is.
    while next < end && byte(file, next) != Err(Errno::AGAIN) {
        next = (next / page + 1) * page;
    }
    next.min(end) - at
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Reads a byte, if that is possible without waiting for a disk.
fn byte(file: BorrowedFd, at: u64) -> Result<usize, Errno> {
    counted(|| preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::http::Ledger;
    use std::fs::File;
    use std::os::fd::AsFd;

    /// A file of so many bytes whose pages have gone from the page cache, but where a file system in memory
    /// keeps them.
    pub fn cold_file(size: usize) -> File {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![1; size]).unwrap();
        let file = File::open(path.path()).unwrap();
        file.sync_all().unwrap();
        // A page that somebody else holds for a moment stays.
        for _ in 0..100 {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            if present(file.as_fd(), 0, size as u64).is_none_or(|present| present == 0) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        file
    }

    /// The same, if they have really gone and the kernel says so: a file system in memory keeps them.
    fn gone_file(size: usize) -> Option<File> {
        Some(cold_file(size)).filter(|file| present(file.as_fd(), 0, size as u64) == Some(0))
    }

    /// Whether the first piece of a file is coming, or has come.
    fn is_piece_begun(resident: &Resident, file: &Source) -> bool {
        resident.coming() == PIECE || byte(file.as_fd(), PIECE - 1) == Ok(1)
    }

    #[test]
    fn what_was_just_written_is_there_and_what_lies_behind_the_end_is_not() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![1; 3 << 20]).unwrap();
        let file = File::open(path.path()).unwrap();
        // Where the kernel does not tell there are samples.
        if is_resident(file.as_fd(), 0, 1).is_some() {
            assert_eq!(is_resident(file.as_fd(), 5, 3 << 19), Some(true));
            assert_eq!(is_resident(file.as_fd(), 0, 3 << 20), Some(true));
            assert_eq!(is_resident(file.as_fd(), 0, (3 << 20) + 1), Some(false));
            assert_eq!(is_resident(file.as_fd(), 9 << 20, 1), Some(false));
        }
        // And where it knows no read that does not wait, everything is read through the ring.
        if byte(file.as_fd(), 0).is_ok() {
            assert!(seems_resident(file.as_fd(), 5, 3 << 19));
            assert!(seems_resident(file.as_fd(), 0, 3 << 20));
        }
        assert!(!seems_resident(file.as_fd(), 0, (3 << 20) + 1));
        assert!(!seems_resident(file.as_fd(), 9 << 20, 1));
    }

    #[test]
    fn reading_appends_and_ends_at_the_capacity_or_the_file() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), b"0123456789").unwrap();
        let file = File::open(path.path()).unwrap();
        let mut buffer = Vec::with_capacity(6);
        buffer.push(b'x');
        // Kernels that cannot tell have everything read by a helper.
        if let Some(n) = read_resident(file.as_fd(), &mut buffer, 2, 9, true, true) {
            assert_eq!((n, &*buffer), (5, &b"x23456"[..]));
            assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(6), 10, 1, true, true), Some(0));
        }
    }

    #[test]
    fn a_long_span_that_must_be_waited_for_is_not_even_begun() {
        let Some(file) = gone_file(1 << 20) else { return };
        assert_eq!(
            read_resident(file.as_fd(), &mut Vec::with_capacity(1 << 20), 0, 1 << 20, true, true),
            None
        );
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(is_resident(file.as_fd(), 0, 1), Some(false));
        assert!(!seems_resident(file.as_fd(), 0, 1 << 20));
    }

    #[test]
    fn who_may_not_begin_does_not() {
        let Some(file) = gone_file(1 << 20) else { return };
        for is_end in [true, false] {
            assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(5), 0, 5, is_end, false), None);
        }
        let source = Arc::new(Source::on_disk(file.try_clone().unwrap().into(), 1 << 20, &Ledger::default()));
        assert_eq!(Resident::default().find(&source, 0, 1 << 20, false), 0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(present(file.as_fd(), 0, 1 << 20), Some(0));
        // What is there can be had all the same.
        preadv2(&file, &mut [IoSliceMut::new(&mut [0; 5])], 0, ReadWriteFlags::empty()).unwrap();
        assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(5), 0, 5, true, false), Some(5));
    }

    #[test]
    fn of_a_span_that_is_there_in_part_the_start_is_found() {
        let file = cold_file(1 << 20);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        preadv2(&file, &mut [IoSliceMut::new(&mut vec![0; 70_000])], 0, ReadWriteFlags::empty()).unwrap();
        // A file system in memory has kept all of it.
        let Some(there) = present(file.as_fd(), 5, 1 << 19).filter(|&there| there < 1 << 19) else { return };
        assert!(there >= 70_000 - 5);
        assert_eq!(present(file.as_fd(), 5, 1000), Some(1000));
        assert_eq!(present(file.as_fd(), 900_000, 1000), Some(0));
        let file = Arc::new(Source::on_disk(file.into(), 1 << 20, &Ledger::default()));
        let mut resident = Resident::default();
        assert_eq!(resident.find(&file, 5, 1 << 20, true), there);
        assert_eq!(resident.find(&file, 5 + there, 1000, true), 0);
        assert_eq!(resident.coming(), 0);
        assert_eq!(resident.find(&file, 900_000, 1000, true), 0);
    }

    #[test]
    fn a_last_byte_that_was_there_before_does_not_stand_for_all() {
        let file = cold_file(1 << 20);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        preadv2(&file, &mut [IoSliceMut::new(&mut [0])], (1 << 20) - 1, ReadWriteFlags::empty()).unwrap();
        // A file system in memory has kept all of it.
        if present(file.as_fd(), 0, 1 << 20).is_some_and(|there| there < 1 << 19) {
            assert_eq!(has_come(file.as_fd(), (1 << 20) - 1, 1), Some(true));
            assert_eq!(has_come(file.as_fd(), 0, 1 << 20), Some(false));
        }
    }

    #[test]
    fn what_was_begun_comes_without_anybody_waiting_for_it() {
        let Some(file) = gone_file(2 << 20) else { return };
        let file = Arc::new(Source::on_disk(file.into(), 2 << 20, &Ledger::default()));
        let mut resident = Resident::default();
        resident.begin(&file, 0, 2 << 20);
        assert!(is_piece_begun(&resident, &file));
        for _ in 0..1000 {
            if resident.find(&file, 0, BEGUN, true) == BEGUN {
                return;
            }
            resident = Resident::default();
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it has not come in 10 seconds");
    }

    /// What the kernel does not tell somebody who neither owns a file nor may write it.
    #[test]
    fn what_is_anothers_is_begun_with_and_found_by_samples() {
        let Some(file) = gone_file(3 << 20) else { return };
        let source = Arc::new(Source::on_disk(file.try_clone().unwrap().into(), 3 << 20, &Ledger::default()));
        let as_another = |does: &(dyn Fn(Resident) + Sync)| {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // SAFETY: it takes a number. It is for this thread alone, and so are the capabilities of
                    // a superuser that go with it (setfsuid(2), capabilities(7)).
                    unsafe { libc::setfsuid(65534) };
                    // It is to no avail for who is no superuser.
                    if present(source.as_fd(), 0, 1).is_none() {
                        does(Resident::default());
                    }
                });
            });
        };
        let has_begun = std::sync::atomic::AtomicBool::new(false);
        as_another(&|mut resident| {
            assert_eq!(resident.find(&source, 0, 3 << 20, false), 0);
            resident.begin(&source, 0, 3 << 20);
            assert!(is_piece_begun(&resident, &source));
            has_begun.store(true, Relaxed);
        });
        if !has_begun.into_inner() {
            return;
        }
        for _ in 0..1000 {
            if present(file.as_fd(), 0, BEGUN) == Some(BEGUN) && byte(file.as_fd(), BEGUN - 1) == Ok(1) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // The kernel may have read farther ahead, and in pages as large as that.
        rustix::fs::fadvise(&file, 2 << 20, None, rustix::fs::Advice::DontNeed).unwrap();
        let is_end_gone = present(file.as_fd(), BEGUN, 2 << 20) == Some(BEGUN);
        as_another(&|mut resident| {
            assert_eq!(resident.find(&source, 0, 3 << 20, false), 0);
            resident.begin(&source, 0, 3 << 20);
            assert_eq!((resident.coming(), resident.always_waits), (0, false), "it is there");
            assert_eq!(resident.find(&source, 0, 3 << 20, true), REACH_MIN);
            // As all was there, and so on until it is not.
            assert_eq!(resident.find(&source, REACH_MIN, 3 << 20, false), 2 * REACH_MIN);
            assert_eq!(resident.find(&source, BEGUN - 1000, 1000, false), 1000);
            if !is_end_gone {
                return;
            }
            assert_eq!(resident.find(&source, (2 << 20) - REACH_MIN, 1 << 20, false), REACH_MIN);
            resident.found = None;
            assert_eq!(resident.find(&source, 0, 3 << 20, false), 0);
        });
    }

    #[test]
    fn of_the_last_sample_that_is_there_the_rest_need_not_be() {
        // By chance the sample of the second piece is not there either; and one that is not there comes.
        for _ in 0..5 {
            let file = cold_file(1 << 20);
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
            let part = SAMPLE_EVERY as usize + 40_000;
            preadv2(&file, &mut [IoSliceMut::new(&mut vec![0; part])], 0, ReadWriteFlags::empty()).unwrap();
            // A file system in memory has kept all of it.
            if present(file.as_fd(), 0, 1 << 20).is_some_and(|there| there < 2 * SAMPLE_EVERY) {
                assert_eq!(seem_resident(file.as_fd(), 0, 1 << 20), SAMPLE_EVERY);
            }
        }
    }

    #[test]
    fn what_is_in_memory_alone_is_always_there() {
        let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, &[1; 10_000]).unwrap();
        assert!(!is_cold(file.as_fd(), 10_000));
        // Where the kernel does not tell, it is read.
        if present(file.as_fd(), 0, 1).is_some() {
            let file = Arc::new(Source::on_disk(file, 10_000, &Ledger::default()));
            assert_eq!(Resident::default().find(&file, 5, 9_000, true), 9_000);
        }
    }

    #[test]
    fn what_was_found_long_ago_may_have_gone() {
        let Some(file) = gone_file(1 << 20) else { return };
        let file = Arc::new(Source::on_disk(file.into(), 1 << 20, &Ledger::default()));
        let mut resident = Resident::default();
        resident.found(&file, 0..1 << 20);
        std::thread::sleep(2 * TRUSTED);
        assert_eq!(resident.find(&file, 5, 1000, false), 0);
    }

    #[test]
    fn a_page_that_is_missing_in_the_midst_is_noticed() {
        let Some(file) = gone_file(3 << 20) else { return };
        preadv2(&file, &mut [IoSliceMut::new(&mut vec![0; 3 << 20])], 0, ReadWriteFlags::empty()).unwrap();
        // Not every file system tells.
        if present(file.as_fd(), 0, 3 << 20) != Some(3 << 20) {
            return;
        }
        assert_eq!(come(file.as_fd(), 5, (3 << 20) - 5), Some((3 << 20) - 5));
        let gone = std::num::NonZero::new(4096);
        rustix::fs::fadvise(&file, 5 << 19, gone, rustix::fs::Advice::DontNeed).unwrap();
        // Unless its page is part of a larger one, which stays.
        if present(file.as_fd(), 5 << 19, 1) == Some(0) {
            assert_eq!(come(file.as_fd(), 5, (3 << 20) - 5), Some((5 << 19) - 5));
            assert_eq!(readable(file.as_fd(), 5, (3 << 20) - 5), (5 << 19) - 5);
        }
        assert_eq!(come(file.as_fd(), 5, 5000), Some(5000));
        assert_eq!(readable(file.as_fd(), 5, 5000), 5000);
    }

    #[test]
    fn a_span_once_found_is_remembered_for_its_file_alone() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), b"0123456789").unwrap();
        let open = || {
            let file = File::open(path.path()).unwrap();
            Arc::new(Source::on_disk(file.into(), 10, &Ledger::default()))
        };
        let (one, other) = (open(), open());
        let mut resident = Resident::default();
        resident.found(&one, 100..200);
        assert_eq!((resident.find(&one, 150, 1000, true), resident.find(&one, 199, 1, true)), (50, 1));
        assert_eq!((resident.find(&one, 200, 5, true), resident.find(&other, 150, 5, true)), (0, 0));
        // The next has the descriptor of one that has gone, unless another test is quicker.
        let mut resident = Resident::default();
        resident.found(&one, 100..200);
        drop(one);
        let next = open();
        assert_eq!(resident.find(&next, 150, 5, true), 0);
    }
}
