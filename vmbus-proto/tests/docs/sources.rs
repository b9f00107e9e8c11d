//! What the sources of this crate have, as far as it belongs into `docs/vmbus`.

use std::collections::BTreeSet;
use std::path::Path;

use crate::code::Code;

/// Directories that `docs/vmbus` does not tell of.
const NOT_TOLD: [(&str, &str); 1] = [("scsi", "public standards: SPC-4 and SBC-3")];

/// What is in the sources and not on the wire by itself.
const NOT_ON_THE_WIRE: [&str; 8] = [
    "guid::Guid",
    "guid::Guid::ZERO",
    "hv::synic::Sint::BITS",
    "ic::kvp::Exchange",
    "netvsp::Version::NEWEST_FIRST",
    "rndis::packet::MAX_PREFIX",
    "storvsp::ProtocolVersion::NEWEST_FIRST",
    "version::Version::SUPPORTED",
];

/// Public constants and wire types in the sources that [`Code`] does not know.
pub fn unknown() -> Vec<String> {
    let code = Code::known();
    let mut known: BTreeSet<&str> = NOT_ON_THE_WIRE.into();
    known.extend(code.values.keys().map(String::as_str));
    known.extend(code.layouts.iter().map(|layout| layout.path.as_str()));
    // An enumeration is known by its variants.
    known.extend(
        code.values
            .keys()
            .filter_map(|path| Some(path.rsplit_once("::")?.0)),
    );
    let mut unknown = Vec::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    search(&source, &[], &mut |path: &[&str]| {
        // Items of a private module are told where they are exported.
        let full = path.join("::");
        let exported: Vec<&str> = path
            .iter()
            .copied()
            .filter(|part| !PRIVATE_MODULES.contains(part))
            .collect();
        if !known.contains(full.as_str()) && !known.contains(exported.join("::").as_str()) {
            unknown.push(full);
        }
    });
    unknown
}

/// Modules whose public items are exported by the module above.
const PRIVATE_MODULES: [&str; 6] = ["body", "index", "memory", "offer", "srb", "version"];

/// Passes the path of each public constant and wire type below `directory` to `found`.
fn search(directory: &Path, modules: &[&str], found: &mut impl FnMut(&[&str])) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        if NOT_TOLD.iter().any(|(directory, _)| *directory == name) {
            continue;
        }
        let mut path = modules.to_vec();
        if name != "mod" && name != "lib" {
            path.push(name);
        }
        if file.is_dir() {
            search(&file, &path, found);
        } else {
            search_file(&std::fs::read_to_string(&file).unwrap(), &path, found);
        }
    }
}

/// The same in one file, as rustfmt writes it.
fn search_file(text: &str, modules: &[&str], found: &mut impl FnMut(&[&str])) {
    let mut block: Option<&str> = None;
    let mut wire = false;
    for line in text.lines() {
        let word = |prefix: &str| {
            let rest = line.trim_start().strip_prefix(prefix)?;
            rest.split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
        };
        let inner = line.starts_with("    ");
        if !inner && let Some(name) = word("pub mod ").or(word("impl ")) {
            block = line.ends_with('{').then_some(name);
        } else if line == "}" {
            block = None;
        } else if word("#[repr(").is_some() {
            wire = true;
        } else if word("struct ").or(word("enum ")).is_some() {
            // A private type: whatever it is made of is told where that is.
            wire = false;
        }
        let name = word("pub const ").filter(|name| name.starts_with(char::is_uppercase));
        let name = name.or_else(|| {
            word("pub struct ")
                .or(word("pub enum "))
                .filter(|_| std::mem::take(&mut wire))
        });
        if let Some(name) = name {
            let mut path = modules.to_vec();
            path.extend(block.filter(|_| inner));
            path.push(name);
            found(&path);
        }
    }
}
