//! The programs under test, built once per run, when the first story asks.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::anyhow;

/// The result of a build, kept; the error as text, since many stories may ask.
type Built = LazyLock<Result<PathBuf, String>>;

static HOST_VSP: Built = LazyLock::new(|| bed::cargo::host_vsp().map_err(|it| it.to_string()));
static GUEST_KERNEL: Built =
    LazyLock::new(|| bed::cargo::guest_kernel().map_err(|it| it.to_string()));
static LYING_HOST: Built = LazyLock::new(|| {
    bed::cargo::static_binary("lying-host", "lying-host").map_err(|it| it.to_string())
});
static L2_PROBE: Built =
    LazyLock::new(|| bed::cargo::static_binary("bed", "l2-probe").map_err(|it| it.to_string()));

/// The static `host-vsp`.
pub(crate) fn host_vsp() -> anyhow::Result<&'static Path> {
    path(&HOST_VSP)
}

/// The guest kernel's ELF file.
pub(crate) fn guest_kernel() -> anyhow::Result<&'static Path> {
    path(&GUEST_KERNEL)
}

/// The static host that lies.
pub(crate) fn lying_host() -> anyhow::Result<&'static Path> {
    path(&LYING_HOST)
}

/// The static probe for stock Linux guests.
pub(crate) fn l2_probe() -> anyhow::Result<&'static Path> {
    path(&L2_PROBE)
}

fn path(built: &'static Built) -> anyhow::Result<&'static Path> {
    match &**built {
        Ok(path) => Ok(path),
        Err(error) => Err(anyhow!("{error}")),
    }
}
