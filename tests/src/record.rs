//! What the stories have proven of the guest kernels, kept in a file of the target directory.
//!
//! A run keeps what the file says of stories that it does not tell, so the stories may be told in
//! several runs. Whoever needs one run for all of them removes the file first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::Context;
use bed::provision::kernel::{Kernel, Series};
use serde::{Deserialize, Serialize};

use crate::feature::Feature;

/// A feature of a kernel: the kernel by [`Series::name`].
pub type Proof = (String, Feature);

/// The proofs of all stories.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The names of all stories there are.
    pub all: BTreeSet<String>,
    /// Those that passed when they were told last, and what each has proven.
    pub passed: BTreeMap<String, BTreeSet<Proof>>,
    /// The exact versions of the kernels, by [`Series::name`].
    pub versions: BTreeMap<String, String>,
}

impl Record {
    /// Where the record is.
    pub fn path() -> PathBuf {
        bed::cargo::target_dir().join("stories.json")
    }

    /// Reads the record; an empty one where there is none.
    pub fn load() -> anyhow::Result<Self> {
        let path = Self::path();
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| path.display().to_string())?,
        };
        // A record of other features is of no use, and no reason to fail.
        Ok(serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Removes the record.
    pub fn remove() -> anyhow::Result<()> {
        let path = Self::path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        }
    }

    /// Brings in a run that told `told`, of which `passed` passed, and writes the record.
    pub(crate) fn update(
        all: BTreeSet<String>,
        told: &BTreeSet<String>,
        passed: BTreeMap<String, BTreeSet<Proof>>,
    ) -> anyhow::Result<()> {
        let mut record = Self::load()?.merge(all, told, passed);
        for series in Series::ALL {
            if record
                .proven()
                .any(|(_, (kernel, _))| kernel == series.name())
            {
                let version = Kernel::get(series)?.version();
                record.versions.insert(series.name().into(), version);
            }
        }
        let path = Self::path();
        fs::write(&path, serde_json::to_vec_pretty(&record)?)
            .with_context(|| path.display().to_string())
    }

    fn merge(
        mut self,
        all: BTreeSet<String>,
        told: &BTreeSet<String>,
        passed: BTreeMap<String, BTreeSet<Proof>>,
    ) -> Self {
        self.passed
            .retain(|story, _| all.contains(story) && !told.contains(story));
        self.passed.extend(passed);
        self.all = all;
        self
    }

    /// Stories that have not passed.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        let missing = |story: &&String| !self.passed.contains_key(*story);
        self.all.iter().filter(missing).map(String::as_str)
    }

    /// Each proof and the story that made it.
    pub fn proven(&self) -> impl Iterator<Item = (&str, &Proof)> {
        self.passed
            .iter()
            .flat_map(|(story, proofs)| proofs.iter().map(move |proof| (story.as_str(), proof)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn passed(stories: &[&str]) -> BTreeMap<String, BTreeSet<Proof>> {
        let proofs = BTreeSet::from([("linux-6.1".to_owned(), Feature::Boots)]);
        let passed = |story: &&str| ((*story).to_owned(), proofs.clone());
        stories.iter().map(passed).collect()
    }

    #[test]
    fn a_run_of_some_stories_keeps_the_others() {
        let all = names(&["a", "b", "c"]);
        let record = Record::default().merge(all.clone(), &all, passed(&["a", "b"]));
        assert_eq!(record.missing().collect::<Vec<_>>(), ["c"]);
        let record = record.merge(all, &names(&["b", "c"]), passed(&["c"]));
        assert_eq!(record.missing().collect::<Vec<_>>(), ["b"]);
        let record = record.merge(names(&["c", "d"]), &names(&["d"]), passed(&["d"]));
        let stories: Vec<_> = record.proven().map(|(story, _)| story).collect();
        assert_eq!(stories, ["c", "d"]);
        assert_eq!(record.missing().count(), 0);
    }
}
