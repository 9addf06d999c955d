//! Words that are handed over and never shown.

use std::fmt;

/// A password or CHAP secret. Neither printable nor serializable; [`Secret::expose`] where it is used.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The words themselves. Not for logs, errors, command lines.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(...)")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn debug_output_does_not_tell() {
        assert!(!format!("{:?}", Some(Secret::new("opensesame"))).contains("opensesame"));
    }
}
