//! Our modules for Linux guests, built by the kernel's own makefiles, and read back before anybody calls
//! them good.

mod built;
mod kernel_dir;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

pub use kernel_dir::KernelDir;

use crate::cargo;
use crate::error::{AtPath, Result};
use crate::progress::Step;
use crate::provision::kernel::Module;
use crate::provision::module_kit::{self, Flavour, kernel_of_the_bed};
use crate::provision::output_of;
use built::Built;

/// The modules' names.
pub const NAMES: [&str; 2] = ["vmbus_console", "vmbus_disk"];

/// Modules that fit their kernel.
#[derive(Debug, Clone)]
pub struct Modules {
    /// The release of the kernel.
    pub release: String,
    /// Where they are.
    pub dir: PathBuf,
    /// Their files, in the order of [`NAMES`].
    pub files: Vec<PathBuf>,
    /// Rust symbols of the kernel that they need; it has all of them.
    pub rust_symbols: usize,
    /// As long as it is open, no other process builds there.
    _lock: Arc<File>,
}

/// Where the modules for the kernel `release` go, unless somebody says otherwise.
pub fn out_dir(release: &str) -> PathBuf {
    cargo::target_dir().join("linux-module").join(release)
}

/// The modules for the bed's own kernel, built once per process, without what only debuggers read.
pub fn for_the_bed() -> Result<Vec<Module>> {
    static BUILT: Mutex<Vec<Module>> = Mutex::new(Vec::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if built.is_empty() {
        let kernel = KernelDir::of_debian(&kernel_of_the_bed(Flavour::CloudAmd64)?)?;
        let modules = build(&kernel, &out_dir(&kernel.release()?))?;
        for file in &modules.files {
            let small = file.with_extension("stripped.ko");
            let mut strip = kernel.tool(&modules.dir, "strip");
            strip.arg("--strip-debug").arg("-o").arg(&small).arg(file);
            output_of(&mut strip)?;
            let name = file.file_stem().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            let bytes = fs::read(&small).at(&small)?;
            built.push(Module { name, bytes });
        }
    }
    Ok(built.clone())
}

/// Builds the modules for the kernel of `kernel` into `out`, and checks that it will take them.
pub fn build(kernel: &KernelDir, out: &Path) -> Result<Modules> {
    let release = kernel.release()?;
    fs::create_dir_all(out).at(out)?;
    let out = fs::canonicalize(out).at(out)?;
    let tree = cargo::workspace();
    for path in [&tree, &out] {
        module_kit::check_path(path)?;
    }
    let lock = out.join(".lock");
    let lock = File::create(&lock)
        .and_then(|file| file.lock().map(|()| file))
        .at(&lock)?;
    let step = Step::begin(format!("building the modules for Linux {release}"), 0);
    let mut make = kernel.make(&tree, &tree.join("linux-module"), &out);
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    make.arg(format!("-j{jobs}")).arg("modules");
    module_kit::run(&step, make)?;
    step.done("");

    let symbols = kernel.symbols()?;
    let mut files = Vec::new();
    let mut rust_symbols = 0;
    for name in NAMES {
        let file = out.join(format!("{name}.ko"));
        let built = Built::read(&file)?;
        built.check(name, &release, &symbols)?;
        rust_symbols += built.rust_symbols();
        files.push(file);
    }
    Ok(Modules {
        release,
        dir: out,
        files,
        rust_symbols,
        _lock: Arc::new(lock),
    })
}
