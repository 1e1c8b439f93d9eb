//! Text of others as people may see it: nothing in it ends a line, turns the reading direction or steers a terminal.

/// The text with every character escaped that shows nothing by itself: control and format characters (Cc and Cf, so those that
/// turn the reading direction too), separators of lines and paragraphs (Zl, Zp), blanks other than the space, and what is
/// private or not assigned. They are written as in Rust: `\n`, `\u{202e}`.
pub fn escaped(text: &str) -> String {
    escaped_but(text, &[])
}

/// As [`escaped`], and keeps these characters.
pub fn escaped_but(text: &str, kept: &[char]) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if kept.contains(&character) || is_printable(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_debug());
        }
    }
    shown
}

/// Whether a character is seen where it stands.
pub fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return character == ' ' || character.is_ascii_graphic();
    }
    // By the standard library's own table. Behind a letter it leaves combining marks as they are.
    let text = format!("a{character}");
    text.escape_debug().eq(text.chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_nothing_is_escaped_and_everything_else_is_not() {
        let plain = "Maria \"Müller\" \\ 'x' | 李 e\u{301} 😀 ≤";
        assert_eq!(escaped(plain), plain);
        for (character, written) in [
            ('\n', "\\n"),
            ('\r', "\\r"),
            ('\t', "\\t"),
            ('\x1b', "\\u{1b}"),
            ('\x7f', "\\u{7f}"),
            ('\u{9b}', "\\u{9b}"),
            ('\u{85}', "\\u{85}"),
            ('\u{ad}', "\\u{ad}"),
            ('\u{200b}', "\\u{200b}"),
            ('\u{200f}', "\\u{200f}"),
            ('\u{2028}', "\\u{2028}"),
            ('\u{2029}', "\\u{2029}"),
            ('\u{202e}', "\\u{202e}"),
            ('\u{2066}', "\\u{2066}"),
            ('\u{feff}', "\\u{feff}"),
            ('\u{a0}', "\\u{a0}"),
            ('\u{e0041}', "\\u{e0041}"),
        ] {
            assert_eq!(escaped(&format!("a{character}b")), format!("a{written}b"));
        }
        assert_eq!(escaped_but("a\tb\nc\r", &['\n', '\t']), "a\tb\nc\\r");
    }
}
