//! An engine in memory, with a seed: bytes come in pieces, sends are short, loads are late. Whatever happens
//! on the way, the bytes that come out must be those of a smooth exchange.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, openat2};
use tempfile::TempDir;

use ringserve::clock::{Clock, Tick};
use ringserve::content::cache::Budget;
use ringserve::content::site::Rules;
use ringserve::content::{Load, Site, Step};
use ringserve::http::connection::Limits;
use ringserve::http::{Chunk, Connection, Outbox};
use ringserve::observe::counters::Tally;
use ringserve::serve::{Want, Worker};
use ringserve::shutdown::Draining;

/// A small generator of numbers that only need to look random (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n.max(1)
    }
}

/// How the engine behaves.
enum Manner<'a> {
    /// Everything at once.
    Smooth,
    /// Everything at once, and no file is in the page cache.
    Cold,
    /// Short reads, short sends.
    Rough(&'a mut Random),
}

impl Manner<'_> {
    /// Of so many, how many are done this time: at least one.
    fn share(&mut self, of: usize) -> usize {
        match self {
            Manner::Smooth | Manner::Cold => of,
            Manner::Rough(random) => 1 + random.below(of),
        }
    }
}

/// One connection, driven step by step.
struct Client {
    conn: Connection,
    outbox: Outbox,
    want: Option<Want>,
    input: Vec<Vec<u8>>,
    output: Vec<u8>,
    /// Loads that are done.
    loaded: usize,
    /// Loads that have put pages together.
    gathered: usize,
    /// No more is to be done.
    over: bool,
}

impl Client {
    fn new(worker: &mut Worker, input: Vec<Vec<u8>>) -> Client {
        let mut conn = Connection::new(None);
        let want = worker.accepted(&mut conn);
        Client {
            conn,
            outbox: Outbox::default(),
            want: Some(want),
            input,
            output: Vec::new(),
            loaded: 0,
            gathered: 0,
            over: false,
        }
    }

    /// Does one thing that the connection wants, or part of it.
    fn step(&mut self, worker: &mut Worker, manner: &mut Manner) {
        let Client { conn, outbox, .. } = self;
        let want = match self.want.take().expect("set by the step before") {
            Want::Read if self.input.is_empty() => worker.ended(conn, outbox),
            Want::Read => worker.turn(conn, &self.input.remove(0), outbox),
            Want::Send { then_close } => match send(outbox, &mut self.output, manner) {
                true if then_close => Want::Close,
                true => worker.turn(conn, &[], outbox),
                false => {
                    worker.progressed(conn);
                    Want::Send { then_close }
                }
            },
            Want::Load(mut load) => {
                self.gathered += usize::from(matches!(load.next(), Step::Gather(_)));
                if advance(&mut load, manner) {
                    self.loaded += 1;
                    worker.loaded(conn, load.finish(), outbox)
                } else {
                    Want::Load(load)
                }
            }
            Want::Shutdown => Want::Read,
            Want::Close => {
                self.over = true;
                return;
            }
        };
        self.want = Some(want);
    }
}

/// Sends a piece of what stands in front; `true` if that was all.
fn send(outbox: &mut Outbox, output: &mut Vec<u8>, manner: &mut Manner) -> bool {
    let mut slices = [IoSlice::new(&[]); 3];
    let sent = match outbox.front(&mut slices) {
        Chunk::Empty => return true,
        Chunk::Memory { slices: count, .. } => {
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
            let n = manner.share(bytes.len());
            output.extend_from_slice(&bytes[..n]);
            n
        }
        Chunk::File { file, at, len } => {
            let mut bytes = vec![0; manner.share(len as usize)];
            let file = File::from(file.as_fd().try_clone_to_owned().unwrap());
            file.read_exact_at(&mut bytes, at).unwrap();
            output.extend_from_slice(&bytes);
            bytes.len()
        }
    };
    outbox.sent(sent as u64);
    outbox.is_empty()
}

/// Does one step of a load; `true` if there is none left.
fn advance(load: &mut Load, manner: &mut Manner) -> bool {
    load.leave_if(|_, _| matches!(manner, Manner::Cold));
    match load.next() {
        Step::Open { root, path, flags, resolve } => {
            let opened = openat2(root, path, flags, Mode::empty(), resolve).map_err(io::Error::from);
            load.opened(opened);
        }
        Step::Read { file, buffer, at } => {
            let mut piece = vec![0; manner.share(buffer.capacity() - buffer.len())];
            let result = rustix::io::pread(file, &mut piece, at).map_err(io::Error::from);
            buffer.extend_from_slice(&piece[..*result.as_ref().unwrap_or(&0)]);
            load.read(result);
        }
        Step::Note { .. } => load.noted(),
        Step::Gather(gathering) => {
            // Where the kernel does not do it, the bytes are the same.
            let _ = gathering.run();
            load.gathered();
        }
        Step::List(listing) => {
            listing.run();
            load.listed();
        }
        Step::Done => return true,
    }
    false
}

struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        write("index.html", b"<p>index\n");
        write("a.txt", b"alpha\n");
        write("page.html", &b"page ".repeat(50));
        write("page.html.gz", &b"zip".repeat(20));
        write("middle.bin", &(0..40_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        write("large.bin", &(0..70_000u32).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        fs::create_dir(folder.path().join("sub")).unwrap();
        write("sub/index.html", b"sub\n");
        Fixture { folder }
    }

    /// A worker whose clock stands still. Files above 200,000 bytes are served from descriptors.
    fn worker(&self) -> Worker {
        self.worker_with(Rules { cache_file_max: 200_000, ..Rules::default() })
    }

    fn worker_with(&self, rules: Rules) -> Worker {
        self.worker_within(rules, 1 << 20, 8)
    }

    /// A worker whose cache has so many bytes and descriptors.
    fn worker_within(&self, rules: Rules, bytes: usize, descriptors: usize) -> Worker {
        let site = Arc::new(Site::open(self.folder.path(), rules).unwrap());
        let budget = Budget { bytes, descriptors, fresh_for: Duration::from_secs(1) };
        let mut worker =
            Worker::new(site, budget, Limits::default(), Draining::default(), None, Tally::default());
        worker.clock = Clock::at(Tick::from_number(1000), 1_800_000_000);
        worker
    }

    fn exchange(&self, pieces: Vec<Vec<u8>>, manner: &mut Manner) -> Vec<u8> {
        let mut worker = self.worker();
        let mut client = Client::new(&mut worker, pieces);
        while !client.over {
            client.step(&mut worker, manner);
        }
        client.output
    }
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

/// Exchanges with the statuses they must give.
fn cases() -> Vec<(String, Vec<u16>)> {
    let a = get("/a.txt", "");
    vec![
        (a.clone(), vec![200]),
        (format!("\r\n{a}\r\n{a}"), vec![200, 200]),
        (a.replace("HTTP/1.1", "HTTP/1.3").repeat(2), vec![200, 200]),
        (get("/page.html", "Accept-Encoding: gzip\r\n") + &get("/page.html", ""), vec![200, 200]),
        (get("/", "") + &get("/sub", "") + &get("/sub/", "") + &get("/x", ""), vec![200, 301, 200, 404]),
        (get("/middle.bin", "") + &get("/large.bin", "") + &a, vec![200, 200, 200]),
        (get("/large.bin", "Range: bytes=1000-1999\r\n") + &a, vec![206, 200]),
        (get("/large.bin", "Range: bytes=0-3,70000-70003,-1\r\n") + &a, vec![206, 200]),
        (get("/a.txt", "Range: bytes=9-\r\n") + &get("/a.txt", "If-Match: \"x\"\r\n"), vec![416, 412]),
        (get("/a.txt", "If-None-Match: *\r\n") + &a, vec![304, 200]),
        ("HEAD /large.bin HTTP/1.1\r\nHost: h\r\n\r\n".to_owned() + &a, vec![200, 200]),
        ("POST /a.txt HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello".to_owned() + &a, vec![405, 200]),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
                + "5;x\r\nhello\r\n0\r\nT: v\r\n\r\n"
                + &a,
            vec![405, 200],
        ),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n".to_owned() + &get("/%zz", ""), vec![204, 400]),
        (a.clone() + &get("/a.txt", "Connection: close\r\n") + &a, vec![200, 200]),
        (a.clone() + "GARBAGE\x01\r\n\r\n" + &a, vec![200, 400]),
        (a.clone() + "GET /a.t", vec![200, 400]),
        (get("/a.txt", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + &a, vec![400]),
    ]
}

fn statuses(output: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(output);
    text.match_indices("HTTP/1.1 ")
        .map(|(at, start)| text[at + start.len()..][..3].parse().unwrap())
        .collect()
}

/// Compares two outputs; shows them as text where they differ, as far as they are short.
fn assert_same(output: &[u8], wanted: &[u8], case: &str) {
    let show = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).into_owned();
    assert!(output == wanted, "{case}\n--- got\n{}\n--- wanted\n{}", show(output), show(wanted));
}

#[test]
fn every_case_cut_at_every_byte_gives_the_same_bytes() {
    let fixture = Fixture::new();
    for (request, wanted) in cases() {
        let bytes = request.as_bytes();
        let whole = fixture.exchange(vec![bytes.to_vec()], &mut Manner::Smooth);
        assert_eq!(statuses(&whole), wanted, "{request}");
        for cut in 1..bytes.len() {
            let pieces = vec![bytes[..cut].to_vec(), bytes[cut..].to_vec()];
            let output = fixture.exchange(pieces, &mut Manner::Smooth);
            assert_same(&output, &whole, &format!("cut at {cut}: {request}"));
        }
        let single = bytes.iter().map(|&byte| vec![byte]).collect();
        assert_same(
            &fixture.exchange(single, &mut Manner::Smooth),
            &whole,
            &format!("byte by byte: {request}"),
        );
    }
}

#[test]
fn short_reads_and_short_sends_give_the_same_bytes() {
    let fixture = Fixture::new();
    for (request, _) in cases() {
        let whole = fixture.exchange(vec![request.clone().into_bytes()], &mut Manner::Smooth);
        for seed in 1..8 {
            let mut random = Random(seed);
            let output =
                fixture.exchange(vec![request.clone().into_bytes()], &mut Manner::Rough(&mut random));
            assert_same(&output, &whole, &format!("seed {seed}: {request}"));
        }
    }
}

/// Many connections of one worker in random order, so that loads of one come in between those of others.
#[test]
fn connections_do_not_mix_whoever_comes_first() {
    let fixture = Fixture::new();
    for seed in 1..20 {
        let mut random = Random(seed);
        let mut worker = fixture.worker();
        let mut clients = Vec::new();
        for (request, _) in cases() {
            let whole = fixture.exchange(vec![request.clone().into_bytes()], &mut Manner::Smooth);
            let cut = random.below(request.len());
            let pieces = vec![request.as_bytes()[..cut].to_vec(), request.as_bytes()[cut..].to_vec()];
            let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
            clients.push((Client::new(&mut worker, pieces), whole, request));
        }
        while !clients.is_empty() {
            let at = random.below(clients.len());
            clients[at].0.step(&mut worker, &mut Manner::Rough(&mut random));
            if clients[at].0.over {
                let (client, whole, request) = clients.swap_remove(at);
                assert_same(&client.output, &whole, &format!("seed {seed}: {request}"));
            }
        }
    }
}

/// A client that pipelines and reads nothing makes the worker stop reading, not its memory grow.
#[test]
fn who_does_not_read_is_not_read_from() {
    let fixture = Fixture::new();
    let mut worker = fixture.worker();
    let mut client = Client::new(&mut worker, vec![get("/middle.bin", "").repeat(1000).into_bytes()]);
    while !matches!(client.want, Some(Want::Send { .. })) {
        client.step(&mut worker, &mut Manner::Smooth);
    }
    // One body is lent to all answers; what is queued of them is bounded.
    assert_eq!(worker.site().ledger().alive(), 160_000);
    let mut queued = 0;
    while !client.outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); 1];
        let n = match client.outbox.front(&mut slices) {
            Chunk::File { file, len, .. } if file.is_in_memory() => len,
            Chunk::Memory { .. } => slices[0].len() as u64,
            other => panic!("{other:?}"),
        };
        queued += n;
        client.outbox.sent(n);
    }
    assert!(queued < 50 * 160_400, "{queued} bytes queued");
}

/// A load that must wait for what is sent first is not forgotten.
#[test]
fn a_change_is_seen_however_much_is_pipelined() {
    let fixture = Fixture::new();
    let mut worker = fixture.worker();
    let pair = get("/page.html", "") + &get("/a.txt", "");
    for (second, content) in [(0, "alpha"), (10, "changed"), (20, "again")] {
        fs::write(fixture.folder.path().join("a.txt"), content).unwrap();
        worker.clock = Clock::at(Tick::from_number(1000 + second * Tick::PER_SECOND), 1_800_000_000);
        let mut client = Client::new(&mut worker, vec![pair.clone().into_bytes()]);
        while !client.over {
            client.step(&mut worker, &mut Manner::Smooth);
        }
        let output = String::from_utf8_lossy(&client.output);
        assert!(output.ends_with(content), "{content}: {output}");
    }
}

/// The file is loaded some time after the turn began that the answer is dated by: near the end of a second
/// that is the next one, and `Last-Modified` was later than `Date`.
#[test]
fn no_file_is_said_to_be_of_a_later_moment_than_the_answer() {
    let fixture = Fixture::new();
    let modified = SystemTime::now() + Duration::from_secs(1_000_000);
    let file = File::options().write(true).open(fixture.folder.path().join("a.txt")).unwrap();
    file.set_modified(modified).unwrap();
    let mut worker = fixture.worker();
    let turn = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 1;
    worker.clock = Clock::at(Tick::from_number(1000), turn);
    let mut client = Client::new(&mut worker, vec![get("/a.txt", "").into_bytes()]);
    while !client.over {
        client.step(&mut worker, &mut Manner::Smooth);
    }
    let output = String::from_utf8_lossy(&client.output);
    let value = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!(value("Last-Modified:"), value("Date:"), "{output}");
}

/// Bytes that a body of 160,000 takes where it can be sent without a copy: whole pages.
fn on_shelf() -> u64 {
    160_000_u64.next_multiple_of(rustix::param::page_size() as u64)
}

/// What is still being written is read again before long, and so it is not worth that.
#[test]
fn a_large_body_is_put_on_a_shelf_unless_it_may_still_change() {
    let fixture = Fixture::new();
    for (age, bytes) in [(0, 160_000), (3100, on_shelf())] {
        std::thread::sleep(Duration::from_millis(age));
        let mut worker = fixture.worker();
        for second in [0, 2, 4] {
            let _ = ask_at(&mut worker, second, "/middle.bin", "");
            assert_eq!(worker.site().ledger().alive(), bytes, "{age}");
        }
    }
}

fn ask_cold(worker: &mut Worker, name: &str, fields: &str) -> Vec<u8> {
    let fields = format!("{fields}Connection: close\r\n");
    let mut client = Client::new(worker, vec![get(name, &fields).into_bytes()]);
    while !client.over {
        client.step(worker, &mut Manner::Cold);
    }
    client.output
}

fn tag_of(output: &[u8]) -> String {
    let head = String::from_utf8_lossy(output);
    head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap_or_default().to_owned()
}

/// What must come from the disk, and may be asked for just once, is not copied into memory.
#[test]
fn a_large_file_from_the_disk_is_left_there_until_it_is_asked_for_again() {
    let fixture = Fixture::new();
    // While the file may still change without its `stat` telling, no tag but that of bytes held is true.
    let mut worker = fixture.worker();
    let held = ask_cold(&mut worker, "/middle.bin", "");
    assert_eq!(worker.site().ledger().alive(), 160_000);
    std::thread::sleep(Duration::from_millis(3100));
    let mut worker = fixture.worker();
    assert!(ask_cold(&mut worker, "/a.txt", "").ends_with(b"alpha\n"));
    let small = worker.site().ledger().alive();
    for (requests, bytes) in [(1, 0), (2, on_shelf()), (3, on_shelf())] {
        let output = ask_cold(&mut worker, "/middle.bin", "");
        let retold = String::from_utf8_lossy(&output).replace(&tag_of(&output), &tag_of(&held));
        assert!(retold == String::from_utf8_lossy(&held), "{requests}");
        assert_eq!(tag_of(&output) == tag_of(&held), bytes > 0, "{requests}");
        assert_eq!(worker.site().ledger().alive() - small, bytes, "{requests}");
        assert_eq!(worker.site().ledger().open(), u64::from(bytes == 0), "{requests}");
    }
    // Where there is no memory for it the second time it stays where it is, and keeps its tag.
    fs::write(fixture.folder.path().join("other.bin"), vec![7; 50_000]).unwrap();
    let rules = Rules { cache_file_max: 200_000, memory_max: 170_000, ..Rules::default() };
    let mut worker = fixture.worker_with(rules);
    let first = ask_cold(&mut worker, "/middle.bin", "");
    ask_cold(&mut worker, "/other.bin", "");
    for request in 2..=3 {
        assert!(ask_cold(&mut worker, "/middle.bin", "") == first, "{request}");
    }
    // Where no more descriptors can be spared it is held at once.
    let mut worker = fixture.worker_with(Rules { open_files_max: 0, ..Rules::default() });
    assert!(ask_cold(&mut worker, "/middle.bin", "") == held);
    assert_eq!((worker.site().ledger().alive(), worker.site().ledger().open()), (on_shelf(), 0));
}

/// Such a file has two tags one after the other. Either serves who was told it, as long as the file is the
/// same, and it is the one that he is told again.
#[test]
fn a_file_that_was_left_on_the_disk_is_known_by_both_of_its_tags() {
    let fixture = Fixture::new();
    let path = fixture.folder.path().join("middle.bin");
    fs::copy(&path, fixture.folder.path().join("middle.bin.gz")).unwrap();
    std::thread::sleep(Duration::from_millis(3100));
    for accept in ["", "Accept-Encoding: gzip\r\n"] {
        let mut worker = fixture.worker();
        let tags = [(); 2].map(|()| tag_of(&ask_cold(&mut worker, "/middle.bin", accept)));
        assert_ne!(tags[0], tags[1], "{accept}");
        for tag in &tags {
            for (fields, status, told) in [
                (format!("If-None-Match: {tag}"), 304, true),
                (format!("If-None-Match: \"x\", W/{tag}"), 304, true),
                (format!("If-Match: {tag}"), 200, true),
                (format!("If-Match: W/{tag}"), 412, false),
                (format!("Range: bytes=1-2\r\nIf-Range: {tag}"), 206, true),
                (format!("Range: bytes=1-2,5-6\r\nIf-Range: {tag}"), 206, true),
                (format!("Range: bytes=1-2\r\nIf-Range: W/{tag}"), 200, false),
                (format!("Range: bytes=999999-\r\nIf-Range: {tag}"), 416, false),
            ] {
                let output = ask_cold(&mut worker, "/middle.bin", &format!("{accept}{fields}\r\n"));
                assert_eq!(statuses(&output), [status], "{fields}");
                assert!(!told || tag_of(&output) == *tag, "{fields}");
            }
            // Whoever asks first names what may be the tag of the bytes, so they are read.
            let mut other = fixture.worker();
            let fields = format!("{accept}If-None-Match: {tag}\r\n");
            let output = ask_cold(&mut other, "/middle.bin", &fields);
            assert_eq!((statuses(&output), tag_of(&output)), (vec![304], tag.clone()), "{fields}");
        }
    }
    // Others whose times and size are the same are no longer it.
    let [first, second] = {
        let mut worker = fixture.worker();
        [(); 2].map(|()| tag_of(&ask_cold(&mut worker, "/middle.bin", "")))
    };
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, vec![7; 160_000]).unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    std::thread::sleep(Duration::from_millis(3100));
    for tag in [first, second] {
        let mut worker = fixture.worker();
        for _ in 0..2 {
            let output = ask_cold(&mut worker, "/middle.bin", &format!("If-None-Match: {tag}\r\n"));
            assert_eq!(statuses(&output), [200], "{tag}");
        }
    }
}

/// Asks for a file at some second; says how many loads that took.
fn ask_at(worker: &mut Worker, second: u32, name: &str, fields: &str) -> (usize, Vec<u8>) {
    worker.clock = Clock::at(Tick::from_number(1000 + second * Tick::PER_SECOND), 1_800_000_000);
    let fields = format!("{fields}Connection: close\r\n");
    let mut client = Client::new(worker, vec![get(name, &fields).into_bytes()]);
    while !client.over {
        client.step(worker, &mut Manner::Smooth);
    }
    (client.loaded, client.output)
}

/// What is first asked for when the cache is full stays in its file, with the tag of its bytes.
#[test]
fn of_files_that_there_is_no_room_for_the_descriptors_are_kept() {
    const ROOM: usize = 64 * 1024;
    let fixture = Fixture::new();
    let names: Vec<_> = (0..40).map(|number| format!("/kept{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        fs::write(fixture.folder.path().join(&name[1..]), vec![number as u8; 4000]).unwrap();
    }
    let mut roomy = fixture.worker();
    let wanted: Vec<_> = names.iter().map(|name| ask_at(&mut roomy, 0, name, "").1).collect();
    std::thread::sleep(Duration::from_millis(3100));

    let rules = || Rules { memory_max: 2 * ROOM as u64, ..Rules::default() };
    let mut worker = fixture.worker_within(rules(), ROOM, 64);
    // Some whose bytes were in memory at first have had to go, and are met once more.
    let mut loads = [0; 4];
    for loads in &mut loads {
        for (name, wanted) in names.iter().zip(&wanted) {
            let (loaded, output) = ask_at(&mut worker, 0, name, "");
            assert_same(&output, wanted, name);
            *loads += loaded;
        }
    }
    assert!(matches!(loads, [40, ..=10, 0, 0]), "{loads:?}");
    let (alive, open) = (worker.site().ledger().alive(), worker.site().ledger().open());
    assert!(alive < ROOM as u64 && open > 20, "{alive} bytes, {open} files");
    let (kept, kept_wanted) = (&names[10], &wanted[10]);
    let tag = tag_of(kept_wanted);
    for (fields, status) in [
        (format!("If-None-Match: {tag}\r\n"), 304),
        ("If-None-Match: \"x\"\r\n".to_owned(), 200),
        ("Range: bytes=1-2\r\n".to_owned(), 206),
    ] {
        let (loaded, output) = ask_at(&mut worker, 0, kept, &fields);
        assert_eq!((loaded, statuses(&output), tag_of(&output)), (0, vec![status], tag.clone()), "{fields}");
    }

    // Equals do not drive each other out, but what is asked for more often takes the place of something.
    for name in names.iter().chain(&names).chain(&names) {
        let _ = ask_at(&mut worker, 2, name, "");
    }
    let open = worker.site().ledger().open();
    for second in [4, 6, 8, 10, 12] {
        for name in &names {
            let _ = ask_at(&mut worker, second, name, "");
        }
        assert_eq!(worker.site().ledger().open(), open, "second {second}");
    }
    for _ in 0..40 {
        let _ = ask_at(&mut worker, 12, kept, "");
    }
    let (_, output) = ask_at(&mut worker, 14, kept, "");
    assert_same(&output, kept_wanted, "in memory");
    assert_eq!(worker.site().ledger().open(), open - 1);
    assert!(worker.site().ledger().alive() < ROOM as u64);

    // Bytes that have changed are never sent with the tag of those that were read.
    assert_same(&ask_at(&mut worker, 14, "/kept20", "").1, &wanted[20], "before the change");
    fs::write(fixture.folder.path().join("kept20"), vec![7; 4000]).unwrap();
    let (loaded, output) = ask_at(&mut worker, 14, "/kept20", "");
    assert!(loaded == 1 && output.ends_with(&[7; 4000]) && tag_of(&output) != tag_of(&wanted[20]));

    // What nobody asks for is not kept open for ever.
    for second in 0..60 {
        let _ = ask_at(&mut worker, 300 + 2 * second, "/a.txt", "");
    }
    assert_eq!(worker.site().ledger().open(), 0);

    // Where no descriptors can be spared, and where there are few, it is as if there were none.
    for (descriptors, open_files_max) in [(64, 0), (3, 64)] {
        let mut worker = fixture.worker_within(Rules { open_files_max, ..rules() }, ROOM, descriptors);
        for (name, wanted) in names.iter().zip(&wanted).filter(|(name, _)| **name != "/kept20") {
            assert_same(&ask_at(&mut worker, 0, name, "").1, wanted, name);
        }
        let most = (descriptors as u64).min(open_files_max);
        assert!(worker.site().ledger().open() <= most && worker.site().ledger().alive() < ROOM as u64);
    }
}

/// Where tags are compared, or may be, it is always that of the bytes.
#[test]
fn who_compares_tags_is_never_told_another_than_that_of_the_bytes() {
    let fixture = Fixture::new();
    let tag = tag_of(&ask_cold(&mut fixture.worker(), "/middle.bin", ""));
    std::thread::sleep(Duration::from_millis(3100));
    let head = "HEAD /middle.bin HTTP/1.1\r\nHost: x\r\n\r\n";
    for request in [head, &get("/middle.bin", "Range: bytes=0-9\r\n")] {
        let mut worker = fixture.worker();
        let mut client = Client::new(&mut worker, vec![request.as_bytes().to_vec()]);
        while client.output.is_empty() {
            client.step(&mut worker, &mut Manner::Cold);
        }
        assert_eq!(tag_of(&client.output), tag, "{request}");
    }
    // Also while somebody else has it read.
    let mut worker = fixture.worker();
    assert_ne!(tag_of(&ask_cold(&mut worker, "/middle.bin", "")), tag);
    let mut other = Client::new(&mut worker, vec![get("/middle.bin", "").into_bytes()]);
    for _ in 0..3 {
        other.step(&mut worker, &mut Manner::Cold);
    }
    assert!(other.output.is_empty());
    let output =
        ask_cold(&mut worker, "/middle.bin", &format!("If-Match: {tag}\r\nIf-None-Match: {tag}\r\n"));
    assert_eq!(statuses(&output), [304]);
}

/// Who asks while somebody else has a file looked at gets what is known, if that has only just become stale;
/// but not what nobody has looked at for long.
#[test]
fn what_was_not_looked_at_for_long_is_looked_at_before_anybody_gets_it() {
    let fixture = Fixture::new();
    let mut worker = fixture.worker();
    let answer = |at: u32, worker: &mut Worker| {
        worker.clock = Clock::at(Tick::from_number(at), 1_800_000_000);
        let mut first = Client::new(worker, vec![get("/a.txt", "").into_bytes()]);
        first.step(worker, &mut Manner::Smooth);
        // The first has only asked so far.
        let mut second = Client::new(worker, vec![get("/a.txt", "").into_bytes()]);
        while !second.over {
            second.step(worker, &mut Manner::Smooth);
        }
        while !first.over {
            first.step(worker, &mut Manner::Smooth);
        }
        [second, first].map(|client| client.output[client.output.len() - 6..].to_vec())
    };
    assert_eq!(answer(1000, &mut worker), [b"alpha\n", b"alpha\n"]);
    fs::write(fixture.folder.path().join("a.txt"), "beta!\n").unwrap();
    assert_eq!(answer(1012, &mut worker), [b"alpha\n", b"beta!\n"]);
    fs::write(fixture.folder.path().join("a.txt"), "gamma\n").unwrap();
    assert_eq!(answer(1060, &mut worker), [b"gamma\n", b"gamma\n"]);
}

/// What many ask for has its pages put together at the next look, once; it stays what it is.
#[test]
fn a_large_body_that_is_asked_for_very_often_is_put_together() {
    let fixture = Fixture::new();
    let bytes = fs::read(fixture.folder.path().join("middle.bin")).unwrap();
    // Until then the file may still change without its `stat` telling.
    std::thread::sleep(Duration::from_millis(3100));
    let mut worker = fixture.worker();
    for (round, requests, gathered) in [(0, 120, 0), (1, 1, 1), (2, 120, 0), (3, 1, 0)] {
        worker.clock = Clock::at(Tick::from_number(1000 + 20 * round), 1_800_000_000);
        let mut client = Client::new(&mut worker, vec![get("/middle.bin", "").into_bytes(); requests]);
        while !client.over {
            client.step(&mut worker, &mut Manner::Smooth);
        }
        assert_eq!(client.gathered, gathered, "{round}");
        assert!(client.output.len() > requests * bytes.len() && client.output.ends_with(&bytes), "{round}");
        let held = if round == 0 { (0, on_shelf()) } else { (1, 160_000) };
        assert_eq!((worker.site().ledger().files(), worker.site().ledger().alive()), held, "{round}");
    }
}

/// Descriptors that a test holds must be those of the files, not of something else.
#[test]
fn a_replaced_file_is_never_mixed_with_its_successor() {
    let fixture = Fixture::new();
    let mut worker = fixture.worker();
    let mut client = Client::new(&mut worker, vec![get("/large.bin", "").into_bytes()]);
    let mut random = Random(7);
    while client.output.len() < 1000 {
        client.step(&mut worker, &mut Manner::Rough(&mut random));
    }
    let path = fixture.folder.path().join("large.bin");
    let old = fs::read(&path).unwrap();
    let successor: OwnedFd = {
        fs::write(fixture.folder.path().join("new"), vec![b'n'; 280_000]).unwrap();
        fs::rename(fixture.folder.path().join("new"), &path).unwrap();
        File::open(&path).unwrap().into()
    };
    assert_eq!(rustix::fs::fstat(successor.as_fd()).unwrap().st_size, 280_000);
    while !client.over {
        client.step(&mut worker, &mut Manner::Smooth);
    }
    assert!(client.output.ends_with(&old));
}
