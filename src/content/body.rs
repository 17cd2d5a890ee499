//! Where the bytes of a file are held: small ones in plain memory, middling ones in a file in memory, large
//! ones in the file system's own file; there also one that must come from the disk and is asked for for the
//! first time, and those for which there is no room.
//!
//! A file in memory (memfd_create(2)) is ours alone and never changes, like plain memory; but a socket can
//! take its pages as they are, by sendfile(2), where plain memory must be copied. Making one costs more than
//! one copy, so it is only made of a body that is asked for again. Where very many ask, its pages are put
//! together, so that they go as few long pieces.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use twox_hash::XxHash3_128;

use crate::http::reply::Bytes;
use crate::http::{Blob, Ledger, Source};
use crate::sys::{Area, HUGE_PAGE, Mapping};

/// From this size on, bytes in memory are held as a file. Below, a copy costs less than a second call.
const FILE_MIN: usize = 24 * 1024;
/// From this size on, putting the pages of a file in memory together pays.
const GATHER_MIN: u64 = 64 * 1024;
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

    /// The same bytes for many answers: in a file in memory, if they are many and fewer than `files_max` are
    /// held so.
    pub(super) fn for_many(self, ledger: &Ledger, files_max: u64) -> Body {
        if self.is_worth_a_file()
            && ledger.files() < files_max
            && let Place::Memory(blob) = &self.place
            && let Ok(file) = memory_file(blob.bytes())
            && let Ok(body) = Body::of_memory_file(file, self.hash, ledger)
        {
            return body;
        }
        self
    }

    /// Seals a file in memory: nobody can change it any more.
    fn of_memory_file(file: fs::File, hash: Option<u128>, ledger: &Ledger) -> io::Result<Body> {
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let size = file.metadata()?.len();
        // A kernel that has no place for another mapping still has the file.
        let mapping = Mapping::of_sealed(&file).ok();
        let source = Source::in_memory(file.into(), size, mapping, ledger);
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

    /// Whether there are so many bytes in plain memory that [`Body::for_many`] pays.
    pub(super) fn is_worth_a_file(&self) -> bool {
        matches!(&self.place, Place::Memory(blob) if blob.bytes().len() >= FILE_MIN)
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
        if self.is_on_disk() { 0 } else { self.bytes().size() as usize }
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
        let bytes = source.bytes().ok_or(io::ErrorKind::InvalidInput)?;
        let file = memory_file(bytes)?;
        file.set_len(bytes.len().next_multiple_of(HUGE_PAGE) as u64)?;
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

/// A file in memory with these bytes.
fn memory_file(bytes: &[u8]) -> io::Result<fs::File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"ringserve", flags | MemfdFlags::NOEXEC_SEAL) {
        // The flag is of Linux 6.3; later ones may be set up to insist on it.
        Err(Errno::INVAL) => memfd_create(c"ringserve", flags),
        result => result,
    }?;
    let mut file = fs::File::from(file);
    file.write_all(bytes)?;
    Ok(file)
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

    #[test]
    fn many_bytes_become_a_file_in_memory_that_nobody_can_change() {
        let ledger = Ledger::default();
        let bytes: Vec<u8> = (0..FILE_MIN).map(|n| n as u8).collect();
        let body = Body::in_memory(bytes.clone(), &ledger).for_many(&ledger, 1);
        assert_eq!((body.is_on_disk(), body.weight(), ledger.files()), (false, FILE_MIN, 1));
        let file = fs::File::from(source(&body).as_fd().try_clone_to_owned().unwrap());
        let mut seen = vec![0; FILE_MIN];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(seen, bytes);
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(1).is_err());
        assert_eq!(source(&body).bytes(), Some(&*bytes));
    }

    #[test]
    fn what_is_put_together_is_the_same_and_cannot_be_changed_either() {
        let ledger = Ledger::default();
        let permits = Arc::default();
        for size in [GATHER_MIN as usize, HUGE_PAGE + 5] {
            let bytes: Vec<u8> = (0..size).map(|n| (n / 100) as u8).collect();
            let scattered = Body::in_memory(bytes.clone(), &ledger).for_many(&ledger, 9);
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
            assert_eq!(source(&body).bytes(), Some(&*bytes));
            let file = fs::File::from(source(&body).as_fd().try_clone_to_owned().unwrap());
            assert!(file.write_at(b"x", 0).is_err() && file.set_len(1).is_err());
        }
        for size in [FILE_MIN, GATHER_MAX as usize + 1] {
            let body = Body::in_memory(vec![1; size], &ledger).for_many(&ledger, 9);
            assert!(!body.is_worth_gathering(u32::MAX));
        }
    }

    #[test]
    fn what_cannot_be_put_together_is_what_it_was_and_is_not_tried_again() {
        let ledger = Ledger::default();
        let body = Body::in_memory(vec![1; GATHER_MIN as usize], &ledger).for_many(&ledger, 9);
        let gathering = Gathering::new(body.clone(), Permit::take(&Arc::default()).unwrap());
        let after = gathering.finish(&ledger);
        assert!(Arc::ptr_eq(source(&after), source(&body)) && !after.is_worth_gathering(u32::MAX));
    }

    #[test]
    fn few_bytes_and_those_beyond_the_number_of_files_stay_in_plain_memory() {
        let ledger = Ledger::default();
        for (size, files_max) in [(FILE_MIN - 1, 9), (FILE_MIN, 0)] {
            let body = Body::in_memory(vec![7; size], &ledger).for_many(&ledger, files_max);
            assert!(matches!(body.bytes(), Bytes::Memory(_)));
            assert_eq!((body.weight(), ledger.files()), (size, 0));
        }
    }

    #[test]
    fn the_hash_is_of_the_bytes_wherever_they_are() {
        let ledger = Ledger::default();
        let body = Body::in_memory(vec![1; FILE_MIN], &ledger);
        assert_eq!(body.hash(), body.clone().for_many(&ledger, 1).hash());
        let file = fs::File::open("/dev/null").unwrap();
        let disk = Body::on_disk(file.into(), 5, &ledger);
        assert_eq!((disk.hash(), disk.is_on_disk(), disk.weight()), (None, true, 0));
    }
}
