//! L1's initramfs: a cpio archive ("newc") with busybox, three kernel modules, the agent and an
//! init script.

use std::fs;

use crate::cargo;
use crate::error::{AtPath, Result};
use crate::provision::{L1Kernel, busybox};

/// Modules to load, in this order, as paths below the kernel's module directory.
const MODULES: [&str; 3] = [
    "virt/lib/irqbypass",
    "arch/x86/kvm/kvm",
    "arch/x86/kvm/kvm-amd",
];

/// What L1 runs first. When the agent ends, so does L1.
const INIT: &str = include_str!("l1/init.sh");

/// File type and permissions of the three kinds of entries, as in `stat`.
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// Builds the archive.
pub(crate) fn build(kernel: &L1Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "tmp", "lib", "root", "etc"] {
        archive.add(dir, DIRECTORY, &[]);
    }
    let busybox = busybox()?;
    archive.add("bin/busybox", PROGRAM, &fs::read(&busybox).at(&busybox)?);
    archive.add("bin/sh", LINK, b"busybox");
    for (index, path) in MODULES.iter().enumerate() {
        // The number keeps the order for the init script.
        archive.add(&format!("lib/{index}.ko"), PROGRAM, &kernel.module(path)?);
    }
    let agent = cargo::l1_agent()?;
    archive.add("bin/l1-agent", PROGRAM, &fs::read(&agent).at(&agent)?);
    archive.add("init", PROGRAM, INIT.as_bytes());
    Ok(archive.finish())
}

/// A cpio archive in the "newc" format being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let len = u32::try_from(data.len()).expect("files of the initramfs are small");
        let name_len = name.len() as u32 + 1;
        // inode, mode, uid, gid, links, mtime, size, device numbers (4), name size, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_trailer_is_last() {
        let mut archive = Archive::default();
        archive.add("a", PROGRAM, b"12345");
        let bytes = archive.finish();
        // 6 + 13 * 8 = 110 bytes of header, the name with its end, padded; then the data, padded.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..117], b"12345");
        assert_eq!(&bytes[120..126], b"070701");
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
