//! The API's socket: a file that only its owner can use, and that goes when the process ends.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// Connections that may wait to be taken.
const BACKLOG: i32 = 16;

/// Why a socket was not made. The text is a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "{path:?} is the socket of another process that is running: stop that one first, or give \
         --api-socket another path", path = .0.display()
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error(
        "{path:?} exists and is not a socket: give --api-socket another path", path = .0.display()
    )]
    NotASocket(PathBuf),
    /// The directory it should be in does not exist.
    #[error(
        "there is no directory for {path:?}: create it first, or give --api-socket another path",
        path = .0.display()
    )]
    NoDirectory(PathBuf),
    /// The kernel has no room for such a path.
    #[error(
        "{path:?} is too long for a socket: give --api-socket a path of at most 107 bytes",
        path = .0.display()
    )]
    TooLong(PathBuf),
    /// Anything else.
    #[error(
        "the socket {path:?} cannot be made: {error}; give --api-socket another path",
        path = path.display()
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// A listening socket with a file, which is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file.
    identity: (u64, u64),
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

impl Socket {
    /// Makes the socket at `path`, with mode 0600 from its first moment on. What a process that is
    /// gone left there is replaced.
    pub(super) fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                BindError::NoDirectory(path.into())
            }
            _ => BindError::Io {
                path: path.into(),
                error,
            },
        };
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::TooLong(path.into()))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Held while we look and bind, so that of two that start at a time none takes the other's
        // socket for a dead one's. Not every file system has locks.
        let directory = File::open(directory).map_err(io)?;
        let _ = directory.lock();
        Self::remove_stale(path)?;

        let errno = |error: rustix::io::Errno| io(error.into());
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(errno)?;
        // The file gets the mode of the socket it is made for.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(errno)?;
        rustix::net::bind(&socket, &address).map_err(errno)?;
        let found = fs::symlink_metadata(path).map_err(io)?;
        let socket = Self {
            listener: socket.into(),
            path: path.into(),
            identity: identity(&found),
        };
        rustix::net::listen(&socket.listener, BACKLOG).map_err(errno)?;
        Ok(socket)
    }

    /// Removes the socket of a process that is gone.
    fn remove_stale(path: &Path) -> Result<(), BindError> {
        let io = |error| BindError::Io {
            path: path.into(),
            error,
        };
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            // Where there is no directory, binding says so.
            Err(_) => return Ok(()),
        };
        if !found.file_type().is_socket() {
            return Err(BindError::NotASocket(path.into()));
        }
        match UnixStream::connect(path) {
            Ok(_) => Err(BindError::InUse(path.into())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(io)
            }
            // Its queue is full, so there is somebody.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(BindError::InUse(path.into()))
            }
            Err(error) => Err(io(error)),
        }
    }

    /// Another descriptor of the socket.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Only our own file: somebody may have removed it and made another one.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_the_owner_may_use_it_and_it_goes_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        let socket = Socket::bind(&path).unwrap();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_one_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the file");
        let socket = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::InUse(_)), "{error}");
        UnixStream::connect(&path).unwrap();

        // Another one in its place is left alone at the end.
        fs::remove_file(&path).unwrap();
        let other = Socket::bind(&path).unwrap();
        drop(socket);
        UnixStream::connect(&path).unwrap();
        drop(other);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_wrong_with_the_path_is_said_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let message = |path: &Path| {
            let text = Socket::bind(path).unwrap_err().to_string();
            assert!(!text.contains('\n'), "{text}");
            text
        };
        assert!(message(&file).contains("not a socket"));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
        assert!(message(dir.path()).contains("not a socket"));
        assert!(message(&dir.path().join("no/api")).contains("no directory"));
        assert!(message(&file.join("api")).contains("no directory"));
        let long = dir.path().join("x".repeat(120));
        assert!(message(&long).contains("too long"));
    }
}
