//! What compiles modules for Debian's Rust-enabled kernels: the kernel's own compilers, and whatever its
//! build calls, as a root of their own that is entered without root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::super::apt::{Apt, output_of};
use super::super::debian::{self, Release};
use crate::cache::Cache;
use crate::error::{AtPath, Error, Result};

/// Compilers first: they have to be those of the suite, as the kernel was built with them.
const PACKAGES: [&str; 29] = [
    "rustc/trixie",
    "rust-src/trixie",
    "bindgen/trixie",
    "gcc-14",
    "bash",
    "bc",
    "bison",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "dwarves",
    "findutils",
    "flex",
    "grep",
    "gzip",
    "hostname",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
    "mawk",
    "perl",
    "python3-minimal",
    "sed",
    "tar",
    "xz-utils",
    "zstd",
];

/// The bundle's name, which belongs to [`PACKAGES`] and [`finish`].
const BUNDLE: &str = "module-tools-1";

/// Links that packages leave to their scripts, which do not run here.
const LINKS: [(&str, &str); 2] = [("mawk", "usr/bin/awk"), ("gcc-14", "usr/bin/gcc")];

/// Enters the tools' root; see there.
const ENTER: &str = include_str!("enter.sh");

/// The tools, unpacked.
#[derive(Debug, Clone)]
pub struct Tools {
    bundle: PathBuf,
    namespace: &'static [&'static str],
}

impl Tools {
    /// The cached tools, fetched if missing.
    pub(super) fn get() -> Result<Self> {
        let namespace = namespace()?;
        let cache = Cache::open()?;
        let bundle = cache.bundle_or(BUNDLE, |dir| {
            let apt = Apt::get(&cache, Release::Trixie)?;
            let packages = apt.closure(&PACKAGES)?;
            debian::fetch(apt, "the compilers of Debian's kernels", &packages, dir)?;
            finish(dir)
        })?;
        Ok(Self { bundle, namespace })
    }

    /// What `rustc --version` says.
    pub(super) fn rustc_version(&self) -> Result<String> {
        output_of(self.command(&[], "rustc").arg("--version")).map(|text| text.trim().to_owned())
    }

    /// `program` among the tools, with `paths` of outside at their own places, and nothing else of
    /// outside. What it writes there stays.
    pub fn command(&self, paths: &[&Path], program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(self.namespace);
        command.args(["sh", "-c", ENTER, "enter"]).arg(&self.bundle);
        command.args(paths).args(["--", program]);
        command
    }
}

/// Makes what the packages' scripts would have made, and removes what nothing reads: the compilers' own
/// sources, and libraries to link programs of one's own with.
fn finish(dir: &Path) -> Result<()> {
    for source in children(&dir.join("usr/src"), "")? {
        for unread in ["compiler", "src"].map(|it| source.join(it)) {
            if unread.is_dir() {
                fs::remove_dir_all(&unread).at(&unread)?;
            }
        }
    }
    for llvm in children(&dir.join("usr/lib"), "-19")? {
        let libraries = llvm.join("lib");
        if libraries.is_dir() {
            for archive in children(&libraries, ".a")? {
                fs::remove_file(&archive).at(&archive)?;
            }
        }
    }
    for (to, link) in LINKS {
        let link = dir.join(link);
        if fs::symlink_metadata(&link).is_err() {
            symlink(to, &link).at(&link)?;
        }
    }
    let root = dir.join("mnt");
    fs::create_dir_all(&root).at(&root)
}

/// What is in `dir` with names that end so.
fn children(dir: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let entry = entry.at(dir)?;
        if entry.file_name().to_string_lossy().ends_with(ending) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// How a mount namespace is had here, in which one is root: as anybody, where the machine allows user
/// namespaces, or as root.
const NAMESPACES: [&[&str]; 2] = [&["--mount", "--map-root-user"], &["--mount"]];

/// The options of `unshare` that work here.
fn namespace() -> Result<&'static [&'static str]> {
    static CHOSEN: OnceLock<Option<&'static [&'static str]>> = OnceLock::new();
    let works = |options: &&&[&str]| {
        let mut command = Command::new("unshare");
        command.args(**options).arg("true").stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let chosen = CHOSEN.get_or_init(|| NAMESPACES.iter().find(works).copied());
    chosen.ok_or_else(|| {
        Error::Setup(
            "modules are built in a root directory of their own, and this machine lets you have none: \
             allow user namespaces (`unshare --map-root-user --mount true` says why they are refused), \
             or do it as root"
                .into(),
        )
    })
}
