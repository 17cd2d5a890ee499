//! The folder that is served, opened. Another may come to have its name while files of it are being served,
//! as when a deployment points a link elsewhere or builds the folder anew.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};

use super::directory::{self, Directories};

/// A folder, beneath which all names are looked for (`openat2(2)`).
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
    /// Device and inode.
    identity: (u64, u64),
    is_local: bool,
    directories: Directories,
}

impl Root {
    /// Opens it.
    ///
    /// # Errors
    /// What `open(2)` says, `ENOTDIR` for a file among it.
    pub(super) fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty())?;
        let stat = fstat(&folder)?;
        let is_local = directory::is_trusted(&folder);
        Ok(Root {
            folder,
            identity: (stat.st_dev, stat.st_ino),
            is_local,
            directories: Directories::default(),
        })
    }

    /// Whether it is the one of that name.
    ///
    /// # Errors
    /// What `stat(2)` says.
    pub(super) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let stat = stat(path)?;
        Ok(self.identity == (stat.st_dev, stat.st_ino))
    }

    /// What directories beneath it look like at the moment.
    pub(super) fn directories(&self) -> &Directories {
        &self.directories
    }

    /// The same in a file system that is not of this machine.
    #[cfg(test)]
    pub(super) fn elsewhere(self) -> Root {
        Root { is_local: false, ..self }
    }

    /// Whether it lies in a file system of this machine. Of others, such as one of a network or of user space
    /// (FUSE), even a call that is not to wait may have to.
    pub fn is_local(&self) -> bool {
        self.is_local
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
