//! The path of a request, in one function: [`Worker::turn`].
//!
//! A connection wants one thing at a time. An engine does that one thing in its own manner, then calls `turn`
//! with the bytes that came, and is told what is wanted next:
//!
//! ```text
//! match want {
//!     Read       => receive once; then turn(bytes), or ended() at the end of the stream
//!     Send       => send the outbox until it is empty; then turn(no bytes), or close if `then_close`
//!     Load(load) => do what load.next() names until it is Done; then loaded(load.finish())
//!     Shutdown   => shutdown(2) the writing side; then as for Read
//!     Close      => close
//! }
//! ```
//!
//! Past `connection.deadline()` it calls `late`, up to a second later than that; for a send that is stuck it
//! asks `is_still_taking` first. `turn` is never called while
//! something of the outbox is still being sent: who does not read answers is not read from.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::content::cache::{Budget, Lookup, Place};
use crate::content::{Cache, Entry, Load, Loaded, Site, Store, answer, path, store};
use crate::http::connection::{Connection, Ending, Limits};
use crate::http::negotiate::Coding;
use crate::http::parse::{self, Refused};
use crate::http::reply::Persistence;
use crate::http::{Method, Outbox, Reply, Request, Status, negotiate};
use crate::observe::access_log::{AccessLog, Line};
use crate::observe::counters::{Counter, Tally};
use crate::shutdown::Draining;

/// Bytes an engine receives at once, at the most.
pub const READ_MAX: usize = 16 * 1024;
/// How long an idle connection still waits for a request when the server is draining.
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// What a connection wants next.
#[derive(Debug)]
pub enum Want {
    /// Bytes from the client.
    Read,
    /// The outbox sent.
    Send {
        /// Nothing is wanted behind it but the end.
        then_close: bool,
    },
    /// A target loaded.
    Load(Box<Load>),
    /// The writing side ended, and then to read on.
    Shutdown,
    /// To be closed.
    Close,
}

/// What one engine thread owns. Nothing in it is shared, so nothing is locked; but for the store, where an
/// engine has a thread for each client.
#[derive(Debug)]
pub struct Worker {
    site: Arc<Site>,
    store: Store,
    /// The time. The engine has it read once per turn of its loop.
    pub clock: Clock,
    limits: Limits,
    draining: Draining,
    log: Option<AccessLog>,
    /// What has happened here.
    pub tally: Tally,
    /// Where a path is decoded into.
    scratch: Vec<u8>,
}

impl Worker {
    /// A worker for a site.
    pub fn new(
        site: Arc<Site>,
        budget: Budget,
        limits: Limits,
        draining: Draining,
        log: Option<AccessLog>,
        tally: Tally,
    ) -> Worker {
        Worker {
            store: Store::Own(Cache::new(budget, site.changes().clone())),
            site,
            clock: Clock::new(),
            limits,
            draining,
            log,
            tally,
            scratch: Vec::new(),
        }
    }

    /// The same worker with a cache that [others](Worker::another) share.
    #[must_use]
    pub fn sharing(self) -> Worker {
        Worker { store: self.store.into_shared(), ..self }
    }

    /// One more like this: on the same cache where that is shared, otherwise on an empty one of its own.
    #[must_use]
    pub fn another(&self) -> Worker {
        Worker {
            site: self.site.clone(),
            store: self.store.another(),
            clock: self.clock.clone(),
            limits: self.limits.clone(),
            draining: self.draining.clone(),
            log: self.log.clone(),
            tally: self.tally.beside(),
            scratch: Vec::new(),
        }
    }

    /// So many workers are to have a cache like this one's each: takes no more memory than its share.
    pub fn divide_cache(&mut self, workers: usize) {
        self.store.with(|cache| cache.divide(workers));
    }

    /// From now on writes its lines of the access log by itself: the thread that does it for others is in
    /// another process.
    pub fn log_directly(&mut self) {
        if let Some(log) = &mut self.log {
            log.write_directly();
        }
    }

    /// Tells the operator what those have lost of the access log who write it directly.
    pub fn tell_log_losses(&mut self) {
        if let Some(log) = &mut self.log {
            log.tell_losses(self.clock.now());
        }
    }

    /// The limits connections are held to; an engine may make them tighter before it begins.
    pub fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// What is served.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Whether a client's address is of use, so that the engine should find it out.
    pub fn wants_peers(&self) -> bool {
        self.log.is_some()
    }

    /// Whether every answer is the last of its connection.
    pub fn is_draining(&self) -> bool {
        self.draining.is_on()
    }

    /// For each connection, once draining begins: an idle one gets a last second.
    pub fn hasten(&self, conn: &mut Connection) {
        conn.hasten(self.clock.now(), DRAIN_WAIT);
    }

    /// A connection was accepted: what it wants first.
    pub fn accepted(&mut self, conn: &mut Connection) -> Want {
        self.tally.add(Counter::Connections, 1);
        self.waits_for_bytes(conn);
        Want::Read
    }

    /// What was to be sent is presumed to have been, and the next bytes are waited for. To be called instead
    /// of [`Worker::turn`] where the connection [`is_heard_next`](Connection::is_heard_next).
    pub fn waits_for_bytes(&self, conn: &mut Connection) {
        conn.wait_for_bytes(self.clock.now(), &self.limits);
        if self.draining.is_on() {
            self.hasten(conn);
        }
    }

    /// Bytes came, or the outbox is empty now: answers as many requests as there are and fit.
    #[inline]
    pub fn turn(&mut self, conn: &mut Connection, input: &[u8], out: &mut Outbox) -> Want {
        if conn.is_lingering() {
            conn.wait_for_end(self.clock.now(), &self.limits);
            return Want::Read;
        }
        if input.is_empty() && !conn.has_leftovers() {
            return self.wanted(conn, out, None);
        }
        self.answer_all(conn, input, out, None)
    }

    /// A target is loaded; the request that waited for it stands at the front of what the connection holds.
    pub fn loaded(&mut self, conn: &mut Connection, loaded: Loaded, out: &mut Outbox) -> Want {
        self.tally.add(Counter::Loads, 1);
        self.store.with(|cache| cache.insert(&loaded, self.clock.now()));
        self.answer_all(conn, &[], out, Some(loaded))
    }

    /// A load that was wanted will not be done now: whoever asks next is to want it again.
    pub fn put_off(&mut self, load: &Load) {
        let (path, coding) = load.target();
        self.store.with(|cache| cache.put_off(path, coding));
    }

    /// The deadline has passed.
    pub fn late(&mut self, conn: &mut Connection, out: &mut Outbox) -> Want {
        if !conn.is_receiving() {
            let is_idle = conn.is_idle() && !self.draining.is_on();
            self.tally.add(Counter::IdleTimeouts, u64::from(is_idle));
            return Want::Close;
        }
        self.tally.add(Counter::HeaderTimeouts, 1);
        if conn.in_body() {
            return Want::Close;
        }
        self.last_words(conn, Status::RequestTimeout, out)
    }

    /// The client will send nothing more.
    pub fn ended(&mut self, conn: &mut Connection, out: &mut Outbox) -> Want {
        if conn.is_partial() && !conn.is_lingering() {
            return self.last_words(conn, Status::BadRequest, out);
        }
        Want::Close
    }

    /// A send has made progress.
    #[inline]
    pub fn progressed(&self, conn: &mut Connection) {
        conn.wait_for_send(self.clock.now(), &self.limits);
    }

    /// A send has been stuck until the deadline, while `queued` bytes are in the socket's queue: whether to
    /// wait on. To be asked instead of [`Worker::late`].
    pub fn is_still_taking(&mut self, conn: &mut Connection, queued: u32) -> bool {
        let taking = conn.is_still_taking(self.clock.now(), &self.limits, queued);
        self.tally.add(Counter::SendTimeouts, u64::from(!taking));
        taking
    }

    /// (1) Takes the bytes in place, or what was held back with the new ones behind it; (2) answers request
    /// after request; (3) on a miss sends first what waits, then asks for the load; (4) keeps what is left.
    #[inline]
    fn answer_all(
        &mut self,
        conn: &mut Connection,
        input: &[u8],
        out: &mut Outbox,
        mut ready: Option<Loaded>,
    ) -> Want {
        let waits_for_line = conn.is_partial();
        let held = conn.take_leftovers();
        let mut bytes = if held.is_empty() {
            Cow::Borrowed(input)
        } else {
            let mut held = held;
            held.extend_from_slice(input);
            Cow::Owned(held)
        };
        // A head that was not complete can only become so by the end of a line. Looking no sooner keeps a
        // client that sends byte by byte from having its head read again and again.
        if waits_for_line && !input.contains(&b'\n') && bytes.len() < self.limits.head_max {
            conn.hold(bytes.into_owned(), true);
            conn.wait_for_bytes(self.clock.now(), &self.limits);
            return Want::Read;
        }

        let mut at = 0;
        let mut partial = false;
        let mut load = None;
        while conn.ending() == Ending::Not {
            let Ok(passed) = conn.pass_body(&bytes[at..]) else {
                conn.end(Ending::Linger);
                break;
            };
            at += passed;
            // An empty line before a request is passed over (RFC 9112 section 2.2).
            while !conn.in_body() && bytes[at..].starts_with(b"\r\n") {
                at += 2;
            }
            if at == bytes.len() || !out.has_room() {
                break;
            }
            let mut room = parse::fields();
            match parse::head(&bytes[at..], &mut room) {
                Ok(Some(request)) if request.length <= self.limits.head_max => {
                    match self.answer_one(conn, &request, out, ready.as_ref()) {
                        None => {
                            at += request.length;
                            // It was loaded for this request; the next may accept another coding of the same
                            // path.
                            ready = None;
                        }
                        Some(wanted) => {
                            load = Some(wanted);
                            break;
                        }
                    }
                }
                Ok(None) if bytes.len() - at < self.limits.head_max => {
                    partial = true;
                    break;
                }
                Ok(_) => self.refuse(conn, too_large(&bytes[at..], self.limits.head_max), out),
                Err(Refused::Status(status)) => self.refuse(conn, status, out),
                Err(Refused::LaterMinor(digit)) => bytes.to_mut()[at + digit] = b'1',
            }
        }

        match conn.ending() {
            Ending::Not if at < bytes.len() => {
                let mut rest = bytes.into_owned();
                rest.drain(..at);
                conn.hold(rest, partial);
            }
            // The client has said that it is done, and yet sent more.
            Ending::Close if at < bytes.len() => conn.linger(),
            _ => {}
        }
        self.wanted(conn, out, load)
    }

    fn wanted(&mut self, conn: &mut Connection, out: &Outbox, load: Option<Box<Load>>) -> Want {
        let now = self.clock.now();
        if !out.is_empty() {
            if let Some(load) = load {
                self.put_off(&load);
            }
            conn.wait_for_send(now, &self.limits);
            return Want::Send { then_close: conn.ending() == Ending::Close };
        }
        match (conn.ending(), load) {
            (Ending::Close, _) => Want::Close,
            (Ending::Linger, _) => {
                conn.wait_for_end(now, &self.limits);
                Want::Shutdown
            }
            (Ending::Not, Some(load)) => {
                conn.wait_for_load();
                Want::Load(load)
            }
            (Ending::Not, None) => {
                self.waits_for_bytes(conn);
                Want::Read
            }
        }
    }

    /// Answers one request, or says what must be loaded first.
    #[inline]
    fn answer_one(
        &mut self,
        conn: &mut Connection,
        request: &Request,
        out: &mut Outbox,
        ready: Option<&Loaded>,
    ) -> Option<Box<Load>> {
        let found;
        let mut held = None;
        let reply = match request.method {
            _ if request.expects_unknown => Reply::page(Status::ExpectationFailed),
            Method::Get | Method::Head => {
                let hidden = self.site.rules().include_hidden;
                match path::canonical(request.path, hidden, &mut self.scratch) {
                    Ok(path) => {
                        match find(&self.site, &mut self.store, &self.clock, request, path, ready, &mut held)
                        {
                            Ok(entry) => {
                                self.tally.add(Counter::CacheHits, u64::from(ready.is_none()));
                                found = entry;
                                answer::answer(request, found, self.clock.unix_seconds())
                            }
                            Err(load) => return Some(load),
                        }
                    }
                    Err(status) => Reply::page(status),
                }
            }
            Method::Options => Reply::options(),
            Method::Connect | Method::NotAllowed => Reply::page(Status::MethodNotAllowed),
            Method::Unknown => Reply::page(Status::NotImplemented),
        };
        // Nothing that follows a CONNECT need be a request.
        let closing = self.draining.is_on() || !self.limits.keep_alive || request.method == Method::Connect;
        let persistence = conn.accept(request, closing);
        reply.write(out, self.clock.date_line(), persistence, request.method != Method::Head);
        let length = if request.method == Method::Head { 0 } else { reply.body_length() };
        self.tally.add(Counter::answered(reply.status), 1);
        self.tally.add(Counter::BodyBytes, length);
        if let Some(log) = &mut self.log {
            log.record(&Line {
                peer: conn.peer(),
                unix_seconds: self.clock.unix_seconds(),
                request: request.line,
                status: reply.status,
                length,
                referer: request.lines("referer").next(),
                user_agent: request.lines("user-agent").next(),
            });
        }
        None
    }

    /// Answers bytes that are no request. Nothing behind them can be trusted to be one.
    #[cold]
    fn refuse(&mut self, conn: &mut Connection, status: Status, out: &mut Outbox) {
        conn.end(Ending::Linger);
        self.say(conn, status, out);
    }

    /// Answers a client whose time is over, or who has left a request unfinished.
    #[cold]
    fn last_words(&mut self, conn: &mut Connection, status: Status, out: &mut Outbox) -> Want {
        conn.end_now();
        self.say(conn, status, out);
        self.wanted(conn, out, None)
    }

    fn say(&mut self, conn: &Connection, status: Status, out: &mut Outbox) {
        let reply = Reply::page(status);
        reply.write(out, self.clock.date_line(), Persistence::Close, true);
        self.tally.add(Counter::answered(status), 1);
        self.tally.add(Counter::BodyBytes, reply.body_length());
        if let Some(log) = &mut self.log {
            log.record(&Line {
                peer: conn.peer(),
                unix_seconds: self.clock.unix_seconds(),
                request: b"",
                status,
                length: reply.body_length(),
                referer: None,
                user_agent: None,
            });
        }
    }
}

/// What a path means to this request, by the worker's own cache or by one that is shared. An entry of the
/// latter is `held` here, since it may be evicted as soon as the lock is released.
#[inline]
fn find<'a>(
    site: &Arc<Site>,
    store: &'a mut Store,
    clock: &Clock,
    request: &Request,
    path: &[u8],
    ready: Option<&'a Loaded>,
    held: &'a mut Option<Arc<Entry>>,
) -> Result<&'a Entry, Box<Load>> {
    match store {
        Store::Own(cache) => Ok(find_in(site, cache, clock, request, path, ready)?),
        Store::Shared(cache) => {
            let entry = find_in(site, &mut store::lock(cache), clock, request, path, ready)?.clone();
            Ok(held.insert(entry))
        }
    }
}

/// What a path means to this request: the file, or the sibling of it that the client likes best.
#[inline]
fn find_in<'a>(
    site: &Arc<Site>,
    cache: &'a mut Cache,
    clock: &Clock,
    request: &Request,
    path: &[u8],
    ready: Option<&'a Loaded>,
) -> Result<&'a Arc<Entry>, Box<Load>> {
    let ready = ready.filter(|loaded| *loaded.path == *path);
    if let Some(Loaded { entry, coding: Some(_), .. }) = ready {
        return Ok(entry);
    }
    // What was loaded for this request need not be in the cache.
    let plain = match ready {
        Some(loaded) => Err(&loaded.entry),
        None => Ok(known(site, cache, clock, request, path, None)?),
    };
    let found = plain.map_or_else(|loaded| loaded, |place| cache.entry(place));
    let coding = match &**found {
        Entry::File(file) if request.has_accept_encoding && !file.siblings.is_empty() => {
            negotiate::choose(request.lines("accept-encoding"), file.siblings)
        }
        _ => None,
    };
    let Some(coding) = coding else {
        return Ok(plain.map_or_else(|loaded| loaded, |place| cache.entry(place)));
    };
    let plain = found.clone();
    let place = known(site, cache, clock, request, path, Some((coding, &plain)))?;
    Ok(cache.entry(place))
}

/// Where the cache has what a path means, or the sibling in a coding of the plain file that it means; or the
/// load that it takes to know.
#[inline]
fn known(
    site: &Arc<Site>,
    cache: &mut Cache,
    clock: &Clock,
    request: &Request,
    path: &[u8],
    sibling: Option<(Coding, &Arc<Entry>)>,
) -> Result<Place, Box<Load>> {
    let (now, unix_seconds) = (clock.now(), clock.unix_seconds());
    let begin = |known| match sibling {
        None => Load::plain(site, path, known, unix_seconds),
        Some((coding, plain)) => Load::sibling(site, path, plain, coding, known, unix_seconds),
    };
    let load = match cache.get(path, sibling.map(|(coding, _)| coding), now) {
        Lookup::Fresh(place) if !site.is_to_be_read(cache.entry(place), request) => return Ok(place),
        Lookup::Fresh(place) => begin(Some(cache.entry(place).clone())),
        Lookup::Stale(place, past) => {
            let known = cache.entry(place);
            let plain = sibling.map_or(known, |(_, plain)| plain);
            let is_unchanged = match (&**known, &**plain) {
                (Entry::File(file), Entry::File(plain)) => {
                    // Where the sibling had gone, the plain file stands in its place.
                    (sibling.is_none() || file.name != plain.name)
                        && site.is_unchanged(path, file, plain, past, now)
                }
                _ => false,
            };
            if is_unchanged {
                cache.renew(place, now);
                return Ok(place);
            }
            begin(Some(known.clone())).after(past)
        }
        Lookup::Unknown => begin(None).wanted_by(request),
    };
    Err(Box::new(load.into_full(cache.is_full())))
}

/// The request line itself is too long, or the fields are (RFC 9112 section 3, RFC 6585 section 5).
fn too_large(head: &[u8], max: usize) -> Status {
    if head[..max.min(head.len())].contains(&b'\n') { Status::FieldsTooLarge } else { Status::UriTooLong }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Step;
    use crate::content::site::Rules;
    use crate::http::Chunk;
    use crate::observe::counters::Board;
    use std::io::{ErrorKind, IoSlice};

    /// A worker of an empty folder, and where what it counts can be read.
    fn worker() -> (tempfile::TempDir, Worker, Board) {
        let folder = tempfile::tempdir().unwrap();
        let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
        let budget = Budget { bytes: 1 << 20, descriptors: 8, fresh_for: Duration::from_secs(1) };
        let board = Board::new().unwrap();
        let (limits, draining) = (Limits::default(), Draining::default());
        (folder, Worker::new(site, budget, limits, draining, None, board.tally(0)), board)
    }

    fn send_all(out: &mut Outbox) {
        let mut slices = [IoSlice::new(&[]); 4];
        while let Chunk::Memory { slices: count, .. } = out.front(&mut slices) {
            let len = slices[..count].iter().map(|slice| slice.len() as u64).sum();
            out.sent(len);
            slices = [IoSlice::new(&[]); 4];
        }
    }

    #[test]
    fn a_load_that_is_put_off_counts_once() {
        let (_folder, mut worker, board) = worker();
        let (mut conn, mut out) = (Connection::new(None), Outbox::default());
        worker.accepted(&mut conn);
        let want = worker.turn(&mut conn, b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n", &mut out);
        let Want::Load(load) = want else { panic!("{want:?}") };
        worker.put_off(&load);
        let want = worker.turn(&mut conn, &[], &mut out);
        let Want::Load(mut load) = want else { panic!("{want:?}") };
        assert!(matches!(load.next(), Step::Open { .. }));
        load.opened(Err(ErrorKind::NotFound.into()));
        assert!(matches!(load.next(), Step::Done));
        let want = worker.loaded(&mut conn, load.finish(), &mut out);
        assert!(matches!(want, Want::Send { then_close: false }), "{want:?}");
        worker.tally.publish();
        assert_eq!((board.total(Counter::Loads), board.total(Counter::Answered4xx)), (1, 1));
    }

    #[test]
    fn who_is_given_up_counts_as_idle_only_if_he_has_asked_for_nothing() {
        let (_folder, mut worker, board) = worker();
        let mut idle_timeouts = |bytes: &[u8]| {
            let (mut conn, mut out) = (Connection::new(None), Outbox::default());
            worker.accepted(&mut conn);
            if !bytes.is_empty() {
                assert!(matches!(worker.turn(&mut conn, bytes, &mut out), Want::Send { .. }));
                send_all(&mut out);
                assert!(matches!(worker.turn(&mut conn, &[], &mut out), Want::Shutdown));
            }
            assert!(matches!(worker.late(&mut conn, &mut out), Want::Close));
            worker.tally.publish();
            board.total(Counter::IdleTimeouts)
        };
        assert_eq!(idle_timeouts(b"no request\r\n\r\n"), 0);
        assert_eq!(idle_timeouts(b""), 1);
    }
}
