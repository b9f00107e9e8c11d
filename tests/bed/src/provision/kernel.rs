//! Debian's kernels, unpacked: the image, and modules with all that they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::busybox;
use super::debian::{self, Release, Wanted};
use super::l1_kernel;
use crate::error::{AtPath, Error, Result};

/// A series of kernels that Debian keeps up to date; the version is what its suite holds when it
/// is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Series {
    /// 6.1, of Debian 12.
    Linux6_1,
    /// 6.12, of Debian 13; also L1's own kernel.
    Linux6_12,
    /// 7.x, of Debian 13's backports.
    Linux7,
}

impl Series {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::Linux6_1, Self::Linux6_12, Self::Linux7];

    /// A short name that is good for files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux6_1 => "linux-6.1",
            Self::Linux6_12 => "linux-6.12",
            Self::Linux7 => "linux-7",
        }
    }
}

/// An unpacked Debian kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    image: PathBuf,
    /// `lib/modules/VERSION`.
    modules: PathBuf,
}

/// A module that is ready for `insmod`.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name as the kernel shows it, with underscores.
    pub name: String,
    /// The ELF file, not compressed.
    pub bytes: Vec<u8>,
}

impl Module {
    /// The module in the file `path`, which may be compressed by xz.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.to_str().and_then(module_name);
        let name = name.ok_or_else(|| {
            Error::Setup(format!(
                "{} is not a kernel module by its name: give a .ko or .ko.xz file",
                path.display()
            ))
        })?;
        let bytes = read_module(path)?;
        Ok(Self { name, bytes })
    }
}

impl Kernel {
    /// The current kernel of `series`, fetched if missing. 6.12 is the one of `VMBUS_L1_KERNEL`
    /// where that is set.
    pub fn get(series: Series) -> Result<Self> {
        let unpacked = match series {
            Series::Linux6_1 => debian::bundle_of(
                Release::Bookworm,
                "kernel-6.1-1",
                Wanted::Kernel("linux-image-cloud-amd64"),
            )?,
            Series::Linux6_12 => return l1_kernel::get(),
            Series::Linux7 => debian::bundle(
                "kernel-7-1",
                Wanted::Kernel("linux-image-cloud-amd64/trixie-backports"),
            )?,
        };
        Self::unpacked(&unpacked)
    }

    /// The kernel in the directory of its unpacked packages.
    pub fn unpacked(dir: &Path) -> Result<Self> {
        for modules in ["usr/lib/modules", "lib/modules"] {
            for entry in fs::read_dir(dir.join(modules))
                .into_iter()
                .flatten()
                .flatten()
            {
                let modules = entry.path();
                let version = entry.file_name();
                let boot = format!("vmlinuz-{}", version.display());
                // Debian 14's packages keep the image beside the modules.
                let images = [dir.join("boot").join(boot), modules.join("vmlinuz")];
                let image = images.into_iter().find(|image| image.is_file());
                if let (Some(image), true) = (image, modules.join("kernel").is_dir()) {
                    return Ok(Self { image, modules });
                }
            }
        }
        Err(Error::Setup(format!(
            "{} is not an unpacked linux-image package: it has no kernel with lib/modules/VERSION",
            dir.display()
        )))
    }

    /// The bzImage.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Its version as `uname -r` prints it.
    pub fn version(&self) -> String {
        let name = self.modules.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The version of the Debian packages that it was unpacked from.
    pub(crate) fn package_version(&self) -> Result<String> {
        let mut lists = self.modules.ancestors().map(|dir| dir.join("packages.txt"));
        let list = lists.find(|it| it.is_file());
        let text = match &list {
            Some(path) => fs::read_to_string(path).at(path)?,
            None => String::new(),
        };
        let suffix = format!("-{}", self.version());
        let version = text.lines().find_map(|line| {
            let (package, rest) = line.split_once(' ')?;
            package.ends_with(&suffix).then(|| rest.split(' ').next())?
        });
        version.map(str::to_owned).ok_or_else(|| {
            Error::Setup(format!(
                "{} does not say which Debian packages it is of",
                self.modules.display()
            ))
        })
    }

    /// The named modules and those they depend on, each after what it needs. A module that is
    /// built in is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut loading = Loading {
            files: module_files(&self.modules.join("kernel"))?,
            builtin: self.builtin()?,
            begun: BTreeSet::new(),
            modules: Vec::new(),
        };
        for name in names {
            loading.add(name, &self.modules)?;
        }
        Ok(loading.modules)
    }

    /// The lists that Debian keeps beside the modules and `depmod` reads, by file name.
    pub(crate) fn lists(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let mut lists = Vec::new();
        for name in [
            "modules.order",
            "modules.builtin",
            "modules.builtin.modinfo",
        ] {
            let path = self.modules.join(name);
            lists.push((name, fs::read(&path).at(&path)?));
        }
        Ok(lists)
    }

    fn builtin(&self) -> Result<BTreeSet<String>> {
        let path = self.modules.join("modules.builtin");
        let list = fs::read_to_string(&path).at(&path)?;
        Ok(list.lines().filter_map(module_name).collect())
    }
}

/// Modules being put in order.
struct Loading {
    files: Vec<(String, PathBuf)>,
    builtin: BTreeSet<String>,
    begun: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Loading {
    fn add(&mut self, name: &str, kernel: &Path) -> Result<()> {
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || !self.begun.insert(name.clone()) {
            return Ok(());
        }
        let file = self.files.iter().find(|(found, _)| *found == name);
        let (_, file) =
            file.ok_or_else(|| Error::Setup(format!("{} has no module {name}", kernel.display())))?;
        let bytes = read_module(file)?;
        for needed in depends(&bytes) {
            self.add(&needed, kernel)?;
        }
        self.modules.push(Module { name, bytes });
        Ok(())
    }
}

/// All module files below `dir`, by name.
fn module_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).at(&dir)? {
            let path = entry.at(&dir)?.path();
            if path.is_dir() {
                open.push(path);
            } else if let Some(name) = path.to_str().and_then(module_name) {
                files.push((name, path));
            }
        }
    }
    Ok(files)
}

/// The name of the module in file `path`: `hyperv_keyboard` of `…/hyperv-keyboard.ko.xz`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let name = file
        .strip_suffix(".ko")
        .or_else(|| file.strip_suffix(".ko.xz"))?;
    Some(name.replace('-', "_"))
}

/// The names after `depends=` in the module's own description, a list of strings that end with 0.
fn depends(module: &[u8]) -> Vec<String> {
    const TAG: &[u8] = b"\0depends=";
    let found = module.windows(TAG.len()).position(|it| it == TAG);
    let list = found.map_or(&[][..], |at| &module[at + TAG.len()..]);
    let end = list.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&list[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The contents of a module file, decompressed where it is compressed.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).at(path);
    }
    // busybox brings the decompressor; it runs here as well as in L1.
    let output = Command::new(busybox()?)
        .args(["xz", "-dc"])
        .arg(path)
        .output()
        .at(path)?;
    if !output.status.success() || output.stdout.is_empty() {
        return Err(Error::Setup(format!(
            "the kernel module {} can't be read: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel directory with these modules: file below `kernel/`, and its `depends=`.
    fn kernel(dir: &Path, builtin: &str, modules: &[(&str, &str)]) -> Kernel {
        let version = dir.join("usr/lib/modules/7.0-cloud");
        for (file, depends) in modules {
            let path = version.join("kernel").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(
                path,
                format!("ELF\0license=GPL\0depends={depends}\0name=x\0"),
            )
            .unwrap();
        }
        fs::write(version.join("vmlinuz"), "image").unwrap();
        fs::write(version.join("modules.builtin"), builtin).unwrap();
        Kernel::unpacked(dir).unwrap()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = kernel(
            dir.path(),
            "kernel/drivers/hv/hv_vmbus.ko\n",
            &[
                ("scsi/hv_storvsc.ko", "scsi_mod,scsi-transport-fc,hv_vmbus"),
                ("scsi/scsi_mod.ko", "scsi_common"),
                ("scsi/scsi_common.ko", ""),
                ("scsi/scsi-transport-fc.ko", "scsi_mod"),
                ("scsi/sd_mod.ko", "scsi_mod"),
            ],
        );
        assert_eq!(kernel.version(), "7.0-cloud");
        let modules = kernel
            .modules(&["hv_storvsc", "sd-mod", "hv_vmbus"])
            .unwrap();
        let names: Vec<&str> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "scsi_common",
                "scsi_mod",
                "scsi_transport_fc",
                "hv_storvsc",
                "sd_mod"
            ]
        );
        let missing = kernel.modules(&["e1000"]).unwrap_err();
        assert!(missing.to_string().contains("no module e1000"));
    }

    #[test]
    fn a_directory_without_a_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lib/modules/6.1/kernel")).unwrap();
        assert!(Kernel::unpacked(dir.path()).is_err());
    }
}
