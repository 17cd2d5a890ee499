//! Where the bytes of a file are held: small ones in plain memory, middling ones in a file in memory, large
//! ones in the file system's own file.
//!
//! A file in memory (memfd_create(2)) is ours alone and never changes, like plain memory; but a socket can
//! take its pages as they are, by sendfile(2), where plain memory must be copied. Making one costs more than
//! one copy, so it is only made of a body that is asked for again.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_128;

use crate::http::reply::Bytes;
use crate::http::{Blob, Ledger, Source};
use crate::sys::Mapping;

/// From this size on, bytes in memory are held as a file. Below, a copy costs less than a second call.
const FILE_MIN: usize = 24 * 1024;

/// A file's bytes.
#[derive(Clone, Debug)]
pub struct Body {
    place: Place,
    /// xxh3-128 of the bytes, where they are in memory.
    hash: Option<u128>,
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Blob),
    File(Arc<Source>),
}

impl Body {
    /// Left where they are, in an open file.
    pub(super) fn on_disk(file: OwnedFd, size: u64) -> Body {
        Body { place: Place::File(Arc::new(Source::on_disk(file, size))), hash: None }
    }

    /// Held in plain memory.
    pub(super) fn in_memory(bytes: Vec<u8>, ledger: &Ledger) -> Body {
        let hash = Some(xxh3_128(&bytes));
        Body { place: Place::Memory(Blob::new(bytes, ledger)), hash }
    }

    /// The same bytes for many answers: in a file in memory, if they are many and fewer than `files_max` are
    /// held so.
    pub(super) fn for_many(self, ledger: &Ledger, files_max: u64) -> Body {
        if self.is_worth_a_file()
            && ledger.files() < files_max
            && let Place::Memory(blob) = &self.place
            && let Ok(file) = memory_file(blob.bytes())
        {
            // A kernel that has no place for another mapping still has the file.
            let mapping = Mapping::of_sealed(&file).ok();
            let source = Source::in_memory(file, blob.bytes().len() as u64, mapping, ledger);
            return Body { place: Place::File(Arc::new(source)), hash: self.hash };
        }
        self
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

/// A file in memory with these bytes, sealed: nobody can change them any more.
fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(c"ringserve", flags | MemfdFlags::NOEXEC_SEAL) {
        // The flag is of Linux 6.3; later ones may be set up to insist on it.
        Err(Errno::INVAL) => memfd_create(c"ringserve", flags),
        result => result,
    }?;
    let mut file = fs::File::from(file);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
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
        let disk = Body::on_disk(file.into(), 5);
        assert_eq!((disk.hash(), disk.is_on_disk(), disk.weight()), (None, true, 0));
    }
}
