//! What came of a load: what is answered with, and what of it a cache keeps.

use std::sync::Arc;

use crate::http::negotiate::Coding;

use super::body::Body;
use super::entry::Entry;

/// What came of a load.
#[derive(Debug)]
pub struct Loaded {
    /// The canonical path.
    pub path: Box<[u8]>,
    /// The sibling that was wanted, if one was.
    pub coding: Option<Coding>,
    /// What it means.
    pub entry: Arc<Entry>,
    /// The same bytes in their file, where that is to be kept.
    pub(super) kept: Option<Body>,
    /// Whether that is not what was known before.
    pub news: bool,
    /// Of [`Changes`](super::cache::Changes), when the load began.
    pub count: u32,
}

impl Loaded {
    /// Bytes of the file, if it is one.
    pub fn size(&self) -> u64 {
        if let Entry::File(file) = &*self.entry { file.bytes().size() } else { 0 }
    }

    /// What a cache is to keep, which may take less memory than what is to be answered.
    pub(super) fn to_keep(&self) -> Arc<Entry> {
        match (&*self.entry, &self.kept) {
            (Entry::File(file), Some(body)) => Arc::new(Entry::File(file.with(body.clone()))),
            _ => self.entry.clone(),
        }
    }
}
