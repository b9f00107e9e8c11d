//! Tables in Markdown.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// What a table lists.
#[derive(Clone, Debug)]
pub enum Mark {
    /// It does not say.
    None,
    /// It says something else than the forms below.
    Unknown(String),
    /// No wire facts.
    Words,
    /// A struct, whose first byte has offset `at`.
    Layout { path: String, at: usize },
    /// Constants below a path.
    Values { path: String },
}

/// A table.
#[derive(Clone, Debug)]
pub struct Table {
    pub file: String,
    pub line: usize,
    pub mark: Mark,
    pub header: Vec<String>,
    pub rows: Vec<Row>,
}

/// A row, its cells as text without markup.
#[derive(Clone, Debug)]
pub struct Row {
    pub line: usize,
    pub cells: Vec<String>,
}

/// All tables of a chapter.
pub fn parse(file: &str, text: &str) -> Vec<Table> {
    let line_of = |offset: usize| text[..offset].matches('\n').count() + 1;
    let mut tables: Vec<Table> = Vec::new();
    // A comment marks the table that follows it, with nothing between.
    let mut comment: Option<String> = None;
    let mut cells: Option<Vec<String>> = None;
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Html(html) => comment.get_or_insert_default().push_str(&html),
            Event::Start(Tag::HtmlBlock) | Event::End(TagEnd::HtmlBlock) => {}
            Event::Start(Tag::Table(_)) => tables.push(Table {
                file: file.to_owned(),
                line: line_of(range.start),
                mark: mark(comment.take().as_deref()),
                header: Vec::new(),
                rows: Vec::new(),
            }),
            Event::Start(Tag::TableHead | Tag::TableRow) => cells = Some(Vec::new()),
            Event::Start(Tag::TableCell) => cells.as_mut().unwrap().push(String::new()),
            Event::Text(text) | Event::Code(text) if cells.is_some() => {
                cells.as_mut().unwrap().last_mut().unwrap().push_str(&text);
            }
            Event::End(TagEnd::TableHead) => {
                tables.last_mut().unwrap().header = cells.take().unwrap();
            }
            Event::End(TagEnd::TableRow) => {
                let line = line_of(range.start);
                let cells = cells.take().unwrap();
                tables.last_mut().unwrap().rows.push(Row { line, cells });
            }
            _ if cells.is_none() => comment = None,
            _ => {}
        }
    }
    tables
}

fn mark(comment: Option<&str>) -> Mark {
    let Some(comment) = comment else {
        return Mark::None;
    };
    let unknown = || Mark::Unknown(comment.trim().to_owned());
    let inner = comment
        .trim()
        .strip_prefix("<!--")
        .and_then(|rest| rest.strip_suffix("-->"));
    let Some(inner) = inner.map(str::trim) else {
        return unknown();
    };
    if inner == "words" {
        Mark::Words
    } else if let Some(path) = inner.strip_prefix("values:") {
        Mark::Values {
            path: path.trim().to_owned(),
        }
    } else if let Some(rest) = inner.strip_prefix("layout:") {
        let (path, at) = rest.split_once(" at ").unwrap_or((rest, "0"));
        at.trim().parse().map_or_else(
            |_| unknown(),
            |at| Mark::Layout {
                path: path.trim().to_owned(),
                at,
            },
        )
    } else {
        unknown()
    }
}

/// A value as both sides of the comparison write it: numbers decimal, anything else as it is,
/// several one after the other.
pub fn canonical(cell: &str) -> String {
    if let Some(bit) = cell.strip_prefix("bit ") {
        let value = bit.parse().ok().and_then(|bit| 1u64.checked_shl(bit));
        return value.map_or_else(|| cell.to_owned(), |value| value.to_string());
    }
    let tokens = cell.split([' ', ',']).filter(|token| !token.is_empty());
    let tokens: Vec<String> = tokens
        .map(|token| number(token).map_or_else(|| token.to_owned(), |n| n.to_string()))
        .collect();
    tokens.join(" ")
}

fn number(token: &str) -> Option<u64> {
    let digits = token.replace('_', "");
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// Where a chapter links to.
pub fn links(text: &str) -> Vec<String> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
        .filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. }) => Some(dest_url.to_string()),
            _ => None,
        })
        .collect()
}
