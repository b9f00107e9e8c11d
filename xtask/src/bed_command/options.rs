//! The options of `cargo xtask bed`, and what can be wrong with them.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::disk::Disk;
use crate::place::Where;

const HELP: &str = "\
Exit status:
  that of the command in the guest (128+N where signal N ended it), and
  123   the guest panicked, was reset or powered off before the command had ended
  124   the time was up
  125   nothing was run, or the bed failed; one sentence on stderr says why
What the command prints comes to stdout and stderr as it does. Where the exit status is not 0, the
guest's console and its kernel's log follow on stderr.

The guest has the initial RAM disk's tools, else those of busybox; what it prints on ttyS0 is its
console, ttyS1 is taken. An oops ends it. docs/bed.md tells more.";

/// VMBus versions that guests can be held to.
const VERSIONS: [&str; 6] = ["4.0", "4.1", "5.0", "5.1", "5.2", "5.3"];

/// Options of `cargo xtask bed`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Your kernel: a 64-bit bzImage
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: PathBuf,

    /// Your initial RAM disk, a cpio archive, compressed or not; its own /init is not run
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,

    /// A module to load before the command; may be given several times, in order
    #[arg(long = "module", value_name = "FILE.ko")]
    pub(super) modules: Vec<PathBuf>,

    /// A disk: a raw image. What the guest writes is forgotten, and the file stays as it is, unless
    /// `,keep` follows; `,readonly` makes the disk so. May be given several times
    #[arg(long = "disk", value_name = "FILE[,keep|,readonly]")]
    pub(super) disks: Vec<Disk>,

    /// Run the command in the root file system on this disk of the guest, such as /dev/sda1; its
    /// own init is not run
    #[arg(long, value_name = "DEVICE")]
    pub(super) root: Option<String>,

    /// More for the kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(super) cmdline: String,

    /// Processors
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) cpus: u32,

    /// Memory, with a unit of M or G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = mebibytes)]
    pub(super) memory: u64,

    /// The highest version of VMBus that the guest may speak, by `hv_vmbus.max_version`
    #[arg(long, value_name = "VERSION", value_parser = VERSIONS)]
    pub(super) max_version: Option<String>,

    /// How long boot and command may take together
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    pub(super) timeout: u64,

    /// Where the guest runs
    #[arg(
        long = "where",
        value_enum,
        default_value = "auto",
        value_name = "PLACE"
    )]
    pub(super) place: Where,

    /// Write the guest's console to this file, whatever the exit status
    #[arg(long, value_name = "FILE")]
    pub(super) console: Option<PathBuf>,

    /// A line for the shell in the guest
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<String>,
}

impl Options {
    /// Looks at everything that is named before anything is made.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        check_kernel(&self.kernel)?;
        for path in self.initrd.iter().chain(&self.modules) {
            check_file(path)?;
        }
        for disk in &self.disks {
            disk.check()?;
        }
        ensure!(self.cpus > 0, "a guest needs a processor: change --cpus");
        let command = self.command.join(" ");
        ensure!(
            !command.trim().is_empty(),
            "the command is empty: give one after `--`"
        );
        Ok(())
    }

    /// The kernel's command line.
    pub(super) fn kernel_command_line(&self) -> String {
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 oops=panic rdinit={}",
            bed::guest_command::INIT
        );
        if let Some((major, minor)) = self
            .max_version
            .as_deref()
            .and_then(|it| it.split_once('.'))
        {
            // The wire's form: 16 bits each. The versions are a list of ours.
            line.push_str(&format!(" hv_vmbus.max_version=0x{major}000{minor}"));
        }
        if !self.cmdline.is_empty() {
            line.push(' ');
            line.push_str(&self.cmdline);
        }
        line
    }
}

fn check_file(path: &Path) -> anyhow::Result<()> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no file {}", path.display())
        }
        metadata => metadata.with_context(|| path.display().to_string())?,
    };
    ensure!(
        metadata.is_file() && metadata.len() > 0,
        "{} is not a file with something in it",
        path.display()
    );
    Ok(())
}

/// A bzImage has the boot sector's mark and the header's magic word behind it.
fn check_kernel(path: &Path) -> anyhow::Result<()> {
    const MARK: usize = 0x1fe;
    const MAGIC: usize = 0x202;
    check_file(path)?;
    let mut head = Vec::new();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.take(0x206).read_to_end(&mut head)?;
    ensure!(
        head.get(MARK..MARK + 2) == Some(&[0x55, 0xaa])
            && head.get(MAGIC..MAGIC + 4) == Some(b"HdrS"),
        "{} is not a bzImage: give the kernel's arch/x86/boot/bzImage",
        path.display()
    );
    Ok(())
}

/// Memory in MiB.
fn mebibytes(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'M' | 'm')) => (&text[..at], 1),
        Some((at, 'G' | 'g')) => (&text[..at], 1024),
        _ => (text, 0),
    };
    let number = digits
        .parse::<u64>()
        .ok()
        .and_then(|it| it.checked_mul(factor));
    number
        .filter(|it| (1..1 << 20).contains(it))
        .ok_or_else(|| "a size is a whole number with a unit, such as 512M or 4G".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, clap::Error> {
        Ok(Cli::try_parse_from(format!("bed {line}").split(' '))?.options)
    }

    #[test]
    fn a_limit_of_the_version_is_the_drivers_parameter() {
        let line = |text: &str| parse(text).unwrap().kernel_command_line();
        assert!(line("--kernel k --max-version 4.0 -- true").contains("max_version=0x40000"));
        assert!(line("--kernel k --max-version 5.3 -- true").contains("max_version=0x50003"));
        assert!(!line("--kernel k -- true").contains("max_version"));
        assert!(line("--kernel k --cmdline debug -- true").ends_with(" debug"));
    }

    #[test]
    fn wrong_options_are_refused() {
        for wrong in [
            "--kernel k",
            "-- true",
            "--kernel k --max-version 6.0 -- true",
            "--kernel k --memory 12 -- true",
            "--kernel k --memory 0M -- true",
            "--kernel k --timeout 0 -- true",
            "--kernel k --disk ,keep -- true",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_kernel_is_a_bzimage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        for bytes in [&b""[..], b"\x7fELF", &[0; 0x300]] {
            fs::write(&path, bytes).unwrap();
            assert!(check_kernel(&path).is_err());
        }
        let mut image = vec![0; 0x300];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&path, image).unwrap();
        check_kernel(&path).unwrap();
    }
}
