//! Debian packages, fetched, checked and unpacked into a bundle of the cache.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

pub(crate) use super::apt::Release;
use super::apt::{Apt, Package, output_of};
use crate::cache::Cache;
use crate::error::{AtPath, Error, Result};
use crate::progress::Step;

/// Parts of packages that nothing here reads.
const UNWANTED: [&str; 4] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
];

/// Packages per download: one apt for each is slow, one for all shows no progress.
const BATCH: usize = 10;

/// Which packages make a bundle.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// These packages with everything they depend on.
    Closure(&'a [&'a str]),
    /// Exactly these, `name` or `name=version`.
    Exactly(&'a [&'a str]),
    /// The kernel that the named meta package (`name` or `name/suite`) stands for: its image and
    /// its modules, in one package or in several.
    Kernel(&'a str),
    /// The version of the named package that starts with the given text.
    Version(&'a str, &'a str),
}

/// The directory of bundle `name`, holding the unpacked `wanted` packages; fetched if missing.
///
/// The name belongs to the recipe: change the name when `wanted` changes.
pub fn bundle(name: &str, wanted: Wanted<'_>) -> Result<PathBuf> {
    bundle_of(Release::Trixie, name, wanted)
}

/// Like [`bundle`], with packages of another release.
pub(crate) fn bundle_of(release: Release, name: &str, wanted: Wanted<'_>) -> Result<PathBuf> {
    let cache = Cache::open()?;
    cache.bundle_or(name, |dir| {
        let apt = Apt::get(&cache, release)?;
        let packages = resolve(apt, wanted)?;
        fetch(apt, name, &packages, dir)
    })
}

fn resolve(apt: &Apt, wanted: Wanted<'_>) -> Result<Vec<Package>> {
    match wanted {
        Wanted::Closure(packages) => apt.closure(packages),
        Wanted::Exactly(packages) => apt.exactly(packages),
        Wanted::Kernel(meta) => {
            let parts = kernel_parts(apt, meta)?;
            apt.exactly(&parts.iter().map(String::as_str).collect::<Vec<_>>())
        }
        Wanted::Version(package, prefix) => {
            let versions = apt.versions(package)?;
            let version = versions.iter().find(|version| version.starts_with(prefix));
            let version = version.ok_or_else(|| {
                Error::Setup(format!(
                    "the package index has no `{package}` {prefix}, only {}",
                    if versions.is_empty() {
                        "none".into()
                    } else {
                        versions.join(", ")
                    }
                ))
            })?;
            apt.exactly(&[&format!("{package}={version}")])
        }
    }
}

/// The packages with files of the kernel that `meta` leads to.
fn kernel_parts(apt: &Apt, meta: &str) -> Result<Vec<String>> {
    const PARTS: [&str; 4] = [
        "linux-image-",
        "linux-binary-",
        "linux-modules-",
        "linux-base-",
    ];
    let mut parts = Vec::new();
    let mut open = vec![meta.to_owned()];
    while let Some(package) = open.pop() {
        for depends in apt.depends(&package)? {
            if PARTS.iter().any(|part| depends.starts_with(part)) && !parts.contains(&depends) {
                parts.push(depends.clone());
                open.push(depends);
            }
        }
    }
    if parts.is_empty() {
        return Err(Error::Setup(format!(
            "the package index has no kernel `{meta}`: set VMBUS_MIRROR to a mirror that has it"
        )));
    }
    Ok(parts)
}

/// Downloads, checks and unpacks `packages` into `dir`, with a list of what they were.
pub(super) fn fetch(apt: &Apt, title: &str, packages: &[Package], dir: &Path) -> Result<()> {
    let list = download(apt, title, packages, dir, |_, file| {
        output_of(Command::new("dpkg-deb").arg("-x").arg(file).arg(dir)).map(drop)
    })?;
    for unwanted in UNWANTED {
        let path = dir.join(unwanted);
        if path.is_dir() {
            fs::remove_dir_all(&path).at(&path)?;
        }
    }
    let path = dir.join("packages.txt");
    fs::write(&path, list).at(&path)
}

/// Downloads and checks `packages`, in a directory below `dir`, and has `each` take its file,
/// which is removed then. Returns a list of what they were.
pub(super) fn download(
    apt: &Apt,
    title: &str,
    packages: &[Package],
    dir: &Path,
    mut each: impl FnMut(&Package, &Path) -> Result<()>,
) -> Result<String> {
    let megabytes = packages.iter().map(|package| package.size).sum::<u64>() / 1_000_000;
    let title = format!(
        "fetching {title}, {megabytes} MB in {} packages",
        packages.len()
    );
    let step = Step::begin(title, packages.len() as u64);
    let downloads = dir.join(".downloads");
    fs::create_dir(&downloads).at(&downloads)?;
    let mut list = String::new();
    for batch in packages.chunks(BATCH) {
        step.say(
            batch
                .iter()
                .map(Package::name)
                .collect::<Vec<_>>()
                .join(", ")
                .as_str(),
        );
        apt.download(batch, &downloads)?;
        for package in batch {
            let file = downloads.join(&package.file);
            check(package, &file)?;
            each(package, &file)?;
            fs::remove_file(&file).at(&file)?;
            list.push_str(&format!(
                "{} {} {}\n",
                package.name(),
                package.version(),
                package.sha256
            ));
            step.advance(package.name());
        }
    }
    fs::remove_dir_all(&downloads).at(&downloads)?;
    step.done("");
    Ok(list)
}

/// Checks that a downloaded file is the package.
fn check(package: &Package, file: &Path) -> Result<()> {
    let sha256 = sha256_of(file)?;
    if sha256 == package.sha256 {
        return Ok(());
    }
    Err(Error::Setup(format!(
        "{} has SHA-256 {sha256}, the signed index says {}: the mirror or the way to it is \
         damaged, try again or set VMBUS_MIRROR to another",
        package.uri, package.sha256
    )))
}

/// The SHA-256 of a file, in lower-case hexadecimal.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).at(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at(path),
        }
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_a_known_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256_of(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
