//! Which key types which character: the layout of the United States.

use super::Key;

/// Rows of keys: the scan code of the first, what they type, and what they type with Shift.
const ROWS: [(u8, &str, &str); 4] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
];

/// The key that types `character`, and whether with Shift.
pub(super) fn key(character: char) -> Option<(Key, bool)> {
    let alone = |code| Some((Key::new(code), false));
    match character {
        '\n' => return Some((Key::ENTER, false)),
        '\t' => return alone(0x0F),
        ' ' => return alone(0x39),
        '\u{8}' => return alone(0x0E),
        '\u{1B}' => return alone(0x01),
        _ => {}
    }
    ROWS.iter().find_map(|(first, plain, shifted)| {
        [(plain, false), (shifted, true)]
            .into_iter()
            .find_map(|(row, shift)| {
                // The rows are ASCII: places of bytes are places of characters.
                let place = u8::try_from(row.find(character)?).ok()?;
                Some((Key::new(first.checked_add(place)?), shift))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_ascii_character_has_a_key_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for character in ' '..='~' {
            let (key, shift) = key(character).unwrap_or_else(|| panic!("{character:?}"));
            assert!(
                seen.insert((key.code, shift)),
                "{character:?} shares its key"
            );
        }
        assert!(key('é').is_none());
    }

    #[test]
    fn some_keys_by_their_codes() {
        let code = |character| key(character).map(|(key, shift)| (key.code, shift));
        assert_eq!(code('a'), Some((0x1E, false)));
        assert_eq!(code('Z'), Some((0x2C, true)));
        assert_eq!(code('='), Some((0x0D, false)));
        assert_eq!(code('~'), Some((0x29, true)));
        assert_eq!(code('/'), Some((0x35, false)));
        assert_eq!(code('\n'), Some((0x1C, false)));
    }
}
