//! Which bytes a target means: from the path of a request to a file beneath the root, and its answer.
//!
//! This room says *which* bytes; only an engine says how they get to the client or from the disk.

pub mod answer;
pub mod body;
pub mod cache;
pub mod directory;
pub mod entry;
pub mod load;
pub mod loaded;
pub mod mime;
pub mod pages;
pub mod path;
pub mod reads;
pub mod root;
pub mod shelf;
pub mod site;
pub mod step;
pub mod store;

pub use cache::Cache;
pub use entry::Entry;
pub use load::Load;
pub use loaded::Loaded;
pub use site::{Site, Symlinks};
pub use step::Step;
pub use store::Store;
