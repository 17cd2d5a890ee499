//! What is served: the root, opened once, and the rules that hold for every file beneath it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlink, statat};
use rustix::io::Errno;

use crate::clock::Tick;

use crate::http::{Ledger, Request};
use crate::sys::HUGE_PAGE;

use super::body::{Body, Permit};
use super::cache::{Changes, Past};
use super::directory::{self, Stamp};
use super::entry::{Entry, File, Identity};
use super::load::needs_tag_of_bytes;
use super::pages::Pages;
use super::reads::Reads;
use super::root::Root;
use super::shelf::Shelves;

/// Which symbolic links are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Symlinks {
    /// None.
    Deny,
    /// Those that lead to a place inside the root.
    #[default]
    Inside,
    /// All, wherever they lead.
    All,
}

/// The rules of a site, as options.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Which symbolic links are followed.
    pub symlinks: Symlinks,
    /// Whether names that start with a dot are served.
    pub include_hidden: bool,
    /// Names tried, in order, where a directory is asked for.
    pub index_files: Vec<String>,
    /// The value of `Cache-Control` on files.
    pub cache_control: Option<String>,
    /// Bytes up to which a file is held in memory; a larger one is held as an open descriptor.
    pub cache_file_max: u64,
    /// Bytes of bodies that may be in memory: cached, being read or being sent; a file that does not fit
    /// is served from its descriptor instead, after it was read for its tag, for which there is as much more
    /// as `cache_file_max`.
    pub memory_max: u64,
    /// Whether what one load has seen of a directory may serve another in the same tick of the clock.
    pub shares_looks: bool,
    /// Files in memory, each of which takes a descriptor.
    pub memory_files_max: usize,
    /// Files that may be kept open though they could be held in memory.
    pub open_files_max: u64,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            symlinks: Symlinks::default(),
            include_hidden: false,
            index_files: vec!["index.html".to_owned()],
            cache_control: None,
            cache_file_max: 1 << 20,
            memory_max: 512 << 20,
            shares_looks: true,
            memory_files_max: 64,
            open_files_max: 64,
        }
    }
}

/// A folder and the rules for serving it.
#[derive(Debug)]
pub struct Site {
    path: PathBuf,
    root: ArcSwap<Root>,
    rules: Rules,
    ledger: Ledger,
    changes: Arc<Changes>,
    shelves: Shelves,
    /// Whether somebody has the pages of a body put together.
    gathering: Arc<AtomicBool>,
    /// Whether somebody lists a directory.
    listing: Arc<AtomicBool>,
    reads: Reads,
    /// Made, instead of found beneath the root.
    pages: Option<Pages>,
}

impl Site {
    /// How every file is opened: not following a FIFO's or a device's wish to wait.
    pub const OPEN: OFlags =
        OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);

    /// Opens the root.
    ///
    /// # Errors
    /// What `open(2)` says, `ENOTDIR` for a file among it.
    pub fn open(root: &Path, rules: Rules) -> io::Result<Site> {
        Ok(Site {
            path: root.to_owned(),
            root: ArcSwap::from_pointee(Root::open(root)?),
            shelves: Shelves::new(rules.memory_files_max.div_ceil(2)),
            rules,
            ledger: Ledger::default(),
            changes: Arc::default(),
            gathering: Arc::default(),
            listing: Arc::default(),
            reads: Reads::default(),
            pages: None,
        })
    }

    /// A site of pages that are made. No file is ever opened for it.
    ///
    /// # Errors
    /// What `open(2)` says of the root of the file system.
    pub fn of_pages(pages: Pages, rules: Rules) -> io::Result<Site> {
        Ok(Site { pages: Some(pages), ..Site::open(Path::new("/"), rules)? })
    }

    /// The root as it is now. Who begins with one is to end with it.
    pub fn root(&self) -> Arc<Root> {
        self.root.load_full()
    }

    /// Looks whether another folder has the root's name by now, and says so. All that is loaded from then on
    /// is loaded from there. It may wait for a disk.
    ///
    /// # Errors
    /// What `stat(2)` and `open(2)` say of the name. What was served so far still is.
    pub fn renew_root(&self) -> io::Result<bool> {
        if self.root().is_at(&self.path)? {
            return Ok(false);
        }
        self.root.store(Arc::new(Root::open(&self.path)?));
        Ok(true)
    }

    /// Takes its root to lie in a file system that is not of this machine.
    #[cfg(test)]
    pub(crate) fn pretend_elsewhere(&self) {
        self.root.store(Arc::new(Root::open(&self.path).unwrap().elsewhere()));
    }

    /// Whether reading is noted down.
    pub(super) fn reads(&self) -> &Reads {
        &self.reads
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The count of body bytes in memory.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What the caches tell each other.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// What a directory looked like, where somebody has looked in this tick and may tell others.
    pub(super) fn seen(&self, root: &Root, directory: &[u8], now: Tick) -> Option<Stamp> {
        root.directories().get(directory, now).filter(|_| self.rules.shares_looks)
    }

    /// Whether a file, be it `plain` itself or a sibling beside it, is still what it was. `false` where only
    /// a load can tell.
    ///
    /// One `stat` by name tells, if its directory is known to be the same with the same names: somebody has
    /// opened it in this tick, beneath the root, so that nothing on the way leads elsewhere. A directory of
    /// which that can be known is of a local file system.
    pub fn is_unchanged(&self, path: &[u8], file: &File, plain: &File, past: Past, now: Tick) -> bool {
        // Of a directory, other index files may have the preference by now.
        let is_for_a_load = path.ends_with(b"/")
            || !file.settled
            || file.on_trial
            || file.is_worth_gathering(past.asked)
            || file.is_on_disk() && (past.has_room || !file.is_kept()) && self.may_hold(file.identity.size);
        let root = self.root();
        !is_for_a_load
            && plain.stamp.is_beside(&file.identity)
            && self
                .seen(&root, directory::parent(&plain.name), now)
                .is_some_and(|seen| seen.proves(&plain.stamp))
            && self.look(&root, &file.name).is_ok_and(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                    && Identity::of(&stat) == file.identity
            })
    }

    /// The `stat` of what has that name, if the kernel has it in memory. What was looked at lately it has,
    /// unless memory is short: then `stat` by name would wait for the disk, without a word beforehand.
    ///
    /// # Errors
    /// `EAGAIN` where a disk would be waited for, and else what `openat2(2)` says.
    fn look(&self, root: &Root, name: &CStr) -> io::Result<Stat> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(root, name, flags, Mode::empty(), self.resolve() | ResolveFlags::CACHED)?;
        Ok(fstat(file)?)
    }

    /// Whether what is known of a file does not do for this request, which may need the tag of its bytes; of
    /// one that is kept open, whether its bytes have changed since they were read for that.
    #[inline]
    pub fn is_to_be_read(&self, entry: &Entry, request: &Request) -> bool {
        match entry {
            Entry::File(file) if file.is_kept() => !file.is_as_it_was(),
            Entry::File(file) if file.is_on_disk() => {
                needs_tag_of_bytes(request) && self.may_hold(file.identity.size)
            }
            _ => false,
        }
    }

    /// The pages, where they are made.
    pub(super) fn pages(&self) -> Option<&Pages> {
        self.pages.as_ref()
    }

    /// How far a path may lead, for `openat2(2)`: the kernel checks each step, so there is no race between a
    /// check and an open.
    pub fn resolve(&self) -> ResolveFlags {
        match self.rules.symlinks {
            Symlinks::Deny => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS,
            Symlinks::Inside => ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
            Symlinks::All => ResolveFlags::NO_MAGICLINKS,
        }
    }

    /// The name relative to the root of a file that links may have led to, if it lies beneath the root.
    ///
    /// The kernel says where it lies, without any link. The name is then opened like any other, so that
    /// nothing is won by moving the file in between.
    pub(super) fn beneath(root: &Root, file: &OwnedFd) -> Option<CString> {
        let place =
            |file: BorrowedFd| readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new()).ok();
        let (root, file) = (place(root.as_fd())?, place(file.as_fd())?);
        let relative = file.as_bytes().strip_prefix(root.as_bytes())?;
        let relative = if root.as_bytes() == b"/" { relative } else { relative.strip_prefix(b"/")? };
        CString::new(relative).ok()
    }

    /// Whether there is nothing of that name, not even a link that leads nowhere. It has just been looked
    /// for, so that no disk is waited for.
    pub(super) fn has_no(root: &Root, name: &CStr) -> bool {
        statat(root, name, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|error| error == Errno::NOENT)
    }

    /// Whether a body of so many bytes may be held in memory now.
    pub fn may_hold(&self, size: u64) -> bool {
        self.is_short(size) && self.ledger.alive() + size <= self.rules.memory_max
    }

    /// Whether so many bytes may be read now that are not held: as many at once as one body may have.
    pub(super) fn may_hash(&self, size: u64) -> bool {
        let Rules { cache_file_max, memory_max, .. } = self.rules;
        self.is_short(size) && size <= memory_max && self.ledger.alive() + size <= memory_max + cache_file_max
    }

    /// Whether a file of so many bytes is held in memory where there is some.
    pub(super) fn is_short(&self, size: u64) -> bool {
        size <= self.rules.cache_file_max
    }

    /// Whether one more file may be kept open, where that is a matter of choice.
    pub(super) fn may_keep_open(&self) -> bool {
        self.ledger.open() < self.rules.open_files_max
    }

    /// Leave to put the pages of a body of so many bytes together: nobody else does, and there is memory for
    /// it.
    pub(super) fn may_gather(&self, size: u64) -> Option<Permit> {
        let copy = size.next_multiple_of(HUGE_PAGE as u64);
        let files = self.ledger.files() as usize + self.shelves.count();
        if self.ledger.alive() + copy > self.rules.memory_max || files >= self.rules.memory_files_max {
            return None;
        }
        Permit::take(&self.gathering)
    }

    /// Leave to list a directory: nobody else does at the moment.
    pub(super) fn may_list(&self) -> Option<Permit> {
        Permit::take(&self.listing)
    }

    /// No directory is to be listed: what that finds out is of no use to others.
    pub(crate) fn list_nothing(&self) {
        self.listing.store(true, Ordering::Relaxed);
    }

    /// Holds all bodies in plain memory from now on; see [`Shelves::close`].
    pub fn hold_plainly(&self) {
        self.shelves.close();
    }

    /// Holds a body where it is sent from at the least cost.
    pub(super) fn hold(&self, body: Body) -> Body {
        body.shelved(&self.shelves, &self.ledger)
    }

    /// The names to open, relative to the root, for a canonical path: itself, or a directory's index files.
    pub(super) fn candidate(&self, path: &[u8], number: usize) -> Option<CString> {
        let index = match path.last() {
            Some(b'/') => self.rules.index_files.get(number)?.as_bytes(),
            _ if number == 0 => b"",
            _ => return None,
        };
        let relative = [&path[1..], index].concat();
        Some(CString::new(relative).expect("a canonical path has no NUL, nor has the name of an index file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_would_have_to_find_out_is_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "a").unwrap();
        let site = Site::open(folder.path(), Rules::default()).unwrap();
        assert_eq!(site.look(&site.root(), c"a").unwrap().st_size, 1);
        // What a process has open is found out each time.
        let site = Site::open(Path::new("/proc/self/fdinfo"), Rules::default()).unwrap();
        assert!(statat(site.root(), c"0", AtFlags::SYMLINK_NOFOLLOW).is_ok());
        assert_eq!(site.look(&site.root(), c"0").unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    }
}
