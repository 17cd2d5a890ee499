//! Bytes of a body, shared by the cache and by the answers under way: in memory, or behind a descriptor.
//!
//! A [`Ledger`] counts the bytes in memory and the descriptors of all that live, those that the cache has
//! already dropped and only a slow client still holds included. That is what makes a limit on them true.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::sys::Extent;

/// Counts what the bodies made with it take; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    bytes: AtomicU64,
    files: AtomicU64,
    open: AtomicU64,
}

impl Ledger {
    /// Bytes of memory of all bodies alive, and of those that are being read.
    pub fn alive(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Enters bytes of memory that are about to be taken, until this is dropped.
    pub fn reserve(&self, bytes: u64) -> Reserved {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Reserved { bytes, ledger: self.clone() }
    }

    /// Files in memory among them; each has a descriptor.
    pub fn files(&self) -> u64 {
        self.0.files.load(Ordering::Relaxed)
    }

    /// Files of the file system that are kept open to be sent from.
    pub fn open(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }
}

/// Memory of a body that is being read.
#[derive(Debug)]
pub struct Reserved {
    bytes: u64,
    ledger: Ledger,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.ledger.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Immutable bytes behind a reference count. They never move, so a kernel may read them while a clone lives.
#[derive(Clone, Debug)]
pub struct Blob(Arc<Held>);

#[derive(Debug)]
struct Held {
    bytes: Box<[u8]>,
    ledger: Ledger,
}

impl Blob {
    /// Takes the bytes over and enters them into the ledger until the last clone is dropped.
    pub fn new(bytes: Vec<u8>, ledger: &Ledger) -> Blob {
        ledger.0.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Blob(Arc::new(Held { bytes: bytes.into_boxed_slice(), ledger: ledger.clone() }))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.0.bytes.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// A file, or a part of one, that is sent from. Nothing here reads it.
#[derive(Debug)]
pub struct Source {
    place: Place,
    size: u64,
    ledger: Ledger,
    residence: OnceLock<Residence>,
}

/// What can be learnt of a file's bytes without waiting for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// Which of them are in the page cache.
    Told,
    /// Nothing: its file system knows no reads that do not wait. The number is this file's alone.
    Untold(u32),
    /// All are in memory, always.
    InMemory,
}

#[derive(Debug)]
enum Place {
    /// Behind a file system.
    Disk(OwnedFd),
    /// In memory, and all of the file.
    File(OwnedFd),
    /// In memory, beside others.
    Shelf(Extent),
}

impl Source {
    /// A file of the file system, `size` bytes of it. It may change, and its disk may be slow. It is entered
    /// into the ledger until it is dropped.
    pub fn on_disk(descriptor: OwnedFd, size: u64, ledger: &Ledger) -> Source {
        Source::new(Place::Disk(descriptor), size, ledger)
    }

    /// A file in memory that never changes, entered into the ledger until it is dropped.
    pub fn in_memory(descriptor: OwnedFd, size: u64, ledger: &Ledger) -> Source {
        Source::new(Place::File(descriptor), size, ledger)
    }

    /// A part of a file in memory, `size` bytes of it, entered into the ledger until it is dropped.
    pub fn on_shelf(extent: Extent, size: u64, ledger: &Ledger) -> Source {
        Source::new(Place::Shelf(extent), size, ledger)
    }

    fn new(place: Place, size: u64, ledger: &Ledger) -> Source {
        let source = Source { place, size, ledger: ledger.clone(), residence: OnceLock::new() };
        match &source.place {
            Place::Disk(_) => ledger.0.open.fetch_add(1, Ordering::Relaxed),
            Place::File(_) => ledger.0.files.fetch_add(1, Ordering::Relaxed),
            Place::Shelf(_) => 0,
        };
        ledger.0.bytes.fetch_add(source.weight(), Ordering::Relaxed);
        source
    }

    /// Where in the file its bytes begin.
    pub fn start(&self) -> u64 {
        match &self.place {
            Place::Shelf(extent) => extent.start(),
            Place::Disk(_) | Place::File(_) => 0,
        }
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory it takes.
    pub fn weight(&self) -> u64 {
        match &self.place {
            Place::Disk(_) => 0,
            Place::File(_) => self.size,
            Place::Shelf(extent) => extent.size(),
        }
    }

    /// What can be learnt of its bytes, by whoever knows how to find out: he is asked once.
    pub fn residence(&self, ask: impl FnOnce() -> Residence) -> Residence {
        *self.residence.get_or_init(ask)
    }

    /// Whether it is in memory, so that no disk is ever waited for.
    pub fn is_in_memory(&self) -> bool {
        !matches!(self.place, Place::Disk(_))
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.place {
            Place::Disk(descriptor) | Place::File(descriptor) => descriptor.as_fd(),
            Place::Shelf(extent) => extent.as_fd(),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let Counts { bytes, files, open } = &*self.ledger.0;
        bytes.fetch_sub(self.weight(), Ordering::Relaxed);
        match &self.place {
            Place::Disk(_) => open.fetch_sub(1, Ordering::Relaxed),
            Place::File(_) => files.fetch_sub(1, Ordering::Relaxed),
            Place::Shelf(_) => 0,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_until_the_last_clone_is_gone() {
        let ledger = Ledger::default();
        let blob = Blob::new(vec![1; 100], &ledger);
        let clone = blob.clone();
        drop(blob);
        assert_eq!(ledger.alive(), 100);
        drop(clone);
        assert_eq!(ledger.alive(), 0);
    }

    #[test]
    fn what_is_being_read_counts_as_well() {
        let ledger = Ledger::default();
        let [first, second] = [10, 20].map(|bytes| ledger.reserve(bytes));
        assert_eq!(ledger.alive(), 30);
        drop(first);
        assert_eq!(ledger.alive(), 20);
        drop(second);
        assert_eq!(ledger.alive(), 0);
    }

    #[test]
    fn a_file_in_memory_counts_as_memory_and_one_on_disk_does_not() {
        let pipe = || OwnedFd::from(std::io::pipe().unwrap().0);
        let ledger = Ledger::default();
        let disk = Source::on_disk(pipe(), 100, &ledger);
        let memory = Source::in_memory(pipe(), 50, &ledger);
        assert_eq!((disk.is_in_memory(), memory.is_in_memory()), (false, true));
        assert_eq!((ledger.alive(), ledger.files(), ledger.open()), (50, 1, 1));
        drop((disk, memory));
        assert_eq!((ledger.alive(), ledger.files(), ledger.open()), (0, 0, 0));
    }
}
