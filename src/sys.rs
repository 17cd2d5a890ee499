//! The system calls that no library has in a safe form, outside the engines.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, memfd_create};
use rustix::io::{Errno, pwrite};
use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap, munmap};

/// Has a listener keep back clients who have sent nothing yet, for about so many seconds at the most
/// (`TCP_DEFER_ACCEPT`, tcp(7)): whoever is accepted has a request to read.
///
/// # Errors
/// What `setsockopt(2)` says; a kernel need not know the option.
pub fn defer_accept(listener: &impl AsFd, seconds: i32) -> io::Result<()> {
    set_of_tcp(listener, libc::TCP_DEFER_ACCEPT, seconds)
}

/// Has the kernel take no more of an answer while about so many bytes of it wait to be sent, on all
/// connections of a listener (`TCP_NOTSENT_LOWAT`; tcp_notsent_lowat in the kernel's ip-sysctl.rst). By
/// itself it takes some megabytes for a client who is slow.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn bound_unsent(listener: &impl AsFd, bytes: i32) -> io::Result<()> {
    set_of_tcp(listener, libc::TCP_NOTSENT_LOWAT, bytes)
}

fn set_of_tcp(socket: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let (socket, size) = (socket.as_fd().as_raw_fd(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: the value lives across the call and is as long as is said.
    let result =
        unsafe { libc::setsockopt(socket, libc::IPPROTO_TCP, option, (&raw const value).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has a write beyond the limit on the size of files (`RLIMIT_FSIZE`, getrlimit(2)) fail instead of ending
/// the process: a file in memory that is too large for it is then held otherwise.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is set; to ignore a signal touches nothing of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Has the kernel keep a child that has ended until somebody asks how, as it does unless `SIGCHLD` is ignored
/// (waitpid(2)). That it is, a process may have inherited.
pub fn keep_ended_children() {
    // SAFETY: no handler is set; the default touches nothing of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Has the kernel leave pages where they are, once they are in memory (mlock2(2)).
///
/// # Errors
/// What the call says: `ENOMEM` where no more may be locked, or nothing is mapped there.
pub fn lock_once_there(pages: &Range<usize>) -> io::Result<()> {
    let at = ptr::without_provenance_mut(pages.start);
    // SAFETY: no memory is read or written, and none comes or goes.
    unsafe { mlock_with(at, pages.len(), MlockFlags::ONFAULT) }?;
    Ok(())
}

/// Has threads take memory from so many heaps at the most (`M_ARENA_MAX`, mallopt(3)). By itself the C
/// library gives each of a good many threads one of its own, and what is free in one is of no use to others.
pub fn limit_heaps(count: usize) {
    #[cfg(target_env = "gnu")]
    set_heap_number(libc::M_ARENA_MAX, count);
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Has pieces of memory of so many bytes and more go back to the kernel as soon as they are free
/// (`M_MMAP_THRESHOLD`, mallopt(3)). By itself the C library takes the largest that was freed as a sign that
/// such are needed often, and keeps them.
pub fn give_back_from(size: usize) {
    #[cfg(target_env = "gnu")]
    set_heap_number(libc::M_MMAP_THRESHOLD, size);
    #[cfg(not(target_env = "gnu"))]
    let _ = size;
}

#[cfg(target_env = "gnu")]
fn set_heap_number(which: libc::c_int, number: usize) {
    // SAFETY: it only sets a number that later allocations look at.
    unsafe { libc::mallopt(which, number.try_into().unwrap_or(libc::c_int::MAX)) };
}

/// Keeps signals from the calling thread, and from the threads and processes that it starts: those that come
/// wait until a thread takes them.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn hold_signals(signals: &[i32]) -> io::Result<()> {
    mask_signals(libc::SIG_BLOCK, signals)
}

/// Lets signals through again, those first that have come meanwhile.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn release_signals(signals: &[i32]) -> io::Result<()> {
    mask_signals(libc::SIG_UNBLOCK, signals)
}

fn mask_signals(how: i32, signals: &[i32]) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is written before it is used, and lives across the calls.
    let result = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// The version of Landlock's interface that the kernel has (landlock_create_ruleset(2)).
///
/// # Errors
/// What the call says: `ENOSYS` where the kernel is built without it, `EOPNOTSUPP` where it is switched off.
pub fn landlock_abi() -> io::Result<u32> {
    /// LANDLOCK_CREATE_RULESET_VERSION
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag there are no attributes, and nothing is made.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

/// Maps so many numbers that other processes can see: those this one forks, or, where a file is given, all
/// that map it too. They are zero at first, and never unmapped. The file must be long enough and stay so.
///
/// # Errors
/// What `mmap(2)` says.
pub fn share_words(file: Option<&File>, words: usize) -> io::Result<&'static [AtomicU64]> {
    let (flags, descriptor) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing of ours.
    let at = unsafe {
        libc::mmap(ptr::null_mut(), words * size_of::<AtomicU64>(), protection, flags, descriptor, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is so long, aligned to a page and never unmapped. All bits are a valid number, and
    // whoever else has it mapped changes it by atomic operations too.
    Ok(unsafe { std::slice::from_raw_parts(at.cast(), words) })
}

/// An empty file in memory, which has no name.
///
/// # Errors
/// What `memfd_create(2)` says.
pub fn memory_file() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(c"ringserve", flags | MemfdFlags::NOEXEC_SEAL) {
        // The flag is of Linux 6.3; later ones may be set up to insist on it.
        Err(Errno::INVAL) => Ok(memfd_create(c"ringserve", flags)?),
        result => Ok(result?),
    }
}

/// Bytes at a place of a file in memory, which never change.
///
/// When it is dropped their pages go back to the kernel. Those that a socket still has stay as they are until
/// their client has them: they are taken out of the file, not emptied.
#[derive(Debug)]
pub struct Extent {
    file: Arc<OwnedFd>,
    at: u64,
    size: u64,
}

impl Extent {
    /// The room that so many bytes take: whole pages.
    pub fn room_for(bytes: usize) -> u64 {
        bytes.next_multiple_of(rustix::param::page_size()) as u64
    }

    /// Writes bytes to a place where nothing was before, at the beginning of a page.
    ///
    /// # Errors
    /// What is said by the calls that find pages and write to them: no memory, or a kernel before Linux 5.14.
    pub fn write(file: &Arc<OwnedFd>, at: u64, bytes: &[u8]) -> io::Result<Extent> {
        let extent = Extent { file: file.clone(), at, size: Extent::room_for(bytes.len()) };
        extent.find_pages()?;
        let mut written = 0;
        while written < bytes.len() {
            written += pwrite(&extent, &bytes[written..], at + written as u64)?;
        }
        Ok(extent)
    }

    /// Has the kernel find single pages. Of a long one, which it may be set up to prefer (`shmem_enabled`),
    /// it would overwrite a part that is given back with zeros, though that be on its way to a client.
    fn find_pages(&self) -> io::Result<()> {
        let (len, flags) = (self.size as usize, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing of ours. Nobody looks into
        // it, and it goes before anybody knows of it.
        unsafe {
            let place = mmap(ptr::null_mut(), len, flags, MapFlags::SHARED, self, self.at)?;
            // Where there are no long pages at all this is not known.
            let _ = madvise(place, len, Advice::LinuxNoHugepage);
            let found = madvise(place, len, Advice::LinuxPopulateWrite);
            munmap(place, len)?;
            Ok(found?)
        }
    }

    /// Its place in the file.
    pub fn start(&self) -> u64 {
        self.at
    }

    /// Bytes of memory that it takes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsFd for Extent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // Nothing is said against it where nothing was before.
        let _ = punch(&self.file, self.at, self.size);
    }
}

/// Takes the pages of so many bytes out of a file.
///
/// # Errors
/// What `fallocate(2)` says.
pub fn punch(file: impl AsFd, at: u64, len: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len)?)
}

/// Bytes of a huge page, as it is on x86-64, and on AArch64 with pages of 4 KiB.
pub const HUGE_PAGE: usize = 2 << 20;

/// A file in memory, mapped so that the kernel can put its pages together.
///
/// The pages of such a file lie wherever there was room. Where they lie in one place, the network stack hands
/// them on as few long pieces instead of many short ones.
#[derive(Debug)]
pub struct Area {
    reserved: ptr::NonNull<u8>,
    at: ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: nobody looks at the bytes through it, and the mapping belongs to no thread.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// What is to be said of it to `madvise(2)`; Linux 6.1.
    pub const ADVICE: i32 = libc::MADV_COLLAPSE;

    /// Maps a file of a length of whole huge pages, at a place where they can be such.
    ///
    /// # Errors
    /// What `fstat(2)` or `mmap(2)` says.
    pub fn of(file: impl AsFd) -> io::Result<Area> {
        let len = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let map = |at, len, protection, flags, descriptor| {
            // SAFETY: a new mapping, at a place of the kernel's choice or within one that is ours alone.
            let at = unsafe { libc::mmap(at, len, protection, flags, descriptor, 0) };
            match ptr::NonNull::new(at.cast::<u8>()) {
                Some(at) if at.as_ptr() != libc::MAP_FAILED.cast() => Ok(at),
                _ => Err(io::Error::last_os_error()),
            }
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let reserved = map(ptr::null_mut(), len + HUGE_PAGE, libc::PROT_NONE, flags, -1)?;
        let mut area = Area { reserved, at: reserved, len };
        let at = area.at.as_ptr().wrapping_add(area.at.as_ptr().align_offset(HUGE_PAGE));
        let (flags, descriptor) = (libc::MAP_SHARED | libc::MAP_FIXED, file.as_fd().as_raw_fd());
        area.at = map(at.cast(), len, libc::PROT_READ, flags, descriptor)?;
        for offset in (0..len).step_by(HUGE_PAGE) {
            // The kernel only looks at places that somebody has touched.
            // SAFETY: it is mapped to be read, and within the file, which is ours and stays as long as it is.
            unsafe { area.at.as_ptr().add(offset).read_volatile() };
        }
        Ok(area)
    }

    /// Its place and length, for `madvise(2)`.
    pub fn range(&self) -> (ptr::NonNull<u8>, usize) {
        (self.at, self.len)
    }

    /// Has the kernel put the pages together. That takes some 300 microseconds for each huge page, and may
    /// have to wait for other threads of the kernel.
    ///
    /// # Errors
    /// What `madvise(2)` says; the file is as good as before.
    pub fn gather(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours; its contents stay as they are.
        let result = unsafe { libc::madvise(self.at.as_ptr().cast(), self.len, Area::ADVICE) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing refers to it.
        unsafe { libc::munmap(self.reserved.as_ptr().cast(), self.len + HUGE_PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    #[test]
    fn who_sends_is_accepted_at_once_and_who_does_not_a_little_later() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        defer_accept(&listener, 1).unwrap();
        let address = listener.local_addr().unwrap();
        let silent = TcpStream::connect(address).unwrap();
        let mut talker = TcpStream::connect(address).unwrap();
        talker.write_all(b"x").unwrap();
        assert_eq!(listener.accept().unwrap().1, talker.local_addr().unwrap());
        let begin = Instant::now();
        assert_eq!(listener.accept().unwrap().1, silent.local_addr().unwrap());
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn no_more_is_taken_of_an_answer_than_is_sent_before_long() {
        let taken = |bound: Option<i32>| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            if let Some(bytes) = bound {
                bound_unsent(&listener, bytes).unwrap();
            }
            let _slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut socket = listener.accept().unwrap().0;
            socket.set_nonblocking(true).unwrap();
            let piece = vec![0; 64 * 1024];
            std::iter::from_fn(|| socket.write(&piece).ok()).sum::<usize>()
        };
        let bound = 128 * 1024;
        assert!(taken(Some(bound)) + bound as usize <= taken(None));
    }
}
