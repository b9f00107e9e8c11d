//! The tables of `docs/vmbus` against this crate.
//!
//! An HTML comment before each table says what it lists:
//!
//! - `<!-- layout: message::OpenChannel at 8 -->`: the fields of a struct of this crate, columns
//!   `offset | size | field | meaning`; offsets count from 8 there, where the struct begins.
//! - `<!-- values: hv::msr -->`: constants of a module or a type, or variants of an enumeration,
//!   columns `value | name | meaning`; a name may go on with a path of its own.
//! - `<!-- words -->`: no wire facts.
//!
//! Each public wire struct, constant and enumeration in the sources has to be in exactly one of
//! them, and nothing else may.

mod code;
mod sources;
mod tables;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use code::{Code, Layout};
use tables::{Mark, Table};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vmbus")
}

/// The chapters: name and text.
fn chapters() -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(docs())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| {
            let name = file.file_name().unwrap().to_str().unwrap();
            (name.to_owned(), std::fs::read_to_string(file).unwrap())
        })
        .collect()
}

fn all_tables() -> Vec<Table> {
    let chapters = chapters();
    let tables = chapters.iter();
    tables
        .flat_map(|(name, text)| tables::parse(name, text))
        .collect()
}

/// What is wrong with `tables`.
fn problems(tables: &[Table], code: &Code) -> Vec<String> {
    let mut problems = Vec::new();
    let mut told: BTreeMap<&str, usize> = code
        .layouts
        .iter()
        .map(|layout| (layout.path.as_str(), 0))
        .chain(code.values.keys().map(|path| (path.as_str(), 0)))
        .collect();
    for table in tables {
        let mut wrong =
            |line, what: String| problems.push(format!("{}:{line}: {what}", table.file));
        match &table.mark {
            Mark::None => wrong(
                table.line,
                "a table without a comment that says what it lists".into(),
            ),
            Mark::Unknown(text) => wrong(table.line, format!("a mark that means nothing: {text}")),
            Mark::Words => {
                if table.header.iter().any(|name| {
                    matches!(
                        name.as_str(),
                        "offset" | "size" | "field" | "value" | "name"
                    )
                }) {
                    wrong(table.line, "wire facts in a table of words".into());
                }
            }
            Mark::Layout { path, at } => {
                if table.header != ["offset", "size", "field", "meaning"] {
                    wrong(table.line, format!("columns {:?}", table.header));
                }
                let Some(layout) = code.layouts.iter().find(|layout| layout.path == *path) else {
                    wrong(table.line, format!("there is no struct {path}"));
                    continue;
                };
                told.entry(&layout.path).and_modify(|count| *count += 1);
                layout_problems(table, layout, *at, &mut wrong);
            }
            Mark::Values { path } => {
                if table.header != ["value", "name", "meaning"] {
                    wrong(table.line, format!("columns {:?}", table.header));
                }
                for row in &table.rows {
                    let [value, name, ..] = row.cells.as_slice() else {
                        wrong(row.line, "a row without name".into());
                        continue;
                    };
                    let full = match path.as_str() {
                        "" => name.clone(),
                        path => format!("{path}::{name}"),
                    };
                    let Some((full, is)) = code.values.get_key_value(&full) else {
                        wrong(row.line, format!("there is no constant {full}"));
                        continue;
                    };
                    told.entry(full).and_modify(|count| *count += 1);
                    if tables::canonical(value) != *is {
                        wrong(row.line, format!("{full} is {is}, not {value}"));
                    }
                }
            }
        }
    }
    for (path, count) in told {
        match count {
            0 => problems.push(format!("{path} is in no table")),
            1 => {}
            _ => problems.push(format!("{path} is in {count} tables")),
        }
    }
    problems
}

/// Compares a table's rows with the fields of a struct that begins at `at`.
fn layout_problems(
    table: &Table,
    layout: &Layout,
    at: usize,
    wrong: &mut impl FnMut(usize, String),
) {
    let mut fields = layout.fields.iter();
    for row in &table.rows {
        let [offset, size, name, ..] = row.cells.as_slice() else {
            wrong(row.line, "a row without field".into());
            continue;
        };
        let Some(field) = fields.next() else {
            wrong(row.line, format!("{} has no field more", layout.path));
            return;
        };
        let is = (
            (at + field.offset).to_string(),
            field.size.to_string(),
            field.name.to_owned(),
        );
        if (offset, size, name) != (&is.0, &is.1, &is.2) {
            let (offset, size, name) = is;
            wrong(
                row.line,
                format!(
                    "in {} the next field is {name} at {offset}, {size} bytes",
                    layout.path
                ),
            );
        }
    }
    for field in fields {
        wrong(
            table.line,
            format!("{} lacks field {}", layout.path, field.name),
        );
    }
}

#[test]
fn every_table_is_true_and_nothing_is_left_out() {
    let problems = problems(&all_tables(), &Code::known());
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn the_sources_have_nothing_that_this_test_does_not_know() {
    let problems = sources::unknown();
    assert!(
        problems.is_empty(),
        "say it in docs/vmbus and in tests/docs/code.rs:\n{}",
        problems.join("\n")
    );
}

#[test]
fn links_lead_somewhere() {
    let chapters = chapters();
    for (name, text) in &chapters {
        for link in tables::links(text) {
            let (file, _) = link.split_once('#').unwrap_or((&link, ""));
            if file.is_empty() || file.contains("://") {
                continue;
            }
            assert!(docs().join(file).is_file(), "{name}: {link} leads nowhere");
        }
    }
    let (_, overview) = chapters
        .iter()
        .find(|(name, _)| name == "README.md")
        .unwrap();
    let links = tables::links(overview);
    for (name, _) in &chapters {
        assert!(
            name == "README.md" || links.contains(name),
            "the overview does not link to {name}"
        );
    }
}

/// Each row counts: without it, twice, or with any other value, the test fails.
#[test]
fn no_row_can_be_wrong() {
    let code = Code::known();
    let tables = all_tables();
    let mut rows = 0;
    for at in 0..tables.len() {
        if matches!(tables[at].mark, Mark::Words) {
            continue;
        }
        for row in 0..tables[at].rows.len() {
            rows += 1;
            let changed = |change: &dyn Fn(&mut Table)| {
                let mut lies = tables.clone();
                change(&mut lies[at]);
                let what = format!("{}: row {row} of line {}", tables[at].file, tables[at].line);
                assert!(!problems(&lies, &code).is_empty(), "{what}");
            };
            changed(&|table| drop(table.rows.remove(row)));
            changed(&|table| table.rows.insert(row, table.rows[row].clone()));
            for cell in 0..tables[at].rows[row].cells.len() - 1 {
                changed(&|table| table.rows[row].cells[cell].push('1'));
            }
        }
    }
    assert!(rows > 300, "{rows}");
}

#[test]
fn tables_of_nothing_known_are_found() {
    let code = Code::known();
    let found = |text: &str| {
        let mut tables = all_tables();
        tables.extend(tables::parse("new.md", text));
        problems(&tables, &code)
    };
    let values = "| value | name | meaning |\n|---|---|---|\n| 9 | `NEW` | new |\n";
    let layout =
        "| offset | size | field | meaning |\n|---|---|---|---|\n| 0 | 4 | `new` | new |\n";
    for (text, says) in [
        (values.to_owned(), "without a comment"),
        (format!("<!-- wrods -->\n{values}"), "means nothing"),
        (format!("<!-- words -->\n\n{values}"), "wire facts"),
        (
            format!("<!-- values: hv::msr -->\n\n{values}"),
            "no constant hv::msr::NEW",
        ),
        (
            format!("<!-- layout: message::New -->\n{layout}"),
            "no struct message::New",
        ),
        (format!("<!-- layout: hv::msr -->\n{values}"), "columns"),
    ] {
        let problems = found(&text);
        assert!(
            problems.iter().any(|problem| problem.contains(says)),
            "{text}: {problems:?}"
        );
    }
    let none: [String; 0] = [];
    assert_eq!(
        found("<!-- words -->\n| a | b |\n|---|---|\n| 1 | 2 |\n"),
        none
    );
}
