//! `cargo xtask module`: our modules for Linux, built for somebody's kernel by one command.

use std::path::PathBuf;

use bed::linux_module::{self, KernelDir, Modules};
use bed::provision::module_kit::{Flavour, Name, kernel_of_the_bed};
use clap::{Args, ValueEnum};

const HELP: &str = "\
Debian's kernel is built for with Debian's compilers and headers, which are fetched into the cache;
nothing is installed, and root is not needed. Without --release it is the kernel that the tests boot.

With --kernel-dir it is any kernel with CONFIG_RUST=y, built for with this machine's make, bindgen and
rustc, or what MAKE, BINDGEN and RUSTC name; rustc has to be the very one that built the kernel.";

/// Options of `cargo xtask module`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// For Debian's kernel of this release, as `uname -r` prints it there
    #[arg(long, value_name = "KERNELRELEASE", conflicts_with_all = ["flavour", "kernel_dir"])]
    release: Option<String>,

    /// For the Debian kernel that the tests boot, or its sister for any machine
    #[arg(
        long,
        value_enum,
        default_value = "cloud-amd64",
        conflicts_with = "kernel_dir"
    )]
    flavour: Kind,

    /// For the kernel of this build directory, such as /lib/modules/KERNELRELEASE/build
    #[arg(long, value_name = "DIR")]
    kernel_dir: Option<PathBuf>,

    /// Where the modules go [default: target/linux-module/KERNELRELEASE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Debian's kernels, by their names there.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// For any machine
    Amd64,
    /// For virtual machines
    CloudAmd64,
}

impl From<Kind> for Flavour {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Amd64 => Self::Amd64,
            Kind::CloudAmd64 => Self::CloudAmd64,
        }
    }
}

/// Builds the modules and says where they are.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let kernel = match (&options.kernel_dir, &options.release) {
        (Some(dir), _) => KernelDir::own(dir)?,
        (None, Some(release)) => KernelDir::of_debian(&Name::parse(release)?)?,
        (None, None) => KernelDir::of_debian(&kernel_of_the_bed(options.flavour.into())?)?,
    };
    let out = match &options.out {
        Some(out) => out.clone(),
        None => linux_module::out_dir(&kernel.release()?),
    };
    let modules = linux_module::build(&kernel, &out)?;
    tell(&modules);
    Ok(())
}

/// The modules for the kernel that the tests boot.
pub(crate) fn for_tests() -> anyhow::Result<()> {
    let kernel = KernelDir::of_debian(&kernel_of_the_bed(Flavour::CloudAmd64)?)?;
    let modules = linux_module::build(&kernel, &linux_module::out_dir(&kernel.release()?))?;
    println!("{}", good(&modules));
    Ok(())
}

fn good(modules: &Modules) -> String {
    format!(
        "{} modules for Linux {}, which has all {} Rust symbols that they need",
        modules.files.len(),
        modules.release,
        modules.rust_symbols
    )
}

fn tell(modules: &Modules) {
    println!("{}:", good(modules));
    for file in &modules.files {
        println!("  {}", file.display());
    }
    println!(
        "In a guest that runs this kernel, `insmod FILE` loads one. Copied to /lib/modules/{}/updates, and\n\
         after `depmod`, they are loaded when the host offers a device for them.",
        modules.release
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_are_named_as_debian_names_them() {
        for kind in Kind::value_variants() {
            let value = kind.to_possible_value();
            let name = value.as_ref().map_or("", |it| it.get_name());
            assert_eq!(name, Flavour::from(*kind).name());
        }
    }
}
