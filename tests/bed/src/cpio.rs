//! The archive format of an initramfs: cpio, "newc".

/// File type and permissions of the three kinds of entries, as in `stat`.
pub(crate) const DIRECTORY: u32 = 0o040_755;
/// An executable file; as good for any other.
pub(crate) const PROGRAM: u32 = 0o100_755;
/// A symbolic link; its data is where it leads.
pub(crate) const LINK: u32 = 0o120_777;

/// A cpio archive in the "newc" format being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive that the kernel unpacks after `others`, which may be compressed.
    pub(crate) fn after(others: Vec<u8>) -> Self {
        let mut archive = Self {
            bytes: others,
            entries: 0,
        };
        // Between archives the kernel skips zeros.
        archive.pad();
        archive
    }

    /// Adds an entry; what comes below a directory comes after it.
    pub(crate) fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let len = u32::try_from(data.len()).expect("files of an initramfs are small");
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

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
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
