//! Which command a line means. Keywords may be shortened as long as they stay unambiguous, `show` may stand in front of
//! its noun, and options follow in any order.

use crate::cli::verbs::{Call, VERBS};
use crate::cli::words::Word;
use crate::cli::{CliError, Reply};

/// An option of a command: a flag, or a keyword with a value.
#[derive(Debug)]
pub struct Opt {
    pub word: &'static str,
    pub value: bool,
}

/// A command. In the pattern `<x>` is an argument and `[x]`, at the end, one that may be missing.
pub struct Verb {
    pub pattern: &'static str,
    pub options: &'static [Opt],
    /// Read-only accounts may not.
    pub changes: bool,
    /// What is asked before, unless confirmation is off.
    pub confirm: Option<&'static str>,
    pub run: fn(&mut Call<'_>) -> Result<Reply, CliError>,
}

impl Verb {
    fn element(&self, at: usize) -> Option<Element> {
        self.pattern.split(' ').nth(at).map(|text| match text.as_bytes()[0] {
            b'<' => Element::Argument,
            b'[' => Element::Optional,
            _ => Element::Keyword(text),
        })
    }

    fn ends_at(&self, at: usize) -> bool {
        matches!(self.element(at), None | Some(Element::Optional))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    Keyword(&'static str),
    Argument,
    Optional,
}

/// A command with its arguments, ready to run.
#[derive(Clone)]
pub struct Request {
    pub verb: &'static Verb,
    pub arguments: Vec<String>,
    pub options: Vec<(&'static str, String)>,
}

impl Request {
    /// The command in full, with its arguments: what fault rules are matched against.
    pub fn name(&self) -> String {
        let mut arguments = self.arguments.iter();
        let words = self.verb.pattern.split(' ').filter_map(|word| match word.as_bytes()[0] {
            b'<' | b'[' => arguments.next().map(String::as_str),
            _ => Some(word),
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// Finds the command for the words typed inside a sub-mode (`context`), or outside any (empty).
pub fn resolve(context: &[Word], typed: &[Word]) -> Result<Request, CliError> {
    let local = resolve_shows(context, typed);
    match local {
        Err(_) if !context.is_empty() => resolve_shows(&[], typed).or(local),
        _ => local,
    }
}

/// `show x y` is `x show y`, and `show x y z` may be `x y show z`.
fn resolve_shows(inside: &[Word], typed: &[Word]) -> Result<Request, CliError> {
    let whole: Vec<Word> = inside.iter().chain(typed).cloned().collect();
    let plain = resolve_words(&whole);
    let moves = typed.len() > 1 && typed[0].text.len() > 1 && "show".starts_with(&typed[0].text);
    if plain.is_ok() || !moves {
        return plain;
    }
    for at in (1..typed.len()).rev() {
        let mut turned = typed[1..].to_vec();
        turned.insert(at, typed[0].clone());
        let turned: Vec<Word> = inside.iter().cloned().chain(turned).collect();
        if let Ok(found) = resolve_words(&turned) {
            return Ok(found);
        }
    }
    plain
}

fn resolve_words(words: &[Word]) -> Result<Request, CliError> {
    let mut left: Vec<&'static Verb> = VERBS.iter().collect();
    let mut arguments = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if let Some(keyword) = pick_keyword(&left, at, words)? {
            left.retain(|verb| verb.element(at) == Some(Element::Keyword(keyword)));
            continue;
        }
        let takes = |element: Option<Element>| matches!(element, Some(Element::Argument | Element::Optional));
        if left.iter().any(|verb| verb.element(at) == Some(Element::Argument)) {
            left.retain(|verb| verb.element(at) == Some(Element::Argument));
            arguments.push(word.text.clone());
            continue;
        }
        let Some(verb) = left.iter().copied().find(|verb| verb.ends_at(at)) else {
            return Err(bad_word(words, at));
        };
        if takes(verb.element(at)) && (word.quoted || !word.text.starts_with('-')) {
            arguments.push(word.text.clone());
            return finish(verb, arguments, words, at + 1);
        }
        return finish(verb, arguments, words, at);
    }
    match left.into_iter().find(|verb| verb.ends_at(words.len())) {
        Some(verb) => finish(verb, arguments, words, words.len()),
        None => Err(CliError::syntax(format!("Incomplete command: {}", joined(words)))),
    }
}

/// The keyword that a word stands for, if some command may have one here.
fn pick_keyword(left: &[&'static Verb], at: usize, words: &[Word]) -> Result<Option<&'static str>, CliError> {
    let word = &words[at];
    if word.quoted || word.text.is_empty() {
        return Ok(None);
    }
    let typed = word.text.to_ascii_lowercase();
    let mut fitting: Vec<&'static str> = left
        .iter()
        .filter_map(|verb| match verb.element(at) {
            Some(Element::Keyword(keyword)) if keyword.starts_with(&typed) => Some(keyword),
            _ => None,
        })
        .collect();
    fitting.sort_unstable();
    fitting.dedup();
    match fitting[..] {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ if fitting.contains(&typed.as_str()) => Ok(fitting.iter().copied().find(|keyword| *keyword == typed)),
        // An option of a shorter command may be meant, but no array has such a pair of commands.
        _ => Err(CliError::syntax(format!("Ambiguous command: {} may be {}", word.text, fitting.join(", ")))),
    }
}

/// Reads the options that follow a command.
fn finish(verb: &'static Verb, arguments: Vec<String>, words: &[Word], from: usize) -> Result<Request, CliError> {
    let mut options = Vec::new();
    let mut at = from;
    while let Some(word) = words.get(at) {
        let option = pick_option(verb, word).ok_or_else(|| bad_word(words, at))?;
        at += 1;
        let mut value = String::new();
        if option.value {
            let given =
                words.get(at).ok_or_else(|| CliError::syntax(format!("Missing value after {}", option.word)))?;
            value = given.text.clone();
            at += 1;
        }
        options.push((option.word, value));
    }
    Ok(Request { verb, arguments, options })
}

fn pick_option(verb: &'static Verb, word: &Word) -> Option<&'static Opt> {
    if word.quoted || word.text.is_empty() {
        return None;
    }
    if let Some(exact) = verb.options.iter().find(|option| option.word == word.text) {
        return Some(exact);
    }
    let mut fitting = verb.options.iter().filter(|option| option.word.starts_with(&word.text));
    let found = fitting.next()?;
    fitting.next().is_none().then_some(found)
}

fn bad_word(words: &[Word], at: usize) -> CliError {
    CliError::syntax(format!("Bad command: {} in \"{}\"", words[at].text, joined(words)))
}

fn joined(words: &[Word]) -> String {
    words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::resolve;
    use crate::cli::words::split;

    fn pattern(context: &[&str], line: &str) -> Result<String, String> {
        let context = split(&context.join(" ")).expect("words");
        let words = split(line).expect("words");
        resolve(&context, &words).map(|request| request.verb.pattern.to_string()).map_err(|error| error.text)
    }

    #[test]
    fn keywords_may_be_shortened() {
        for line in ["volume select x show", "vol sel x sho", "volume show x", "show volume x", "sh vol x"] {
            assert!(pattern(&[], line).is_ok_and(|found| found.contains("show")), "{line}");
        }
        assert_eq!(pattern(&[], "show pool").as_deref(), Ok("pool show [pool]"));
        assert_eq!(pattern(&[], "show volume collection").as_deref(), Ok("volume collection show [collection]"));
        assert_eq!(pattern(&[], "vol cr disk7 1G thin-p").as_deref(), Ok("volume create <volume> <size>"));
        assert!(pattern(&[], "vol sel x o").is_err_and(|text| text.contains("offline, online")));
        assert!(pattern(&[], "vol sel x on").is_ok());
    }

    #[test]
    fn a_name_may_look_like_a_keyword() {
        assert_eq!(pattern(&[], "volume select show show").as_deref(), Ok("volume select <volume> show"));
        assert_eq!(
            pattern(&["volume", "select", "'show'"], "offline").as_deref(),
            Ok("volume select <volume> offline")
        );
    }

    #[test]
    fn bad_lines_are_told() {
        assert!(pattern(&[], "volume create x").is_err_and(|text| text.starts_with("Incomplete")));
        assert!(
            pattern(&[], "volume create x 1G nonsense").is_err_and(|text| text.starts_with("Bad command: nonsense"))
        );
        assert!(pattern(&[], "volume create x 1G pool").is_err_and(|text| text.starts_with("Missing value")));
        assert!(pattern(&[], "blah").is_err());
    }

    #[test]
    fn inside_a_sub_mode_the_rest_is_typed_alone() {
        let volume = ["volume", "select", "'disk7'"];
        assert_eq!(pattern(&volume, "show").as_deref(), Ok("volume select <volume> show"));
        assert_eq!(pattern(&volume, "access create init iqn.a").as_deref(), Ok("volume select <volume> access create"));
        assert_eq!(pattern(&volume, "whoami").as_deref(), Ok("whoami"));
        assert_eq!(pattern(&volume, "exit").as_deref(), Ok("exit"));
    }
}
