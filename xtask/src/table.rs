//! The table in `docs/guests.md`: guest kernel and feature, each cell made by a story that passed.
//!
//! The stories' [`Record`] is the truth. [`check`] holds the document against it; [`write()`] brings
//! the document up to it. The exact versions of the kernels stand in the document too, and are not
//! compared, since they move without anybody here doing anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use bed::provision::kernel::Series;
use e2e::{Feature, Record};

/// The document, in the workspace.
const DOCUMENT: &str = "docs/guests.md";

/// What begins the parts of the document that are written here, and what ends each.
const TABLE: &str = "<!-- table -->\n";
const VERSIONS: &str = "<!-- versions -->\n";
const END: &str = "<!-- end -->";

/// Column titles.
fn title(series: Series) -> &'static str {
    match series {
        Series::Linux6_1 => "6.1 (Debian 12)",
        Series::Linux6_12 => "6.12 (Debian 13)",
        Series::Linux7 => "7.x (Debian 13 backports)",
    }
}

/// Brings the document up to the record.
pub(crate) fn write() -> anyhow::Result<()> {
    let record = whole()?;
    let path = path();
    let old = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (begin, _, rest) = split(&old, TABLE)?;
    let new = format!("{begin}{}{rest}", table(&record));
    let (begin, _, rest) = split(&new, VERSIONS)?;
    let new = format!("{begin}{}{rest}", versions(&record));
    fs::write(&path, &new).with_context(|| path.display().to_string())?;
    let changed = if new == old { "as it was" } else { "written" };
    println!("{DOCUMENT}: {changed}");
    Ok(())
}

/// Whether the document says exactly what the record does.
pub(crate) fn check() -> anyhow::Result<()> {
    let record = whole()?;
    let path = path();
    let document = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (_, told, _) = split(&document, TABLE)?;
    compare(told, &table(&record))
}

fn path() -> PathBuf {
    bed::cargo::workspace().join(DOCUMENT)
}

/// The record, if all stories are in it.
fn whole() -> anyhow::Result<Record> {
    let record = Record::load()?;
    let missing: Vec<&str> = record.missing().collect();
    ensure!(
        !record.all.is_empty(),
        "no story has been told yet: run `cargo xtask test --only stories` first"
    );
    ensure!(
        missing.is_empty(),
        "the table needs every story, and {} have not passed since the record began, {} among \
         them: run `cargo xtask test --only stories` first",
        missing.len(),
        missing[0]
    );
    Ok(record)
}

/// What is before the part that `mark` begins, the part, and the rest.
fn split<'a>(document: &'a str, mark: &str) -> anyhow::Result<(&'a str, &'a str, &'a str)> {
    let part = document.find(mark).map(|at| at + mark.len());
    let part = part.and_then(|begin| Some((begin, begin + document[begin..].find(END)?)));
    let (begin, end) =
        part.with_context(|| format!("{DOCUMENT} has lost its line {:?}", mark.trim()))?;
    Ok((&document[..begin], &document[begin..end], &document[end..]))
}

fn compare(told: &str, proven: &str) -> anyhow::Result<()> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (was, is) = (lines(told), lines(proven));
    let first = is.difference(&was).chain(was.difference(&is)).next();
    ensure!(
        told == proven,
        "{DOCUMENT} does not say what the stories have proven{}: run `cargo xtask table` and \
         commit what it writes",
        first.map_or(String::new(), |line| format!(" (`{line}`)"))
    );
    Ok(())
}

/// The table as the document has it.
fn table(record: &Record) -> String {
    let mut text = String::from("|");
    for series in Series::ALL {
        text.push_str(&format!(" | {}", title(series)));
    }
    text.push_str(" | proven by |\n|---|---|---|---|---|\n");
    for feature in Feature::ALL {
        text.push_str(&row(record, *feature));
    }
    text
}

fn row(record: &Record, feature: Feature) -> String {
    let mut text = format!("| {}", feature.text());
    let mut topics = BTreeSet::new();
    for series in Series::ALL {
        let stories: Vec<&str> = record
            .proven()
            .filter(|(_, (kernel, proven))| kernel == series.name() && *proven == feature)
            .map(|(story, _)| story)
            .collect();
        topics.extend(stories.iter().filter_map(|story| story.split("::").next()));
        text.push_str(if stories.is_empty() {
            " | –"
        } else {
            " | yes"
        });
    }
    let topics: Vec<&str> = topics.into_iter().collect();
    text.push_str(&format!(" | {} |\n", topics.join(", ")));
    text
}

/// The list of versions as the document has it.
fn versions(record: &Record) -> String {
    let mut text = String::new();
    for series in Series::ALL {
        if let Some(version) = record.versions.get(series.name()) {
            text.push_str(&format!("- {}: {version}\n", title(series)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let proof = |series: Series, feature| (series.name().to_owned(), feature);
        let passed = [
            (
                "linux::a",
                BTreeSet::from([proof(Series::Linux6_1, Feature::Boots)]),
            ),
            (
                "linux_smp::b",
                BTreeSet::from([
                    proof(Series::Linux7, Feature::Boots),
                    proof(Series::Linux7, Feature::FourCpus),
                ]),
            ),
        ];
        Record {
            passed: passed.map(|(story, it)| (story.to_owned(), it)).into(),
            versions: [(Series::Linux7.name().to_owned(), "7.3.4-x".to_owned())].into(),
            ..Record::default()
        }
    }

    #[test]
    fn a_cell_is_a_proof() {
        assert_eq!(
            row(&record(), Feature::Boots),
            format!(
                "| {} | yes | – | yes | linux, linux_smp |\n",
                Feature::Boots.text()
            )
        );
        assert_eq!(
            row(&record(), Feature::Kexec),
            format!("| {} | – | – | – |  |\n", Feature::Kexec.text())
        );
        assert_eq!(
            versions(&record()),
            "- 7.x (Debian 13 backports): 7.3.4-x\n"
        );
    }

    #[test]
    fn a_table_that_says_more_or_less_is_refused() {
        let mut record = record();
        let told = table(&record);
        compare(&told, &table(&record)).unwrap();
        // Another point release changes no cell.
        record.versions.clear();
        compare(&told, &table(&record)).unwrap();
        record.passed.pop_last();
        for (told, proven) in [(&told, &table(&record)), (&table(&record), &told)] {
            let error = compare(told, proven).unwrap_err().to_string();
            assert!(error.contains("cargo xtask table"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_document_has_its_places() {
        let document = fs::read_to_string(path()).unwrap();
        for mark in [TABLE, VERSIONS] {
            split(&document, mark).unwrap();
        }
        assert!(split("nothing", TABLE).is_err());
    }
}
