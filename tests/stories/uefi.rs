//! The guest kernel from UEFI firmware, in plain QEMU.

use std::fs;

use anyhow::ensure;
use bed::cargo;
use bed::provision::Ovmf;
use e2e::{Entry, Story};

use crate::either_bus::plain_qemu;

pub(crate) const STORIES: &[Entry] = &[Entry::new("ovmf_boots_the_kernel", ovmf_boots_the_kernel)];

/// Firmware finds the file where it looks on any disk; the kernel gets memory and ACPI tables from it,
/// says which hypervisor it found, and its processors come up.
fn ovmf_boots_the_kernel(_story: &mut Story) -> anyhow::Result<()> {
    let (firmware, image) = (Ovmf::get()?, cargo::guest_kernel_uefi()?);
    let dir = tempfile::tempdir()?;
    let boot = dir.path().join("disk/EFI/BOOT");
    fs::create_dir_all(&boot)?;
    fs::copy(image, boot.join("BOOTX64.EFI"))?;
    let variables = dir.path().join("variables");
    fs::copy(&firmware.variables, &variables)?;
    let flash = |file: &std::path::Path, readonly: &str| {
        format!(
            "if=pflash,format=raw,readonly={readonly},file={}",
            file.display()
        )
    };
    let disk = format!(
        "format=raw,file=fat:rw:{}",
        dir.path().join("disk").display()
    );
    let said = plain_qemu(&[
        "-drive",
        &flash(&firmware.code, "on"),
        "-drive",
        &flash(&variables, "off"),
        "-drive",
        &disk,
        "-smp",
        "2",
    ])?;
    for words in [
        "guest-kernel: leaving the firmware",
        "entered by: Linux boot protocol, 64-bit entry",
        "CPUs: 2 running",
        "hypervisor: \"TCGTCGTCGTCG\"",
        "SCENARIO boot: PASS",
    ] {
        ensure!(said.contains(words), "not {words:?}: {said}");
    }
    Ok(())
}
