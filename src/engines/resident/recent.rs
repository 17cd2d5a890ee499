//! What has been read lately of files of which nothing is told.
//!
//! Some file systems know no reads that do not wait (overlayfs, so all that is within a container's image;
//! FUSE). What somebody has waited for there is taken to be in the page cache for a while, for all clients
//! and all workers: so what is asked for often is waited for now and then only. It is noted in a table of
//! fixed size, by blocks and, at the edges, by pages. Where two have the same place the later one has it; and
//! what is wrong with it costs a wait.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::clock::Tick;

use super::TRUSTED;

/// Blocks of a gigabyte.
const PLACES: usize = 1 << 14;
const BLOCK: u64 = 64 * 1024;
/// No page is smaller.
const PAGE: u64 = 4096;

/// In the upper half what stands there, in the lower until when.
static TABLE: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];

/// A number for a file that no other has.
pub fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// A part of a file, `len` bytes long, that begins at a multiple of that.
#[derive(Clone, Copy)]
struct Part {
    file: u32,
    len: u64,
    number: u64,
}

impl Part {
    /// The one that has a byte in it.
    fn with(file: u32, len: u64, byte: u64) -> Part {
        Part { file, len, number: byte / len }
    }

    fn end(self) -> u64 {
        (self.number + 1) * self.len
    }

    /// Its place in the table, and the name by which it stands there, which is that of a page or of a block.
    /// Those that follow on each other in a file do so in the table.
    fn place(self) -> (&'static AtomicU64, u32) {
        let hash = mix(u64::from(self.file) << 32 | self.len);
        let place = ((hash >> 32).wrapping_add(self.number) % PLACES as u64) as usize;
        (&TABLE[place], hash as u32 ^ (self.number / PLACES as u64) as u32)
    }

    fn note(self, until: Tick) {
        let (place, name) = self.place();
        place.store(u64::from(name) << 32 | u64::from(until.number()), Relaxed);
    }

    fn is_noted(self, now: Tick) -> bool {
        let (place, name) = self.place();
        let noted = place.load(Relaxed);
        (noted >> 32) as u32 == name && now.number() < noted as u32
    }
}

/// Has each bit of a number depend on all of them, as the finalizer of SplitMix64 does (Steele et al., 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// A span of a file of so many bytes has been read just now.
pub fn note(file: u32, size: u64, span: Range<u64>) {
    let until = Tick::now().after(TRUSTED);
    // The last block of a file may be a short one.
    let end = if span.end >= size { span.end.next_multiple_of(BLOCK) } else { span.end };
    let mut next = span.start;
    while next < span.end {
        let block = Part::with(file, BLOCK, next);
        // What was read of a page has brought all of it.
        let is_whole = next.is_multiple_of(BLOCK) && block.end() <= end;
        let part = if is_whole { block } else { Part::with(file, PAGE, next) };
        part.note(until);
        next = part.end();
    }
}

/// How much of a span, from its start, was read lately.
pub fn find(file: u32, at: u64, len: u64) -> u64 {
    let (now, end) = (Tick::now(), at + len);
    let mut next = at;
    while next < end {
        let parts = [BLOCK, PAGE].map(|len| Part::with(file, len, next));
        let Some(part) = parts.into_iter().find(|part| part.is_noted(now)) else { break };
        next = part.end();
    }
    next.min(end) - at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_found_and_nothing_beside_it() {
        let (file, other) = (number(), number());
        let size = 10 * BLOCK + 5;
        // Parts of pages at both ends, and between them whole blocks.
        note(file, size, PAGE + 5..3 * BLOCK + 7);
        assert_eq!(find(file, PAGE, size - PAGE), 3 * BLOCK);
        assert_eq!(find(file, PAGE + 100, 100), 100);
        assert_eq!(find(file, 2 * BLOCK - 1, 2), 2);
        assert_eq!((find(file, PAGE - 1, 9), find(file, 3 * BLOCK + PAGE, 9)), (0, 0));
        assert_eq!(find(other, PAGE, size - PAGE), 0);
        // The last block is a short one.
        note(file, size, 5 * BLOCK..size);
        assert_eq!(find(file, 5 * BLOCK, 5 * BLOCK + 5), 5 * BLOCK + 5);
        assert_eq!(find(file, 4 * BLOCK, 9), 0);
    }

    #[test]
    fn the_same_place_of_a_larger_file_is_another() {
        let file = number();
        let wrap = PLACES as u64 * BLOCK;
        note(file, 3 * wrap, 0..BLOCK);
        assert_eq!((find(file, wrap, 5), find(file, 0, 5)), (0, 5));
        note(file, 3 * wrap, wrap..wrap + BLOCK);
        assert_eq!((find(file, wrap, 5), find(file, 0, 5)), (5, 0));
    }

    #[test]
    fn a_page_is_no_block_and_a_block_no_page_wherever_they_stand() {
        let size = PLACES as u64 * BLOCK;
        for read in [PAGE, BLOCK, 48 << 20] {
            let file = number();
            note(file, size, 0..read);
            assert_eq!(find(file, 0, size), read);
            let found = (read..size).step_by(PAGE as usize).find(|&at| find(file, at, PAGE) > 0);
            assert_eq!(found, None);
        }
    }

    #[test]
    fn what_was_read_long_ago_may_have_gone() {
        let file = number();
        note(file, PAGE, 0..5);
        assert_eq!(find(file, 0, PAGE), PAGE);
        std::thread::sleep(2 * TRUSTED);
        assert_eq!(find(file, 0, PAGE), 0);
    }
}
