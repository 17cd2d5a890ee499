//! Files that are in the page cache, in part, or not at all.

use super::*;
use crate::http::Ledger;
use std::fs::File;
use std::os::fd::AsFd;

/// A file of so many bytes whose pages have gone from the page cache, but where a file system in memory
/// keeps them.
pub fn cold_file(size: usize) -> File {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), vec![1; size]).unwrap();
    let file = File::open(path.path()).unwrap();
    file.sync_all().unwrap();
    // A page that somebody else holds for a moment stays.
    for _ in 0..100 {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        if present(file.as_fd(), 0, size as u64).is_none_or(|present| present == 0) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    file
}

/// The same, if they have really gone and the kernel says so: a file system in memory keeps them.
fn gone_file(size: usize) -> Option<File> {
    Some(cold_file(size)).filter(|file| present(file.as_fd(), 0, size as u64) == Some(0))
}

/// Whether the first piece of a file is coming, or has come.
fn is_piece_begun(resident: &Resident, file: &Source) -> bool {
    resident.coming() == PIECE || byte(file.as_fd(), PIECE - 1) == Ok(1)
}

#[test]
fn what_was_just_written_is_there_and_what_lies_behind_the_end_is_not() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), vec![1; 3 << 20]).unwrap();
    let file = File::open(path.path()).unwrap();
    // Where the kernel does not tell there are samples.
    if is_resident(file.as_fd(), 0, 1).is_some() {
        assert_eq!(is_resident(file.as_fd(), 5, 3 << 19), Some(true));
        assert_eq!(is_resident(file.as_fd(), 0, 3 << 20), Some(true));
        assert_eq!(is_resident(file.as_fd(), 0, (3 << 20) + 1), Some(false));
        assert_eq!(is_resident(file.as_fd(), 9 << 20, 1), Some(false));
    }
    // A file system that knows no read that does not wait has no samples either.
    if byte(file.as_fd(), 0).is_ok() {
        assert!(seems_resident(file.as_fd(), 5, 3 << 19));
        assert!(seems_resident(file.as_fd(), 0, 3 << 20));
    }
    assert!(!seems_resident(file.as_fd(), 0, (3 << 20) + 1));
    assert!(!seems_resident(file.as_fd(), 9 << 20, 1));
}

#[test]
fn reading_appends_and_ends_at_the_capacity_or_the_file() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), b"0123456789").unwrap();
    let file = File::open(path.path()).unwrap();
    let mut buffer = Vec::with_capacity(6);
    buffer.push(b'x');
    // Kernels that cannot tell have everything read by a helper.
    if let Some(n) = read_resident(file.as_fd(), &mut buffer, 2, 9, true, true) {
        assert_eq!((n, &*buffer), (5, &b"x23456"[..]));
        assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(6), 10, 1, true, true), Some(0));
    }
}

#[test]
fn a_long_span_that_must_be_waited_for_is_not_even_begun() {
    let Some(file) = gone_file(1 << 20) else { return };
    assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(1 << 20), 0, 1 << 20, true, true), None);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(is_resident(file.as_fd(), 0, 1), Some(false));
    assert!(!seems_resident(file.as_fd(), 0, 1 << 20));
}

#[test]
fn who_may_not_begin_does_not() {
    let Some(file) = gone_file(1 << 20) else { return };
    for is_end in [true, false] {
        assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(5), 0, 5, is_end, false), None);
    }
    let source = Arc::new(Source::on_disk(file.try_clone().unwrap().into(), 1 << 20, &Ledger::default()));
    assert_eq!(Resident::default().find(&source, 0, 1 << 20, false), 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(present(file.as_fd(), 0, 1 << 20), Some(0));
    // What is there can be had all the same.
    preadv2(&file, &mut [IoSliceMut::new(&mut [0; 5])], 0, ReadWriteFlags::empty()).unwrap();
    assert_eq!(read_resident(file.as_fd(), &mut Vec::with_capacity(5), 0, 5, true, false), Some(5));
}

#[test]
fn of_a_span_that_is_there_in_part_the_start_is_found() {
    let file = cold_file(1 << 20);
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    preadv2(&file, &mut [IoSliceMut::new(&mut vec![0; 70_000])], 0, ReadWriteFlags::empty()).unwrap();
    // A file system in memory has kept all of it.
    let Some(there) = present(file.as_fd(), 5, 1 << 19).filter(|&there| there < 1 << 19) else { return };
    assert!(there >= 70_000 - 5);
    assert_eq!(present(file.as_fd(), 5, 1000), Some(1000));
    assert_eq!(present(file.as_fd(), 900_000, 1000), Some(0));
    let file = Arc::new(Source::on_disk(file.into(), 1 << 20, &Ledger::default()));
    let mut resident = Resident::default();
    assert_eq!(resident.find(&file, 5, 1 << 20, true), there);
    assert_eq!(resident.find(&file, 5 + there, 1000, true), 0);
    assert_eq!(resident.coming(), 0);
    assert_eq!(resident.find(&file, 900_000, 1000, true), 0);
}

#[test]
fn a_last_byte_that_was_there_before_does_not_stand_for_all() {
    let file = cold_file(1 << 20);
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    preadv2(&file, &mut [IoSliceMut::new(&mut [0])], (1 << 20) - 1, ReadWriteFlags::empty()).unwrap();
    // A file system in memory has kept all of it.
    if present(file.as_fd(), 0, 1 << 20).is_some_and(|there| there < 1 << 19) {
        assert_eq!(has_come(file.as_fd(), (1 << 20) - 1, 1), Some(true));
        assert_eq!(has_come(file.as_fd(), 0, 1 << 20), Some(false));
    }
}

#[test]
fn what_was_begun_comes_without_anybody_waiting_for_it() {
    let Some(file) = gone_file(2 << 20) else { return };
    let file = Arc::new(Source::on_disk(file.into(), 2 << 20, &Ledger::default()));
    let mut resident = Resident::default();
    resident.begin(&file, 0, 2 << 20);
    assert!(is_piece_begun(&resident, &file));
    for _ in 0..1000 {
        if resident.find(&file, 0, BEGUN, true) == BEGUN {
            return;
        }
        resident = Resident::default();
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it has not come in 10 seconds");
}

/// What the kernel does not tell somebody who neither owns a file nor may write it.
#[test]
fn what_is_anothers_is_begun_with_and_found_by_samples() {
    let Some(file) = gone_file(3 << 20) else { return };
    let source = Arc::new(Source::on_disk(file.try_clone().unwrap().into(), 3 << 20, &Ledger::default()));
    let as_another = |does: &(dyn Fn(Resident) + Sync)| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: it takes a number. It is for this thread alone, and so are the capabilities of
                // a superuser that go with it (setfsuid(2), capabilities(7)).
                unsafe { libc::setfsuid(65534) };
                // It is to no avail for who is no superuser.
                if present(source.as_fd(), 0, 1).is_none() {
                    does(Resident::default());
                }
            });
        });
    };
    let has_begun = std::sync::atomic::AtomicBool::new(false);
    as_another(&|mut resident| {
        assert_eq!(resident.find(&source, 0, 3 << 20, false), 0);
        resident.begin(&source, 0, 3 << 20);
        assert!(is_piece_begun(&resident, &source));
        has_begun.store(true, Relaxed);
    });
    if !has_begun.into_inner() {
        return;
    }
    for _ in 0..1000 {
        if present(file.as_fd(), 0, BEGUN) == Some(BEGUN) && byte(file.as_fd(), BEGUN - 1) == Ok(1) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The kernel may have read farther ahead, and in pages as large as that.
    rustix::fs::fadvise(&file, 2 << 20, None, rustix::fs::Advice::DontNeed).unwrap();
    let is_end_gone = present(file.as_fd(), BEGUN, 2 << 20) == Some(BEGUN);
    as_another(&|mut resident| {
        assert_eq!(resident.find(&source, 0, 3 << 20, false), 0);
        resident.begin(&source, 0, 3 << 20);
        assert_eq!(resident.coming(), 0, "it is there");
        assert_eq!(resident.find(&source, 0, 3 << 20, true), REACH_MIN);
        // As all was there, and so on until it is not.
        assert_eq!(resident.find(&source, REACH_MIN, 3 << 20, false), 2 * REACH_MIN);
        assert_eq!(resident.find(&source, BEGUN - 1000, 1000, false), 1000);
        if !is_end_gone {
            return;
        }
        assert_eq!(resident.find(&source, (2 << 20) - REACH_MIN, 1 << 20, false), REACH_MIN);
        resident.found = None;
        assert_eq!(resident.find(&source, 0, 3 << 20, false), 0);
    });
}

#[test]
fn of_the_last_sample_that_is_there_the_rest_need_not_be() {
    // By chance the sample of the second piece is not there either; and one that is not there comes.
    for _ in 0..5 {
        let file = cold_file(1 << 20);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        let part = SAMPLE_EVERY as usize + 40_000;
        preadv2(&file, &mut [IoSliceMut::new(&mut vec![0; part])], 0, ReadWriteFlags::empty()).unwrap();
        // A file system in memory has kept all of it.
        if present(file.as_fd(), 0, 1 << 20).is_some_and(|there| there < 2 * SAMPLE_EVERY) {
            assert_eq!(seem_resident(file.as_fd(), 0, 1 << 20), SAMPLE_EVERY);
        }
    }
}

#[test]
fn what_is_in_memory_alone_is_always_there() {
    let file = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&file, &[1; 10_000]).unwrap();
    assert!(!is_cold(file.as_fd(), 10_000));
    assert!(matches!(readable(file.as_fd(), 5, 9_000), None | Some(9_000)));
    let file = Arc::new(Source::on_disk(file, 10_000, &Ledger::default()));
    assert_eq!(Resident::default().find(&file, 5, 9_000, true), 9_000);
}

#[test]
fn what_was_found_long_ago_may_have_gone() {
    let Some(file) = gone_file(1 << 20) else { return };
    let file = Arc::new(Source::on_disk(file.into(), 1 << 20, &Ledger::default()));
    let mut resident = Resident::default();
    resident.found(&file, 0..1 << 20);
    std::thread::sleep(2 * TRUSTED);
    assert_eq!(resident.find(&file, 5, 1000, false), 0);
}

#[test]
fn a_page_that_is_missing_in_the_midst_is_noticed() {
    let Some(file) = gone_file(3 << 20) else { return };
    preadv2(&file, &mut [IoSliceMut::new(&mut vec![0; 3 << 20])], 0, ReadWriteFlags::empty()).unwrap();
    // Not every file system tells.
    if present(file.as_fd(), 0, 3 << 20) != Some(3 << 20) {
        return;
    }
    assert_eq!(come(file.as_fd(), 5, (3 << 20) - 5), Some((3 << 20) - 5));
    let gone = std::num::NonZero::new(4096);
    rustix::fs::fadvise(&file, 5 << 19, gone, rustix::fs::Advice::DontNeed).unwrap();
    // Unless its page is part of a larger one, which stays.
    if present(file.as_fd(), 5 << 19, 1) == Some(0) {
        assert_eq!(come(file.as_fd(), 5, (3 << 20) - 5), Some((5 << 19) - 5));
        assert_eq!(readable(file.as_fd(), 5, (3 << 20) - 5), Some((5 << 19) - 5));
    }
    assert_eq!(come(file.as_fd(), 5, 5000), Some(5000));
    assert_eq!(readable(file.as_fd(), 5, 5000), Some(5000));
}

#[test]
fn a_span_once_found_is_remembered_for_its_file_alone() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), b"0123456789").unwrap();
    let open = || {
        let file = File::open(path.path()).unwrap();
        Arc::new(Source::on_disk(file.into(), 10, &Ledger::default()))
    };
    let (one, other) = (open(), open());
    let mut resident = Resident::default();
    resident.found(&one, 100..200);
    assert_eq!((resident.find(&one, 150, 1000, true), resident.find(&one, 199, 1, true)), (50, 1));
    assert_eq!((resident.find(&one, 200, 5, true), resident.find(&other, 150, 5, true)), (0, 0));
    // The next has the descriptor of one that has gone, unless another test is quicker.
    let mut resident = Resident::default();
    resident.found(&one, 100..200);
    drop(one);
    let next = open();
    assert_eq!(resident.find(&next, 150, 5, true), 0);
}

/// A file of which nothing is told, whatever its file system knows, as on overlayfs.
fn untold(file: File, size: u64) -> Arc<Source> {
    let file = Arc::new(Source::on_disk(file.into(), size, &Ledger::default()));
    file.residence(|| Residence::Untold(recent::number()));
    file
}

#[test]
fn of_what_nothing_is_told_there_is_what_was_read_lately_by_anybody() {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), vec![1; 1 << 20]).unwrap();
    let open = || untold(File::open(path.path()).unwrap(), 1 << 20);
    let (file, other) = (open(), open());
    let (mut reader, mut resident) = (Resident::default(), Resident::default());
    let short = |file: &Source| {
        let mut text = b"head".to_vec();
        take_in(file, &mut text, 300_000, 10_000, true, &mut |_| panic!("nothing can be begun"));
        text.len() - 4
    };
    assert_eq!(resident.find(&file, 0, 1 << 20, true), 0);
    assert_eq!(short(&file), 0);
    resident.begin(&file, 0, 1 << 20);
    assert_eq!(resident.coming(), 0);
    was_read(&file, 300_000..301_000);
    assert_eq!((short(&file), resident.find(&file, 300_000, 10_000, true)), (0, 303_104 - 300_000));
    // Of another before it in the same answer.
    resident.coming = PIECE;
    assert_eq!((resident.find(&file, 0, 5, true), resident.coming()), (0, 0));
    reader.read(&file, 100_000..400_000);
    // Both its first page and its last have come.
    assert_eq!(resident.find(&file, 100_000, 1 << 20, false), 401_408 - 100_000);
    assert_eq!(resident.find(&file, 600_000, 5, true), 0);
    assert_eq!(short(&file), 10_000);
    assert_eq!((resident.find(&other, 100_000, 5, true), short(&other)), (0, 0));
    // Who has waited for it goes on, though others may have taken its place by now.
    assert_eq!(reader.find(&file, 399_999, 5, false), 1);
    assert_eq!(reader.find(&file, 400_000, 5, false), 5);
}

#[test]
fn where_the_kernel_tells_nothing_is_noted() {
    let Some(file) = gone_file(1 << 20) else { return };
    let file = Arc::new(Source::on_disk(file.into(), 1 << 20, &Ledger::default()));
    Resident::default().read(&file, 0..1 << 20);
    assert_eq!(Resident::default().find(&file, 0, 1 << 20, false), 0);
}

#[test]
fn a_file_system_that_knows_no_reads_that_do_not_wait_tells_nothing() {
    // As overlayfs knows none; but that must be mounted.
    let Ok(file) = File::open("/sys/kernel/uevent_seqnum") else { return };
    let file = Arc::new(Source::on_disk(file.into(), 5, &Ledger::default()));
    if byte(file.as_fd(), 0) == Err(Errno::OPNOTSUPP) {
        assert!(matches!(residence(&file), Residence::Untold(_)));
        assert!(is_cold(file.as_fd(), 5));
        assert_eq!(readable(file.as_fd(), 0, 5), None);
        assert_eq!(Resident::default().find(&file, 0, 5, true), 0);
    }
}
