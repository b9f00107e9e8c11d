//! The values of options.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use host_vsp::boot::Protocol;
use host_vsp::machine;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0 >> 20)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.char_indices().last() {
            Some((at, 'k' | 'K')) => (&text[..at], 10),
            Some((at, 'm' | 'M')) => (&text[..at], 20),
            Some((at, 'g' | 'G')) => (&text[..at], 30),
            Some((at, 't' | 'T')) => (&text[..at], 40),
            _ => (text, 0),
        };
        let number: u64 = digits
            .parse()
            .map_err(|_| "a size is a whole number with a unit, such as 512M or 4G".to_owned())?;
        if number != 0 && shift == 0 {
            return Err(format!("the unit is missing: did you mean {number}M?"));
        }
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| "that is more than any machine has".to_owned())
    }
}

/// Where the VMBus console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Console {
    /// stdin and stdout.
    Stdio,
    /// A new pseudo-terminal, whose path is printed.
    Pty,
    /// A file, for output only.
    File(PathBuf),
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

impl FromStr for Console {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("pty", _) => Ok(Self::Pty),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("it is stdio, pty or file=PATH".into()),
        }
    }
}

/// Where a serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// stdin and stdout.
    Stdio,
    /// stderr, output only.
    Stderr,
    /// Nowhere.
    Null,
    /// A file, output only.
    File(PathBuf),
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("stderr", _) => Ok(Self::Stderr),
            ("null", _) => Ok(Self::Null),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("it is stdio, stderr, null or file=PATH".into()),
        }
    }
}

/// Which entry of the kernel to take.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Boot {
    /// PVH where an ELF kernel has it, else the Linux 64-bit protocol
    Auto,
    /// The Linux 64-bit protocol
    Linux64,
    /// PVH
    Pvh,
}

impl From<Boot> for Protocol {
    fn from(boot: Boot) -> Self {
        match boot {
            Boot::Auto => Self::Auto,
            Boot::Linux64 => Self::Linux64,
            Boot::Pvh => Self::Pvh,
        }
    }
}

/// What a reset does.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnReset {
    /// The machine starts again
    Restart,
    /// The command ends
    Exit,
}

impl From<OnReset> for machine::OnReset {
    fn from(on_reset: OnReset) -> Self {
        match on_reset {
            OnReset::Restart => Self::Restart,
            OnReset::Exit => Self::End,
        }
    }
}

/// A number of processors; how many there may be is for the machine to say.
pub(super) fn count(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "the number of processors is a whole number, such as 2".to_owned())
}

/// An I/O port, decimal or with 0x.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "a port is a number up to 0xffff".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("2g".parse(), Ok(Size(2 << 30)));
        assert_eq!("0".parse(), Ok(Size(0)));
        assert_eq!("1T".parse(), Ok(Size(1 << 40)));
        for wrong in ["", "M", "512", "-1M", "99999999999T", "1.5G", "€"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
