//! Results to standard output, as tables for people or JSON for programs; everything else to standard error.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::command::Output;
use crate::failure::{Failure, Kind};
use crate::text::shown;

/// Width of a table that does not go to a terminal.
const WIDTH_DEFAULT: u16 = 120;
/// A table on a narrower terminal is cut by the terminal instead of falling apart.
const WIDTH_MIN: u16 = 60;

/// Where a command's words go.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    output: Output,
}

impl Printer {
    /// A printer for this form.
    pub fn new(output: Output) -> Self {
        Self { output }
    }

    /// Whether programs read the result.
    pub fn is_json(self) -> bool {
        self.output == Output::Json
    }

    /// Prints a result: as JSON, or as the text that `table` makes. Names in that text that may be of any form belong into a
    /// table or facts, which escape line breaks too.
    pub fn result<T: Serialize>(self, value: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = match self.output {
            Output::Json => serde_json::to_string_pretty(value)
                .map(|text| plain_json(&text))
                .map_err(|error| Failure::new(Kind::Failed, format!("the result is no JSON: {error}")))?,
            Output::Table => shown(&table()),
        };
        line(&text)
    }

    /// A spinner on a terminal, nothing elsewhere.
    pub fn spinner(self, text: &str) -> ProgressBar {
        if self.is_json() || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    /// A bar of bytes on a terminal, nothing elsewhere.
    pub fn progress(self, text: &str) -> ProgressBar {
        if self.is_json() || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(text.to_owned());
        bar
    }
}

/// The same JSON with what a terminal does not show written as `\uXXXX`, which JSON has for it.
fn plain_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || model::is_printable(character) {
            plain.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        }
    }
    plain
}

/// Prints one line of data.
pub fn line(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // The reader, for instance `head`, has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Says something to a person.
pub fn say(text: &str) {
    // When nobody can read it, there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{}", shown(text));
}

/// A table with a heading, as wide as the terminal.
pub fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(width());
    table.set_header(heading);
    for row in rows {
        table.add_row(row.map(|cell| model::escaped(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Facts about one thing, a line each.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let facts: Vec<_> = facts.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        facts.iter().map(|(name, value)| format!("{name:width$}  {}", model::escaped(value))).collect();
    lines.join("\n")
}

fn width() -> u16 {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return WIDTH_DEFAULT;
    }
    rustix::termios::tcgetwinsize(out).map_or(WIDTH_DEFAULT, |size| size.ws_col.max(WIDTH_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_heading_and_every_cell() {
        let text = table(["name", "state"], [["my-shop".to_owned(), "CREATED".to_owned()]]);
        for word in ["name", "state", "my-shop", "CREATED"] {
            assert!(text.contains(word), "{text}");
        }
        assert!(text.lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn a_name_forges_no_row_and_turns_no_text() {
        let names =
            ["r2\nchitin  forged", "a\u{202e}b", "c\u{2028}d", "e\rf", "g\x1b[2J", "h\u{9b}2J", "Müller"];
        let text = table(["USER", "MADE BY"], names.map(|name| [name.to_owned(), String::new()]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + names.len(), "{text}");
        assert!(lines[1].starts_with("r2\\nchitin  forged"), "{text}");
        assert!(lines[2].starts_with("a\\u{202e}b") && lines[3].starts_with("c\\u{2028}d"), "{text}");
        assert!(lines[7].starts_with("Müller"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || model::is_printable(c)), "{text}");
        assert_eq!(facts([("user", "x\nadmin  y".to_owned())]), "user  x\\nadmin  y");
    }

    #[test]
    fn json_stays_the_same_and_cannot_steer_the_terminal() {
        let name = "a\u{202e}\u{9b}\u{2028}\u{e0041}é\n";
        let text = plain_json(&serde_json::to_string_pretty(&[name]).unwrap());
        assert!(text.contains("a\\u202e\\u009b\\u2028\\udb40\\udc41é\\n"), "{text}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).unwrap(), [name]);
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        assert_eq!(
            facts([("name", "a".to_owned()), ("gone", String::new()), ("id", "b".to_owned())]),
            "name  a\nid    b"
        );
    }
}
