//! What one engine thread knows about targets. Nothing in it is shared, so nothing is locked.
//!
//! Three shares, so that a flood of names that do not exist cannot drive out what does: one of files whose
//! bytes are held, bounded by bytes, one of open files, bounded by number and bytes, one of redirects and
//! refusals, bounded by number. Each evicts by CLOCK: an entry that was used since the hand last came by is
//! passed over once.
//!
//! Where the files do not all fit, keeping the bytes of one drives out those of another, which are soon read
//! again. So of what is first asked for when the memory is full the descriptor is kept instead: that takes
//! little memory, and the kernel has the bytes. They take the place of others' when they have been asked for
//! much more often.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::clock::Tick;
use crate::http::negotiate::Coding;

use super::entry::Entry;
use super::loaded::Loaded;

/// Redirects and refusals kept.
const REFUSALS_MAX: usize = 1024;
/// A longer path is not worth keeping a refusal for.
const REFUSED_PATH_MAX: usize = 512;
/// Memory of an item beside its entry and path: the slot, its place in the table, two reference counts.
const ITEM_WEIGHT: usize = 128;
/// Of the bytes there may be, those up to which a file's are kept when it is first asked for, in eighths.
const FULL_EIGHTHS: usize = 7;
/// For bytes to take the place of others they must be asked for twice as often as those, and so many times
/// more: between equals nothing is won, and chance has one of them ahead.
const LEAD: u64 = 6;
/// Free places passed over in search of a rival.
const VACANT_MAX: usize = 8;
/// What nobody has asked for in one round of the hand, of which there is one in this time, is not kept open:
/// the space of a file that was deleted is only free once it is closed.
const ROUND: Duration = Duration::from_secs(60);

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
    /// Of files whose bytes are in memory.
    held: Share,
    /// Of files that are kept open.
    open: Share,
    refusals: Share,
    /// When the hand of the open files was last moved on for the time that had passed.
    swept: Tick,
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
    /// Whether it is a file of which only the descriptor is kept, and there is room for its bytes by now.
    pub has_room: bool,
}

/// Where an entry is, until the next insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    among: Among,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    Held,
    Open,
    Refusals,
}

impl Among {
    fn of(entry: &Entry) -> Among {
        match entry {
            Entry::File(file) if file.is_on_disk() => Among::Open,
            Entry::File(_) => Among::Held,
            Entry::Redirect(_) | Entry::Nothing(_) => Among::Refusals,
        }
    }
}

impl Cache {
    /// An empty cache, one of those that share `changes`.
    pub fn new(budget: Budget, changes: Arc<Changes>) -> Cache {
        let (held, open, refusals) = Default::default();
        Cache { held, open, refusals, swept: Tick::default(), budget, changes }
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
        let place = if let Some(at) = self.held.find(hash, path, coding) {
            Place { among: Among::Held, at }
        } else if let Some(at) = self.open.find(hash, path, coding) {
            Place { among: Among::Open, at }
        } else if coding.is_none()
            && let Some(at) = self.refusals.find(hash, path, coding)
        {
            Place { among: Among::Refusals, at }
        } else {
            return Lookup::Unknown;
        };
        let budget = self.budget;
        let item = &mut self.share(place.among).items[place.at];
        item.used = true;
        item.asked = item.asked.saturating_add(1);
        if now < item.fresh_until && item.count == count && !item.on_trial {
            return Lookup::Fresh(place);
        }
        let asked = std::mem::take(&mut item.asked);
        item.asked_before = asked;
        item.on_trial = false;
        item.count = count;
        // What nobody has asked for in a long time may be much older than it should be by now.
        if now < item.fresh_until.after(budget.fresh_for) {
            item.fresh_until = budget.fresh_until(now);
        }
        let kept = match &*item.entry {
            Entry::File(file) if file.is_kept() => usize::try_from(file.identity.size).ok(),
            _ => None,
        };
        let has_room = kept.is_some_and(|size| {
            budget.bytes.saturating_sub(self.held.weight + self.open.weight) >= size
                || self.held.is_outdone(asked, size, |item| now < item.fresh_until.after(budget.fresh_for))
        });
        Lookup::Stale(place, Past { asked, has_room })
    }

    /// Whether of a file that was not asked for before no more than its descriptor is to be kept.
    pub fn is_full(&self) -> bool {
        let Budget { bytes, descriptors, .. } = self.budget;
        self.held.weight + self.open.weight >= bytes / 8 * FULL_EIGHTHS
            && self.open.len() < descriptors
            && self.open.weight < bytes / 2
    }

    /// What [`Cache::get`] has said to be stale was looked at, and is as it was.
    pub fn renew(&mut self, place: Place, now: Tick) {
        let fresh_until = self.budget.fresh_until(now);
        self.share(place.among).items[place.at].fresh_until = fresh_until;
        self.close_idle(now);
    }

    /// What [`Cache::get`] has said to be stale is not looked at now after all: it is stale still.
    pub fn put_off(&mut self, path: &[u8], coding: Option<Coding>) {
        let hash = self.changes.hash(path, coding);
        for share in [&mut self.held, &mut self.open, &mut self.refusals] {
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
        let share = match place.among {
            Among::Held => &self.held,
            Among::Open => &self.open,
            Among::Refusals => &self.refusals,
        };
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
        let is_lasting = match &*loaded.entry {
            Entry::Nothing(status) => status.code() < 500 && loaded.path.len() <= REFUSED_PATH_MAX,
            Entry::Redirect(_) => loaded.path.len() <= REFUSED_PATH_MAX,
            Entry::File(_) => true,
        };
        for share in [&mut self.held, &mut self.open, &mut self.refusals] {
            share.remove(hash, &loaded.path, loaded.coding);
        }
        self.close_idle(now);
        if !is_lasting {
            return;
        }
        let entry = loaded.to_keep();
        let (fresh_until, among) = (self.budget.fresh_until(now), Among::of(&entry));
        self.share(among).insert(Item {
            hash,
            path: loaded.path.clone(),
            coding: loaded.coding,
            on_trial: entry.is_on_trial(),
            entry,
            count,
            fresh_until,
            asked: 0,
            asked_before: 0,
            used: false,
        });
        let Budget { bytes, descriptors, .. } = self.budget;
        match among {
            Among::Refusals => self.refusals.evict_until(|share| share.len() <= REFUSALS_MAX),
            Among::Open => {
                self.open.evict_until(|share| share.len() <= descriptors && share.weight <= bytes / 2);
            }
            Among::Held => {}
        }
        let open = self.open.weight;
        self.held.evict_until(|share| share.weight + open <= bytes);
    }

    /// Closes files that nobody asks for, as many as are due by now.
    fn close_idle(&mut self, now: Tick) {
        let places = self.open.items.capacity();
        let passed = self.swept.until(now).as_millis() * places as u128 / ROUND.as_millis();
        if self.open.len() == 0 {
            self.swept = now;
        } else if passed > 0 {
            self.swept = now;
            for _ in 0..places.min(passed as usize) {
                self.open.pass();
            }
        }
    }

    fn share(&mut self, among: Among) -> &mut Share {
        match among {
            Among::Held => &mut self.held,
            Among::Open => &mut self.open,
            Among::Refusals => &mut self.refusals,
        }
    }

    /// Bytes of all entries, about.
    pub fn weight(&self) -> usize {
        self.held.weight + self.open.weight + self.refusals.weight
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
    /// The same, from the look before that to the last.
    asked_before: u32,
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
    }

    /// Whether the next item is asked for so seldom, compared with so many times for so many bytes, that its
    /// bytes should rather go. If so it is the next to be evicted. `is_alive` says of an item whether anybody
    /// has asked for it of late.
    fn is_outdone(&mut self, asked: u32, size: usize, is_alive: impl Fn(&Item) -> bool) -> bool {
        for _ in 0..VACANT_MAX {
            self.advance();
            let Some(item) = self.items.get_mut(self.hand) else { continue };
            let rival = if is_alive(item) { u64::from(item.asked.max(item.asked_before)) } else { 0 };
            let is_outdone = u64::from(asked) > (2 * rival + LEAD) * size.div_ceil(item.weight()) as u64;
            if is_outdone {
                item.used = false;
                self.hand = self.hand.checked_sub(1).unwrap_or(self.items.capacity() - 1);
            }
            return is_outdone;
        }
        false
    }

    fn advance(&mut self) {
        self.hand = if self.hand + 1 < self.items.capacity() { self.hand + 1 } else { 0 };
    }

    /// Moves the hand on, and evicts the item there unless it was used since the hand last came by.
    fn pass(&mut self) {
        self.advance();
        if let Some(item) = self.items.get_mut(self.hand)
            && !std::mem::take(&mut item.used)
        {
            self.remove_at(self.hand);
        }
    }

    /// Evicts items until the limit holds. One item may always stay, so that what was just loaded can be
    /// answered from.
    fn evict_until(&mut self, holds: impl Fn(&Share) -> bool) {
        // Two rounds are enough: the first takes every mark of use away.
        let mut looks = 2 * self.items.capacity();
        while !holds(self) && self.len() > 1 && looks > 0 {
            looks -= 1;
            self.pass();
        }
    }
}
