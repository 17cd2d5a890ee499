//! What can be in flight, and how a completion says which it was.

use std::fmt;

/// One kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    /// Receiving into a provided buffer.
    Receive,
    /// Sending memory of the outbox.
    Send,
    /// Waiting until a span of a file that is to be sent is in the page cache.
    FileFetch,
    /// Reading a span of a file that is to be sent.
    FileRead,
    /// Sending what was read of it, as much as fits at once.
    FileSend,
    /// Waiting until more of it fits.
    Writable,
    /// Asking how much is in a socket's own queue.
    Queued,
    /// Having the close that follows drop what is queued.
    Abandon,
    /// Getting a descriptor of the process for a direct one, for sendfile(2).
    Install,
    /// Opening a file for a load.
    Open,
    /// Reading it.
    Read,
    /// Having the kernel put the pages of a body together.
    Gather,
    /// Nothing yet: beginning to read a file is put off, for others have as much to do.
    Turn,
    /// Ending the writing side.
    Shutdown,
    /// Closing.
    Close,
    /// Accepting; its index is a number of the acceptor's own.
    Accept,
    /// Waiting for the server's shutdown.
    Signal,
    /// Waiting for a moment.
    Timer,
    /// Cancelling or changing another, or beginning with what another waits for; its own result is of no
    /// interest.
    Aside,
}

// What is not named there is no operation to who reads a mark.
const _: () = assert!(Operation::ALL.len() == Operation::Aside as usize + 1);

impl Operation {
    const ALL: [Operation; 19] = [
        Operation::Receive,
        Operation::Send,
        Operation::FileFetch,
        Operation::FileRead,
        Operation::FileSend,
        Operation::Writable,
        Operation::Queued,
        Operation::Abandon,
        Operation::Install,
        Operation::Open,
        Operation::Read,
        Operation::Gather,
        Operation::Turn,
        Operation::Shutdown,
        Operation::Close,
        Operation::Accept,
        Operation::Signal,
        Operation::Timer,
        Operation::Aside,
    ];
}

/// A slot's index, and which of the connections that have had this slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The slot; it is the connection's direct descriptor, too.
    pub index: u32,
    /// Counts the connections of the slot; only 24 bits travel with an operation.
    pub generation: u32,
}

/// Bits of the generation that travel.
const GENERATION_MASK: u32 = 0xff_ffff;

impl Key {
    /// A key that no connection has.
    pub const NONE: Key = Key { index: u32::MAX, generation: 0 };

    /// The next connection's generation.
    pub fn next(generation: u32) -> u32 {
        generation.wrapping_add(1) & GENERATION_MASK
    }
}

/// What a submission is marked with: operation, generation and slot in 64 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// What.
    pub operation: Operation,
    /// Whose.
    pub key: Key,
}

/// Of what is done for another operation.
pub const ASIDE: Mark = Mark { operation: Operation::Aside, key: Key::NONE };

impl From<Mark> for u64 {
    fn from(mark: Mark) -> u64 {
        (mark.operation as u64) << 56 | u64::from(mark.key.generation) << 32 | u64::from(mark.key.index)
    }
}

impl From<u64> for Mark {
    fn from(data: u64) -> Mark {
        let operation = Operation::ALL[(data >> 56) as usize];
        let key = Key { index: data as u32, generation: (data >> 32) as u32 & GENERATION_MASK };
        Mark { operation, key }
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?} of {}/{}", self.operation, self.key.index, self.key.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_journey() {
        for operation in Operation::ALL {
            for key in [Key { index: 0, generation: 0 }, Key { index: u32::MAX, generation: GENERATION_MASK }]
            {
                let mark = Mark { operation, key };
                assert_eq!(Mark::from(u64::from(mark)), mark);
            }
        }
        assert_eq!(Key::next(GENERATION_MASK), 0);
    }
}
