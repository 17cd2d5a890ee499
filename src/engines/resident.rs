//! Whether a span of a file can be had without waiting for a disk.
#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{ReadWriteFlags, preadv2};

/// cachestat(2), Linux 6.5; the same number on every architecture this is built for.
const SYS_CACHESTAT: libc::c_long = 451;

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

/// Whether all of a span is in the page cache. `false` where the kernel does not tell.
pub fn is_resident(file: BorrowedFd, at: u64, len: u64) -> bool {
    debug_assert!(len > 0);
    let page = rustix::param::page_size() as u64;
    let pages = (at + len).div_ceil(page) - at / page;
    let span = Span { offset: at, len };
    let mut counts = Counts::default();
    // SAFETY: both structs live across the call and have the layout that cachestat(2) gives.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const span, &raw mut counts, 0 as libc::c_uint)
    };
    // A page that is just being read counts as cached. They arrive in order, so the last one tells for all.
    let mut byte = [0];
    let last = at + len - 1;
    result == 0
        && counts.cached >= pages
        && matches!(preadv2(file, &mut [IoSliceMut::new(&mut byte)], last, ReadWriteFlags::NOWAIT), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn what_was_just_written_is_there_and_what_lies_behind_the_end_is_not() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), vec![1; 3 << 20]).unwrap();
        let file = File::open(path.path()).unwrap();
        // Kernels that cannot tell say no, and then everything is read through the ring.
        if is_resident(file.as_fd(), 0, 1) {
            assert!(is_resident(file.as_fd(), 5, 3 << 19));
            assert!(is_resident(file.as_fd(), 0, 3 << 20));
        }
        assert!(!is_resident(file.as_fd(), 0, (3 << 20) + 1));
        assert!(!is_resident(file.as_fd(), 9 << 20, 1));
    }
}
