//! Packages without compression: a decompressor in software emulation takes minutes for all of
//! them, here seconds.

use std::path::Path;
use std::process::Command;

use crate::error::{AtPath, Error, Result};

/// What an `ar` archive begins with.
const MAGIC: &[u8] = b"!<arch>\n";

/// The package in `file` with the same contents, not compressed.
pub(super) fn uncompressed(file: &Path) -> Result<Vec<u8>> {
    let control = member(file, "--ctrl-tarfile")?;
    let data = member(file, "--fsys-tarfile")?;
    let mut package = MAGIC.to_vec();
    for (name, contents) in [
        ("debian-binary", &b"2.0\n"[..]),
        ("control.tar", &control),
        ("data.tar", &data),
    ] {
        add(&mut package, name, contents);
    }
    Ok(package)
}

/// Adds a member to an `ar` archive: name, time, owner, group, mode and size in columns, and the
/// contents, padded to an even number of bytes.
fn add(archive: &mut Vec<u8>, name: &str, contents: &[u8]) {
    let header = format!(
        "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
        0,
        0,
        0,
        "100644",
        contents.len()
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(contents);
    if contents.len() % 2 == 1 {
        archive.push(b'\n');
    }
}

fn member(file: &Path, option: &str) -> Result<Vec<u8>> {
    let output = Command::new("dpkg-deb")
        .arg(option)
        .arg(file)
        .output()
        .at("dpkg-deb")?;
    if !output.status.success() {
        return Err(Error::Command {
            command: format!("dpkg-deb {option} {}", file.display()),
            why: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_in_columns_and_on_even_bytes() {
        let mut archive = MAGIC.to_vec();
        add(&mut archive, "odd", b"123");
        add(&mut archive, "even", b"1234");
        assert_eq!(archive.len(), 8 + 60 + 4 + 60 + 4);
        assert_eq!(&archive[8..24], b"odd             ");
        assert_eq!(&archive[56..68], b"3         `\n");
        assert_eq!(&archive[72..76], b"even");
    }
}
