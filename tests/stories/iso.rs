//! An ISO 9660 image with one file, made by hand: what a drive's medium has.

/// Bytes of a block.
const BLOCK: usize = 2048;

/// Blocks before the volume descriptors, for whoever boots from them.
const SYSTEM_AREA: usize = 16;

/// Where the path table and the root directory are; the file's blocks follow.
const PATHS: u32 = 18;
const ROOT: u32 = 19;
const FILE: u32 = 20;

/// The file's name as mounted.
pub(crate) const NAME: &str = "content";

/// The file's name in the image: level 1, with a version.
const RECORDED: &[u8] = b"CONTENT.;1";

/// An image whose only file is `content` (ECMA-119, by section below).
pub(crate) fn image(content: &[u8]) -> Vec<u8> {
    let blocks = FILE + content.len().div_ceil(BLOCK) as u32;
    let mut image = vec![0; SYSTEM_AREA * BLOCK];
    image.extend(primary_descriptor(blocks));
    // 8.3: the end of the descriptors.
    image.extend(block(b"\xffCD001\x01".to_vec()));
    // 9.4: the path table, of the root alone.
    image.extend(block(path_table()));
    let own = record(&[0], ROOT, BLOCK as u32, true);
    let parent = record(&[1], ROOT, BLOCK as u32, true);
    let file = record(RECORDED, FILE, content.len() as u32, false);
    image.extend(block([own, parent, file].concat()));
    image.extend(content);
    image.resize(blocks as usize * BLOCK, 0);
    image
}

fn block(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(BLOCK, 0);
    bytes
}

/// 7.3.3: a number in both orders of its bytes.
fn both32(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// 7.2.3: the same for 16 bits.
fn both16(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

/// 8.4: the primary volume descriptor.
fn primary_descriptor(blocks: u32) -> Vec<u8> {
    let mut bytes = block(b"\x01CD001\x01\x00".to_vec());
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    // Texts are padded with blanks.
    put(8, &[b' '; 64]);
    put(40, b"STORY");
    put(80, &both32(blocks));
    put(120, &both16(1));
    put(124, &both16(1));
    put(128, &both16(BLOCK as u16));
    put(132, &both32(path_table().len() as u32));
    put(140, &PATHS.to_le_bytes());
    put(156, &record(&[0], ROOT, BLOCK as u32, true));
    put(190, &[b' '; 623]);
    // Four dates, none of them given, and the version of all this.
    put(813, &[[b'0'; 16].as_slice(), &[0]].concat().repeat(4));
    put(881, &[1]);
    bytes
}

fn path_table() -> Vec<u8> {
    let [a, b, c, d] = ROOT.to_le_bytes();
    vec![1, 0, a, b, c, d, 1, 0, 0, 0]
}

/// 9.1: a directory's record.
fn record(name: &[u8], first: u32, length: u32, is_directory: bool) -> Vec<u8> {
    // Of 2026, in years since 1900.
    let date = [126, 1, 1, 0, 0, 0, 0];
    let flags = if is_directory { 2 } else { 0 };
    let mut bytes = [
        &[0, 0][..],
        &both32(first),
        &both32(length),
        &date,
        &[flags, 0, 0],
        &both16(1),
        &[name.len() as u8],
        name,
    ]
    .concat();
    if bytes.len() % 2 != 0 {
        bytes.push(0);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}
