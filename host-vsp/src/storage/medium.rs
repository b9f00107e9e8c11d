//! DVD drives of a controller, and what is put into them while a guest uses them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backend::{Backend, OpenError, RawFile};
use super::handle::{AttachError, ChangeError, ControllerHandle, wait_unused};
use super::identity::Identity;
use super::scsi::Drive;
use super::vsp::MAX_LUNS;

/// What can be put into a drive: an image of a CD or DVD with data, or a block device. It is only
/// read.
pub struct Medium {
    pub(super) path: PathBuf,
    pub(super) backend: Arc<dyn Backend>,
}

impl Medium {
    /// Opens the image at `path` and locks it as readers do.
    ///
    /// # Errors
    /// Why not.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let image = RawFile::open(path, true)?;
        let size = image.size();
        if size < vmbus_proto::scsi::SECTOR.into() {
            return Err(OpenError::NoSector {
                path: path.into(),
                size,
            });
        }
        Ok(Self {
            path: path.into(),
            backend: Arc::new(image),
        })
    }
}

impl ControllerHandle {
    /// Puts a drive at `lun`, with or without a medium.
    ///
    /// # Errors
    /// There is no such LUN, it is in use, or the guest does not know yet that it is not.
    pub fn attach_drive(&self, lun: u8, medium: Option<Medium>) -> Result<(), AttachError> {
        if lun >= MAX_LUNS {
            return Err(AttachError::NoSuchLun(lun));
        }
        let drive = Drive::new(medium, Identity::new(self.0.instance(), lun));
        if !self.0.target().insert_drive(lun, drive) {
            return Err(AttachError::InUse(lun));
        }
        self.0.set_changed();
        Ok(())
    }

    /// Takes the drive at `lun` away, with its medium.
    ///
    /// # Errors
    /// There is none, or it is gone and the guest still reads.
    pub fn detach_drive(&self, lun: u8) -> Result<(), ChangeError> {
        let drive = self.0.target().remove_drive(lun);
        let drive = drive.ok_or(ChangeError::NoDrive(lun))?;
        self.0.set_changed();
        let medium = drive.into_medium();
        medium.map_or(Ok(()), |medium| wait_unused(&medium.backend))
    }

    /// Puts `medium` into the drive at `lun`, in place of what is there, or takes that out. When
    /// this returns, the image that was there is free.
    ///
    /// # Errors
    /// There is no drive; the guest has locked the medium in, and without `force` is only asked to
    /// let go of it; or it is out and the guest still reads.
    pub fn change_medium(
        &self,
        lun: u8,
        medium: Option<Medium>,
        force: bool,
    ) -> Result<(), ChangeError> {
        let before = {
            let mut target = self.0.target();
            let drive = target.drive(lun).ok_or(ChangeError::NoDrive(lun))?;
            drive
                .change(medium, force)
                .map_err(|_| ChangeError::Locked)?
        };
        before.map_or(Ok(()), |before| wait_unused(&before.backend))
    }

    /// Image of the medium in the drive at `lun` and its bytes, where it has one: the guest may have
    /// ejected it.
    ///
    /// # Errors
    /// There is no drive.
    pub fn medium(&self, lun: u8) -> Result<Option<(PathBuf, u64)>, ChangeError> {
        let mut target = self.0.target();
        let drive = target.drive(lun).ok_or(ChangeError::NoDrive(lun))?;
        let medium = drive.medium();
        Ok(medium.map(|medium| (medium.path.clone(), medium.backend.size())))
    }
}
