//! What a load does where memory is short.

use super::*;
use crate::content::entry::SETTLED_SECONDS;
use crate::content::site::Rules;
use crate::http::parse;
use rustix::fs::{Mode, openat2};
use std::time::Duration;

/// Loads it: what came of it, and how many bytes were read.
fn run(mut load: Load) -> (Arc<Entry>, usize) {
    let mut bytes = 0;
    loop {
        match load.next() {
            Step::Open { root, path, flags, resolve } => {
                let file = openat2(root, path, flags, Mode::empty(), resolve);
                load.opened(file.map_err(Into::into));
            }
            Step::Read { file, buffer, at } => {
                let read = rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), at).unwrap();
                bytes += read;
                load.read(Ok(read));
            }
            Step::Note { .. } => load.noted(),
            Step::Done => return (load.finish().entry, bytes),
            step => panic!("{step:?}"),
        }
    }
}

fn tag(entry: &Entry) -> &[u8] {
    let Entry::File(file) = entry else { panic!("{entry:?}") };
    file.validators(0).etag
}

#[test]
fn what_there_is_no_memory_for_is_told_by_the_tag_of_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, size) in [("short", 1000), ("long", LEFT_MIN)] {
        std::fs::write(folder.path().join(name), vec![7; size as usize]).unwrap();
    }
    let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
    if !directory::is_trusted(site.root()) {
        eprintln!("not tested: nothing is known of this file system");
        return;
    }
    std::thread::sleep(Duration::from_secs(SETTLED_SECONDS + 1));
    let load = |name: &str| Load::plain(&site, name.as_bytes(), None, now());
    let held = ["/short", "/long"].map(|name| run(load(name)));
    assert!(held.iter().all(|(entry, _)| !entry.holds_descriptor()));
    let alive = site.ledger().alive();
    let Rules { memory_max, cache_file_max, .. } = *site.rules();
    let others = site.ledger().reserve(memory_max - alive);

    let (short, read) = run(load("/short"));
    assert_eq!((tag(&short), short.holds_descriptor(), read), (tag(&held[0].0), true, 1000));
    // A long one may be left unread, but not if somebody may name its tag.
    let (left, read) = run(load("/long"));
    assert_eq!((tag(&left) == tag(&held[1].0), read), (false, 0));
    let bytes = b"GET / HTTP/1.1\r\nHost: h\r\nIf-None-Match: \"a\"\r\n\r\n";
    let mut room = parse::fields();
    let request = parse::head(bytes, &mut room).unwrap().unwrap();
    let (long, _) = run(load("/long").wanted_by(&request));
    assert_eq!((tag(&long), long.holds_descriptor()), (tag(&held[1].0), true));
    assert!(!site.is_to_be_read(&long, &request));
    assert_eq!(site.ledger().alive(), memory_max, "nothing of them is held");

    // There is an end to what is read for that.
    let _more = site.ledger().reserve(cache_file_max - 500);
    let (unread, read) = run(load("/short"));
    assert_eq!((tag(&unread) == tag(&short), read), (false, 0));
    drop(others);
    assert_eq!(tag(&run(load("/short")).0), tag(&short));
}

#[test]
fn what_changes_while_it_is_hashed_is_told_by_another_tag() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| folder.path().join(name);
    for name in ["a", "b"] {
        std::fs::write(path(name), [1; 1000]).unwrap();
    }
    let site = Arc::new(Site::open(folder.path(), Rules::default()).unwrap());
    if !directory::is_trusted(site.root()) {
        eprintln!("not tested: nothing is known of this file system");
        return;
    }
    let _others = site.ledger().reserve(site.rules().memory_max);
    std::thread::sleep(Duration::from_secs(SETTLED_SECONDS + 1));
    // One is tried again, the other was tried too often already.
    for (name, tries) in [("a", 0), ("b", TRIES_MAX - 1)] {
        let target = format!("/{name}");
        let begin = || Load::plain(&site, target.as_bytes(), None, now());
        let hash = tag(&run(begin()).0).to_vec();
        let mut load = begin();
        for _ in 0..tries {
            load.opened(Err(Errno::AGAIN.into()));
        }
        load.opened(Ok(std::fs::File::open(path(name)).unwrap().into()));
        let Step::Read { buffer, .. } = load.next() else { panic!("it is to be hashed") };
        buffer.resize(1000, 1);
        std::fs::write(path(name), [2; 1000]).unwrap();
        load.read(Ok(1000));
        let (entry, read) = run(load);
        assert_eq!((tag(&entry) == hash, entry.holds_descriptor(), read), (false, true, 0), "{name}");
    }
}

/// Many may be read at once, before any of them is held.
#[test]
fn what_is_being_read_takes_memory_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), [1; 1000]).unwrap();
    let rules = Rules { memory_max: 2500, ..Rules::default() };
    let site = Arc::new(Site::open(folder.path(), rules).unwrap());
    let begin = || {
        let mut load = Load::plain(&site, b"/a", None, 0);
        load.opened(Ok(std::fs::File::open(folder.path().join("a")).unwrap().into()));
        load
    };
    let is_read = |load: &mut Load| matches!(load.next(), Step::Read { .. });
    let mut loads = [(); 2].map(|()| begin());
    assert!(loads.iter_mut().all(is_read));
    assert!(!is_read(&mut begin()), "it stays in its file");
    let [mut first, second] = loads;
    drop(second);
    assert_eq!(site.ledger().alive(), 1000);
    let Step::Read { buffer, .. } = first.next() else { unreachable!("it is being read") };
    buffer.resize(1000, 1);
    first.read(Ok(1000));
    assert_eq!(site.ledger().alive(), 1000, "once, though it be read and held");
    drop(first);
    assert_eq!(site.ledger().alive(), 0);
}
