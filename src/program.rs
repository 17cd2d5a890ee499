//! The program's own pages, without which nothing is served.
//!
//! They are those of files, the program and its libraries, and where memory is short, as in a small
//! container, the kernel takes them away like those of any other file. Whoever needs one again waits for the
//! disk, and with him all clients of his thread. Pages that are locked stay (mlock2(2)).

use std::fs;
use std::ops::Range;

use crate::sys;

/// What is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Bytes that stay there, once they are there.
    pub locked: usize,
    /// All there are of the program and its libraries; 0 where the kernel does not tell.
    pub all: usize,
}

impl Kept {
    /// Whether that is all.
    pub fn is_all(self) -> bool {
        self.all > 0 && self.locked == self.all
    }
}

/// Keeps the program in memory, as far as it may be locked there (`RLIMIT_MEMLOCK`, getrlimit(2)). Only what
/// is needed comes there in the first place. A child inherits no locks (mlock(2)): of its pages those stay
/// that this process has needed, too.
pub fn keep() -> Kept {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut kept = Kept { locked: 0, all: 0 };
    for pages in maps.lines().filter_map(pages_of_file) {
        kept.all += pages.len();
        if sys::lock_once_there(&pages).is_ok() {
            kept.locked += pages.len();
        }
    }
    kept
}

/// The place of a private mapping of a file, by a line of proc_pid_maps(5).
fn pages_of_file(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let is_private = words.next()?.ends_with('p');
    let inode = words.nth(2)?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    (is_private && inode != "0").then_some(address(from)?..address(to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_pages_of_files_are_of_the_program() {
        for (line, pages) in [
            ("5500a000-5500c000 r-xp 000a1000 fe:00 654   /a name of two", Some(0x5500_a000..0x5500_c000)),
            ("5500c000-5500d000 rw-p 00302000 fe:00 654", Some(0x5500_c000..0x5500_d000)),
            ("7fc0c000-7fc0d000 rw-s 00000000 00:01 162   /dev/zero (deleted)", None),
            ("5600a000-5600c000 rw-p 00000000 00:00 0     [heap]", None),
            ("7ffca000-7ffcc000 r-xp 00000000 00:00 0     [vdso]", None),
            ("7ffca000-7ffcc000 rw-p 00000000 00:00 0", None),
            ("7ffca000 rw-p 00000000 fe:00 654", None),
            ("x-y rw-p 00000000 fe:00 654", None),
            ("", None),
        ] {
            assert_eq!(pages_of_file(line), pages, "{line}");
        }
    }
}
