//! Whether anything has come or gone in a directory, so that what was not there need not be looked for again.
//!
//! A file's precompressed siblings are names beside it, and most files have none. As long as the directory's
//! own `stat` stays the same, no name in it has appeared or gone (inode(7): mtime of a directory).

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FsWord, fstat, fstatfs};
use twox_hash::XxHash3_64;

use crate::clock::Tick;

use super::entry::Identity;

/// Directories remembered.
const KNOWN_MAX: usize = 4096;

/// File systems whose directories change their `stat` with every name that comes or goes, by their magic
/// number (statfs(2)). Those of networks and of user space may not.
const TRUSTED: [FsWord; 8] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlayfs
    0xf2f5_2010, // f2fs
    0x2fc1_2fc1, // zfs
    0xca45_1a4e, // bcachefs
];

/// What a directory looked like.
#[derive(Debug, Default)]
pub struct Stamp {
    number: AtomicU64,
    device: u64,
}

impl Stamp {
    /// Looks at an open directory; `now` in seconds since 1970. The stamp is empty where its `stat` proves
    /// nothing: it has changed just now and may change again within one tick of its clock, or its kind is not
    /// known.
    pub(super) fn of(directory: impl AsFd, now: u64) -> Stamp {
        let (Ok(stat), Ok(system)) = (fstat(&directory), fstatfs(&directory)) else {
            return Stamp::default();
        };
        let identity = Identity::of(&stat);
        if !TRUSTED.contains(&system.f_type) || !identity.is_settled(now) {
            return Stamp::default();
        }
        Stamp { number: XxHash3_64::oneshot(&identity.to_bytes()).into(), device: identity.device }
    }

    /// Whether both are of the same directory with the same names.
    pub(super) fn proves(&self, other: &Stamp) -> bool {
        let number = self.number.load(Relaxed);
        number != 0 && number == other.number.load(Relaxed)
    }

    /// Takes the place of an older one.
    pub(super) fn renew(&self, newer: &Stamp) {
        self.number.store(newer.number.load(Relaxed), Relaxed);
    }

    /// Whether a file lies in the same file system, and not in one that is mounted over its name.
    pub(super) fn is_beside(&self, file: &Identity) -> bool {
        self.device == file.device
    }
}

impl Clone for Stamp {
    fn clone(&self) -> Stamp {
        Stamp { number: self.number.load(Relaxed).into(), device: self.device }
    }
}

/// The stamps of directories, for as long as the clock does not go on. All threads share them.
#[derive(Debug, Default)]
pub struct Directories(Mutex<Looks>);

/// What directories looked like when, by their names.
type Looks = HashMap<Box<[u8]>, (Tick, Stamp)>;

impl Directories {
    /// What a directory looked like when it was looked at within this tick.
    pub(super) fn get(&self, name: &[u8], now: Tick) -> Option<Stamp> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|(tick, _)| *tick == now).map(|(_, stamp)| stamp.clone())
    }

    /// Remembers what a directory looked like. It was looked at after `now`.
    pub(super) fn insert(&self, name: &[u8], now: Tick, stamp: Stamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.retain(|_, (tick, _)| *tick == now);
            if known.len() >= KNOWN_MAX {
                return;
            }
        }
        known.insert(name.into(), (now, stamp));
    }
}

/// The directory of a name relative to the root.
pub(super) fn parent(name: &CStr) -> &[u8] {
    let name = name.to_bytes();
    name.iter().rposition(|&byte| byte == b'/').map_or(b".", |slash| &name[..slash])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_stamp_changes_with_the_names_and_is_none_while_they_may_still_change() {
        let folder = tempfile::tempdir().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let later = u64::MAX;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(!Stamp::of(open(), now).proves(&Stamp::of(open(), now)));
        let before = Stamp::of(open(), later);
        // On a file system that is not trusted nothing is claimed, and there is nothing to test.
        if before.proves(&before) {
            assert!(Stamp::of(open(), later).proves(&before));
            std::thread::sleep(std::time::Duration::from_millis(20));
            File::create(folder.path().join("name")).unwrap();
            let after = Stamp::of(open(), later);
            assert!(!after.proves(&before));
            before.renew(&after);
            assert!(after.proves(&before));
        }
    }

    #[test]
    fn a_directory_is_remembered_for_one_tick() {
        let directories = Directories::default();
        let name = b"a/b";
        let (now, next) = (Tick::from_number(5), Tick::from_number(6));
        directories.insert(name, now, Stamp::default());
        assert!(directories.get(name, now).is_some());
        assert!(directories.get(name, next).is_none());
        for number in 0..2 * KNOWN_MAX {
            directories.insert(number.to_string().as_bytes(), next, Stamp::default());
        }
        assert!(directories.get(name, now).is_none());
        assert!(directories.get(b"0", next).is_some());
        assert!(directories.0.lock().unwrap().len() <= KNOWN_MAX);
    }

    #[test]
    fn the_directory_of_a_name() {
        assert_eq!(parent(c"index.html"), b".");
        assert_eq!(parent(c"a/b/c.html"), b"a/b");
    }
}
