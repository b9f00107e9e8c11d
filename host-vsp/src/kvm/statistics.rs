//! KVM's binary statistics of one processor (Linux `Documentation/virt/kvm/api.rst`, 4.133).
//!
//! A file with a header, descriptors and a block of 64-bit values. The descriptors never change,
//! so they are read once; a snapshot is one `pread`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use kvm_bindings::KVM_STATS_TYPE_MASK;

/// The counters that matter here; the file holds more.
const WANTED: [&str; 10] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "signal_exits",
    "irq_exits",
    "request_irq_exits",
    "hypercalls",
    "irq_injections",
    "irq_window_exits",
];

/// Bytes of the header.
const HEADER: usize = 24;
/// Bytes of a descriptor before its name.
const DESCRIPTOR: usize = 16;
/// Most descriptors and bytes of data that are believed.
const MOST: usize = 4096;

/// An open statistics file.
#[derive(Debug)]
pub struct Statistics {
    file: File,
    /// Names and offsets in the data block.
    fields: Vec<(&'static str, usize)>,
    /// Offset of the data block in the file, in bytes.
    data: u64,
    /// Bytes of it that are needed.
    length: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    field.map_or(0, |field| u32::from_le_bytes(field) as usize)
}

impl Statistics {
    /// Reads the descriptors of `file`.
    pub fn new(file: File) -> io::Result<Self> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let name_size = u32_at(&header, 4);
        let count = u32_at(&header, 8).min(MOST);
        let step = DESCRIPTOR + name_size.min(MOST);
        let mut descriptors = vec![0; count * step];
        file.read_exact_at(&mut descriptors, u32_at(&header, 16) as u64)?;
        let fields: Vec<_> = descriptors
            .chunks_exact(step)
            .filter_map(|descriptor| {
                let cumulative = u32_at(descriptor, 0) & KVM_STATS_TYPE_MASK as usize == 0;
                let name = descriptor[DESCRIPTOR..].split(|byte| *byte == 0).next()?;
                let name = WANTED
                    .into_iter()
                    .find(|wanted| wanted.as_bytes() == name)?;
                let offset = u32_at(descriptor, 8);
                (cumulative && offset < MOST * 8).then_some((name, offset))
            })
            .collect();
        let length = fields
            .iter()
            .map(|(_, offset)| offset + 8)
            .max()
            .unwrap_or(0);
        Ok(Self {
            file,
            fields,
            data: u32_at(&header, 20) as u64,
            length,
        })
    }

    /// The values now; nothing where they cannot be read.
    pub fn read(&self) -> Vec<(String, u64)> {
        let mut data = vec![0; self.length];
        if let Err(error) = self.file.read_exact_at(&mut data, self.data) {
            tracing::warn!(%error, "KVM's statistics cannot be read");
            return Vec::new();
        }
        self.fields
            .iter()
            .filter_map(|(name, offset)| {
                let value = data.get(*offset..offset + 8)?.try_into().ok()?;
                Some(((*name).to_owned(), u64::from_le_bytes(value)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_name() {
        let mut bytes = Vec::new();
        let name_size = 16u32;
        let data_at = 24 + 2 * (16 + name_size);
        for word in [0, name_size, 2, 24, 24, data_at] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for (name, offset) in [("exits", 8u32), ("nobody_asked", 0)] {
            for word in [0, 1, offset, 0] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            let mut field = name.as_bytes().to_vec();
            field.resize(name_size as usize, 0);
            bytes.extend_from_slice(&field);
        }
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(&42u64.to_le_bytes());
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let statistics = Statistics::new(file).unwrap();
        assert_eq!(statistics.read(), vec![("exits".to_owned(), 42)]);
    }

    #[test]
    fn a_file_cut_short_is_an_error() {
        assert!(Statistics::new(tempfile::tempfile().unwrap()).is_err());
    }
}
