//! How the fields of a log line are written, whoever logs what: no value can look like another field or another line.
//!
//! A value is written as it is where it is made of plain characters alone, else in double quotes and escaped as in Rust. The
//! message is quoted only if it holds `=` or a double quote, by which it could be taken for fields. So who splits a line at
//! blanks outside of quotes gets exactly the fields that were logged.

use std::error::Error;
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The field that holds an event's text.
const MESSAGE: &str = "message";
/// What a library that logs by other means adds about itself.
const FOREIGN: &str = "log.";

/// Writes fields so that their values end where they end.
#[derive(Clone, Copy, Debug)]
pub struct Unforgeable;

impl<'writer> FormatFields<'writer> for Unforgeable {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut pen = Pen { writer, is_first: true, written: Ok(()) };
        fields.record(&mut pen);
        pen.written
    }
}

struct Pen<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    written: fmt::Result,
}

impl Pen<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        if self.written.is_ok() && !field.name().starts_with(FOREIGN) {
            self.written = self.try_write(field.name(), value);
        }
    }

    fn try_write(&mut self, name: &str, value: &str) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        if name == MESSAGE {
            return self.writer.write_str(&message(value));
        }
        let name = name.trim_start_matches("r#");
        if self.writer.has_ansi_escapes() {
            write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{}", quoted(value))
        } else {
            write!(self.writer, "{name}={}", quoted(value))
        }
    }
}

impl Visit for Pen<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.write(field, &text);
    }
}

fn message(text: &str) -> String {
    if text.contains(['=', '"']) { escaped_in_quotes(text) } else { model::escaped(text) }
}

fn quoted(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\"'\\=".contains(&byte);
    if !value.is_empty() && value.bytes().all(is_plain) { value.to_owned() } else { escaped_in_quotes(value) }
}

fn escaped_in_quotes(text: &str) -> String {
    let doubled = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", model::escaped(&doubled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_stay_as_they_are_and_all_others_are_quoted() {
        for plain in
            ["203.0.113.9", "2001:db8::1", "my-shop-2", "scram-sha-256", "1.5ms", "a@b.example", "200"]
        {
            assert_eq!(quoted(plain), plain);
        }
        for (value, written) in [
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("bob from=203.0.113.9 method=cert ok", r#""bob from=203.0.113.9 method=cert ok""#),
            ("a\" from=\"b", r#""a\" from=\"b""#),
            ("\"maria\"", r#""\"maria\"""#),
            ("a\\", r#""a\\""#),
            ("r2\nchitin  forged", r#""r2\nchitin  forged""#),
            ("\u{202e}x\u{2028}y", r#""\u{202e}x\u{2028}y""#),
            ("Müller", r#""Müller""#),
        ] {
            assert_eq!(quoted(value), written);
        }
    }

    #[test]
    fn a_message_cannot_look_like_fields_or_like_another_line() {
        assert_eq!(message("it's asleep, and its key is gone"), "it's asleep, and its key is gone");
        assert_eq!(message("cannot open x from=203.0.113.9"), "\"cannot open x from=203.0.113.9\"");
        assert_eq!(message("one\ntwo\u{202e}"), "one\\ntwo\\u{202e}");
    }
}
