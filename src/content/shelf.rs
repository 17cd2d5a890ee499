//! Bodies side by side in a file in memory (memfd_create(2)), from which a socket takes their pages as they
//! are, by sendfile(2), where plain memory must be copied.
//!
//! All bodies of a shelf share its descriptor, each at a place of its own that no other had before, so that
//! nothing that is on its way to a client is ever written over.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use rustix::fs::ftruncate;

use crate::sys::{self, Extent};

/// Shelves there are at the most: threads that have the same one wait for each other, though only as long as
/// it takes to count who uses its file.
const SHELVES_MAX: usize = 64;
/// Bytes of places that a shelf has, empty or not. They are never used up.
const SIZE: u64 = 1 << 60;

/// The shelves of a site, made as they are needed.
#[derive(Debug)]
pub struct Shelves {
    shelves: Box<[OnceLock<Option<Shelf>>]>,
    /// Nothing more is put on them.
    closed: AtomicBool,
}

#[derive(Debug)]
struct Shelf {
    file: Arc<OwnedFd>,
    next: AtomicU64,
}

impl Shelves {
    /// As many as make sense, with so many descriptors at the most.
    pub fn new(descriptors: usize) -> Shelves {
        let shelves = (0..descriptors.min(SHELVES_MAX)).map(|_| OnceLock::new()).collect();
        Shelves { shelves, closed: AtomicBool::new(false) }
    }

    /// How many there may be; each takes a descriptor.
    pub fn count(&self) -> usize {
        self.shelves.len()
    }

    /// Puts nothing more on them: for an engine that cannot send from there without copying twice, or one
    /// that forks, whose children would all give away the same places.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Puts a copy of these bytes on the shelf of this thread, if it has one and there is memory for it.
    pub fn put(&self, bytes: &[u8]) -> Option<Extent> {
        if self.closed.load(Relaxed) {
            return None;
        }
        let number = number_of_thread().checked_rem(self.count())?;
        let own = self.shelves[number].get_or_init(Shelf::new).as_ref()?;
        let at = own.next.fetch_add(Extent::room_for(bytes.len()), Relaxed);
        Extent::write(&own.file, at, bytes).ok()
    }
}

impl Shelf {
    /// An empty one, where files in memory can be had, be so large (`RLIMIT_FSIZE`, getrlimit(2)), and give
    /// pages back.
    fn new() -> Option<Shelf> {
        let file = sys::memory_file().ok()?;
        ftruncate(&file, SIZE).ok()?;
        sys::punch(&file, 0, 1).ok()?;
        Some(Shelf { file: Arc::new(file), next: AtomicU64::new(0) })
    }
}

/// A number for each thread that asks, from 0 on.
fn number_of_thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = THREADS.fetch_add(1, Relaxed);
    }
    NUMBER.with(|&number| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::pread;
    use std::os::fd::AsFd;

    fn read(extent: &Extent, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert_eq!(pread(extent.as_fd(), &mut *bytes, extent.start()), Ok(len));
        bytes
    }

    #[test]
    fn each_has_a_place_of_its_own_and_goes_without_the_others() {
        let shelves = Shelves::new(1);
        let [a, b, c] = [1, 2, 3].map(|byte| shelves.put(&vec![byte; 5000]).unwrap());
        assert!(shelves.put(&[]).is_none());
        assert_eq!(b.size(), Extent::room_for(5000));
        let (at, file) = (b.start(), b.as_fd().try_clone_to_owned().unwrap());
        drop(b);
        let mut gone = [9; 5000];
        pread(&file, &mut gone, at).unwrap();
        assert_eq!(gone, [0; 5000]);
        let d = shelves.put(&[4; 5000]).unwrap();
        assert!(d.start() > c.start());
        for (extent, byte) in [(a, 1), (c, 3), (d, 4)] {
            assert_eq!(read(&extent, 5000), [byte; 5000]);
        }
    }

    #[test]
    fn there_are_no_more_shelves_than_descriptors() {
        assert!(Shelves::new(0).put(b"x").is_none());
        assert_eq!(Shelves::new(1 << 20).count(), SHELVES_MAX);
        let shelves = Arc::new(Shelves::new(2));
        let put = || {
            let shelves = shelves.clone();
            std::thread::spawn(move || shelves.put(b"x").unwrap()).join().unwrap()
        };
        let extents: Vec<_> = (0..20).map(|_| put()).collect();
        assert!(extents.iter().all(|extent| read(extent, 1) == b"x"));
        let made = shelves.shelves.iter().filter(|shelf| shelf.get().is_some()).count();
        assert_eq!(made, 2);
        shelves.close();
        assert!(shelves.put(b"x").is_none());
    }
}
