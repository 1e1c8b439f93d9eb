//! Regular expressions that people write, with bounds: matching takes linear time, and a pattern has a size.

use std::fmt;

use regex::{Captures, Regex, RegexBuilder};

use super::Mistake;
use super::lex::Place;

/// Most regular expressions of one text.
pub(crate) const PATTERNS_MAX: usize = 100;
/// Size of a compiled pattern, in bytes. Bounds the time of a match as well: it is at most size times length.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
const NESTING_MAX: u32 = 32;

/// A regular expression. PostgreSQL's own have back references and lookahead, which these have not.
#[derive(Clone)]
pub(crate) struct Pattern {
    regex: Regex,
    source: String,
}

impl Pattern {
    /// One that matches where any part of the value matches, as in `pg_hba.conf`.
    pub(crate) fn anywhere(source: &str, place: Place) -> Result<Self, Mistake> {
        let regex = compile(source, place)?;
        Ok(Self { regex, source: source.to_owned() })
    }

    /// One that must match the whole value.
    pub(crate) fn whole(source: &str, place: Place) -> Result<Self, Mistake> {
        // Read by itself first: `a)|(b` would be two alternatives of the wrapped one, and escape the anchors.
        compile(source, place)?;
        let regex = compile(&format!(r"\A(?:{source})\z"), place)?;
        Ok(Self { regex, source: source.to_owned() })
    }

    /// How many groups it has that keep what they matched.
    pub(crate) fn groups(&self) -> usize {
        self.regex.captures_len() - 1
    }

    pub(crate) fn is_match(&self, value: &str) -> bool {
        self.regex.is_match(value)
    }

    pub(crate) fn captures<'a>(&self, value: &'a str) -> Option<Captures<'a>> {
        self.regex.captures(value)
    }

    /// As it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.source)
    }
}

fn compile(source: &str, place: Place) -> Result<Regex, Mistake> {
    if source.is_empty() {
        return Err(place.mistake("the regular expression is empty"));
    }
    let built = RegexBuilder::new(source)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX)
        .nest_limit(NESTING_MAX)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => place.hinted(
            "the regular expression is too large",
            "write fewer repetitions, and [a-z0-9_] instead of \\w, which stands for letters of every language",
        ),
        error => {
            // The last line says what is wrong; those before it draw an arrow.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            let why = last.strip_prefix("error: ").unwrap_or(last);
            place.mistake(format!("the regular expression cannot be read: {why}"))
        }
    })
}
