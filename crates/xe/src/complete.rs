//! Words for the shell: `xe __complete <words so far> <word under the cursor>`, called by the script [`BASH`].
//!
//! Names come from the tables. Values that name objects come from the server, if it answers in time; a shell must not hang.

use crate::command::{Command, Others, all, find};
use crate::params::COMMON;
use crate::record::{CLASSES, Class, class};
use std::sync::mpsc;
use std::time::Duration;

/// A person waits for the key that was pressed.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// For `complete -F`: put this into /etc/bash_completion.d/xe. The shell breaks words at `=`, `xe` does not.
pub const BASH: &str = r#"_xe() {
    local line="${COMP_LINE:0:$COMP_POINT}" words current IFS=$' \t\n'
    read -ra words <<< "$line"
    [[ "$line" == *' ' ]] && words+=("")
    current="${words[-1]}"
    IFS=$'\n'
    COMPREPLY=($(xe __complete "${words[@]:1}" 2>/dev/null))
    [[ "${COMPREPLY[0]}" == *[=:] ]] && compopt -o nospace
    [[ "$current" == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%%=*}="}")
}
complete -o default -F _xe xe
"#;

/// Candidates for the last of `words`; the ones before it are complete. `values(class, field)` asks the server for the
/// field of all objects of a XenAPI class.
pub fn candidates(words: &[String], values: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
    let (current, before) = match words.split_last() {
        Some((current, before)) => (current.as_str(), before),
        None => ("", words),
    };
    let Some(command) = before.iter().find_map(|word| find(word)) else {
        let commands = all();
        let names = commands.iter().filter(|command| !command.hidden).map(|command| command.name.to_string());
        return starting(current, names);
    };
    if command.name == "help" {
        return starting(current, all().iter().map(|command| command.name.to_string()));
    }
    if let Some((param, _)) = current.split_once('=') {
        let found = match value_kind(&command, param) {
            Kind::Fixed(words) => words,
            Kind::Objects(class, field) => values(class, field),
            Kind::Unknown => Vec::new(),
        };
        return starting(current, found.into_iter().map(|value| format!("{param}={value}")));
    }
    let given = |name: &str| before.iter().any(|word| word.split('=').next() == Some(name));
    let names = parameters(&command).into_iter().filter(|name| !given(name));
    starting(current, names.map(|name| if name.ends_with(':') { name } else { format!("{name}=") }))
}

/// What the server knows within [`PATIENCE`]; nothing if it does not answer.
pub fn within_patience(ask: impl FnOnce() -> Vec<String> + Send + 'static) -> Vec<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(ask()));
    receiver.recv_timeout(PATIENCE).unwrap_or_default()
}

fn starting(prefix: &str, words: impl Iterator<Item = String>) -> Vec<String> {
    words.filter(|word| word.starts_with(prefix)).collect()
}

enum Kind {
    Fixed(Vec<String>),
    /// XenAPI class and field.
    Objects(&'static str, &'static str),
    Unknown,
}

/// The class whose commands begin as this one does.
fn own_class(command: &Command) -> Option<&'static Class> {
    let prefix = command.name.split('-').next()?;
    CLASSES.iter().copied().find(|class| class.prefix == prefix)
}

fn value_kind(command: &Command, param: &str) -> Kind {
    let fixed = |words: &[&str]| Kind::Fixed(words.iter().map(|word| (*word).to_owned()).collect());
    let uuids_of = |prefix: &str| class(prefix).map_or(Kind::Unknown, |class| Kind::Objects(class.api, "uuid"));
    match param {
        "minimal" | "force" | "multiple" | "all" | "paused" | "shared" | "sharable" | "read-only" | "bootable" => {
            fixed(&["true", "false"])
        }
        "compress" => fixed(&["true", "false", "gzip", "zstd"]),
        "format" => fixed(&["raw", "vhd", "qcow2"]),
        "mode" => fixed(&["RO", "RW"]),
        "frequency" => fixed(&["hourly", "daily", "weekly"]),
        "type" if command.name.starts_with("sr-") => Kind::Objects("SM", "type"),
        "type" if command.name == "vbd-create" => fixed(&["Disk", "CD", "Floppy"]),
        "type" if command.name == "vdi-create" => fixed(&["user", "system", "suspend", "crashdump"]),
        "class" => Kind::Fixed(CLASSES.iter().map(|class| class.prefix.to_owned()).collect()),
        "params" | "param-name" => {
            let fields = own_class(command).map_or(&[][..], |class| class.fields);
            Kind::Fixed(fields.iter().filter(|field| !field.hidden).map(|field| field.name.to_owned()).collect())
        }
        "vm" | "template" | "template-name-label" | "template-name" => Kind::Objects("VM", "name_label"),
        "sr-name-label" => Kind::Objects("SR", "name_label"),
        "into-vdi-uuid" | "base-vdi-uuid" | "vdi-from-uuid" | "vdi-to-uuid" => uuids_of("vdi"),
        "uuid" => own_class(command).map_or(Kind::Unknown, |class| Kind::Objects(class.api, "uuid")),
        "name-label" if !command.name.ends_with("-create") => {
            own_class(command).map_or(Kind::Unknown, |class| Kind::Objects(class.api, "name_label"))
        }
        _ => param.strip_suffix("-uuid").map_or(Kind::Unknown, uuids_of),
    }
}

fn parameters(command: &Command) -> Vec<String> {
    let own = command.required.iter().chain(command.optional).chain(COMMON);
    let mut names: Vec<String> = own.map(|name| (*name).to_owned()).collect();
    match command.others {
        Others::Conditions(class) => names.extend(class.fields.iter().map(|field| field.name.to_owned())),
        Others::Settings(class) => {
            let settable = class.fields.iter().filter(|field| field.is_settable());
            names.extend(settable.map(|f| if f.is_map() { format!("{}:", f.name) } else { f.name.to_owned() }));
        }
        Others::Selectors => {
            names.push("vm".to_owned());
            names.extend(class("vm").map_or(&[][..], |vm| vm.fields).iter().map(|field| field.name.to_owned()));
        }
        Others::None | Others::Anything => {}
    }
    names
}

#[cfg(test)]
mod tests {
    use super::candidates;

    fn check(line: &str, expected: &[&str]) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let server = |class: &str, field: &str| vec![format!("{class}.{field}-1"), format!("{class}.{field}-2")];
        assert_eq!(candidates(&words, server), expected, "{line}");
    }

    #[test]
    fn commands_and_parameters_are_completed() {
        check("vdi-res", &["vdi-resize"]);
        check("vdi-resize disk-", &["disk-size="]);
        check("sr-create dev", &["device-config:"]);
        check("vm-start v", &["vm=", "version="]);
        check("vbd-list empty=true emp", &[]);
        check("help vdi-resi", &["vdi-resize"]);
    }

    #[test]
    fn values_are_completed() {
        check("vm-start vm=VM.name_label-2", &["vm=VM.name_label-2"]);
        check("snapshot-revert snapshot-uuid=", &["snapshot-uuid=VM.uuid-1", "snapshot-uuid=VM.uuid-2"]);
        check("vdi-destroy uuid=VDI.uuid-1", &["uuid=VDI.uuid-1"]);
        check("vm-export compress=z", &["compress=zstd"]);
        check("sr-param-get param-name=physical-u", &["param-name=physical-utilisation"]);
        check("vdi-create name-label=", &[]);
    }
}
