//! Whether it is noted down that a file was read.
//!
//! The kernel keeps the time in the file's inode, as a rule once a day and after each change (`relatime`,
//! mount(8)). That is a write, and whoever reads may have to wait for the disk for it, though what he reads
//! be in memory. Nobody needs to know, so files are opened with `O_NOATIME` (open(2)); but that is for who
//! owns them, or may do as if he did. What belongs to others has it noted down before it is read, as a step
//! of its own, where nobody else is held up.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{OFlags, Stat};
use rustix::process::{Uid, geteuid};

use super::site::Site;

/// Seconds.
const DAY: u64 = 24 * 60 * 60;

/// What has been found out about the files of a site. They are believed to be alike in this.
#[derive(Debug)]
pub struct Reads {
    /// They may be read without that being noted down.
    may_be_hidden: AtomicBool,
    /// Otherwise it is: the file system is not mounted so that nothing is.
    are_noted: AtomicBool,
    user: Uid,
}

impl Default for Reads {
    fn default() -> Reads {
        Reads { may_be_hidden: AtomicBool::new(true), are_noted: AtomicBool::new(true), user: geteuid() }
    }
}

impl Reads {
    /// How a file is opened to be read.
    pub fn flags(&self) -> OFlags {
        if self.may_be_hidden.load(Relaxed) { Site::OPEN | OFlags::NOATIME } else { Site::OPEN }
    }

    /// The kernel has refused to hide it (`EPERM`).
    pub fn must_show(&self) {
        self.may_be_hidden.store(false, Relaxed);
    }

    /// A file was opened like any other. Whether its access time is to be noted down before it is read; `now`
    /// is in seconds since 1970.
    pub fn is_to_be_noted(&self, stat: &Stat, now: u64) -> bool {
        if stat.st_uid == self.user.as_raw() {
            self.may_be_hidden.store(true, Relaxed);
        }
        let read = accessed(stat);
        let is_due = read <= (stat.st_mtime, stat.st_mtime_nsec)
            || read <= (stat.st_ctime, stat.st_ctime_nsec)
            || u64::try_from(read.0).unwrap_or(0) + DAY <= now;
        is_due && self.are_noted.load(Relaxed)
    }

    /// It should have been noted down; this is what a file looked like before, and looks like now.
    pub fn noted(&self, before: &Stat, stat: &Stat) {
        if accessed(before) == accessed(stat) {
            self.are_noted.store(false, Relaxed);
        }
    }
}

fn accessed(stat: &Stat) -> (i64, u64) {
    (stat.st_atime, stat.st_atime_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::entry::Entry;
    use crate::content::site::Rules;
    use crate::content::{Load, Step};
    use crate::http::Status;
    use rustix::io::Errno;
    use std::fs;
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn reads_are_hidden_where_the_kernel_lets_them_be() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
        let load = || Load::plain(&site, b"/a", None, 0);
        let is_to_be_hidden = |load: &mut Load| match load.next() {
            Step::Open { flags, .. } => flags.contains(OFlags::NOATIME),
            _ => panic!("it is not open"),
        };
        let refused = || Err(Errno::PERM.into());

        let mut first = load();
        assert!(is_to_be_hidden(&mut first));
        first.opened(refused());
        assert!(!is_to_be_hidden(&mut first) && !is_to_be_hidden(&mut load()));
        first.opened(Ok(fs::File::open(folder.path().join("a")).unwrap().into()));
        assert!(is_to_be_hidden(&mut load()), "it was our own");

        let mut another = load();
        another.opened(refused());
        another.opened(refused());
        assert!(matches!(*another.finish().entry, Entry::Nothing(Status::Forbidden)));
    }

    #[test]
    fn where_reads_must_show_they_are_noted_down_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "a").unwrap();
        let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let times = fs::FileTimes::new().set_accessed(long_ago);
        fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
        let open = || {
            let mut load = Load::plain(&site, b"/a", None, 0);
            load.opened(Err(Errno::PERM.into()));
            load.opened(Ok(fs::File::open(&path).unwrap().into()));
            load
        };
        // What is noted down is to be later than the change just made, by the kernel's coarse clock.
        std::thread::sleep(Duration::from_millis(50));
        let mut load = open();
        let Step::Note { file, at: 1 } = load.next() else { panic!("it must be noted") };
        assert_eq!(rustix::io::pread(file, &mut [0], 1), Ok(0));
        load.noted();
        assert!(matches!(load.next(), Step::Read { .. }));
        // Be it that it has been noted down, or that nothing is, as the file system is mounted.
        assert!(matches!(open().next(), Step::Read { .. }));
        let was_noted = fs::metadata(&path).unwrap().accessed().unwrap() != long_ago;
        assert_eq!(site.reads().are_noted.load(Relaxed), was_noted);
    }
}
