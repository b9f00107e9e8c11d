//! A kernel's build directory: what modules are built in, and what can be wrong with it.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{AtPath, Error, Result};
use crate::provision::module_kit::{self, Kit, Name, Tools};

/// A build directory whose kernel has Rust.
#[derive(Debug, Clone)]
pub struct KernelDir {
    path: PathBuf,
    /// What to call its kernel.
    name: String,
    /// What is built with: these, or the machine's own.
    tools: Option<Tools>,
}

impl KernelDir {
    /// That of Debian's kernel `name`, made if missing.
    pub fn of_debian(name: &Name) -> Result<Self> {
        let Kit { tools, build_dir } = Kit::get(name)?;
        Ok(Self {
            path: build_dir,
            name: format!("the kernel {name}"),
            tools: Some(tools),
        })
    }

    /// Somebody's own, such as `/lib/modules/RELEASE/build`, for the machine's own tools. All that the build
    /// needs is looked for first.
    pub fn own(path: &Path) -> Result<Self> {
        let dir = Self::with_config(path, &format!("the kernel of {}", path.display()))?;
        module_kit::check_path(&dir.path)?;
        for (tool, package) in [("rustc", "rustc"), ("bindgen", "bindgen"), ("make", "make")] {
            if version_of(tool).is_none() {
                return Err(Error::Setup(format!(
                    "`{tool}` can't be run here, and modules are built with it: install it (Debian's package is \
                     {package}), or set {} to where it is",
                    tool.to_uppercase()
                )));
            }
        }
        dir.check_compiler(&version_of("rustc").unwrap_or_default())?;
        dir.check_metadata()?;
        Ok(dir)
    }

    /// The build directory `path`, of a kernel called `name`, of which nothing is known but that it is one, and that its
    /// kernel has Rust.
    pub(crate) fn with_config(path: &Path, name: &str) -> Result<Self> {
        let dir = Self {
            path: fs::canonicalize(path).at(path)?,
            name: name.to_owned(),
            tools: None,
        };
        if dir.config("CONFIG_RUST")?.as_deref() != Some("y") {
            return Err(Error::Setup(format!(
                "{} is built without Rust (its configuration has no CONFIG_RUST=y), so it can't load \
                 modules in Rust: take one that has it, such as Debian's 7.x of trixie-backports",
                dir.name
            )));
        }
        Ok(dir)
    }

    /// Whether the kernel was built with the compiler that says `have` of itself.
    pub(crate) fn check_compiler(&self, have: &str) -> Result<()> {
        let want = self
            .config("CONFIG_RUSTC_VERSION_TEXT")?
            .unwrap_or_default();
        let want = want.trim_matches('"');
        if want == have {
            return Ok(());
        }
        Err(Error::Setup(format!(
            "{} was built with `{want}`, and rustc here is `{have}`: modules need the very same \
             compiler, so install that one and set RUSTC to it (for a kernel of Debian's, `cargo xtask module --release \
             RELEASE` brings it)",
            self.name
        )))
    }

    /// Whether the kernel's own crates have left what other crates are compiled against.
    fn check_metadata(&self) -> Result<()> {
        for file in [
            "rust/libkernel.rmeta",
            "scripts/target.json",
            "Module.symvers",
        ] {
            if !self.path.join(file).is_file() {
                return Err(Error::Setup(format!(
                    "{} has no {file}: these headers can't build modules in Rust; Debian's leave it out (`cargo xtask \
                     module --release RELEASE` makes it), in a tree of your own `make modules_prepare` and a whole build do",
                    self.path.display()
                )));
            }
        }
        Ok(())
    }

    /// The value of `option` in the kernel's configuration.
    fn config(&self, option: &str) -> Result<Option<String>> {
        // The first is what the kernel's makefiles go by; a build directory that is to be has the second only.
        let places = ["include/config/auto.conf", ".config"].map(|it| self.path.join(it));
        let place = places.iter().find(|it| it.is_file()).ok_or_else(|| {
            Error::Setup(format!(
                "{} is no kernel's build directory, it has no include/config/auto.conf: give one such as \
                 /lib/modules/$(uname -r)/build",
                self.path.display()
            ))
        })?;
        let text = fs::read_to_string(place).at(place)?;
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name == option).then_some(value)
        });
        Ok(value.map(str::to_owned))
    }

    /// What to call its kernel: by the directory, or by Debian's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The release of the kernel, as `uname -r` prints it.
    pub fn release(&self) -> Result<String> {
        let path = self.path.join("include/config/kernel.release");
        Ok(fs::read_to_string(&path).at(&path)?.trim().to_owned())
    }

    /// The symbols that the kernel and its modules export.
    pub fn symbols(&self) -> Result<BTreeSet<String>> {
        let path = self.path.join("Module.symvers");
        let text = fs::read_to_string(&path).at(&path)?;
        let symbols = text.lines().filter_map(|line| line.split('\t').nth(1));
        Ok(symbols.map(str::to_owned).collect())
    }

    /// The kernel's make for the modules in `source`, whose results go to `out`. `source` may refer to other
    /// files of `tree`, which it is in.
    pub(super) fn make(&self, tree: &Path, source: &Path, out: &Path) -> Command {
        let mut make = match &self.tools {
            Some(tools) => tools.command(&[self.bundle(), tree, out], "make"),
            None => {
                let mut make = Command::new(program("make"));
                // Cargo's own make jobs are not those of this one.
                make.env_remove("MAKEFLAGS").env_remove("CARGO_MAKEFLAGS");
                for tool in ["rustc", "bindgen"] {
                    let name = tool.to_uppercase();
                    if let Some(set) = env::var_os(&name).filter(|it| !it.is_empty()) {
                        let mut argument = OsString::from(format!("{name}="));
                        argument.push(set);
                        make.arg(argument);
                    }
                }
                make
            }
        };
        make.arg("-C").arg(&self.path);
        make.arg(format!("M={}", source.display()));
        make.arg(format!("MO={}", out.display()));
        make
    }

    /// `program` of the tools that modules are built with, which sees `out` only.
    pub(super) fn tool(&self, out: &Path, program: &str) -> Command {
        match &self.tools {
            Some(tools) => tools.command(&[out], program),
            None => Command::new(program),
        }
    }

    /// What the build directory refers to: the parts of it that lie beside it, too.
    fn bundle(&self) -> &Path {
        self.path.ancestors().nth(3).unwrap_or(&self.path)
    }
}

/// What the environment says instead of `tool`, else that.
fn program(tool: &str) -> OsString {
    env::var_os(tool.to_uppercase())
        .filter(|it| !it.is_empty())
        .unwrap_or_else(|| tool.into())
}

/// What `tool --version` says in its first line; nothing where it does not run.
fn version_of(tool: &str) -> Option<String> {
    let mut command = Command::new(program(tool));
    let output = command
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or("").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUSTC: &str = "rustc 1.85.1 (4eb161250 2025-03-15)";

    /// A build directory with this configuration.
    fn kernel(dir: &Path, config: &str) {
        let generated = dir.join("include/config");
        fs::create_dir_all(&generated).unwrap();
        fs::write(generated.join("auto.conf"), config).unwrap();
        fs::write(generated.join("kernel.release"), "7.3.4-test\n").unwrap();
    }

    fn with_rust(dir: &Path) -> KernelDir {
        let text = format!("CONFIG_RUST=y\nCONFIG_RUSTC_VERSION_TEXT=\"{RUSTC}\"\n");
        kernel(dir, &text);
        KernelDir::with_config(dir, "it").unwrap()
    }

    fn said(result: Result<impl Sized>) -> String {
        let Err(Error::Setup(text)) = result.map(drop) else {
            panic!("it was not refused in a sentence");
        };
        text
    }

    #[test]
    fn a_kernel_without_rust_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for config in [
            "CONFIG_64BIT=y\n",
            "CONFIG_RUST=n\n",
            "CONFIG_RUST_IS_AVAILABLE=y\n",
        ] {
            kernel(dir.path(), config);
            let text = said(KernelDir::with_config(dir.path(), "it"));
            assert!(text.contains("built without Rust"), "{text}");
        }
    }

    #[test]
    fn what_is_no_build_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = said(KernelDir::with_config(dir.path(), "it"));
        assert!(text.contains("no kernel's build directory"), "{text}");
        let missing = KernelDir::with_config(&dir.path().join("none"), "it");
        assert!(missing.unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn another_compiler_is_refused_with_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = with_rust(dir.path());
        kernel.check_compiler(RUSTC).unwrap();
        let text = said(kernel.check_compiler("rustc 1.95.0 (abc 2026-04-01)"));
        assert!(
            text.contains(RUSTC) && text.contains("rustc 1.95.0"),
            "{text}"
        );
    }

    #[test]
    fn headers_without_metadata_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = with_rust(dir.path());
        for file in [
            "rust/libkernel.rmeta",
            "scripts/target.json",
            "Module.symvers",
        ] {
            let text = said(kernel.check_metadata());
            assert!(text.contains(file), "{text}");
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "0x0\tvmbus_open\tvmlinux\tEXPORT_SYMBOL_GPL\t\n").unwrap();
        }
        kernel.check_metadata().unwrap();
        assert_eq!(kernel.release().unwrap(), "7.3.4-test");
        assert!(kernel.symbols().unwrap().contains("vmbus_open"));
    }
}
