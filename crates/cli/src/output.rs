//! Lists and objects as docker prints them: tables, templates, JSON.

use std::io::Write;

use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::template::Template;

/// Writes to standard output. A closed pipe ends the program quietly.
pub fn print(text: &str) -> Result {
    print_bytes(text.as_bytes())
}

/// Writes to standard error what need not be read: who has closed it does not want it.
pub fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes bytes to standard output. A closed pipe ends the program quietly.
pub fn print_bytes(bytes: &[u8]) -> Result {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::status(141)),
        other => Ok(other?),
    }
}

/// A list: its columns' titles, the default and quiet formats, and its rows as objects.
pub struct List<'a> {
    /// Title of each field that a format may name.
    pub headers: &'a [(&'a str, &'a str)],
    /// Fields of the default table.
    pub columns: Vec<&'a str>,
    pub rows: Vec<Map<String, Value>>,
    /// The field that `--quiet` prints.
    pub id: &'a str,
    /// How errors name a bad template; empty for not at all.
    pub template_error: &'a str,
    /// Docker's name of the rows' type, for errors about fields that it has not.
    pub type_name: &'a str,
}

impl List<'_> {
    pub fn print(&self, format: Option<&str>, quiet: bool) -> Result {
        print(&self.text(format, quiet)?)
    }

    /// What [`List::print`] prints.
    pub fn text(&self, format: Option<&str>, quiet: bool) -> Result<String> {
        Ok(match format.filter(|format| !format.is_empty()) {
            None | Some("table") if quiet => self.rows.iter().map(|row| format!("{}\n", text(&row[self.id]))).collect(),
            None | Some("table") => self.default_table(),
            Some("json") => self.templated("{{json .}}")?,
            Some("raw") => self.raw(),
            Some(format) => match format.strip_prefix("table") {
                Some(columns) if columns.starts_with([' ', '\t', '{']) => self.table(columns.trim_start())?,
                _ => self.templated(format)?,
            },
        })
    }

    fn default_table(&self) -> String {
        let title = |field: &&str| self.headers.iter().find(|(name, _)| name == field).map_or("", |(_, title)| title).to_owned();
        let mut lines = vec![self.columns.iter().map(title).collect::<Vec<_>>()];
        lines.extend(self.rows.iter().map(|row| self.columns.iter().map(|field| text(&row[*field])).collect()));
        tabulate(&lines)
    }

    fn raw(&self) -> String {
        let block = |row: &Map<String, Value>| {
            self.columns.iter().map(|field| format!("{}: {}\n", field.to_lowercase(), text(&row[*field]))).collect::<String>()
                + "\n"
        };
        self.rows.iter().map(block).collect()
    }

    fn bad_template(&self, error: &str) -> Failure {
        let colon = if self.template_error.is_empty() { "" } else { ": " };
        Failure::new(format!("{}{colon}{error}", self.template_error))
    }

    fn parse(&self, format: &str) -> Result<Template> {
        let format = format.replace("\\t", "\t").replace("\\n", "\n");
        Template::parse(&format).map_err(|error| self.bad_template(&error))
    }

    fn execute(&self, template: &Template, row: &Value) -> Result<String> {
        template.execute(row).map_err(|error| {
            let error = match error.split_once("map has no entry for key \"") {
                Some((place, field)) => {
                    format!("{place}can't evaluate field {} in type {}", field.trim_end_matches('"'), self.type_name)
                }
                None => error,
            };
            self.bad_template(&error)
        })
    }

    fn templated(&self, format: &str) -> Result<String> {
        let template = self.parse(format)?;
        self.rows.iter().map(|row| Ok(self.execute(&template, &Value::Object(row.clone()))? + "\n")).collect()
    }

    fn table(&self, format: &str) -> Result<String> {
        let template = self.parse(format)?;
        let header: Map<String, Value> =
            self.headers.iter().map(|(field, title)| ((*field).to_owned(), Value::String((*title).to_owned()))).collect();
        let cells = |line: String| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let mut lines = vec![cells(self.execute(&template, &Value::Object(header))?)];
        for row in &self.rows {
            lines.push(cells(self.execute(&template, &Value::Object(row.clone()))?));
        }
        Ok(tabulate(&lines))
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns as Go's tabwriter lays them out for docker: at least 10 wide, 3 spaces apart, the last one as it is.
pub fn tabulate(lines: &[Vec<String>]) -> String {
    tabulate_wide(lines, 10)
}

/// As [`tabulate`], with columns at least so wide.
pub fn tabulate_wide(lines: &[Vec<String>], narrowest: usize) -> String {
    let width = |longest: usize| (longest + 3).max(narrowest);
    laid_out(lines, width, |gap| std::iter::repeat_n(' ', gap).collect())
}

/// Columns that are filled up with tabulators, as Go's tabwriter lays them out for buildx.
pub fn tabbed(lines: &[Vec<String>]) -> String {
    const TAB: usize = 8;
    let width = |longest: usize| (longest + 1).div_ceil(TAB) * TAB;
    laid_out(lines, width, |gap| std::iter::repeat_n('\t', gap.div_ceil(TAB)).collect())
}

/// Cells beneath one another: `width` is a column's for its longest cell, and `filled` stands between a cell and the next column.
fn laid_out(lines: &[Vec<String>], width: impl Fn(usize) -> usize, filled: impl Fn(usize) -> String) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let longest = |column: usize| {
        let cells = lines.iter().filter(|line| column + 1 < line.len()).filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(|column| width(longest(column))).collect();
    let mut out = String::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            out += cell;
            if column + 1 < line.len() {
                out += &filled(widths[column] - cell.chars().count());
            }
        }
        out.push('\n');
    }
    out
}

/// Without what would move the cursor or change colors.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            // An escape sequence ends with a letter.
            '\x1b' => drop(characters.by_ref().find(char::is_ascii_alphabetic)),
            '\t' => out.push(' '),
            character if character.is_control() => {}
            character => out.push(character),
        }
    }
    out
}

/// Objects as `inspect` prints them: an indented list, or a template for each.
pub fn inspect(objects: &[Value], format: Option<&str>) -> Result {
    match format.filter(|format| !format.is_empty()) {
        None => print(&(indent(&Value::Array(objects.to_vec())) + "\n")),
        Some("json") => print(&(serde_json::to_string(objects)? + "\n")),
        Some(format) => {
            let format = format.replace("\\t", "\t").replace("\\n", "\n");
            let template = Template::parse(&format)
                .map_err(|error| Failure { message: format!("template parsing error: {error}"), code: 64 })?;
            for object in objects {
                let executed = template.execute(object).or_else(|error| match with_omitted(object) {
                    Some(whole) => template.execute(&whole),
                    None => Err(error),
                });
                match executed {
                    Ok(line) => print(&(line + "\n"))?,
                    Err(error) => {
                        // As docker: the line that was begun ends.
                        print("\n")?;
                        return Err(Failure::new(format!("template parsing error: {error}")));
                    }
                }
            }
            Ok(())
        }
    }
}

/// An image with what its JSON leaves out where it is empty: docker's templates see a field there.
fn with_omitted(object: &Value) -> Option<Value> {
    const OF_IMAGES: [&str; 2] = ["Variant", "OsVersion"];
    let mut fields = object.as_object().filter(|fields| fields.contains_key("RootFS"))?.clone();
    for name in OF_IMAGES {
        fields.entry(name).or_insert_with(|| Value::String(String::new()));
    }
    Some(Value::Object(fields))
}

/// JSON with four spaces, as docker indents.
pub fn indent(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => value.to_string(),
    }
}

/// Text in quotes as Go's `strconv.Quote` writes it.
pub fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted += "\\n",
            '\r' => quoted += "\\r",
            '\t' => quoted += "\\t",
            control if control.is_ascii_control() => quoted += &format!("\\x{:02x}", u32::from(control)),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

/// The first `length` characters, the last of them an ellipsis if there were more.
pub fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_docker_wide() {
        let lines = [vec!["ID".to_owned(), "NAMES".to_owned()], vec!["0123456789ab".to_owned(), "x".to_owned()]];
        assert_eq!(tabulate(&lines), "ID             NAMES\n0123456789ab   x\n");
        assert_eq!(tabulate(&[vec!["A".to_owned(), "B".to_owned()]]), "A         B\n");
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(ellipsis("\"sleep 1000000000000000\"", 20), "\"sleep 100000000000…");
        assert_eq!(ellipsis("short", 20), "short");
    }

    #[test]
    fn nothing_of_the_output_moves_the_cursor() {
        assert_eq!(harmless("a\x1b[31mred\x1b[0m\tb\r\x07"), "ared b");
        assert_eq!(harmless("\x1b[2J\x1b"), "");
    }

    #[test]
    fn columns_end_at_tabulators() {
        let line = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        assert_eq!(tabbed(&[line(&["Name:", "h"]), line(&["Dockerfile:", "d"])]), "Name:\t\th\nDockerfile:\td\n");
        assert_eq!(tabbed(&[line(&["1234567", "x"]), line(&["12345678", "y"])]), "1234567\t\tx\n12345678\ty\n");
    }
}
