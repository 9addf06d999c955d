//! Query strings as the array reads them: dotted field names, `*` and `|` in values, spaces as `%20`.

use std::fmt::Write;

/// The part after `?`, put together in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(String);

impl Query {
    pub fn new() -> Query {
        Query::default()
    }

    /// `key=value`; both are escaped. A secret never belongs here (the array refuses it, and servers log queries).
    pub fn with(mut self, key: &str, value: &str) -> Query {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        escape(&mut self.0, key);
        self.0.push('=');
        escape(&mut self.0, value);
        self
    }

    /// Any of `values`.
    pub fn any(self, key: &str, values: &[String]) -> Query {
        self.with(key, &values.join("|"))
    }

    pub fn fields(self, list: &str) -> Query {
        self.with("fields", list)
    }

    /// `path?query`, or `path` alone.
    pub fn after(&self, path: &str) -> String {
        if self.0.is_empty() { path.to_owned() } else { format!("{path}?{}", self.0) }
    }
}

/// One segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        push(&mut out, byte, b":");
    }
    out
}

fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        push(out, byte, b"*,/:");
    }
}

fn push(out: &mut String, byte: u8, also: &[u8]) {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
        out.push(char::from(byte));
    } else {
        // Writing to a string cannot fail.
        let _ = write!(out, "%{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use super::{Query, segment};

    #[test]
    fn queries_are_escaped_and_joined() {
        let query = Query::new().with("name", "/vol/a b*").any("x", &["1".into(), "2".into()]).fields("a,b.c");
        assert_eq!(query.after("/api/l"), "/api/l?name=/vol/a%20b*&x=1%7C2&fields=a,b.c");
        assert_eq!(Query::new().after("/api/l"), "/api/l");
        assert_eq!(Query::new().with("a", "b&c=d?é").after(""), "?a=b%26c%3Dd%3F%C3%A9");
        assert_eq!(segment("iqn.2026-01.org.tanada:vm/1"), "iqn.2026-01.org.tanada:vm%2F1");
    }
}
