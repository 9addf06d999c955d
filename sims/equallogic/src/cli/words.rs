//! A command line cut into words.

use crate::cli::CliError;

/// A word, and whether it was quoted: quoted words are never keywords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub text: String,
    pub quoted: bool,
}

impl Word {
    pub fn plain(text: &str) -> Word {
        Word { text: text.into(), quoted: false }
    }
}

/// Blanks part words; single or double quotes hold them together, also in the middle of a word.
pub fn split(line: &str) -> Result<Vec<Word>, CliError> {
    let mut words = Vec::new();
    let mut current: Option<Word> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                current.get_or_insert_with(|| Word::plain("")).quoted = true;
            }
            (None, _) if c.is_whitespace() => words.extend(current.take()),
            _ => current.get_or_insert_with(|| Word::plain("")).text.push(c),
        }
    }
    if let Some(open) = quote {
        return Err(CliError::syntax(format!("Missing closing {open}.")));
    }
    words.extend(current);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn quotes_hold_words_together() {
        let texts = |line| split(line).expect("words").into_iter().map(|word| word.text).collect::<Vec<_>>();
        assert_eq!(texts("  vol  sel x "), ["vol", "sel", "x"]);
        assert_eq!(texts(r#"description "two words" 'it "is"' """#), ["description", "two words", "it \"is\"", ""]);
        assert!(texts("   ").is_empty());
        assert!(split("a \"b").is_err());
    }
}
