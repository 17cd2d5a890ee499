//! What one engine thread knows about targets. Nothing in it is shared, so nothing is locked.
//!
//! Two shares, so that a flood of names that do not exist cannot drive out what does: one of files, bounded
//! by bytes and by open descriptors, one of redirects and refusals, bounded by number. Each evicts by CLOCK:
//! an entry that was used since the hand last came by is passed over once.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::clock::Tick;
use crate::http::negotiate::Coding;

use super::entry::Entry;
use super::load::Loaded;

/// Redirects and refusals kept.
const REFUSALS_MAX: usize = 1024;
/// A longer path is not worth keeping a refusal for.
const REFUSED_PATH_MAX: usize = 512;
/// Memory of an item beside its entry and path: the slot, its place in the table, two reference counts.
const ITEM_WEIGHT: usize = 128;
/// What was looked at no longer ago is still in the kernel's memory.
const RECENT: Duration = Duration::from_secs(10);

/// What a cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes of entries, bodies included.
    pub bytes: usize,
    /// Open descriptors.
    pub descriptors: usize,
    /// How long an entry is trusted before the file is looked at again.
    pub fresh_for: Duration,
}

impl Budget {
    fn fresh_until(&self, now: Tick) -> Tick {
        if self.fresh_for.is_zero() { now } else { now.after(self.fresh_for) }
    }
}

/// What the caches of all threads tell each other: that a path was found to mean something new.
///
/// Without it, one thread would go on for a second with what another knows to be old, and a client that meets
/// both would see time run backwards. A path is one of some thousand counters; an entry remembers the count
/// it was loaded at and is stale under any other.
#[derive(Debug)]
pub struct Changes {
    counts: Box<[AtomicU32]>,
    /// With a random seed: nobody outside can choose names that all fall into one place.
    hasher: DefaultHashBuilder,
}

impl Changes {
    const COUNTERS: usize = 4096;

    fn hash(&self, path: &[u8], coding: Option<Coding>) -> u64 {
        self.hasher.hash_one((path, coding.map_or(0, |coding| coding as u8 + 1)))
    }

    /// The count of a path as it is now.
    pub(super) fn count(&self, path: &[u8], coding: Option<Coding>) -> u32 {
        self.counter(self.hash(path, coding)).load(Ordering::Relaxed)
    }

    fn counter(&self, hash: u64) -> &AtomicU32 {
        // The low bits choose the place in the table; these are others.
        &self.counts[(hash >> 40) as usize % Changes::COUNTERS]
    }
}

impl Default for Changes {
    fn default() -> Changes {
        let counts = (0..Changes::COUNTERS).map(|_| AtomicU32::new(0)).collect();
        Changes { counts, hasher: DefaultHashBuilder::default() }
    }
}

/// The entries of one engine thread.
#[derive(Debug)]
pub struct Cache {
    files: Share,
    refusals: Share,
    budget: Budget,
    changes: Arc<Changes>,
}

/// What the cache says of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Known, and fresh.
    Fresh(Place),
    /// To be looked at again; what was known is still used for whoever asks meanwhile, unless it was to be
    /// looked at long ago.
    Stale(Place, Past),
    /// Not known.
    Unknown,
}

/// What there is to say of an entry since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// How often it was asked for.
    pub asked: u32,
    /// Whether that was only a moment ago.
    pub is_recent: bool,
}

/// Where an entry is, until the next insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    in_files: bool,
    at: usize,
}

impl Cache {
    /// An empty cache, one of those that share `changes`.
    pub fn new(budget: Budget, changes: Arc<Changes>) -> Cache {
        Cache { files: Share::default(), refusals: Share::default(), budget, changes }
    }

    /// An empty cache like this one.
    #[must_use]
    pub fn another(&self) -> Cache {
        Cache::new(self.budget, self.changes.clone())
    }

    /// Gives it the share of one in so many of the bytes it could have.
    pub fn divide(&mut self, parts: usize) {
        self.budget.bytes /= parts.max(1);
    }

    /// Looks a canonical path up. The first to find an entry stale is told so, and must load it; the others
    /// go on with it as it is. Where it has been stale for as long as it was fresh, all are told so.
    #[inline]
    pub fn get(&mut self, path: &[u8], coding: Option<Coding>, now: Tick) -> Lookup {
        let hash = self.changes.hash(path, coding);
        let count = self.changes.counter(hash).load(Ordering::Relaxed);
        let (share, place) = if let Some(at) = self.files.find(hash, path, coding) {
            (&mut self.files, Place { in_files: true, at })
        } else if coding.is_none()
            && let Some(at) = self.refusals.find(hash, path, coding)
        {
            (&mut self.refusals, Place { in_files: false, at })
        } else {
            return Lookup::Unknown;
        };
        let item = &mut share.items[place.at];
        item.used = true;
        item.asked = item.asked.saturating_add(1);
        if now < item.fresh_until && item.count == count && !item.on_trial {
            return Lookup::Fresh(place);
        }
        let past = Past {
            asked: std::mem::take(&mut item.asked),
            is_recent: self.budget.fresh_for < RECENT
                && now < item.fresh_until.after(RECENT.saturating_sub(self.budget.fresh_for)),
        };
        item.on_trial = false;
        item.count = count;
        // What nobody has asked for in a long time may be much older than it should be by now.
        if now < item.fresh_until.after(self.budget.fresh_for) {
            item.fresh_until = self.budget.fresh_until(now);
        }
        Lookup::Stale(place, past)
    }

    /// What [`Cache::get`] has said to be stale was looked at, and is as it was.
    pub fn renew(&mut self, place: Place, now: Tick) {
        let share = if place.in_files { &mut self.files } else { &mut self.refusals };
        share.items[place.at].fresh_until = self.budget.fresh_until(now);
    }

    /// What [`Cache::get`] has said to be stale is not looked at now after all: it is stale still.
    pub fn put_off(&mut self, path: &[u8], coding: Option<Coding>) {
        let hash = self.changes.hash(path, coding);
        for share in [&mut self.files, &mut self.refusals] {
            if let Some(at) = share.find(hash, path, coding) {
                let item = &mut share.items[at];
                item.fresh_until = Tick::default();
                item.on_trial = item.entry.is_on_trial();
            }
        }
    }

    /// The entry at a place that [`Cache::get`] has just named.
    #[inline]
    pub fn entry(&self, place: Place) -> &Arc<Entry> {
        let share = if place.in_files { &self.files } else { &self.refusals };
        &share.items[place.at].entry
    }

    /// Keeps what was loaded, and makes room for it.
    pub fn insert(&mut self, loaded: &Loaded, now: Tick) {
        let hash = self.changes.hash(&loaded.path, loaded.coding);
        let counter = self.changes.counter(hash);
        let mut count = loaded.count;
        // Where somebody else has found news since this load began, it may have read what was there before:
        // then its count is an old one, and the next to ask looks again.
        if loaded.news && counter.fetch_add(1, Ordering::Relaxed) == count {
            count = count.wrapping_add(1);
        }
        let is_file = matches!(&*loaded.entry, Entry::File(_));
        let is_lasting = match &*loaded.entry {
            Entry::Nothing(status) => status.code() < 500 && loaded.path.len() <= REFUSED_PATH_MAX,
            Entry::Redirect(_) => loaded.path.len() <= REFUSED_PATH_MAX,
            Entry::File(_) => true,
        };
        let (share, other) = if is_file {
            (&mut self.files, &mut self.refusals)
        } else {
            (&mut self.refusals, &mut self.files)
        };
        other.remove(hash, &loaded.path, loaded.coding);
        share.remove(hash, &loaded.path, loaded.coding);
        if !is_lasting {
            return;
        }
        share.insert(Item {
            hash,
            path: loaded.path.clone(),
            coding: loaded.coding,
            entry: loaded.entry.clone(),
            count,
            fresh_until: self.budget.fresh_until(now),
            asked: 0,
            used: false,
            on_trial: loaded.entry.is_on_trial(),
        });
        if is_file {
            let Budget { bytes, descriptors, .. } = self.budget;
            self.files.evict_until(|share| share.weight <= bytes, |_| true);
            self.files
                .evict_until(|share| share.descriptors <= descriptors, |item| item.entry.holds_descriptor());
        } else {
            self.refusals.evict_until(|share| share.len() <= REFUSALS_MAX, |_| true);
        }
    }

    /// Bytes of all entries, about.
    pub fn weight(&self) -> usize {
        self.files.weight + self.refusals.weight
    }
}

/// Entries under one limit.
#[derive(Debug, Default)]
struct Share {
    /// Indices into `items`.
    table: HashTable<usize>,
    items: slab::Slab<Item>,
    hand: usize,
    weight: usize,
    descriptors: usize,
}

#[derive(Debug)]
struct Item {
    hash: u64,
    path: Box<[u8]>,
    coding: Option<Coding>,
    entry: Arc<Entry>,
    /// Of its counter in [`Changes`].
    count: u32,
    fresh_until: Tick,
    /// How often it was asked for since it was last looked at.
    asked: u32,
    used: bool,
    /// The first to ask for it again is to load it again.
    on_trial: bool,
}

impl Item {
    fn weight(&self) -> usize {
        self.entry.weight() + self.path.len() + ITEM_WEIGHT
    }
}

impl Share {
    #[inline]
    fn find(&self, hash: u64, path: &[u8], coding: Option<Coding>) -> Option<usize> {
        let is_it = |&at: &usize| {
            let item = &self.items[at];
            item.hash == hash && item.coding == coding && *item.path == *path
        };
        self.table.find(hash, is_it).copied()
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn insert(&mut self, item: Item) {
        self.weight += item.weight();
        self.descriptors += usize::from(item.entry.holds_descriptor());
        let hash = item.hash;
        let at = self.items.insert(item);
        let items = &self.items;
        self.table.insert_unique(hash, at, |&at| items[at].hash);
    }

    fn remove(&mut self, hash: u64, path: &[u8], coding: Option<Coding>) {
        if let Some(at) = self.find(hash, path, coding) {
            self.remove_at(at);
        }
    }

    fn remove_at(&mut self, at: usize) {
        let item = self.items.remove(at);
        let place = self.table.find_entry(item.hash, |&other| other == at);
        place.expect("every item is in the table").remove();
        self.weight -= item.weight();
        self.descriptors -= usize::from(item.entry.holds_descriptor());
    }

    /// Evicts items that count until the limit holds. One item may always stay, so that what was just loaded
    /// can be answered from.
    fn evict_until(&mut self, holds: impl Fn(&Share) -> bool, counts: impl Fn(&Item) -> bool) {
        // Two rounds are enough: the first takes every mark of use away.
        let mut looks = 2 * self.items.capacity();
        while !holds(self) && self.len() > 1 && looks > 0 {
            looks -= 1;
            self.hand = if self.hand + 1 < self.items.capacity() { self.hand + 1 } else { 0 };
            if let Some(item) = self.items.get_mut(self.hand)
                && counts(item)
                && !std::mem::take(&mut item.used)
            {
                self.remove_at(self.hand);
            }
        }
    }
}
