//! Why a command failed, and the words for it on stderr. Every failure exits with status 1.

use tanada_xapi::ApiError;

#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    UnknownCommand {
        name: String,
        nearest: Option<String>,
    },
    /// Known before anything is sent.
    MissingParameter(String),
    Syntax(String),
    AuthenticationFailed,
    NoCredentials,
    Api(ApiError),
    /// This side's own: wrong values, files, connections.
    Cli(String),
    /// `Error code:` and `Error parameters:` made by this side.
    Code {
        code: &'static str,
        params: Vec<String>,
    },
    /// Everything that was to be said has been said.
    Reported,
}

pub const USAGE_LINE: &str = "For usage run: 'xe help'";

impl Failure {
    pub fn cli(message: impl Into<String>) -> Failure {
        Failure::Cli(message.into())
    }

    /// A value that the server gave in an unexpected form.
    pub fn unexpected(message: impl Into<String>) -> Failure {
        Failure::Code { code: "INTERNAL_ERROR", params: vec![format!("Failure: {}", message.into())] }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        if error.is("SESSION_AUTHENTICATION_FAILED") { Failure::AuthenticationFailed } else { Failure::Api(error) }
    }
}

/// Lines for stderr. `describe` turns a parameter that is a reference into what a person knows the object by.
pub fn lines(failure: &Failure, mut describe: impl FnMut(Option<&str>, &str) -> String) -> Vec<String> {
    match failure {
        Failure::UnknownCommand { name, nearest } => {
            let mut lines = vec![format!("Unknown command: {name}")];
            lines.extend(nearest.iter().map(|near| format!("Did you mean '{near}'?")));
            lines.push(USAGE_LINE.to_owned());
            lines
        }
        Failure::MissingParameter(name) => {
            vec![format!("Required parameter not found: {name}"), USAGE_LINE.to_owned()]
        }
        Failure::Syntax(text) => vec![format!("Syntax error: {text}"), USAGE_LINE.to_owned()],
        Failure::AuthenticationFailed => vec!["Authentication failed".to_owned(), USAGE_LINE.to_owned()],
        Failure::NoCredentials => vec!["Username/password must be specified".to_owned()],
        Failure::Cli(text) => vec![format!("Error: {text}")],
        Failure::Code { code, params } => code_lines(code, params),
        Failure::Reported => Vec::new(),
        Failure::Api(error) => api_lines(error, &mut describe),
    }
}

fn api_lines(error: &ApiError, describe: &mut dyn FnMut(Option<&str>, &str) -> String) -> Vec<String> {
    let Some(text) = crate::texts::find(&error.code) else {
        return code_lines(&error.code, &error.params);
    };
    let mut lines = vec![text.english.to_owned()];
    for (index, name) in text.params.iter().enumerate() {
        let value = error.params.get(index).map_or_else(|| "<unknown>".to_owned(), |v| describe(Some(name), v));
        lines.push(format!("{name}: {value}"));
    }
    for extra in error.params.iter().skip(text.params.len()) {
        lines.push(format!("<extra>: {}", describe(None, extra)));
    }
    lines
}

fn code_lines(code: &str, params: &[String]) -> Vec<String> {
    vec![format!("Error code: {code}"), format!("Error parameters: {}", params.join(", "))]
}

/// One line, for lists of failures of several objects.
pub fn summary(failure: &Failure, describe: impl FnMut(Option<&str>, &str) -> String) -> String {
    lines(failure, describe).join("; ")
}

#[cfg(test)]
mod tests {
    use super::{Failure, lines};
    use tanada_xapi::ApiError;

    fn check(failure: Failure, expected: &str) {
        assert_eq!(lines(&failure, |_, value| value.to_owned()).join("\n"), expected);
    }

    #[test]
    fn each_kind_has_its_words() {
        check(
            Failure::UnknownCommand { name: "vm-lst".into(), nearest: Some("vm-list".into()) },
            "Unknown command: vm-lst\nDid you mean 'vm-list'?\nFor usage run: 'xe help'",
        );
        check(Failure::MissingParameter("uuid".into()), "Required parameter not found: uuid\nFor usage run: 'xe help'");
        check(Failure::Syntax("oh".into()), "Syntax error: oh\nFor usage run: 'xe help'");
        check(Failure::cli("no"), "Error: no");
        check(
            Failure::Api(ApiError::vm_is_snapshot("OpaqueRef:1", "start")),
            "Error code: VM_IS_SNAPSHOT\nError parameters: OpaqueRef:1, start",
        );
        check(Failure::Api(ApiError::uuid_invalid("VM", "x")), "The uuid you supplied was invalid.\ntype: VM\nuuid: x");
        check(
            Failure::Api(ApiError::new("UUID_INVALID", vec!["VM".into()])),
            "The uuid you supplied was invalid.\ntype: VM\nuuid: <unknown>",
        );
    }
}
