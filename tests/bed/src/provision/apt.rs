//! Private apts: each with its own configuration, state and sources, so that another suite's
//! signed index can be read without touching the machine's.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use crate::cache::Cache;
use crate::error::{AtPath, Error, Result};
use crate::progress::Step;

/// Which Debian packages come from. One private apt for each, since a package of one release must
/// not be completed with another release's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian 13: what the bed itself is made of.
    Trixie,
    /// Debian 12.
    Bookworm,
}

impl Release {
    /// Its suites; the first has priority over the backports.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Trixie => &["trixie", "trixie-backports"],
            Self::Bookworm => &["bookworm"],
        }
    }

    /// Where its apt lives in the cache.
    fn directory(self) -> &'static str {
        match self {
            Self::Trixie => "apt",
            Self::Bookworm => "apt-bookworm",
        }
    }
}

/// The keyring that Debian machines have.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Pauses before the second and third try of an index update: a mirror caught in the middle of
/// a sync fails one and is well again shortly after.
const RETRY_AFTER: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];

/// A package file as the signed index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// Where the mirror has it.
    pub(crate) uri: String,
    /// File name, `name_version_arch.deb`.
    pub(crate) file: String,
    /// Bytes.
    pub(crate) size: u64,
    /// Lower-case hexadecimal.
    pub(crate) sha256: String,
}

impl Package {
    /// Reads one line of `--print-uris`: `'uri' file size SHA256:digest`.
    fn parse(line: &str) -> Option<Self> {
        let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut words = rest.split(' ');
        let file = words.next()?.to_owned();
        let size = words.next()?.parse().ok()?;
        let sha256 = words.next()?.strip_prefix("SHA256:")?.to_owned();
        Some(Self {
            uri: uri.to_owned(),
            file,
            size,
            sha256,
        })
    }

    /// The package's name.
    pub(crate) fn name(&self) -> &str {
        self.file.split('_').next().unwrap_or(&self.file)
    }

    /// The version, with the file name's escapes undone.
    pub(crate) fn version(&self) -> String {
        self.file
            .split('_')
            .nth(1)
            .unwrap_or("")
            .replace("%3a", ":")
    }
}

/// A private apt whose index has been updated.
#[derive(Debug)]
pub(crate) struct Apt {
    release: Release,
    config: PathBuf,
}

impl Apt {
    /// The process's private apt for `release`; the first call updates the index. The cache's lock
    /// is held by the caller, so that two processes do not share the state directory.
    pub(crate) fn get(cache: &Cache, release: Release) -> Result<&'static Self> {
        static APTS: [OnceLock<Apt>; 2] = [OnceLock::new(), OnceLock::new()];
        let place = &APTS[release as usize];
        if let Some(apt) = place.get() {
            return Ok(apt);
        }
        let dir = cache.root().join(release.directory());
        let apt = Self::configure(release, &dir, &mirror()?)?;
        apt.update()?;
        Ok(place.get_or_init(|| apt))
    }

    fn configure(release: Release, dir: &Path, mirror: &str) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).at(&path)?;
        }
        let signed_by = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let sources: String = release
            .suites()
            .iter()
            .map(|suite| format!("deb {signed_by}{mirror} {suite} main\n"))
            .collect();
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text).at(&path)?;
            Ok(path)
        };
        let status = write("status", "")?;
        let sources = write("sources.list", &sources)?;
        let config = write(
            "apt.conf",
            &format!(
                "Dir::State \"{state}\";\n\
                 Dir::State::status \"{status}\";\n\
                 Dir::Cache \"{cache}\";\n\
                 Dir::Etc::parts \"/dev/null\";\n\
                 Dir::Etc::main \"/dev/null\";\n\
                 Dir::Etc::sourcelist \"{sources}\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 APT::Architecture \"amd64\";\n\
                 APT::Architectures \"amd64\";\n\
                 APT::Install-Recommends \"false\";\n\
                 APT::Sandbox::User \"\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::Retries \"2\";\n\
                 Acquire::ForceHash \"SHA256\";\n\
                 {transport}",
                state = dir.join("state").display(),
                status = status.display(),
                cache = dir.join("cache").display(),
                sources = sources.display(),
                transport = transport_settings(),
            ),
        )?;
        Ok(Self { release, config })
    }

    fn update(&self) -> Result<()> {
        let step = Step::begin("reading Debian's package index", 0);
        let mut pauses = RETRY_AFTER.iter();
        loop {
            // `Error-Mode=any`: an index that could not be fetched is an error, not a warning.
            match self.run(
                "apt-get",
                &["update", "-q", "-o", "APT::Update::Error-Mode=any"],
            ) {
                Ok(_) => {
                    step.done("");
                    return Ok(());
                }
                Err(error) => match pauses.next() {
                    Some(pause) => {
                        eprintln!("the mirror did not answer well; trying again in {pause:?}");
                        thread::sleep(*pause);
                    }
                    None => {
                        return Err(Error::Setup(format!(
                            "Debian's package index could not be read: set VMBUS_MIRROR to a \
                             mirror that has {} and can be reached from here ({error})",
                            self.release.suites().join(" and ")
                        )));
                    }
                },
            }
        }
    }

    /// `packages` with everything they depend on, as on an empty system.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut args = vec!["install", "-qq", "--print-uris"];
        args.extend(packages);
        self.print_uris(&args)
    }

    /// Exactly `packages` (`name` or `name=version`), without their dependencies.
    pub(crate) fn exactly(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut args = vec!["download", "-qq", "--print-uris"];
        args.extend(packages);
        let found = self.print_uris(&args)?;
        if found.len() != packages.len() {
            return Err(Error::Setup(format!(
                "the package index has {} of the {} packages {}",
                found.len(),
                packages.len(),
                packages.join(", ")
            )));
        }
        Ok(found)
    }

    fn print_uris(&self, args: &[&str]) -> Result<Vec<Package>> {
        let text = self.run("apt-get", args)?;
        Ok(text.lines().filter_map(Package::parse).collect())
    }

    /// All versions of `package` in the index, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["madison", package])?;
        Ok(text
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// The packages that `package` (its preferred version, or `name/suite`) directly depends on.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["depends", "--important", package])?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Downloads package files into `dir`; apt itself checks them against the signed index.
    pub(crate) fn download(&self, packages: &[Package], dir: &Path) -> Result<()> {
        let wanted: Vec<String> = packages
            .iter()
            .map(|it| format!("{}={}", it.name(), it.version()))
            .collect();
        let mut command = self.command("apt-get", &["download", "-qq"]);
        output_of(command.args(wanted).current_dir(dir)).map(drop)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C");
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output_of(&mut self.command(program, args))
    }
}

/// Runs `command`; its standard output, or an error with the end of its error output.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            missing(command.get_program())
        } else {
            Error::Command {
                command: shown.clone(),
                why: error.to_string(),
            }
        }
    })?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&stderr);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(5)..].join("; ");
    Err(Error::Command {
        command: shown,
        why: format!("{status}: {tail}"),
    })
}

/// What to say when `program` is not there.
fn missing(program: &OsStr) -> Error {
    let program = program.display();
    Error::Setup(if program.to_string().starts_with("apt") {
        format!(
            "`{program}` is not on this machine: the bed fetches its parts with Debian's tools; \
             elsewhere set VMBUS_QEMU, VMBUS_L1_KERNEL and VMBUS_BUSYBOX to parts of your own"
        )
    } else {
        format!("`{program}` is not on this machine, and the bed needs it: install it")
    })
}

/// The Debian mirror of this machine's apt, or `VMBUS_MIRROR`.
fn mirror() -> Result<String> {
    if let Some(mirror) = env::var("VMBUS_MIRROR")
        .ok()
        .filter(|mirror| !mirror.is_empty())
    {
        return Ok(mirror);
    }
    let format = "$(REPO_URI)|$(LABEL)|$(RELEASE)";
    let targets = output_of(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    choose_mirror(&targets).ok_or_else(|| {
        Error::Setup(
            "this machine's apt names no Debian mirror: set VMBUS_MIRROR to the base address of \
             one"
            .into(),
        )
    })
}

/// Picks Debian's main archive from lines of `uri|label|release`. Machines without index files
/// leave the label unexpanded; a mirror of Debian has "debian" in its address then.
fn choose_mirror(targets: &str) -> Option<String> {
    targets
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('|');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(_, _, release)| !release.contains("security"))
        .find(|(uri, label, _)| {
            *label == "Debian" || (label.starts_with("$(") && uri.contains("debian"))
        })
        .map(|(uri, _, _)| uri.to_owned())
}

/// How this machine's apt reaches its mirror (proxies, timeouts, clock settings), kept.
fn transport_settings() -> String {
    let dump = output_of(Command::new("apt-config").args(["dump", "--no-empty", "Acquire"]));
    dump.unwrap_or_default()
        .lines()
        .filter(|line| {
            let name = line.split(' ').next().unwrap_or("").to_ascii_lowercase();
            [
                "acquire::http",
                "acquire::https",
                "acquire::ftp",
                "acquire::check-",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_print_uris_is_read() {
        let package = Package::parse(
            "'http://m/pool/q_1.0%2bb.deb' q-system_1%3a1.0+b_amd64.deb 1027 SHA256:5e84",
        )
        .unwrap();
        assert_eq!(
            (package.name(), package.version().as_str()),
            ("q-system", "1:1.0+b")
        );
        assert_eq!((package.size, package.sha256.as_str()), (1027, "5e84"));
        assert_eq!(Package::parse("Reading package lists..."), None);
        assert_eq!(Package::parse("'http://m/q.deb' q.deb 12 MD5Sum:00"), None);
    }

    #[test]
    fn the_main_archive_is_chosen() {
        let targets = "http://m/debian-security/|Debian-Security|bookworm-security\n\
                       http://other/|Other|stable\n\
                       http://m/debian/|Debian|bookworm-updates\n";
        assert_eq!(choose_mirror(targets).as_deref(), Some("http://m/debian/"));
        let bare = "http://m/debian/|$(LABEL)|bookworm\n";
        assert_eq!(choose_mirror(bare).as_deref(), Some("http://m/debian/"));
        assert_eq!(choose_mirror("http://m/ubuntu/|Ubuntu|noble\n"), None);
    }
}
