//! Lines and words of `pg_hba.conf` and `pg_ident.conf`, with their places (PostgreSQL's `libpq/hba.c`, `next_token`).

use model::SIGN_IN_TEXT_BYTES_MAX;

use super::Mistake;

/// Longest word, in characters.
pub(crate) const WORD_CHARS_MAX: usize = 256;
/// Most words of one comma list.
const LIST_WORDS_MAX: usize = 256;

/// Where something stands, both counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    pub(crate) fn mistake(self, message: impl Into<String>) -> Mistake {
        Mistake { line: self.line, column: self.column, message: message.into(), hint: None }
    }

    pub(crate) fn hinted(self, message: impl Into<String>, hint: impl Into<String>) -> Mistake {
        Mistake { hint: Some(hint.into()), ..self.mistake(message) }
    }
}

/// One word.
#[derive(Clone, Debug)]
pub(crate) struct Word {
    pub(crate) text: String,
    /// It began with a quote, which takes the special meaning from `all`, `+` and the like, as in PostgreSQL.
    pub(crate) is_quoted: bool,
    pub(crate) place: Place,
}

impl Word {
    /// Whether it is this keyword, and not a name that is written like it.
    pub(crate) fn is_keyword(&self, keyword: &str) -> bool {
        !self.is_quoted && self.text == keyword
    }
}

/// Words between blanks: one, or several with commas between them. Never empty.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) words: Vec<Word>,
    pub(crate) place: Place,
}

impl Field {
    /// The only word.
    pub(crate) fn single(&self, what: &str) -> Result<&Word, Mistake> {
        match self.words.as_slice() {
            [word] => Ok(word),
            _ => Err(self.place.hinted(
                format!("{what} is a list, but takes one value"),
                "put a value that holds a comma in double quotes",
            )),
        }
    }
}

/// A line that says something, put together where `\` continues it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) fields: Vec<Field>,
    /// As it was written, without comment.
    pub(crate) text: String,
    pub(crate) place: Place,
    /// Where it ends, for what is missing.
    pub(crate) end: Place,
}

/// All lines that say something.
pub(crate) fn lines(text: &str, lines_max: usize, what: &str) -> Result<Vec<Line>, Mistake> {
    let start = Place { line: 1, column: 1 };
    if text.len() > SIGN_IN_TEXT_BYTES_MAX {
        return Err(start.mistake(format!("the text is longer than {} KiB", SIGN_IN_TEXT_BYTES_MAX / 1024)));
    }
    let mut found = Vec::new();
    let mut letters: Vec<(char, Place)> = Vec::new();
    for (number, raw) in (1_u32..).zip(text.split('\n')) {
        let raw = raw.strip_suffix('\r').unwrap_or(raw);
        let (body, goes_on) = raw.strip_suffix('\\').map_or((raw, false), |body| (body, true));
        let mut end = Place { line: number, column: 1 };
        for letter in body.chars() {
            check_letter(letter, end)?;
            letters.push((letter, end));
            end.column += 1;
        }
        if goes_on {
            continue;
        }
        if let Some(line) = read(&letters, end)? {
            if found.len() >= lines_max {
                return Err(line.place.mistake(format!("there are more than {lines_max} {what}")));
            }
            found.push(line);
        }
        letters.clear();
    }
    // The last line ended with `\`.
    if let Some(&(_, end)) = letters.last()
        && let Some(line) = read(&letters, end)?
    {
        return Err(line.end.hinted("the text ends in the middle of a line", "remove the `\\` at its end"));
    }
    Ok(found)
}

/// Characters that people cannot see would make a rule that reads well and never matches.
fn check_letter(letter: char, place: Place) -> Result<(), Mistake> {
    let is_hidden = matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let is_odd_blank = letter.is_whitespace() && letter != ' ' && letter != '\t';
    if is_hidden || is_odd_blank || (letter.is_control() && letter != '\t') {
        let code = u32::from(letter);
        return Err(place.hinted(
            format!("a character that cannot be seen (U+{code:04X})"),
            "remove it; fields are parted by spaces or tabs",
        ));
    }
    Ok(())
}

fn is_blank(letter: char) -> bool {
    letter == ' ' || letter == '\t'
}

fn read(letters: &[(char, Place)], end: Place) -> Result<Option<Line>, Mistake> {
    let mut rest = letters;
    let mut fields = Vec::new();
    loop {
        skip_blanks(&mut rest);
        match rest.first() {
            None | Some(('#', _)) => break,
            Some((',', place)) => return Err(place.mistake("a comma without a value before it")),
            Some(_) => fields.push(field(&mut rest, end)?),
        }
    }
    let Some(first) = fields.first() else { return Ok(None) };
    let place = first.place;
    let said = letters.len() - rest.len();
    let text: String = letters[..said].iter().map(|(letter, _)| letter).collect();
    let end = rest.first().map_or(end, |(_, place)| *place);
    Ok(Some(Line { fields, text: text.trim_matches(is_blank).to_owned(), place, end }))
}

fn skip_blanks(rest: &mut &[(char, Place)]) {
    while let Some((' ' | '\t', _)) = rest.first() {
        *rest = &rest[1..];
    }
}

fn field(rest: &mut &[(char, Place)], end: Place) -> Result<Field, Mistake> {
    let mut words = Vec::new();
    loop {
        skip_blanks(rest);
        let place = rest.first().map_or(end, |(_, place)| *place);
        if matches!(rest.first(), None | Some((',' | '#', _))) {
            return Err(place.mistake("a value is missing after the comma"));
        }
        let word = word(rest, place)?;
        if word.text.is_empty() {
            return Err(place.mistake("an empty value"));
        }
        if words.len() >= LIST_WORDS_MAX {
            return Err(place.mistake(format!("a list of more than {LIST_WORDS_MAX} values")));
        }
        words.push(word);
        match rest.first() {
            Some((',', _)) => *rest = &rest[1..],
            _ => break,
        }
    }
    let place = words.first().map_or(end, |word| word.place);
    Ok(Field { words, place })
}

/// Reads up to a blank, a comma or a comment outside quotes. Two quotes inside quotes are one.
fn word(rest: &mut &[(char, Place)], place: Place) -> Result<Word, Mistake> {
    let mut text = String::new();
    let mut length = 0_usize;
    let mut is_quoted = false;
    let mut opened: Option<Place> = None;
    while let Some(&(letter, here)) = rest.first() {
        let is_doubled = letter == '"' && matches!(rest.get(1), Some(('"', _)));
        match (opened, letter) {
            (None, ',' | '#') => break,
            (None, letter) if is_blank(letter) => break,
            (None, '"') => {
                opened = Some(here);
                is_quoted |= text.is_empty();
            }
            (Some(_), '"') if is_doubled => {
                *rest = &rest[1..];
                text.push('"');
                length += 1;
            }
            (Some(_), '"') => opened = None,
            (_, letter) => {
                text.push(letter);
                length += 1;
            }
        }
        *rest = &rest[1..];
        if length > WORD_CHARS_MAX {
            return Err(place.mistake(format!("a value of more than {WORD_CHARS_MAX} characters")));
        }
    }
    match opened {
        Some(here) => Err(here.mistake("the quote is not closed on this line")),
        None => Ok(Word { text, is_quoted, place }),
    }
}
