//! Disks and DVD drives as they are asked for: opened, and then put at a LUN.

use std::path::PathBuf;

use crate::api::Error;
use crate::api::model::{DiskConfig, DiskType};
use crate::storage::{self, AttachError, BlockSize, ControllerHandle, Format, Medium, OpenError};

/// A disk that is open and not yet attached.
pub struct OpenDisk {
    pub(super) config: DiskConfig,
    pub(super) unit: OpenUnit,
}

/// What becomes a logical unit.
pub(super) enum OpenUnit {
    Disk(storage::Disk, What),
    Dvd(Option<Medium>),
}

impl OpenUnit {
    /// Puts it at a LUN.
    pub(super) fn attach(self, handle: &ControllerHandle, lun: u8) -> Result<What, AttachError> {
        match self {
            Self::Disk(disk, what) => handle.attach(lun, disk).map(|()| what),
            Self::Dvd(medium) => handle.attach_drive(lun, medium).map(|()| What::Dvd),
        }
    }
}

impl OpenDisk {
    /// Opens the image.
    ///
    /// # Errors
    /// Why not.
    pub fn open(config: DiskConfig) -> Result<Self, Error> {
        let failed = |error: OpenError| Error::BadRequest(error.to_string());
        let unit = match (config.kind, &config.path) {
            (DiskType::Disk, Some(path)) => {
                let block_size = match config.block_size {
                    None => BlockSize::default(),
                    Some(bytes) => BlockSize::from_bytes(bytes).ok_or_else(|| {
                        Error::BadRequest(format!(
                            "blocks of {bytes} bytes cannot be had: use 512 or 4096"
                        ))
                    })?,
                };
                let format = config.format.unwrap_or_else(|| Format::of_name(path));
                let (readonly, backing_files) = (config.readonly, config.backing_files);
                let disk = storage::Disk::open(path, format, readonly, backing_files);
                let disk = disk.map_err(failed)?.with_block_size(block_size);
                let disk = match &config.serial {
                    Some(serial) => disk.with_serial(serial),
                    None => disk,
                };
                OpenUnit::Disk(
                    disk,
                    What::Disk {
                        path: path.clone(),
                        format,
                        readonly,
                        block_size,
                    },
                )
            }
            (DiskType::Disk, None) => {
                return Err(Error::BadRequest("the disk's path is missing".into()));
            }
            (DiskType::Dvd, path) => {
                if !matches!(config.format, None | Some(Format::Raw))
                    || config.backing_files
                    || config.block_size.is_some()
                    || config.serial.is_some()
                {
                    return Err(Error::BadRequest(
                        "the image of a DVD is raw: leave format, backing_files, block-size and \
                         serial away"
                            .into(),
                    ));
                }
                let medium = path.as_deref().map(Medium::open).transpose();
                OpenUnit::Dvd(medium.map_err(failed)?)
            }
        };
        Ok(Self { config, unit })
    }
}

/// What is attached.
pub(super) enum What {
    Disk {
        path: PathBuf,
        format: Format,
        readonly: bool,
        block_size: BlockSize,
    },
    /// Its medium is the drive's to tell: the guest may have ejected it.
    Dvd,
}
