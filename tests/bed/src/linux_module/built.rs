//! A module that was built, read back: whether the kernel it is for will take it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use elf::ElfBytes;
use elf::abi::SHN_UNDEF;
use elf::endian::AnyEndian;

use crate::error::{AtPath, Error, Result};

/// What a module says of itself.
#[derive(Debug)]
pub(super) struct Built {
    /// Symbols that the kernel has to have.
    needed: BTreeSet<String>,
    /// The release of the kernel, and what of its configuration changes modules.
    vermagic: String,
}

impl Built {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).at(path)?;
        Self::parse(&bytes)
            .map_err(|why| Error::Setup(format!("{} is no kernel module: {why}", path.display())))
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        let wrong = |error: elf::ParseError| error.to_string();
        let file = ElfBytes::<AnyEndian>::minimal_parse(bytes).map_err(wrong)?;
        let (symbols, names) = file
            .symbol_table()
            .map_err(wrong)?
            .ok_or("it has no symbols")?;
        let mut needed = BTreeSet::new();
        for symbol in symbols.iter().filter(|it| it.st_shndx == SHN_UNDEF) {
            let name = names.get(symbol.st_name as usize).map_err(wrong)?;
            if !name.is_empty() {
                needed.insert(name.to_owned());
            }
        }
        let section = file.section_header_by_name(".modinfo").map_err(wrong)?;
        let section = section.ok_or("it has no .modinfo")?;
        let (info, _) = file.section_data(&section).map_err(wrong)?;
        let vermagic = info
            .split(|byte| *byte == 0)
            .find_map(|it| it.strip_prefix(b"vermagic="))
            .ok_or("it has no vermagic")?;
        let vermagic = String::from_utf8_lossy(vermagic).trim().to_owned();
        Ok(Self { needed, vermagic })
    }

    /// Checks that the kernel `release`, which exports `symbols`, has what module `name` needs.
    pub(super) fn check(
        &self,
        name: &str,
        release: &str,
        symbols: &BTreeSet<String>,
    ) -> Result<()> {
        if let Some(missing) = self.needed.difference(symbols).next() {
            return Err(Error::Setup(format!(
                "{name} needs the symbol {missing}, which the kernel {release} does not export: its headers are not those \
                 of that kernel, install the ones that belong to it"
            )));
        }
        if self.vermagic.split(' ').next() != Some(release) {
            return Err(Error::Setup(format!(
                "{name} is made for `{}`, not for the kernel {release}: its headers are not those of that kernel, install \
                 the ones that belong to it",
                self.vermagic
            )));
        }
        Ok(())
    }

    /// How many of the symbols it needs are Rust's.
    pub(super) fn rust_symbols(&self) -> usize {
        self.needed.iter().filter(|it| it.starts_with("_R")).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let built = Built {
            needed: set(&["vmbus_open", "_RNvCs1_6kernel5print"]),
            vermagic: "7.3.4 SMP preempt".to_owned(),
        };
        let all = set(&["vmbus_open", "_RNvCs1_6kernel5print", "printk"]);
        assert_eq!(built.rust_symbols(), 1);
        built.check("m", "7.3.4", &all).unwrap();
        // Another compiler's name for the same function.
        let others = set(&["vmbus_open", "_RNvCs2_6kernel5print"]);
        let text = built.check("m", "7.3.4", &others).unwrap_err().to_string();
        assert!(text.contains("_RNvCs1_6kernel5print"), "{text}");
        let text = built.check("m", "7.3.5", &all).unwrap_err().to_string();
        assert!(
            text.contains("7.3.4 SMP preempt") && text.contains("7.3.5"),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ko");
        for bytes in [&b""[..], b"text", b"\x7fELF\x02\x01\x01"] {
            fs::write(&path, bytes).unwrap();
            let text = Built::read(&path).unwrap_err().to_string();
            assert!(text.contains("no kernel module"), "{text}");
        }
        let program = std::env::current_exe().unwrap();
        assert!(Built::read(&program).is_err());
    }
}
