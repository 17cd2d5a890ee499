//! Finding out what a target means, one disk operation at a time.
//!
//! A [`Load`] names the next operation and is told its result; who does it, and whether anything waits
//! meanwhile, is the engine's affair. All that is tried for a target is tried here, in one order: the file or
//! the index files of a directory, its bytes if it is small, then which precompressed siblings lie beside it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, ResolveFlags, Stat, fstat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::clock::Tick;
use crate::http::negotiate::{Coding, Codings};
use crate::http::parse::Single;
use crate::http::{Method, Request, Reserved, Status};

use super::body::{Body, Gathering};
use super::cache::Past;
use super::directory::{self, Listing, Stamp};
use super::entry::{Entry, File, Identity, Parts};
use super::loaded::Loaded;
use super::root::Root;
use super::site::Site;
use super::step::Step;

/// How often an operation is tried again that another process got in the way of.
const TRIES_MAX: u8 = 4;
/// A file from this size on that must come from the disk is left there when it is first asked for, and leaves
/// from the page cache: copying it costs more than all the rest, and many a file is asked for just once.
pub(super) const LEFT_MIN: u64 = 128 * 1024;

/// The bytes of a smaller file take no more memory than all that is known about it, and no descriptor.
const KEPT_MIN: u64 = 1024;

/// A target being loaded.
#[derive(Debug)]
pub struct Load {
    site: Arc<Site>,
    /// As it was when this began.
    root: Arc<Root>,
    path: Box<[u8]>,
    want: Want,
    /// What was known before; its bytes are kept if the file is still the same.
    known: Option<Arc<Entry>>,
    /// How often that was asked for since it was last looked at.
    asked: u32,
    /// Whether there is room for its bytes, of which only the file was kept.
    has_room: bool,
    /// Whether the file may stay on the disk, to be told by another tag than that of its bytes.
    may_be_left: bool,
    /// Whether the file is to be kept, once it was read, and not its bytes.
    keeps_file: bool,
    /// Whether there is no memory for the bytes any longer than it takes to hash them.
    holds_nothing: bool,
    /// The file that was read, to be kept.
    kept: Option<Body>,
    /// The memory that is being read into.
    reserved: Option<Reserved>,
    /// Of [`Changes`](super::cache::Changes), when the load began.
    count: u32,
    /// When it began, in seconds since 1970, by the clock that answers are dated by: no date that is said is
    /// to be later.
    began: u64,
    tries: u8,
    /// Of `open(2)`, for what is to be read; see [`reads`](super::reads).
    reading: OFlags,
    state: State,
}

#[derive(Debug)]
enum Want {
    /// The file as it is, and which siblings it has.
    Plain,
    /// One sibling of a file. If it has gone meanwhile, the file itself is the answer.
    Sibling(Coding, Arc<Entry>),
}

impl Want {
    fn coding(&self) -> Option<Coding> {
        match self {
            Want::Plain => None,
            Want::Sibling(coding, _) => Some(*coding),
        }
    }
}

#[derive(Debug)]
enum State {
    /// Opening the candidate of that number; by the name of the file that it links to, if that is known.
    Opening {
        number: usize,
        name: CString,
        target: Option<CString>,
    },
    /// Finding out where its links lead.
    Following {
        number: usize,
        name: CString,
    },
    /// Having the kernel note down that it is read.
    Noting {
        name: CString,
        file: OwnedFd,
        stat: Box<Stat>,
    },
    Reading {
        name: CString,
        file: OwnedFd,
        identity: Identity,
        buffer: Vec<u8>,
    },
    /// Having the kernel put the pages of the body together.
    Gathering {
        name: CString,
        identity: Identity,
        gathering: Gathering,
    },
    /// Looking whether names have come or gone in the directory since the siblings were looked for.
    Stamping {
        found: Found,
        directory: CString,
        at: Tick,
    },
    /// Looking for the sibling of that coding, `name` being its name.
    Probing {
        found: Found,
        next: usize,
        name: CString,
    },
    /// Having the directory listed.
    Listing {
        found: Found,
        listing: Listing,
    },
    Done(Arc<Entry>),
}

/// A file whose siblings are being looked for.
#[derive(Debug)]
struct Found {
    name: CString,
    identity: Identity,
    body: Body,
    settled: bool,
    /// Of the directory, before the siblings were looked for.
    stamp: Stamp,
    /// Those that there may be.
    possible: Codings,
    siblings: Codings,
}

impl Load {
    /// Loads what a canonical path means. `now` is in seconds since 1970.
    pub fn plain(site: &Arc<Site>, path: &[u8], known: Option<Arc<Entry>>, now: u64) -> Load {
        let state = match (site.pages(), site.candidate(path, 0)) {
            (Some(pages), _) => {
                let cache_control = site.rules().cache_control.as_deref();
                State::Done(Arc::new(Entry::made(pages.make(path), cache_control, site.ledger(), now)))
            }
            (None, Some(name)) => State::Opening { number: 0, name, target: None },
            (None, None) => State::Done(nothing(Status::NotFound)),
        };
        Load::new(site, path, Want::Plain, known, state, now)
    }

    /// Loads a sibling of `plain`, the file that the path means. `now` is in seconds since 1970.
    pub fn sibling(
        site: &Arc<Site>,
        path: &[u8],
        plain: &Arc<Entry>,
        coding: Coding,
        known: Option<Arc<Entry>>,
        now: u64,
    ) -> Load {
        let state = match &**plain {
            Entry::File(file) => {
                State::Opening { number: 0, name: with_suffix(&file.name, coding), target: None }
            }
            _ => State::Done(plain.clone()),
        };
        Load::new(site, path, Want::Sibling(coding, plain.clone()), known, state, now)
    }

    fn new(
        site: &Arc<Site>,
        path: &[u8],
        want: Want,
        known: Option<Arc<Entry>>,
        state: State,
        began: u64,
    ) -> Load {
        let count = site.changes().count(path, want.coding());
        Load {
            site: site.clone(),
            root: site.root(),
            path: path.into(),
            may_be_left: known.is_none(),
            want,
            known,
            asked: 0,
            has_room: false,
            keeps_file: false,
            holds_nothing: false,
            kept: None,
            reserved: None,
            count,
            began,
            tries: 0,
            reading: site.reads().flags(),
            state,
        }
    }

    /// There is this to say of what is known.
    #[must_use]
    pub fn after(self, past: Past) -> Load {
        Load { asked: past.asked, has_room: past.has_room, ..self }
    }

    /// It is for a cache that has no room for more bytes, if so, but for those of files that are known.
    #[must_use]
    pub fn into_full(self, is_full: bool) -> Load {
        let are_bytes_known = self.known.as_ref().is_some_and(|known| !known.holds_descriptor());
        Load { keeps_file: is_full && !self.has_room && !are_bytes_known, ..self }
    }

    /// It is for this request, which may need the tag of the bytes.
    #[must_use]
    pub fn wanted_by(self, request: &Request) -> Load {
        Load { may_be_left: self.may_be_left && !needs_tag_of_bytes(request), ..self }
    }

    /// The operation to do now.
    #[expect(clippy::should_implement_trait, reason = "it lends what it yields, which no iterator can")]
    pub fn next(&mut self) -> Step<'_> {
        match &mut self.state {
            State::Opening { name, target: None, .. } | State::Opening { target: Some(name), .. } => {
                Step::Open {
                    root: self.root.as_fd(),
                    path: name,
                    flags: self.reading,
                    resolve: self.site.resolve(),
                }
            }
            State::Probing { name, .. } => Step::Open {
                root: self.root.as_fd(),
                path: name,
                flags: Site::OPEN,
                resolve: self.site.resolve(),
            },
            State::Stamping { directory, .. } => Step::Open {
                root: self.root.as_fd(),
                path: directory,
                flags: OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                resolve: self.site.resolve(),
            },
            // O_PATH opens nothing but the name, so whatever lies there is not disturbed.
            State::Following { name, .. } => Step::Open {
                root: self.root.as_fd(),
                path: name,
                flags: OFlags::PATH | OFlags::CLOEXEC,
                resolve: ResolveFlags::NO_MAGICLINKS,
            },
            State::Reading { file, buffer, .. } => {
                let at = buffer.len() as u64;
                Step::Read { file: OwnedFd::as_fd(file), buffer, at }
            }
            State::Noting { file, stat, .. } => {
                Step::Note { file: OwnedFd::as_fd(file), at: Identity::of(stat).size }
            }
            State::Gathering { gathering, .. } => Step::Gather(gathering),
            State::Listing { listing, .. } => Step::List(listing),
            State::Done(_) => Step::Done,
        }
    }

    /// The result of [`Step::Open`].
    pub fn opened(&mut self, result: io::Result<OwnedFd>) {
        match std::mem::replace(&mut self.state, State::Done(nothing(Status::InternalError))) {
            State::Following { number, name } => {
                self.state = match result.ok().and_then(|file| Site::beneath(&self.root, &file)) {
                    Some(target) => State::Opening { number, name, target: Some(target) },
                    None => self.another(number, Status::NotFound),
                };
            }
            State::Opening { number, name, target } => {
                self.state = match result.and_then(|file| Ok((fstat(&file)?, file))) {
                    Ok((stat, file)) => match FileType::from_raw_mode(stat.st_mode) {
                        FileType::RegularFile => self.regular(name, file, &stat),
                        FileType::Directory if matches!(self.want, Want::Plain) && !self.is_directory() => {
                            State::Done(Arc::new(Entry::redirect(&self.path)))
                        }
                        _ => self.another(number, Status::NotFound),
                    },
                    Err(error) => self.failed(number, name, target, &error),
                };
            }
            State::Stamping { found, directory, at } => {
                let stamp = result.map_or_else(|_| Stamp::default(), |directory| Stamp::of(directory, now()));
                self.root.directories().insert(directory.to_bytes(), at, stamp.clone());
                self.state = self.stamped(found, stamp);
            }
            State::Probing { found, next, name }
                if result.as_ref().is_err_and(is_passing) && self.try_again() =>
            {
                self.state = State::Probing { found, next, name };
            }
            State::Probing { mut found, next, name } => {
                let regular = result
                    .and_then(|file| Ok(fstat(&file)?))
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
                if regular {
                    found.siblings.insert(Coding::ALL[next]);
                } else if !Site::has_no(&self.root, &name) {
                    // What has a name, and yet cannot be sent, may be mended without the directory telling.
                    found.stamp = Stamp::default();
                }
                self.state = self.probe(found, next + 1);
            }
            State::Noting { .. }
            | State::Reading { .. }
            | State::Gathering { .. }
            | State::Listing { .. }
            | State::Done(_) => unreachable!("opened answers an Open"),
        }
    }

    /// [`Step::Note`] is done.
    pub fn noted(&mut self) {
        let done = State::Done(nothing(Status::InternalError));
        let State::Noting { name, file, stat } = std::mem::replace(&mut self.state, done) else {
            unreachable!("noted answers a Note");
        };
        if let Ok(now) = fstat(&file) {
            self.site.reads().noted(&stat, &now);
        }
        self.state = self.body(name, file, Identity::of(&stat));
    }

    /// The result of [`Step::Read`]: how many bytes were appended.
    pub fn read(&mut self, result: io::Result<usize>) {
        let done = State::Done(nothing(Status::InternalError));
        let State::Reading { name, file, identity, buffer } = std::mem::replace(&mut self.state, done) else {
            unreachable!("read answers a Read");
        };
        self.state = match result {
            Ok(n) if n > 0 && (buffer.len() as u64) < identity.size => {
                State::Reading { name, file, identity, buffer }
            }
            Ok(_) => self.read_all(name, file, identity, buffer),
            Err(error) if is_passing(&error) && self.try_again() => {
                State::Reading { name, file, identity, buffer }
            }
            Err(_) => State::Done(nothing(Status::InternalError)),
        };
    }

    /// To be called before a [`Step::Read`] that may wait for a disk: a large file that nobody has asked for
    /// before stays where it is then, if `is_cold` says of it and its size that it is not in the page cache.
    /// `true` if so; the next step is another.
    pub fn leave_if(&mut self, is_cold: impl FnOnce(BorrowedFd, u64) -> bool) -> bool {
        let may_be_left = |file: &OwnedFd, identity: &Identity| {
            self.may_be_left
                && identity.size >= LEFT_MIN
                // Its tag is to change with it.
                && identity.is_settled(now())
                && self.site.may_keep_open()
                && is_cold(file.as_fd(), identity.size)
        };
        match std::mem::replace(&mut self.state, State::Done(nothing(Status::InternalError))) {
            State::Reading { name, file, identity, buffer }
                if buffer.is_empty() && may_be_left(&file, &identity) =>
            {
                let body = Body::on_disk(file, identity.size, self.site.ledger());
                self.state = self.found(name, identity, body, true);
                true
            }
            state => {
                self.state = state;
                false
            }
        }
    }

    /// [`Step::Gather`] is done.
    pub fn gathered(&mut self) {
        let done = State::Done(nothing(Status::InternalError));
        let State::Gathering { name, identity, gathering } = std::mem::replace(&mut self.state, done) else {
            unreachable!("gathered answers a Gather");
        };
        let body = gathering.finish(self.site.ledger());
        self.state = self.found(name, identity, body, true);
    }

    /// [`Step::List`] has begun elsewhere, or is done, or cannot be.
    pub fn listed(&mut self) {
        let done = State::Done(nothing(Status::InternalError));
        let State::Listing { found, .. } = std::mem::replace(&mut self.state, done) else {
            unreachable!("listed answers a List");
        };
        self.state = self.done(found);
    }

    /// The result, after [`Step::Done`].
    pub fn finish(self) -> Loaded {
        let State::Done(entry) = self.state else { unreachable!("next has said Done") };
        let coding = self.want.coding();
        let news = !self.known.is_some_and(|known| known.is_same(&entry));
        Loaded { path: self.path, coding, entry, kept: self.kept, news, count: self.count }
    }

    /// The canonical path, and the sibling that is wanted, if one is.
    pub fn target(&self) -> (&[u8], Option<Coding>) {
        (&self.path, self.want.coding())
    }

    /// Bytes of the file that is being loaded, as far as is known: what comes of it is as much to do.
    pub fn size(&self) -> u64 {
        match &self.state {
            State::Noting { stat, .. } => Identity::of(stat).size,
            State::Reading { identity, .. } | State::Gathering { identity, .. } => identity.size,
            State::Stamping { found, .. } | State::Probing { found, .. } | State::Listing { found, .. } => {
                found.identity.size
            }
            State::Opening { .. } | State::Following { .. } | State::Done(_) => 0,
        }
    }

    /// Leaves the pages of the body where they are: there is no time for that now.
    pub fn gather_nothing(&mut self) {
        self.asked = 0;
    }

    /// Whether what it opens lies in a file system of this machine, as a rule.
    pub fn is_local(&self) -> bool {
        self.root.is_local()
    }

    /// Whether what is open lies in a file system whose `stat` can be relied on, and is not waited for.
    fn trusts(&self, file: impl AsFd) -> bool {
        self.root.is_local() && directory::is_trusted(file)
    }

    /// Whether it looks again at what was known before.
    pub fn is_a_look(&self) -> bool {
        self.known.is_some()
    }

    fn is_directory(&self) -> bool {
        self.path.ends_with(b"/")
    }

    /// A regular file is open.
    fn regular(&mut self, name: CString, file: OwnedFd, stat: &Stat) -> State {
        if self.reading == Site::OPEN && self.site.reads().is_to_be_noted(stat, now()) {
            return State::Noting { name, file, stat: Box::new(*stat) };
        }
        self.body(name, file, Identity::of(stat))
    }

    /// Its bytes are known already, or read now, or left in the file.
    fn body(&mut self, name: CString, file: OwnedFd, identity: Identity) -> State {
        if let Some(Entry::File(known)) = self.known.as_deref()
            && known.identity == identity
            && known.settled
            // What once was too much for the memory may fit by now; its tag should be that of its bytes.
            && !(known.is_on_disk()
                && (self.has_room || !known.is_kept())
                && self.site.may_hold(identity.size))
        {
            let body = known.body().clone();
            if body.is_worth_gathering(self.asked)
                && let Some(permit) = self.site.may_gather(identity.size)
            {
                return State::Gathering { name, identity, gathering: Gathering::new(body, permit) };
            }
            return self.found(name, identity, body, true);
        }
        self.holds_nothing = !self.site.may_hold(identity.size);
        match usize::try_from(identity.size) {
            Ok(0) => self.read_all(name, file, identity, Vec::new()),
            Ok(size) if !self.holds_nothing || self.is_to_be_hashed(&file, &identity) => {
                // Many may be read at once, and all of them take memory before any is held.
                self.reserved = Some(self.site.ledger().reserve(identity.size));
                State::Reading { name, file, identity, buffer: Vec::with_capacity(size) }
            }
            _ => {
                let body = Body::on_disk(file, identity.size, self.site.ledger());
                self.found(name, identity, body, identity.is_settled(now()))
            }
        }
    }

    /// Whether a file that there is no memory for is read all the same, to be told by the tag of its bytes:
    /// by that it is told at other times, and by other servers. Nothing is to be waited for to see that it is
    /// as it was.
    fn is_to_be_hashed(&self, file: &OwnedFd, identity: &Identity) -> bool {
        self.site.may_hash(identity.size)
            && !(self.may_be_left && identity.size >= LEFT_MIN)
            && identity.is_settled(now())
            && self.trusts(file)
    }

    /// The bytes are in. If the file has changed meanwhile, they may be half of each version: read them
    /// again.
    fn read_all(&mut self, name: CString, file: OwnedFd, identity: Identity, buffer: Vec<u8>) -> State {
        let is_whole = fstat(&file).is_ok_and(|stat| Identity::of(&stat) == identity)
            && buffer.len() as u64 == identity.size;
        if !is_whole && self.try_again() {
            self.reserved = None;
            return State::Opening { number: 0, name, target: None };
        }
        // A file that changes all the time is served as it was read, and looked at again before the next
        // answer.
        let settled = is_whole && identity.is_settled(now());
        let ledger = self.site.ledger();
        let body = Body::in_memory(buffer, ledger);
        if self.holds_nothing {
            let body =
                if settled { body.kept_in(file, ledger) } else { Body::on_disk(file, identity.size, ledger) };
            return self.found(name, identity, body, settled);
        }
        if self.keeps_file
            && settled
            && identity.size >= KEPT_MIN
            && self.site.may_keep_open()
            && self.trusts(&file)
        {
            self.kept = Some(body.kept_in(file, self.site.ledger()));
            return self.found(name, identity, body, settled);
        }
        // One that is still being written will be read again before long.
        let body = if settled { self.site.hold(body) } else { body };
        self.found(name, identity, body, settled)
    }

    fn found(&mut self, name: CString, identity: Identity, body: Body, settled: bool) -> State {
        self.reserved = None;
        let (stamp, siblings) = (Stamp::default(), Codings::default());
        let found = Found { name, identity, body, settled, stamp, possible: siblings, siblings };
        if let Want::Sibling(..) = self.want {
            return self.done(found);
        }
        // What proves nothing need not be looked at.
        if !self.root.is_local() {
            return self.stamped(found, Stamp::default());
        }
        let directory = directory::parent(&found.name);
        let at = Tick::now();
        if let Some(stamp) = self.site.seen(&self.root, directory, at) {
            return self.stamped(found, stamp);
        }
        let directory = CString::new(directory).expect("a part of a C string has no NUL");
        State::Stamping { found, directory, at }
    }

    /// The directory looks like this. Looks for the siblings, unless that proves them to be what they were.
    fn stamped(&mut self, mut found: Found, stamp: Stamp) -> State {
        found.stamp = stamp;
        if let Some(Entry::File(known)) = self.known.as_deref()
            && found.stamp.proves(&known.stamp)
            && known.name.as_ref() == &*found.name
        {
            found.siblings = known.siblings;
            return self.done(found);
        }
        found.possible = self.root.directories().endings(directory::parent(&found.name), &found.stamp);
        self.probe(found, 0)
    }

    /// Looks for the siblings that there may be, from that number on.
    fn probe(&mut self, found: Found, next: usize) -> State {
        match (next..Coding::ALL.len()).find(|&next| found.possible.contains(Coding::ALL[next])) {
            Some(next) => State::Probing { name: with_suffix(&found.name, Coding::ALL[next]), found, next },
            None => self.probed(found),
        }
    }

    /// All siblings were looked for.
    fn probed(&mut self, found: Found) -> State {
        let directory = directory::parent(&found.name);
        if found.siblings != found.possible
            && self.root.directories().missed(directory, &found.stamp)
            && let Some(permit) = self.site.may_list()
        {
            let listing = Listing::new(&self.site, &self.root, directory, &found.stamp, permit);
            return State::Listing { found, listing };
        }
        self.done(found)
    }

    fn done(&mut self, found: Found) -> State {
        if let Some(known) = &self.known
            && let Entry::File(file) = &**known
            && file.settled
            && !file.on_trial
            && file.is_on_disk() == found.body.is_on_disk()
            && file.body().is_gathered() == found.body.is_gathered()
            && (file.identity, file.siblings, &*file.name) == (found.identity, found.siblings, &*found.name)
        {
            file.stamp.renew(&found.stamp);
            return State::Done(known.clone());
        }
        State::Done(Arc::new(Entry::File(File::new(Parts {
            name: found.name,
            identity: found.identity,
            on_trial: self.known.is_none()
                && found.body.is_on_disk()
                && self.site.may_hold(found.identity.size),
            body: found.body,
            content_type: None,
            coding: self.want.coding(),
            siblings: found.siblings,
            is_short: self.site.is_short(found.identity.size),
            settled: found.settled,
            stamp: found.stamp,
            cache_control: self.site.rules().cache_control.as_deref(),
            now: self.began,
        }))))
    }

    fn failed(&mut self, number: usize, name: CString, target: Option<CString>, error: &io::Error) -> State {
        if is_passing(error) && self.try_again() {
            return State::Opening { number, name, target };
        }
        match Errno::from_io_error(error) {
            Some(Errno::PERM) if self.reading != Site::OPEN => {
                self.site.reads().must_show();
                self.reading = Site::OPEN;
                State::Opening { number, name, target }
            }
            // A link has left the root; an absolute one does so even where it comes back in.
            Some(Errno::XDEV) if target.is_none() => State::Following { number, name },
            Some(Errno::ACCESS | Errno::PERM) => self.another(number, Status::Forbidden),
            Some(Errno::AGAIN | Errno::INTR | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                State::Done(nothing(Status::Unavailable))
            }
            Some(Errno::IO) => State::Done(nothing(Status::InternalError)),
            // Not there, a loop of links, a link out of the root, a name too long, a socket: nothing to
            // serve.
            _ => self.another(number, Status::NotFound),
        }
    }

    /// The candidate of that number was none: tries the next.
    fn another(&mut self, number: usize, otherwise: Status) -> State {
        if let Want::Sibling(_, plain) = &self.want {
            return State::Done(plain.clone());
        }
        if otherwise == Status::Forbidden {
            return State::Done(nothing(otherwise));
        }
        match self.site.candidate(&self.path, number + 1) {
            Some(name) => State::Opening { number: number + 1, name, target: None },
            None => State::Done(nothing(otherwise)),
        }
    }

    fn try_again(&mut self) -> bool {
        self.tries += 1;
        self.tries < TRIES_MAX
    }
}

/// Another process moved something while the kernel walked the path (EAGAIN), or a signal came: try again.
fn is_passing(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AGAIN | Errno::INTR))
}

/// Whether a request may compare tags, or is one of several for parts of the same, whose tags are compared.
#[inline]
pub fn needs_tag_of_bytes(request: &Request) -> bool {
    request.names_a_tag() || request.range != Single::Absent || request.method == Method::Head
}

fn nothing(status: Status) -> Arc<Entry> {
    Arc::new(Entry::Nothing(status))
}

fn with_suffix(name: &CStr, coding: Coding) -> CString {
    let name = [name.to_bytes(), coding.suffix().as_bytes()].concat();
    CString::new(name).expect("neither has a NUL")
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    u64::try_from(clock_gettime(ClockId::RealtimeCoarse).tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests;
