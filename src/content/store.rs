//! A cache as a worker holds it: its own, or one that it shares with those who serve one client each.
//!
//! Its own needs no lock, and costs what the cache costs. A shared one is locked for as long as something is
//! looked up or put in; never while something is loaded or sent.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Cache;

/// A cache of one worker, or of several.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the hot path looks into its own cache without a detour")]
pub enum Store {
    /// Of this worker alone.
    Own(Cache),
    /// Of several.
    Shared(Arc<Mutex<Cache>>),
}

impl Store {
    /// The same, to be shared from now on.
    #[must_use]
    pub fn into_shared(self) -> Store {
        match self {
            Store::Own(cache) => Store::Shared(Arc::new(Mutex::new(cache))),
            Store::Shared(cache) => Store::Shared(cache),
        }
    }

    /// One more handle on a cache that is shared; otherwise an empty cache like this one.
    #[must_use]
    pub fn another(&self) -> Store {
        match self {
            Store::Own(cache) => Store::Own(cache.another()),
            Store::Shared(cache) => Store::Shared(cache.clone()),
        }
    }

    /// Does something to the cache.
    pub fn with<T>(&mut self, act: impl FnOnce(&mut Cache) -> T) -> T {
        match self {
            Store::Own(cache) => act(cache),
            Store::Shared(cache) => act(&mut lock(cache)),
        }
    }
}

/// The cache, for a moment. Whoever panicked while holding it has left every entry whole.
pub fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}
