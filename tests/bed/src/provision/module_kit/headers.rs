//! The headers of Debian's Rust-enabled kernels, with what Debian leaves out of them: the metadata of the
//! kernel's own crates, without which nothing in Rust can be built for a kernel.
//!
//! The metadata is made anew, from the source of exactly that kernel, with exactly its compiler. That it
//! fits is not believed but compared: every symbol of the crates carries a hash of what it was made of.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use super::super::apt::{Apt, Package, output_of};
use super::super::debian::{Release, download};
use super::super::kernel::{Kernel, Series};
use super::tools::Tools;
use super::{Name, run};
use crate::cache::Cache;
use crate::error::{AtPath, Error, Result};
use crate::linux_module::KernelDir;
use crate::progress::Step;

/// Parts of the source that nothing is made of here; most of its bytes.
const UNREAD: [&str; 7] = [
    "Documentation/*/*",
    "drivers/*.c",
    "drivers/gpu/drm/amd/include/*",
    "fs/*.c",
    "net/*.c",
    "sound/*.c",
    "tools/testing/*",
];

/// What is kept of a prepared build directory, by folder and ending of the name.
const METADATA: [(&str, &str); 4] = [
    ("rust", ".rmeta"),
    ("rust", ".so"),
    ("rust/kernel", ".rs"),
    ("scripts", "target.json"),
];

/// The build directory for modules of the kernel `name`; made if missing.
pub(super) fn get(tools: &Tools, name: &Name) -> Result<PathBuf> {
    let version = version_in_the_bed(name)?;
    let bundle = format!(
        "module-headers-1-{}{}",
        name.release(),
        version
            .as_ref()
            .map_or_else(String::new, |it| format!("_{}", it.replace('~', "-")))
    );
    let cache = Cache::open()?;
    let dir = cache.bundle_or(&bundle, |dir| {
        let apt = Apt::get(&cache, Release::Trixie)?;
        let packages = packages(apt, name, version.as_deref())?;
        let (source, headers): (Vec<_>, Vec<_>) = packages
            .into_iter()
            .partition(|it| it.name().starts_with("linux-source-"));
        let list = fetch(
            apt,
            &format!("headers of {}", name.release()),
            &headers,
            dir,
        )?;
        // Before most of the bytes.
        let kernel =
            KernelDir::with_config(&dir.join(build_dir(name)), &format!("the kernel {name}"))?;
        kernel.check_compiler(&tools.rustc_version()?)?;
        let list = list + &fetch(apt, &format!("source of {}", name.release()), &source, dir)?;
        fs::write(dir.join("packages.txt"), list).at(dir)?;
        prepare(tools, name, &kernel, dir)
    })?;
    Ok(dir.join(build_dir(name)))
}

/// Where the headers' package has the build directory.
fn build_dir(name: &Name) -> String {
    format!("usr/src/linux-headers-{}", name.release())
}

/// The Debian version of the kernel `name` where the bed's own is of the same source.
fn version_in_the_bed(name: &Name) -> Result<Option<String>> {
    let kernel = Kernel::get(Series::Linux7)?;
    let same = Name::parse(&kernel.version()).is_ok_and(|it| it.source() == name.source());
    Ok(if same {
        Some(kernel.package_version()?)
    } else {
        None
    })
}

/// The headers' packages and the source's, all of one version: `version`, else the newest.
fn packages(apt: &Apt, name: &Name, version: Option<&str>) -> Result<Vec<Package>> {
    let names = [
        format!("linux-headers-{}", name.release()),
        format!("linux-headers-{}-common", name.source()),
        format!("linux-kbuild-{}", name.source()),
        format!("linux-source-{}", name.series()),
    ];
    let mut version = version.map(str::to_owned);
    for package in &names {
        let versions = apt.versions(package)?;
        let found = match &version {
            Some(version) => versions.contains(version),
            None => !versions.is_empty(),
        };
        if !found {
            return Err(gone(package, version.as_deref(), name));
        }
        version = version.or_else(|| versions.into_iter().next());
    }
    let version = version.unwrap_or_default();
    let exact: Vec<String> = names.iter().map(|it| format!("{it}={version}")).collect();
    apt.exactly(&exact.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What to do where the archive has moved on.
fn gone(package: &str, version: Option<&str>, name: &Name) -> Error {
    let version = version.map_or_else(String::new, |it| format!(" {it}"));
    Error::Setup(format!(
        "Debian's archive has no {package}{version}, which modules for the kernel {} are built with: take a \
         kernel that it has (`cargo xtask provision` fetches the current one where the cache's `bundles/kernel-7-1` \
         is deleted), or set VMBUS_MIRROR to a mirror that keeps old packages",
        name.release()
    ))
}

/// Fetches `packages` and unpacks them into `dir`; a list of them.
fn fetch(apt: &Apt, title: &str, packages: &[Package], dir: &Path) -> Result<String> {
    download(apt, title, packages, dir, |_, file| {
        let mut unpack = Command::new("dpkg-deb");
        output_of(unpack.arg("-x").arg(file).arg(dir)).map(drop)
    })
}

/// Makes the metadata and puts it among the headers in `dir`.
fn prepare(tools: &Tools, name: &Name, kernel: &KernelDir, dir: &Path) -> Result<()> {
    let headers = dir.join(build_dir(name));
    relocate(&headers, name)?;
    let title = format!(
        "making Rust metadata for {} (once, some minutes)",
        name.release()
    );
    let step = Step::begin(title, 0);
    let work = dir.join("work");
    let source = work.join("source");
    let build = work.join("build");
    for dir in [&source, &build] {
        fs::create_dir_all(dir).at(dir)?;
    }
    step.say("unpacking the source");
    let archive = dir.join(format!("usr/src/linux-source-{}.tar.xz", name.series()));
    let mut unpack = tools.command(&[dir], "tar");
    unpack
        .args(["--no-same-owner", "--strip-components=1", "-C"])
        .arg(&source);
    unpack.args(UNREAD.map(|it| format!("--exclude=linux-source-{}/{it}", name.series())));
    unpack.arg("-xf").arg(&archive);
    run(&step, unpack)?;

    for file in [".config", "Module.symvers"] {
        fs::copy(headers.join(file), build.join(file)).at(file)?;
    }
    let make = |target: &str| {
        let mut make = tools.command(&[dir], "make");
        make.arg("-C")
            .arg(&source)
            .arg(format!("O={}", build.display()));
        make.args(["ARCH=x86", "CROSS_COMPILE=x86_64-linux-gnu-"]);
        make.arg("CC=x86_64-linux-gnu-gcc-14");
        make.arg(format!("KERNELRELEASE={}", name.release()));
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        make.arg(format!("-j{jobs}")).arg(target);
        make
    };
    run(&step, make("olddefconfig"))?;
    // A tool that is missing makes the configuration lose Rust without a word.
    let configured = KernelDir::with_config(&build, "the kernel as it is configured here")?;
    configured.check_compiler(&tools.rustc_version()?)?;
    run(&step, make("modules_prepare"))?;

    step.say("comparing the symbols");
    compare(kernel, &build)?;
    for (folder, ending) in METADATA {
        graft(&build.join(folder), &headers.join(folder), ending)?;
    }
    fs::remove_dir_all(&work).at(&work)?;
    fs::remove_file(&archive).at(&archive)?;
    step.done("");
    Ok(())
}

/// Makes the headers' makefile find itself: they do not lie where their package puts them.
fn relocate(headers: &Path, name: &Name) -> Result<()> {
    let text = format!(
        "KBUILD_OUTPUT := $(patsubst %/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))\n\
         include $(KBUILD_OUTPUT)/../linux-headers-{}-common/Makefile\n",
        name.source()
    );
    let path = headers.join("Makefile");
    fs::write(&path, text).at(&path)
}

/// Whether the crates made in `build` are those of the kernel: by the symbols, in whose names their
/// compiler and all they are made of have left a hash.
fn compare(kernel: &KernelDir, build: &Path) -> Result<()> {
    let theirs: BTreeSet<String> = kernel
        .symbols()?
        .into_iter()
        .filter(|it| it.starts_with("_R") || it.starts_with("rust_"))
        .collect();
    let mut ours = BTreeSet::new();
    let rust = build.join("rust");
    for entry in fs::read_dir(&rust).at(&rust)? {
        let path = entry.at(&rust)?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with("exports_") && file.ends_with("_generated.h") {
            let text = fs::read_to_string(&path).at(&path)?;
            ours.extend(exported(&text).map(str::to_owned));
        }
    }
    let differ = theirs.symmetric_difference(&ours).next();
    match differ {
        None if !ours.is_empty() => Ok(()),
        _ => Err(Error::Setup(format!(
            "the Rust symbols made from the source of {} are not its own ({} there, {} here, the first \
             that differs: {}): its packages do not fit together, try again later or set VMBUS_MIRROR to another \
             mirror",
            kernel.name(),
            theirs.len(),
            ours.len(),
            differ.map_or("none", |it| it.as_str())
        ))),
    }
}

/// The symbols in a list of `EXPORT_SYMBOL_RUST_GPL(symbol);`.
fn exported(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.split_once('(')?.1.split_once(')'))
        .map(|(symbol, _)| symbol)
}

/// Copies the files of `from` whose names end so to `to`.
fn graft(from: &Path, to: &Path, ending: &str) -> Result<()> {
    fs::create_dir_all(to).at(to)?;
    for entry in fs::read_dir(from).at(from)? {
        let entry = entry.at(from)?;
        if entry.file_name().to_string_lossy().ends_with(ending) {
            fs::copy(entry.path(), to.join(entry.file_name())).at(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exported_symbols_are_read() {
        let text = "EXPORT_SYMBOL_RUST_GPL(_RNvCs1_6kernel3abc);\n\nEXPORT_SYMBOL_RUST_GPL(rust_helper_x);\n";
        let symbols: Vec<&str> = exported(text).collect();
        assert_eq!(symbols, ["_RNvCs1_6kernel3abc", "rust_helper_x"]);
    }

    #[test]
    fn a_package_that_is_gone_is_named() {
        let name = Name::parse("7.3.4+deb13-cloud-amd64").unwrap();
        let text = gone("linux-source-7.3", Some("7.3.4-1"), &name).to_string();
        assert!(text.contains("no linux-source-7.3 7.3.4-1"), "{text}");
        assert!(text.contains("VMBUS_MIRROR"), "{text}");
    }
}
