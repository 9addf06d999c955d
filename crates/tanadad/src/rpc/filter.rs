//! The expressions of `get_all_records_where`.
//!
//! ```text
//! E = "true" | "false" | V "=" V | "not" E | E "and" E | E "or" E | "(" E ")"      V = "field" STRING | STRING
//! ```
//! `not` binds tightest, then `and`, then `or`. Strings stand in double quotes, with `\"` and `\\`. Fields have the
//! database's spelling, where `__` may stand for `_` (`name__label`); values compare as text: `true`, decimal numbers,
//! references, sets as `('a' 'b')`, maps as `(('k' 'v'))`.

use tanada_xapi::classes::Class;
use tanada_xapi::{ApiError, ApiResult, Value};

use crate::db::Record;

/// Nested parentheses and negations.
const DEPTH_MAX: usize = 64;
/// Words, strings and signs of one expression. A chain of `and` is as deep a tree as it is long, and is walked by
/// recursion.
const TOKENS_MAX: usize = 4096;

#[derive(Debug, PartialEq)]
pub struct Filter {
    root: Expr,
    text: String,
}

#[derive(Debug, PartialEq)]
enum Expr {
    True,
    False,
    Eq(Term, Term),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
}

#[derive(Debug, PartialEq)]
enum Term {
    Field(String),
    Literal(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Open,
    Close,
    Equals,
    Word(String),
    Text(String),
}

impl Filter {
    /// `INVALID_VALUE` with the expression and the reason when it cannot be read.
    pub fn parse(text: &str) -> ApiResult<Filter> {
        let wrong = |reason: String| ApiError::invalid_value(text, reason);
        let tokens = tokens(text).map_err(wrong)?;
        let mut parser = Parser { tokens, at: 0 };
        let root = parser.or(0).map_err(wrong)?;
        match parser.tokens.get(parser.at) {
            None => Ok(Filter { root, text: text.to_owned() }),
            Some(token) => Err(wrong(format!("{token:?} after the end of the expression"))),
        }
    }

    /// `INVALID_VALUE` when the expression names a field that the class lacks.
    pub fn check_fields(&self, class: &Class) -> ApiResult<()> {
        let mut missing = None;
        visit(&self.root, &mut |term| {
            if let Term::Field(name) = term
                && class.field(&name.replace("__", "_")).is_none()
            {
                missing = Some(name.clone());
            }
        });
        match missing {
            Some(name) => Err(ApiError::invalid_value(&self.text, format!("{} has no field {name}", class.name))),
            None => Ok(()),
        }
    }

    pub fn matches(&self, record: &Record) -> bool {
        eval(&self.root, record)
    }
}

fn visit(expr: &Expr, see: &mut impl FnMut(&Term)) {
    match expr {
        Expr::True | Expr::False => {}
        Expr::Eq(a, b) => {
            see(a);
            see(b);
        }
        Expr::Not(e) => visit(e, see),
        Expr::And(a, b) | Expr::Or(a, b) => {
            visit(a, see);
            visit(b, see);
        }
    }
}

fn eval(expr: &Expr, record: &Record) -> bool {
    match expr {
        Expr::True => true,
        Expr::False => false,
        Expr::Eq(a, b) => term_text(a, record) == term_text(b, record),
        Expr::Not(e) => !eval(e, record),
        Expr::And(a, b) => eval(a, record) && eval(b, record),
        Expr::Or(a, b) => eval(a, record) || eval(b, record),
    }
}

fn term_text(term: &Term, record: &Record) -> String {
    match term {
        Term::Literal(text) => text.clone(),
        Term::Field(name) => database_text(record.value(&name.replace("__", "_"))),
    }
}

fn database_text(value: &Value) -> String {
    let quoted = |v: &Value| format!("'{}'", database_text(v).replace('\\', "\\\\").replace('\'', "\\'"));
    match value {
        Value::Void | Value::Nil => String::new(),
        Value::String(s) => s.clone(),
        Value::Int(n) => n.to_string(),
        Value::I4(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Float(f) => f.to_string(),
        Value::DateTime(t) => t.to_string(),
        Value::Set(items) => format!("({})", items.iter().map(quoted).collect::<Vec<_>>().join(" ")),
        Value::Map(map) => {
            let pairs = map.iter().map(|(k, v)| format!("({} {})", quoted(&Value::from(k)), quoted(v)));
            format!("({})", pairs.collect::<Vec<_>>().join(" "))
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if tokens.len() >= TOKENS_MAX {
            return Err(format!("more than {TOKENS_MAX} words and signs"));
        }
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '=' => tokens.push(Token::Equals),
            '"' => {
                let mut string = String::new();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => string.push(chars.next().ok_or("a string ends in a backslash")?),
                        Some(c) => string.push(c),
                        None => return Err("a string is not closed".to_owned()),
                    }
                }
                tokens.push(Token::Text(string));
            }
            c if c.is_ascii_alphabetic() => {
                let mut word = String::from(c);
                while let Some(c) = chars.next_if(char::is_ascii_alphabetic) {
                    word.push(c);
                }
                tokens.push(Token::Word(word));
            }
            c => return Err(format!("unexpected character {c:?}")),
        }
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(w)) if w == word);
        self.at += usize::from(found);
        found
    }

    fn or(&mut self, depth: usize) -> Result<Expr, String> {
        let mut left = self.and(depth)?;
        while self.word("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and(depth)?));
        }
        Ok(left)
    }

    fn and(&mut self, depth: usize) -> Result<Expr, String> {
        let mut left = self.unary(depth)?;
        while self.word("and") {
            left = Expr::And(Box::new(left), Box::new(self.unary(depth)?));
        }
        Ok(left)
    }

    fn unary(&mut self, depth: usize) -> Result<Expr, String> {
        if depth > DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX}"));
        }
        if self.word("not") {
            return Ok(Expr::Not(Box::new(self.unary(depth + 1)?)));
        }
        if self.word("true") {
            return Ok(Expr::True);
        }
        if self.word("false") {
            return Ok(Expr::False);
        }
        if self.tokens.get(self.at) == Some(&Token::Open) {
            self.at += 1;
            let inner = self.or(depth + 1)?;
            return match self.next() {
                Some(Token::Close) => Ok(inner),
                other => Err(format!("{other:?} where ) is expected")),
            };
        }
        let left = self.term()?;
        match self.next() {
            Some(Token::Equals) => Ok(Expr::Eq(left, self.term()?)),
            other => Err(format!("{other:?} where = is expected")),
        }
    }

    fn term(&mut self) -> Result<Term, String> {
        match self.next() {
            Some(Token::Text(text)) => Ok(Term::Literal(text)),
            Some(Token::Word(word)) if word == "field" => match self.next() {
                Some(Token::Text(name)) => Ok(Term::Field(name)),
                other => Err(format!("{other:?} where a field's name is expected")),
            },
            other => Err(format!("{other:?} where a value is expected")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tanada_xapi::Value;

    use super::Filter;
    use crate::db::{Db, View};

    #[test]
    fn expressions_select_as_clients_expect() {
        let db = Db::in_memory().unwrap();
        let fields = [
            ("name_label", Value::from("a \"b\"")),
            ("is_a_template", Value::from(true)),
            ("VCPUs_max", Value::from(2)),
            ("tags", Value::set(["x", "y"])),
        ];
        let vm = db.write(|tx| tx.create("VM", fields)).unwrap();
        let vm = db.read(|s| s.get("VM", &vm)).unwrap();
        let cases = [
            ("true", true),
            ("not true or true", true),
            ("not (true or true)", false),
            (r#"field "name__label" = "a \"b\"""#, true),
            (r#"field "is_a_template"="true" and field "VCPUs__max" = "2""#, true),
            (r#"(field "is_a_snapshot" = "true") or "x" = "y""#, false),
            (r#""('x' 'y')" = field "tags""#, true),
        ];
        for (text, expected) in cases {
            let filter = Filter::parse(text).unwrap();
            filter.check_fields(vm.class()).unwrap();
            assert_eq!(filter.matches(&vm), expected, "{text}");
        }
        let deep = "(".repeat(10_000);
        let long = "true and ".repeat(10_000) + "true";
        for text in [
            "",
            "true true",
            "field",
            "\"a\" = ",
            "(true",
            "\"a",
            "a = b",
            "true and",
            "§",
            &deep,
            &long,
            &"not ".repeat(10_000),
        ] {
            assert!(Filter::parse(text).unwrap_err().is("INVALID_VALUE"), "{text}");
        }
        let unknown = Filter::parse("field \"colour\" = \"red\"").unwrap();
        assert!(unknown.check_fields(vm.class()).unwrap_err().is("INVALID_VALUE"));
    }
}
