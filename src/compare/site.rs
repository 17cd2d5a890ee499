//! The site that is served for a comparison: generated files of known sizes and known bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tempfile::TempDir;
use twox_hash::XxHash3_64;

use super::load::Target;
use super::schedule::COLD_SIZE;

/// Files that are asked for cold, each once per run.
const COLD_FILES: usize = 128;
/// Bytes that are made up; further ones differ in their number only.
const PAGE: usize = 4096;

/// A folder of generated files. It goes when it is dropped.
#[derive(Debug)]
pub struct Site {
    dir: TempDir,
    root: PathBuf,
    /// Hashes of the files, by size.
    files: Vec<(u64, u64)>,
    /// Hashes of the cold ones.
    cold: Vec<u64>,
}

impl Site {
    /// Generates a file of each size, and the cold ones if they are wanted.
    ///
    /// # Errors
    /// What writing them says.
    pub fn generate(sizes: &[u64], cold: bool) -> Result<Site, String> {
        let cannot = |error: io::Error| {
            format!("cannot write the site to be served: {error}; see that TMPDIR has room")
        };
        let dir = TempDir::with_prefix("ringserve-compare-").map_err(cannot)?;
        let root = dir.path().join("site");
        fs::create_dir(&root).map_err(cannot)?;
        let mut site = Site { dir, root, files: Vec::new(), cold: Vec::new() };
        for &size in sizes {
            let hash = write(&site.root.join(name(size)), size, size).map_err(cannot)?;
            site.files.push((size, hash));
        }
        // One more than is asked for; see `chill`.
        for number in 0..if cold { COLD_FILES + 1 } else { 0 } {
            let path = site.root.join(cold_name(number));
            let hash = write(&path, COLD_SIZE, number as u64).map_err(cannot)?;
            // Only what is on the disk can be dropped from memory.
            File::open(&path).and_then(|file| file.sync_all()).map_err(cannot)?;
            site.cold.push(hash);
        }
        Ok(site)
    }

    /// The folder to serve.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder beside it, for what is not to be served.
    pub fn outside(&self) -> &Path {
        self.dir.path()
    }

    /// What to ask for to get a file of that size.
    pub fn target(&self, size: u64, keep_alive: bool) -> Target {
        let (_, hash) = self.files.iter().find(|(other, _)| *other == size).expect("it was generated");
        let request = request("127.0.0.1", &format!("/{}", name(size)), keep_alive);
        Target { request, length: size, hash: Some(*hash) }
    }

    /// What to ask for to get each cold file once.
    pub fn cold_targets(&self) -> impl Iterator<Item = Target> {
        self.cold.iter().take(COLD_FILES).enumerate().map(|(number, hash)| Target {
            request: request("127.0.0.1", &format!("/{}", cold_name(number)), true),
            length: COLD_SIZE,
            hash: Some(*hash),
        })
    }

    /// Drops the cold files from the page cache; says whether that works in this file system. To look is to
    /// have the kernel read ahead, so only the last of them is looked at, for which nobody asks.
    ///
    /// # Errors
    /// What opening them says.
    pub fn chill(&self) -> io::Result<bool> {
        let mut last = None;
        for number in 0..self.cold.len() {
            let file = File::open(self.root.join(cold_name(number)))?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
            last = Some(file);
        }
        let Some(last) = last else { return Ok(true) };
        let mut byte = [0];
        let looked = preadv2(&last, &mut [io::IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT);
        Ok(looked == Err(Errno::AGAIN))
    }
}

/// A request, to the last byte.
pub fn request(host: &str, path: &str, keep_alive: bool) -> Vec<u8> {
    let close = if keep_alive { "" } else { "Connection: close\r\n" };
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{close}\r\n").into_bytes()
}

fn name(size: u64) -> String {
    format!("{size}.bin")
}

fn cold_name(number: usize) -> String {
    format!("cold-{number}.bin")
}

/// Writes bytes that no other file has, and no two pages of this one; says their hash.
fn write(path: &Path, size: u64, seed: u64) -> io::Result<u64> {
    let words = (0..PAGE as u64 / 8)
        .map(|word| XxHash3_64::oneshot_with_seed(seed, &word.to_le_bytes()).to_le_bytes());
    let pattern: Vec<u8> = words.flatten().collect();
    let mut bytes = Vec::with_capacity(size as usize);
    for page in 0..size.div_ceil(PAGE as u64) {
        bytes.extend_from_slice(&page.to_le_bytes());
        bytes.extend_from_slice(&pattern[8..]);
    }
    bytes.truncate(size as usize);
    File::create_new(path)?.write_all(&bytes)?;
    Ok(XxHash3_64::oneshot(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_sizes_and_hashes() {
        let site = Site::generate(&[0, 1, 1000], false).unwrap();
        for size in [0, 1, 1000] {
            let target = site.target(size, true);
            let bytes = fs::read(site.root().join(name(size))).unwrap();
            assert_eq!((bytes.len() as u64, Some(XxHash3_64::oneshot(&bytes))), (size, target.hash));
        }
        assert!(site.target(1, false).request.ends_with(b"close\r\n\r\n"));
        assert_eq!(site.cold_targets().count(), 0);
        assert!(site.chill().unwrap());
    }
}
