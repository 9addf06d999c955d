//! Words for the shell: `xe __complete <words so far> <word under the cursor>`.

use crate::command::{Command, Others, all, find};
use crate::params::COMMON;
use crate::record::class;

/// Candidates for the last of `words`; the ones before it are complete. Answers from the tables alone.
pub fn candidates(words: &[String]) -> Vec<String> {
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
    let given = |name: &str| before.iter().any(|word| word.split('=').next() == Some(name));
    let names = parameters(&command).into_iter().filter(|name| !given(name));
    starting(current, names.map(|name| if name.ends_with(':') { name } else { format!("{name}=") }))
}

fn starting(prefix: &str, words: impl Iterator<Item = String>) -> Vec<String> {
    words.filter(|word| word.starts_with(prefix)).collect()
}

fn parameters(command: &Command) -> Vec<String> {
    let mut names: Vec<String> =
        command.required.iter().chain(command.optional).map(|name| (*name).to_owned()).collect();
    let fields = match command.others {
        Others::Conditions(class) => class.fields.iter().map(|field| field.name.to_owned()).collect(),
        Others::Settings(class) => {
            let settable = class.fields.iter().filter(|field| field.is_settable());
            settable.map(|f| if f.is_map() { format!("{}:", f.name) } else { f.name.to_owned() }).collect()
        }
        Others::Selectors => {
            let fields = class("vm").map_or(&[][..], |vm| vm.fields);
            std::iter::once("vm".to_owned()).chain(fields.iter().map(|field| field.name.to_owned())).collect()
        }
        Others::None | Others::Anything => Vec::new(),
    };
    names.extend(fields);
    names.extend(COMMON.iter().map(|name| (*name).to_owned()));
    names
}

/// For `complete -F`: put this into /etc/bash_completion.d/xe.
pub const BASH: &str = r#"_xe() {
    local IFS=$'\n'
    COMPREPLY=($(xe __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *[=:] ]] && compopt -o nospace
}
complete -o default -F _xe xe
"#;

#[cfg(test)]
mod tests {
    use super::candidates;

    fn check(line: &str, expected: &[&str]) {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        assert_eq!(candidates(&words), expected, "{line}");
    }

    #[test]
    fn commands_and_parameters_are_completed() {
        check("vdi-res", &["vdi-resize"]);
        check("vdi-resize disk-", &["disk-size="]);
        check("sr-create dev", &["device-config:"]);
        check("vm-start v", &["vm=", "version="]);
        check("vbd-list empty=true e", &[]);
        check("help vdi-resi", &["vdi-resize"]);
    }
}
