//! Names of Debian's kernels: `7.3.4+deb13-cloud-amd64`.

use std::fmt;

use crate::error::{Error, Result};

/// Which of Debian's two kernels for x86-64 machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For any machine.
    Amd64,
    /// Smaller, for virtual machines; the bed's.
    CloudAmd64,
}

impl Flavour {
    /// All of them. One name ends with the other: the longer one comes first.
    pub const ALL: [Self; 2] = [Self::CloudAmd64, Self::Amd64];

    /// Its name, as in a release's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::CloudAmd64 => "cloud-amd64",
        }
    }
}

/// A kernel's release, as `uname -r` prints it, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    source: String,
    flavour: Flavour,
}

impl Name {
    /// Takes `release` apart.
    pub fn parse(release: &str) -> Result<Self> {
        let is_word = |it: char| it.is_ascii_alphanumeric() || "+.~-".contains(it);
        let taken = Flavour::ALL.into_iter().find_map(|flavour| {
            let source = release.strip_suffix(flavour.name())?.strip_suffix('-')?;
            let source = source.to_owned();
            Some(Self { source, flavour })
        });
        taken
            .filter(|name| release.chars().all(is_word) && name.numbers().count() == 2)
            .ok_or_else(|| {
                Error::Setup(format!(
                    "`{release}` is not the release of a kernel of Debian's for x86-64, as `uname -r` prints it in such \
                     as 7.3.4+deb13-amd64; for any other kernel give its build directory by --kernel-dir"
                ))
            })
    }

    /// The same kernel in another flavour.
    pub fn with(&self, flavour: Flavour) -> Self {
        let source = self.source.clone();
        Self { source, flavour }
    }

    /// All of it: `7.3.4+deb13-cloud-amd64`.
    pub fn release(&self) -> String {
        self.to_string()
    }

    /// What flavours have in common: `7.3.4+deb13`.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The two numbers that the source's package is named by: `7.3`.
    pub fn series(&self) -> String {
        self.numbers().collect::<Vec<_>>().join(".")
    }

    fn numbers(&self) -> impl Iterator<Item = &str> {
        let digits = |it: &&str| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit());
        self.source
            .split(['.', '+', '-', '~'])
            .take(2)
            .filter(digits)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.source, self.flavour.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_taken_apart() {
        let cloud = Name::parse("7.3.4+deb13-cloud-amd64").unwrap();
        assert_eq!(cloud.source(), "7.3.4+deb13");
        assert_eq!(cloud.series(), "7.3");
        assert_eq!(cloud.with(Flavour::Amd64).release(), "7.3.4+deb13-amd64");
        assert_eq!(
            Name::parse("7.3.4+deb13-amd64").unwrap(),
            cloud.with(Flavour::Amd64)
        );
    }

    #[test]
    fn what_is_no_release_of_debian_is_refused() {
        for release in [
            "",
            "amd64",
            "-amd64",
            "7-amd64",
            "7.3.4",
            "7.3.4-arch1-1",
            "../x-amd64",
            "7.3 x-amd64",
        ] {
            let text = Name::parse(release).unwrap_err().to_string();
            assert!(text.contains("--kernel-dir"), "{release}: {text}");
        }
    }
}
