//! `docs/xenapi-coverage.md`: what of XenAPI is answered, from the class table and the handlers.

use std::fmt::Write;

use tanada_xapi::classes::{self, Class, Method, State};

use crate::rpc::login;
use crate::rpc::methods::Methods;

const HEAD: &str = "\
# XenAPI coverage

Made from the class table and the registered handlers; a test keeps it so. To write it again:
`TANADA_WRITE_DOCS=1 cargo test -p tanadad coverage`.

Every field of every class stands in its records, with its declared type. Messages that follow from the fields
(`get_...`, `set_...`, `add_to_...`, `get_all_records`, `get_by_uuid` ...) are answered for every class and not listed.
A declared message that is not answered gives `NOT_IMPLEMENTED` with its name, a removed one `MESSAGE_REMOVED`, an
unknown one `MESSAGE_METHOD_UNKNOWN`.

";

/// The page.
pub fn render(methods: &Methods) -> String {
    let mut out = String::from(HEAD);
    out.push_str("| class | fields | own messages answered | of |\n|---|---:|---:|---:|\n");
    let classes: Vec<&'static Class> = classes::classes().iter().filter(|c| !c.removed).collect();
    for class in &classes {
        let own = own_messages(class);
        let answered = own.iter().filter(|m| is_answered(methods, class, m)).count();
        let _ = writeln!(out, "| {} | {} | {answered} | {} |", class.name, class.fields.len(), own.len());
    }
    for class in classes {
        let own = own_messages(class);
        let (answered, missing): (Vec<_>, Vec<_>) = own.into_iter().partition(|m| is_answered(methods, class, m));
        if answered.is_empty() && missing.is_empty() {
            continue;
        }
        let _ = write!(out, "\n## {}\n\n", class.name);
        paragraph(&mut out, "Answered", &answered);
        paragraph(&mut out, "Not implemented", &missing);
    }
    let gone: Vec<String> = classes::classes().iter().filter(|c| c.removed).map(|c| c.name.to_owned()).collect();
    let _ = write!(out, "\n## Removed classes\n\n{}\n", gone.join(", "));
    out
}

fn paragraph(out: &mut String, title: &str, names: &[String]) {
    if !names.is_empty() {
        let names: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
        let _ = writeln!(out, "- {title}: {}", names.join(", "));
    }
}

/// Messages that do not follow from the fields, without those that were removed.
fn own_messages(class: &'static Class) -> Vec<String> {
    let own = |name: &String| match class.method(name) {
        Some(Method::Explicit(message)) => message.state != State::Removed,
        Some(Method::Create | Method::Destroy) => true,
        _ => false,
    };
    class.method_names().into_iter().filter(own).collect()
}

fn is_answered(methods: &Methods, class: &Class, message: &str) -> bool {
    methods.has(&format!("{}.{message}", class.name)) || login::is_login(class.name, message)
}
