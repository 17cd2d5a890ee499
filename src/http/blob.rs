//! Bytes of a body held in memory, shared by the cache and by the answers under way.
//!
//! A [`Ledger`] counts the bytes of all living blobs, those that the cache has already dropped and only a
//! slow client still holds included. That is what makes a memory limit true.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the bytes of the blobs made with it; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<AtomicU64>);

impl Ledger {
    /// Bytes of all blobs alive.
    pub fn alive(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
        ledger.0.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Blob(Arc::new(Held { bytes: bytes.into_boxed_slice(), ledger: ledger.clone() }))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.0.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
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
}
