//! Whether anything has come or gone in a directory, so that what was not there need not be looked for again.
//!
//! A file's precompressed siblings are names beside it, and most files have none. As long as the directory's
//! own `stat` stays the same, no name in it has appeared or gone (inode(7): mtime of a directory). Where file
//! after file lacks them, the directory is listed once ([`Listing`]), and what no name in it ends in is not
//! looked for beside the others.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FsWord, Mode, OFlags, RawDir, fstat, fstatfs, openat2};
use twox_hash::XxHash3_64;

use crate::clock::Tick;
use crate::http::negotiate::{Coding, Codings};

use super::body::Permit;
use super::entry::Identity;
use super::load::now;
use super::root::Root;
use super::site::Site;

/// Directories remembered.
const KNOWN_MAX: usize = 4096;
/// Files that lack a sibling, until their directory is listed; and again, where that was not possible then.
const MISSES: u32 = 16;
/// A directory of more names is not worth it.
const NAMES_MAX: usize = 32 * 1024;
/// Bytes of names asked for at once.
const LISTED_AT_ONCE: usize = 32 * 1024;

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

/// Whether what is open lies in one of these. To find out may be to wait, where it does not.
pub(super) fn is_trusted(file: impl AsFd) -> bool {
    fstatfs(file).is_ok_and(|system| TRUSTED.contains(&system.f_type))
}

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

/// What is known of directories, by their names. All threads share it.
#[derive(Debug, Default)]
pub struct Directories(Mutex<HashMap<Box<[u8]>, Look>>);

/// What a directory looked like.
#[derive(Debug, Default)]
struct Look {
    /// When.
    at: Tick,
    stamp: Stamp,
    /// Files in it that were found to lack a sibling.
    misses: u32,
    /// What its names end in, if it was listed.
    endings: Option<Codings>,
}

impl Directories {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a directory looked like when it was looked at within this tick.
    pub(super) fn get(&self, name: &[u8], now: Tick) -> Option<Stamp> {
        self.lock().get(name).filter(|look| look.at == now).map(|look| look.stamp.clone())
    }

    /// Remembers what a directory looked like. It was looked at after `now`.
    pub(super) fn insert(&self, name: &[u8], now: Tick, stamp: Stamp) {
        let mut known = self.lock();
        if let Some(look) = known.get_mut(name) {
            if !look.stamp.proves(&stamp) {
                *look = Look::default();
            }
            (look.at, look.stamp) = (now, stamp);
            return;
        }
        if known.len() >= KNOWN_MAX {
            known.retain(|_, look| look.at == now);
            if known.len() >= KNOWN_MAX {
                return;
            }
        }
        known.insert(name.into(), Look { at: now, stamp, ..Look::default() });
    }

    /// Which siblings there may be in a directory that looks like this.
    pub(super) fn endings(&self, name: &[u8], stamp: &Stamp) -> Codings {
        let known = self.lock();
        let look = known.get(name).filter(|look| look.stamp.proves(stamp));
        look.and_then(|look| look.endings).unwrap_or(Codings::ALL)
    }

    /// A file in a directory that looks like this lacks a sibling. Whether that is worth a [`Listing`].
    pub(super) fn missed(&self, name: &[u8], stamp: &Stamp) -> bool {
        let mut known = self.lock();
        let look = known.get_mut(name).filter(|look| look.stamp.proves(stamp) && look.endings.is_none());
        look.is_some_and(|look| {
            look.misses += 1;
            look.misses.is_multiple_of(MISSES)
        })
    }

    /// A directory that looks like this was listed.
    fn listed(&self, name: &[u8], stamp: &Stamp, endings: Codings) {
        if let Some(look) = self.lock().get_mut(name)
            && look.stamp.proves(stamp)
        {
            look.endings = Some(endings);
        }
    }
}

/// A directory to be listed, for which a disk may have to be waited for.
#[derive(Clone, Debug)]
pub struct Listing {
    site: Arc<Site>,
    root: Arc<Root>,
    directory: CString,
    stamp: Stamp,
    _permit: Arc<Permit>,
}

impl Listing {
    /// Of a directory that looks like this.
    pub(super) fn new(
        site: &Arc<Site>,
        root: &Arc<Root>,
        directory: &[u8],
        stamp: &Stamp,
        permit: Permit,
    ) -> Listing {
        let directory = CString::new(directory).expect("a part of a C string has no NUL");
        let (site, root) = (site.clone(), root.clone());
        Listing { site, root, directory, stamp: stamp.clone(), _permit: Arc::new(permit) }
    }

    /// Lists it. Where that cannot be done, it is not tried again until the directory has changed.
    pub fn run(&self) {
        let endings = self.endings().unwrap_or(Codings::ALL);
        self.root.directories().listed(self.directory.to_bytes(), &self.stamp, endings);
    }

    /// What its names end in; `None` where that cannot be told.
    fn endings(&self) -> Option<Codings> {
        let flags = Site::OPEN | OFlags::DIRECTORY;
        let (root, resolve) = (&self.root, self.site.resolve());
        let directory = openat2(root, &*self.directory, flags, Mode::empty(), resolve).ok()?;
        let mut buffer = Vec::with_capacity(LISTED_AT_ONCE);
        let mut names = RawDir::new(&directory, buffer.spare_capacity_mut());
        let mut endings = Codings::default();
        let mut count = 0;
        while let Some(name) = names.next() {
            add_endings(name.ok()?.file_name().to_bytes(), &mut endings);
            count += 1;
            if count > NAMES_MAX || endings == Codings::ALL {
                return None;
            }
        }
        Stamp::of(&directory, now()).proves(&self.stamp).then_some(endings)
    }
}

/// Adds the codings whose suffix a name has, in capitals or not. To some file systems these are the same, and
/// so are other letters and what is not seen at all: what is not ASCII may be any of them.
fn add_endings(name: &[u8], endings: &mut Codings) {
    let dot = name.iter().rposition(|&byte| byte == b'.').unwrap_or(0);
    let end = &name[dot..];
    let is_suffix = |coding: &Coding| end.eq_ignore_ascii_case(coding.suffix().as_bytes());
    for coding in Coding::ALL.into_iter().filter(|coding| is_suffix(coding) || !end.is_ascii()) {
        endings.insert(coding);
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
    use crate::content::entry::SETTLED_SECONDS;
    use crate::content::site::Rules;
    use crate::content::{Load, Step};
    use std::fs::File;
    use std::path::Path;
    use std::time::Duration;

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
            std::thread::sleep(Duration::from_millis(20));
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

    /// A site with so many files in a directory `d`, and names beside them, which have been there for long;
    /// and the stamp of that directory, if that proves anything.
    fn site_of(files: usize, others: &[&str]) -> (tempfile::TempDir, Arc<Site>, Option<Stamp>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        std::fs::create_dir(&path).unwrap();
        let names = (0..files).map(|number| number.to_string());
        for name in names.chain(others.iter().map(ToString::to_string)) {
            std::fs::write(path.join(name), "a").unwrap();
        }
        let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
        let stamp = settled_stamp(&path);
        (folder, site, stamp)
    }

    fn settled_stamp(directory: &Path) -> Option<Stamp> {
        let directory = File::open(directory).unwrap();
        std::thread::sleep(Duration::from_secs(SETTLED_SECONDS + 1));
        Some(Stamp::of(directory, now())).filter(|stamp| stamp.proves(stamp))
    }

    /// Loads a file: the names that were opened for it, and whether the directory was listed.
    fn load(site: &Arc<Site>, path: &str) -> (Vec<String>, bool) {
        let mut load = Load::plain(site, path.as_bytes(), None, 0);
        let (mut opened, mut listed) = (Vec::new(), false);
        loop {
            match load.next() {
                Step::Open { root, path, flags, resolve } => {
                    opened.push(path.to_str().unwrap().to_owned());
                    let result = openat2(root, path, flags, Mode::empty(), resolve);
                    load.opened(result.map_err(Into::into));
                }
                Step::Read { file, buffer, at } => {
                    buffer.push(0);
                    let read = rustix::io::pread(file, &mut buffer[..], at);
                    load.read(read.map_err(Into::into));
                }
                Step::List(listing) => {
                    listing.run();
                    listed = true;
                    load.listed();
                }
                Step::Done => return (opened, listed),
                step => panic!("{step:?}"),
            }
        }
    }

    #[test]
    fn what_no_name_ends_in_is_not_looked_for_once_enough_files_lack_it() {
        let count = MISSES as usize + 3;
        let (folder, site, stamp) = site_of(count, &["other.gz"]);
        let mut lists = 0;
        for number in 0..count {
            let (opened, listed) = load(&site, &format!("/d/{number}"));
            let looked_for = |suffix: &str| opened.contains(&format!("d/{number}{suffix}"));
            assert!(looked_for("") && looked_for(".gz"), "{opened:?}");
            assert_eq!([".br", ".zst"].map(looked_for), [lists == 0; 2], "{number}: {opened:?}");
            lists += usize::from(listed);
        }
        // Where the stat of a directory proves nothing it is never listed.
        assert_eq!(lists, usize::from(stamp.is_some()));
        // A name has come, so all are looked for as soon as it is looked at again.
        std::fs::write(folder.path().join("d/0.br"), "a").unwrap();
        std::thread::sleep(Duration::from_millis(150));
        let (opened, _) = load(&site, "/d/0");
        assert!([".br", ".zst", ".gz"].iter().all(|suffix| opened.contains(&format!("d/0{suffix}"))));
    }

    #[test]
    fn a_listing_of_what_has_changed_or_has_too_many_names_rules_nothing_out() {
        let (folder, site, stamp) = site_of(2, &[]);
        let Some(before) = stamp else { return };
        let path = folder.path().join("d");
        let list = |stamp: &Stamp| {
            site.root().directories().insert(b"d", Tick::now(), stamp.clone());
            Listing::new(&site, &site.root(), b"d", stamp, site.may_list().unwrap()).run();
            site.root().directories().endings(b"d", stamp)
        };
        assert_eq!(list(&before), Codings::default());
        let directory = File::open(&path).unwrap();
        for number in 2..=NAMES_MAX {
            let (name, mode) = (number.to_string(), Mode::RUSR);
            rustix::fs::mknodat(&directory, name, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        }
        assert_eq!(list(&before), Codings::ALL, "it has changed");
        let after = settled_stamp(&path).unwrap();
        assert_eq!(list(&after), Codings::ALL, "it has too many");
        site.list_nothing();
        assert!(site.may_list().is_none());
    }

    #[test]
    fn what_a_name_ends_in() {
        let of = |name: &str| {
            let mut endings = Codings::default();
            add_endings(name.as_bytes(), &mut endings);
            Coding::ALL.into_iter().filter(|&coding| endings.contains(coding)).collect::<Vec<_>>()
        };
        assert_eq!(of("a.br"), [Coding::Brotli]);
        assert_eq!(of("a.GZ"), [Coding::Gzip]);
        assert_eq!(of("a.zst"), [Coding::Zstd]);
        assert_eq!(of("a.br.gz"), [Coding::Gzip]);
        assert!(
            ["", "a", "gz", "a.gz.html", "a.gzip", "\u{6587}.html"].iter().all(|name| of(name).is_empty())
        );
        let folded = ["a.z\u{17f}t", "a.g\u{200d}z", "a\u{ff0e}gz", "x.a\u{ff0e}gz", "\u{6587}"];
        assert!(folded.iter().all(|name| of(name) == Coding::ALL));
    }

    #[test]
    fn the_directory_of_a_name() {
        assert_eq!(parent(c"index.html"), b".");
        assert_eq!(parent(c"a/b/c.html"), b"a/b");
    }
}
