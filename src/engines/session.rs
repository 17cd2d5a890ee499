//! What all readiness engines have in common: doing what a connection wants with system calls that may say
//! "not yet".
//!
//! An engine built on readiness learns *when* a socket can be read or written, and must still do the reading
//! and the writing itself, one system call each. That part is the same for all of them and stands here. How
//! they learn it is what tells them apart, and stands in each engine's own file.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::ResolveFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::clock::Tick;
use crate::content::{Load, Step};
use crate::http::{Chunk, Connection, Outbox};
use crate::serve::{READ_MAX, Want, Worker};

use super::calls::{self, openat2, recv, shutdown};
use super::helpers::{Done, Job, list_aside};
use super::resident::{Resident, SPAN_MAX, is_cold, read_resident, take_in_short_spans};
use super::transfer::{Sent, queued, send_now};

/// Things done for one connection before others have their turn.
const STEPS_MAX: usize = 32;
/// Memory that one thread lends to whichever connection it is busy with, so that idle ones hold none.
#[derive(Debug)]
pub struct Desk {
    buffer: Box<[u8]>,
    outbox: Outbox,
    /// Whether a disk may be made to begin with something; see [`resident`](super::resident).
    pub may_begin: bool,
}

impl Desk {
    pub fn new() -> Desk {
        Desk { buffer: vec![0; READ_MAX].into_boxed_slice(), outbox: Outbox::default(), may_begin: true }
    }
}

/// A connection with its socket.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    conn: Connection,
    outbox: Outbox,
    want: Want,
    disk: Option<Box<Disk>>,
    /// The last receive took all there was: the next would only say "not yet".
    drained: bool,
    /// The client has ended its side; that comes as no news again, so it must be read up to.
    hung_up: bool,
}

/// What a connection has to do with a disk at the moment.
#[derive(Debug, Default)]
struct Disk {
    /// What of the file being sent is in the page cache.
    resident: Resident,
    /// To be done by whoever may wait for a disk.
    job: Option<Job>,
    /// It has been handed out.
    away: bool,
}

/// What a connection must wait for before it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until its socket can be read.
    Readable,
    /// Until its socket can be written.
    Writable,
    /// Until a disk has answered: the job is to be taken, and [`Session::resume`] told what came of it.
    Disk,
    /// Until others have had their turn.
    Turn,
    /// For nothing: it is over, and is to be dropped.
    Over,
}

impl Session {
    pub fn new(socket: OwnedFd, mut conn: Connection, worker: &mut Worker) -> Session {
        let want = worker.accepted(&mut conn);
        Session { socket, conn, outbox: Outbox::default(), want, disk: None, drained: false, hung_up: false }
    }

    /// The socket has news.
    pub fn wake(&mut self, hung_up: bool) {
        self.drained = false;
        self.hung_up |= hung_up;
    }

    /// When [`Session::late`] is due.
    pub fn deadline(&self) -> Tick {
        self.conn.deadline()
    }

    /// The server is draining.
    pub fn hasten(&mut self, worker: &Worker) {
        worker.hasten(&mut self.conn);
    }

    /// The deadline has passed. To be followed by [`Session::advance`].
    pub fn late(&mut self, worker: &mut Worker) {
        self.want = match self.want {
            // A disk answers when it answers.
            Want::Send { then_close } if self.waits_for_disk() => {
                worker.progressed(&mut self.conn);
                Want::Send { then_close }
            }
            Want::Send { then_close } if worker.is_still_taking(&mut self.conn, queued(&self.socket)) => {
                Want::Send { then_close }
            }
            // Nothing can be said behind half an answer.
            Want::Send { .. } => {
                calls::abandon(&self.socket);
                Want::Close
            }
            _ => worker.late(&mut self.conn, &mut self.outbox),
        };
    }

    fn waits_for_disk(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.away || disk.job.is_some())
    }

    /// What a disk must be waited for; once each time that [`Wait::Disk`] is said.
    pub fn take_job(&mut self) -> Option<Job> {
        let disk = self.disk.as_mut()?;
        disk.away |= disk.job.is_some();
        disk.job.take()
    }

    /// The job that was taken has been dropped: wants it again. To be followed by [`Session::advance`].
    pub fn take_up(&mut self, worker: &mut Worker) {
        if let Some(disk) = &mut self.disk {
            disk.away = false;
            // Somebody may have loaded the same meanwhile, so it begins with a look at the cache.
            self.want = worker.turn(&mut self.conn, &[], &mut self.outbox);
        }
    }

    /// The job is done. To be followed by [`Session::advance`].
    pub fn resume(&mut self, done: Done, worker: &mut Worker) {
        let Some(disk) = &mut self.disk else { return };
        disk.away = false;
        match done {
            Done::Read(file, at, len) => disk.resident.read(&file, at..at + len),
            Done::Loaded(loaded) => self.want = worker.loaded(&mut self.conn, *loaded, &mut self.outbox),
        }
    }

    /// Does what the connection wants, one thing after the other, until it must wait.
    pub fn advance(&mut self, worker: &mut Worker, desk: &mut Desk) -> Wait {
        if self.waits_for_disk() {
            return Wait::Disk;
        }
        if self.outbox.is_empty() {
            std::mem::swap(&mut self.outbox, &mut desk.outbox);
        }
        let wait = self.advance_with(worker, &mut desk.buffer, desk.may_begin);
        if self.outbox.is_empty() {
            std::mem::swap(&mut self.outbox, &mut desk.outbox);
        }
        wait
    }

    fn advance_with(&mut self, worker: &mut Worker, buffer: &mut [u8], may_begin: bool) -> Wait {
        for _ in 0..STEPS_MAX {
            let Session { conn, outbox, .. } = self;
            self.want = match std::mem::replace(&mut self.want, Want::Close) {
                Want::Read if self.drained => {
                    self.want = Want::Read;
                    self.disk = None;
                    return Wait::Readable;
                }
                Want::Read => match recv(&self.socket, buffer) {
                    Ok(0) => worker.ended(conn, outbox),
                    Ok(n) => {
                        self.drained = n < buffer.len() && !self.hung_up;
                        worker.turn(conn, &buffer[..n], outbox)
                    }
                    Err(Errno::INTR) => Want::Read,
                    Err(Errno::AGAIN) => {
                        self.want = Want::Read;
                        return Wait::Readable;
                    }
                    Err(_) => return Wait::Over,
                },
                Want::Send { then_close } => {
                    take_in_short_spans(outbox, may_begin, |_| {});
                    let disk = &mut self.disk;
                    let (sent, progress) = send_now(&self.socket, outbox, |file, at, len| {
                        disk.get_or_insert_default().resident.find(file, at, len, may_begin)
                    });
                    if progress {
                        worker.progressed(conn);
                    }
                    match sent {
                        Sent::All if then_close => return Wait::Over,
                        Sent::All => {
                            if let Some(disk) = disk {
                                disk.resident = Resident::default();
                            }
                            worker.turn(conn, &[], outbox)
                        }
                        Sent::Failed => return Wait::Over,
                        Sent::UntilFull | Sent::Share | Sent::UntilDisk => {
                            self.want = Want::Send { then_close };
                            return match sent {
                                Sent::UntilFull => Wait::Writable,
                                Sent::UntilDisk => self.wait_for_span(),
                                _ => Wait::Turn,
                            };
                        }
                    }
                }
                Want::Load(mut load) => {
                    if !load_at_once(&mut load, may_begin) {
                        return self.wait_for(Job::Load(load));
                    }
                    worker.loaded(conn, load.finish(), outbox)
                }
                Want::Shutdown => match shutdown(&self.socket, Shutdown::Write) {
                    Ok(()) => Want::Read,
                    Err(_) => return Wait::Over,
                },
                Want::Close => return Wait::Over,
            };
        }
        Wait::Turn
    }

    fn wait_for_span(&mut self) -> Wait {
        match self.outbox.front(&mut [IoSlice::new(&[])]) {
            Chunk::File { file, at, len } => {
                let job = Job::Read(file.clone(), at, len.min(SPAN_MAX));
                self.wait_for(job)
            }
            _ => unreachable!("it is a span of a file that is not in memory"),
        }
    }

    fn wait_for(&mut self, job: Job) -> Wait {
        self.disk.get_or_insert_default().job = Some(job);
        Wait::Disk
    }
}

impl Drop for Session {
    /// Its socket is closed with it.
    fn drop(&mut self) {
        calls::closed();
        calls::connections_ended(1);
    }
}

impl AsRawFd for Session {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Does as much of a load as the kernel can without waiting for a disk, which it may or may not have begin
/// with something, as in [`resident`](super::resident); `true` if that is all of it.
pub fn load_at_once(load: &mut Load, may_begin: bool) -> bool {
    // Elsewhere whoever opens a file may have to ask another program or machine, whatever is known of it.
    let is_local = load.is_local();
    loop {
        match load.next() {
            Step::Open { .. } if !is_local => return false,
            Step::Open { root, path, flags, resolve } => {
                match openat2(root, path, flags, resolve | ResolveFlags::CACHED) {
                    // The names are not all known yet, or something moves (Linux 5.12; EINVAL before).
                    Err(Errno::AGAIN | Errno::INVAL) => return false,
                    result => load.opened(result.map_err(io::Error::from)),
                }
            }
            Step::Read { file, buffer, at } => {
                let Some(n) = read_resident(file, buffer, at, usize::MAX, true, may_begin) else {
                    if may_begin && load.leave_if(is_cold) {
                        continue;
                    }
                    return false;
                };
                load.read(Ok(n));
            }
            Step::List(listing) => {
                list_aside(listing);
                load.listed();
            }
            Step::Note { .. } | Step::Gather(_) => return false,
            Step::Done => return true,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::content::cache::Budget;
    use crate::content::site::{Rules, Site};
    use crate::http::connection::Limits;
    use crate::observe::counters::Tally;
    use crate::shutdown::Draining;
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    /// A worker that has no file in memory.
    pub fn worker(root: &Path) -> Worker {
        let site = Arc::new(Site::open(root, Rules { cache_file_max: 0, ..Rules::default() }).unwrap());
        let budget = Budget { bytes: 0, descriptors: 8, fresh_for: Duration::from_secs(1) };
        Worker::new(site, budget, Limits::default(), Draining::default(), None, Tally::default())
    }

    #[test]
    fn where_another_may_have_to_be_asked_nothing_is_opened_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "a").unwrap();
        let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
        for is_elsewhere in [false, true] {
            if is_elsewhere {
                site.pretend_elsewhere();
            } else if !site.root().is_local() {
                eprintln!("not tested: nothing is known of this file system");
                continue;
            }
            let mut load = Load::plain(&site, b"/a", None, 0);
            load_at_once(&mut load, true);
            assert_eq!(load.size() == 0, is_elsewhere, "so many bytes are known once it is open");
        }
    }

    #[test]
    fn who_waits_for_a_disk_is_not_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes = vec![1; 3 << 20];
        fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut worker = worker(folder.path());
        let mut desk = Desk::new();
        let (mut client, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        client.write_all(b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let taker = std::thread::spawn(move || {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer
        });
        let mut session = Session::new(socket.into(), Connection::new(None), &mut worker);
        let mut later = Tick::now();
        loop {
            match session.advance(&mut worker, &mut desk) {
                Wait::Over => break,
                Wait::Disk => {
                    let job = session.take_job().unwrap();
                    // The first look at what he takes is always in his favour.
                    for _ in 0..3 {
                        later = later.after(Duration::from_secs(3600));
                        worker.clock = Clock::at(later, 1_800_000_000);
                        if session.deadline() <= later {
                            session.late(&mut worker);
                            assert!(session.deadline() > later);
                        }
                        assert_eq!(session.advance(&mut worker, &mut desk), Wait::Disk);
                    }
                    session.resume(job.run(), &mut worker);
                }
                wait => assert!(matches!(wait, Wait::Writable | Wait::Turn | Wait::Readable)),
            }
        }
        drop(session);
        assert!(taker.join().unwrap().ends_with(&bytes));
    }
}
