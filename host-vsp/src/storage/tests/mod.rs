//! The VSP against a guest played by hand.

mod blocks;
mod conversation;
mod dvd;
mod fdatasync;
mod guest;
mod hotplug;
mod lies;
mod target;
mod truths;

use std::path::PathBuf;

use super::backend::FaultyBackend;
use super::{Controller, RawFile};
use vmbus_proto::guid::Guid;

const INSTANCE: Guid = Guid::new(0x11223344, 0x5566, 0x7788, 0x99aa, 0xbbccddeeff00);

/// A disk image in a directory that goes with it.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    /// An image of `size` bytes, its first MiB filled so that each sector differs.
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let data: Vec<u8> = (0..size.min(1 << 20)).map(pattern).collect();
        std::fs::write(&path, data).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(size)
            .unwrap();
        Self { _dir: dir, path }
    }

    fn open(&self) -> RawFile {
        RawFile::open(&self.path, false).unwrap()
    }

    fn open_read_only(&self) -> RawFile {
        RawFile::open(&self.path, true).unwrap()
    }

    /// A controller with the image as LUN 0, and the handle that can make it fail.
    fn faulty(&self) -> (Controller, FaultyBackend) {
        let backend = FaultyBackend::new(self.open());
        (controller(backend.clone()), backend)
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

/// The byte that [`Image::new`] writes at `offset`.
fn pattern(offset: u64) -> u8 {
    ((offset / 512).wrapping_mul(7).wrapping_add(offset % 512)) as u8
}

fn controller(backend: impl super::Backend + 'static) -> Controller {
    let mut controller = Controller::new(INSTANCE).unwrap();
    controller.attach(0, backend).unwrap();
    controller
}
