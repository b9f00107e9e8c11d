//! Everything that modules for Debian's Rust-enabled kernels are built with, without touching the machine:
//! the compilers in a root of their own ([`Tools`]), and the kernel's headers with Rust metadata.

mod headers;
mod name;
mod tools;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, pipe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use name::{Flavour, Name};
pub use tools::Tools;

use super::kernel::{Kernel, Series};
use crate::error::{Error, Result};
use crate::progress::Step;

/// Lines of a command's output that an error shows.
const SHOWN: usize = 40;

/// What modules for one kernel are built with.
#[derive(Debug, Clone)]
pub struct Kit {
    /// The compilers.
    pub tools: Tools,
    /// The kernel's build directory.
    pub build_dir: PathBuf,
}

impl Kit {
    /// The kit for the kernel `name`, fetched and made if missing.
    pub fn get(name: &Name) -> Result<Self> {
        let tools = Tools::get()?;
        let build_dir = headers::get(&tools, name)?;
        Ok(Self { tools, build_dir })
    }
}

/// The bed's own kernel with Rust, or another flavour of it.
pub fn kernel_of_the_bed(flavour: Flavour) -> Result<Name> {
    let name = Name::parse(&Kernel::get(Series::Linux7)?.version())?;
    Ok(name.with(flavour))
}

/// Runs `command`, with its lines shown by `step` as they come; an error with the last of them when it fails.
pub(crate) fn run(step: &Step, mut command: Command) -> Result<()> {
    let shown = format!("{command:?}").replace('"', "");
    let failed = |why: String| Error::Command {
        command: shown.rsplit(" -- ").next().unwrap_or(&shown).to_owned(),
        why,
    };
    let spawn = || -> std::io::Result<_> {
        let (reader, writer) = pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let child = command.spawn()?;
        // The command holds the pipe's other end; the lines end when the last process is gone.
        drop(command);
        Ok((child, reader))
    };
    let (mut child, reader) = spawn().map_err(|error| failed(error.to_string()))?;
    let mut last = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.map_err(|error| failed(error.to_string()))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        step.say(line.trim());
        last.push_back(line);
        if last.len() > SHOWN {
            last.pop_front();
        }
    }
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if status.success() {
        return Ok(());
    }
    let tail: Vec<String> = last.into();
    Err(failed(format!("{status}\n{}", tail.join("\n"))))
}

/// Whether `path` may be a part of the build: Kbuild takes no blank and no colon.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    let text = path.display().to_string();
    if text.contains([' ', '\t', '\n', ':']) {
        return Err(Error::Setup(format!(
            "{text:?} has a blank or a colon in it, which the kernel's makefiles can't do with: use another directory"
        )));
    }
    Ok(())
}
