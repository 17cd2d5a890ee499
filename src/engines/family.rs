//! Families of I/O models: what an engine does while it waits. Reports group by them.

use serde::{Deserialize, Serialize};

/// A family of engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// A thread of control for each client; it blocks.
    Blocking,
    /// Asks about every client, one by one, each time.
    Scanned,
    /// Is told by the kernel who is ready.
    Queued,
    /// A task for each client, on a runtime.
    Coroutines,
    /// Is told by the kernel what is done.
    Completion,
    /// A server that is none of these, but compared with them.
    Other,
}

impl Family {
    /// All of them, in the order of the ladder.
    pub const ALL: [Family; 6] = [
        Family::Blocking,
        Family::Scanned,
        Family::Queued,
        Family::Coroutines,
        Family::Completion,
        Family::Other,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Family::Blocking => "blocking",
            Family::Scanned => "scanned readiness",
            Family::Queued => "queued readiness",
            Family::Coroutines => "coroutines",
            Family::Completion => "completion",
            Family::Other => "other",
        }
    }
}
