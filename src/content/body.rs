//! Where the bytes of a file are held: small ones in plain memory, middling ones on a [shelf](super::shelf),
//! large ones in the file system's own file; there also one that must come from the disk and is asked for for
//! the first time, and those for which there is no room.
//!
//! Where very many ask for a body on a shelf, it gets a file in memory of its own whose pages are put
//! together, so that they go as few long pieces.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SealFlags, fcntl_add_seals, sendfile};
use twox_hash::XxHash3_128;

use crate::http::reply::Bytes;
use crate::http::{Blob, Ledger, Source};
use crate::sys::{self, Area, HUGE_PAGE};

use super::shelf::Shelves;

/// More bytes than these are put on a shelf. A copy of so many costs no more than a second call.
const PLAIN_MAX: usize = 8 * 1024;
/// From this size on, putting the pages of a file in memory together pays.
const GATHER_MIN: u64 = 16 * 1024;
/// A longer one is copied for too long.
const GATHER_MAX: u64 = 4 << 20;
/// And if so many of its bytes were asked for since it was last looked at.
const GATHER_AT: u64 = 16 << 20;

/// A file's bytes.
#[derive(Clone, Debug)]
pub struct Body {
    place: Place,
    /// xxh3-128 of the bytes, where they are in memory or were.
    hash: Option<u128>,
    /// Whether its pages have been put together, or that was tried in vain.
    gathered: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Blob),
    File(Arc<Source>),
}

impl Body {
    /// Left where they are, in an open file.
    pub(super) fn on_disk(file: OwnedFd, size: u64, ledger: &Ledger) -> Body {
        let source = Source::on_disk(file, size, ledger);
        Body { place: Place::File(Arc::new(source)), hash: None, gathered: false }
    }

    /// The same bytes, left in the file that they were read from.
    pub(super) fn kept_in(&self, file: OwnedFd, ledger: &Ledger) -> Body {
        Body { hash: self.hash, ..Body::on_disk(file, self.bytes().size(), ledger) }
    }

    /// Held in plain memory.
    pub(super) fn in_memory(bytes: Vec<u8>, ledger: &Ledger) -> Body {
        let hash = Some(XxHash3_128::oneshot(&bytes));
        Body { place: Place::Memory(Blob::new(bytes, ledger)), hash, gathered: false }
    }

    /// The same bytes, on a shelf if they are many and there is one.
    pub(super) fn shelved(self, shelves: &Shelves, ledger: &Ledger) -> Body {
        if let Place::Memory(blob) = &self.place
            && blob.bytes().len() > PLAIN_MAX
            && let Some(extent) = shelves.put(blob.bytes())
        {
            let source = Source::on_shelf(extent, blob.bytes().len() as u64, ledger);
            return Body { place: Place::File(Arc::new(source)), ..self };
        }
        self
    }

    /// Seals a file in memory: nobody can change it any more.
    fn of_memory_file(file: fs::File, hash: Option<u128>, ledger: &Ledger) -> io::Result<Body> {
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let size = file.metadata()?.len();
        let source = Source::in_memory(file.into(), size, ledger);
        Ok(Body { place: Place::File(Arc::new(source)), hash, gathered: false })
    }

    /// Whether its pages should be put together, after it was asked for so often within a moment.
    pub(super) fn is_worth_gathering(&self, asked: u32) -> bool {
        match &self.place {
            Place::File(source) if source.is_in_memory() && !self.gathered => {
                (GATHER_MIN..=GATHER_MAX).contains(&source.size())
                    && u64::from(asked) * source.size() >= GATHER_AT
            }
            _ => false,
        }
    }

    /// Whether its pages have been put together, or that was tried in vain.
    pub(super) fn is_gathered(&self) -> bool {
        self.gathered
    }

    /// The bytes, to be sent.
    #[inline]
    pub fn bytes(&self) -> Bytes<'_> {
        match &self.place {
            Place::Memory(blob) => Bytes::Memory(blob),
            Place::File(source) => Bytes::File(source),
        }
    }

    /// What tells these bytes from all others; unknown for those that were never read.
    pub(super) fn hash(&self) -> Option<u128> {
        self.hash
    }

    /// Whether the bytes are still on the disk.
    pub(super) fn is_on_disk(&self) -> bool {
        matches!(&self.place, Place::File(source) if !source.is_in_memory())
    }

    /// Bytes of memory it takes.
    pub(super) fn weight(&self) -> usize {
        match &self.place {
            Place::Memory(blob) => blob.bytes().len(),
            Place::File(source) => source.weight() as usize,
        }
    }
}

/// A body whose pages are being put together, in a copy: those of itself may be on their way to clients.
#[derive(Debug)]
pub struct Gathering {
    body: Body,
    copy: Option<(fs::File, Area)>,
    _permit: Permit,
}

impl Gathering {
    pub(super) fn new(body: Body, permit: Permit) -> Gathering {
        Gathering { body, copy: None, _permit: permit }
    }

    /// Makes the copy. `madvise(2)` is to be called on its area with [`Area::ADVICE`].
    ///
    /// # Errors
    /// What is said by the calls that make and map a file in memory; the body is as good as before.
    pub fn prepare(&mut self) -> io::Result<&Area> {
        let Bytes::File(source) = self.body.bytes() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let file = fs::File::from(sys::memory_file()?);
        let (size, mut at) = (source.size(), source.start());
        let end = at + size;
        while at < end {
            let left = (end - at) as usize;
            if sendfile(&file, source, Some(&mut at), left)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        file.set_len(size.next_multiple_of(HUGE_PAGE as u64))?;
        let area = Area::of(&file)?;
        Ok(&self.copy.insert((file, area)).1)
    }

    /// Makes the copy, and has its pages put together on this thread.
    ///
    /// # Errors
    /// Those of [`Gathering::prepare`] and of [`Area::gather`].
    pub fn run(&mut self) -> io::Result<()> {
        self.prepare()?.gather()
    }

    /// The body. Where nothing came of it, it is what it was, and it is not tried again.
    pub(super) fn finish(self, ledger: &Ledger) -> Body {
        let made = self.copy.and_then(|(file, area)| {
            // What is mapped for others to write, as far as the kernel knows, cannot be sealed.
            drop(area);
            // The room behind its bytes goes back to the kernel.
            file.set_len(self.body.bytes().size()).ok()?;
            Body::of_memory_file(file, self.body.hash, ledger).ok()
        });
        Body { gathered: true, ..made.unwrap_or(self.body) }
    }
}

/// Leave to do what is done by one at a time: to put the pages of a body together, which takes a whole huge
/// page, or to list a directory.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicBool>);

impl Permit {
    /// Takes the permit, if nobody has it.
    pub(super) fn take(taken: &Arc<AtomicBool>) -> Option<Permit> {
        (!taken.swap(true, Ordering::Relaxed)).then(|| Permit(taken.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn source(body: &Body) -> &Arc<Source> {
        match body.bytes() {
            Bytes::File(source) => source,
            Bytes::Memory(_) => panic!("in plain memory"),
        }
    }

    fn read(body: &Body) -> Vec<u8> {
        let source = source(body);
        let mut bytes = vec![0; source.size() as usize];
        assert_eq!(rustix::io::pread(source, &mut *bytes, source.start()), Ok(bytes.len()));
        bytes
    }

    #[test]
    fn many_bytes_are_put_on_a_shelf_and_take_whole_pages() {
        let ledger = Ledger::default();
        let shelves = Shelves::new(1);
        let bytes: Vec<u8> = (0..=PLAIN_MAX).map(|n| n as u8).collect();
        let bodies = [(); 2].map(|()| Body::in_memory(bytes.clone(), &ledger).shelved(&shelves, &ledger));
        for body in &bodies {
            assert!(!body.is_on_disk() && body.weight() > PLAIN_MAX);
            assert_eq!(body.weight() % rustix::param::page_size(), 0);
            assert_eq!(read(body), bytes);
        }
        assert_eq!((ledger.files(), ledger.alive()), (0, 2 * bodies[0].weight() as u64));
        drop(bodies);
        assert_eq!(ledger.alive(), 0);
    }

    #[test]
    fn what_is_put_together_is_the_same_and_cannot_be_changed_either() {
        let ledger = Ledger::default();
        let (shelves, permits) = (Shelves::new(1), Arc::default());
        for size in [GATHER_MIN as usize, HUGE_PAGE + 5] {
            let bytes: Vec<u8> = (0..size).map(|n| (n / 100) as u8).collect();
            let scattered = Body::in_memory(bytes.clone(), &ledger).shelved(&shelves, &ledger);
            let often = (GATHER_AT / size as u64 + 1) as u32;
            assert!(scattered.is_worth_gathering(often) && !scattered.is_worth_gathering(often / 2));
            let mut gathering = Gathering::new(scattered.clone(), Permit::take(&permits).unwrap());
            assert!(Permit::take(&permits).is_none());
            // Kernels before Linux 6.1 do not know how.
            let _ = gathering.prepare().unwrap().gather();
            let body = gathering.finish(&ledger);
            assert!(body.is_gathered() && !body.is_worth_gathering(u32::MAX));
            assert_eq!((body.hash(), body.weight()), (scattered.hash(), size));
            drop(scattered);
            assert_eq!((ledger.files(), ledger.alive()), (1, size as u64));
            assert_eq!(read(&body), bytes);
            let file = fs::File::from(source(&body).as_fd().try_clone_to_owned().unwrap());
            assert!(file.write_at(b"x", 0).is_err() && file.set_len(1).is_err());
        }
        for size in [PLAIN_MAX + 1, GATHER_MAX as usize + 1] {
            let body = Body::in_memory(vec![1; size], &ledger).shelved(&shelves, &ledger);
            assert!(!body.is_worth_gathering(u32::MAX));
        }
    }

    #[test]
    fn what_cannot_be_put_together_is_what_it_was_and_is_not_tried_again() {
        let (ledger, shelves) = (Ledger::default(), Shelves::new(1));
        let body = Body::in_memory(vec![1; GATHER_MIN as usize], &ledger).shelved(&shelves, &ledger);
        let gathering = Gathering::new(body.clone(), Permit::take(&Arc::default()).unwrap());
        let after = gathering.finish(&ledger);
        assert!(Arc::ptr_eq(source(&after), source(&body)) && !after.is_worth_gathering(u32::MAX));
    }

    #[test]
    fn few_bytes_stay_in_plain_memory_and_others_where_there_is_no_shelf() {
        let ledger = Ledger::default();
        for (size, shelves) in [(PLAIN_MAX, 9), (PLAIN_MAX + 1, 0)] {
            let body = Body::in_memory(vec![7; size], &ledger).shelved(&Shelves::new(shelves), &ledger);
            assert!(matches!(body.bytes(), Bytes::Memory(_)));
            assert_eq!(body.weight(), size);
        }
    }

    #[test]
    fn the_hash_is_of_the_bytes_wherever_they_are() {
        let ledger = Ledger::default();
        let body = Body::in_memory(vec![1; PLAIN_MAX + 1], &ledger);
        assert_eq!(body.hash(), body.clone().shelved(&Shelves::new(1), &ledger).hash());
        let file = fs::File::open("/dev/null").unwrap();
        let disk = Body::on_disk(file.into(), 5, &ledger);
        assert_eq!((disk.hash(), disk.is_on_disk(), disk.weight()), (None, true, 0));
    }
}
