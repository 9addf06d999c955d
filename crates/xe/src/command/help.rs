//! `help`, from the same table that the commands run from; the words that the shell completes.

use crate::command::{Command, Others, Outcome, all, find};
use crate::context::Ctx;
use crate::print::{self, Cell};

pub const COMMANDS: &[Command] =
    &[Command::new("help", &[], &[], "Shows the commands, or one of them.", help).others(Others::Anything)];

pub const USAGE: &str = "\
Usage:
  xe <command>
     [ -s <server> ]            server (this machine, over its local socket, when left out)
     [ -p <port> ]              port (443, or 80 with --nossl)
     [ -u <username> -pw <password> | -pwf <password file> ]
     [ --ca <file> ]            talk to a server that a certificate in this PEM file vouches for, or not
                                at all (the variable XE_CA says the same)
     [ --nossl ]                plain HTTP
     [ <param>=<value> ... ]    parameters of the command
     [ --minimal ]              one line, separated by commas
     [ --multiple ]             several VMs at once
     [ --force ]
A full list of commands can be obtained by running 'xe help'
Completion for bash: source <(xe __complete --bash)
";

fn help(ctx: &mut Ctx<'_>) -> Outcome {
    let names: Vec<String> = ctx
        .params
        .0
        .iter()
        .map(|(key, _)| key.clone())
        .filter(|key| !crate::params::COMMON.contains(&key.as_str()))
        .collect();
    if names.is_empty() {
        return overview(ctx);
    }
    for name in names {
        match find(&name) {
            Some(command) => {
                let text = print::record(&about(&command));
                ctx.write(&text)?;
            }
            None => ctx.line(&format!("Unknown command '{name}'"))?,
        }
    }
    Ok(())
}

fn about(command: &Command) -> [Cell; 4] {
    let optional = match command.others {
        Others::None => command.optional.join(", "),
        Others::Conditions(_) => joined(command.optional, "<field conditions>"),
        Others::Selectors => joined(command.optional, "<vm-selectors>"),
        Others::Settings(_) => joined(command.optional, "<field>=<value>"),
        Others::Anything => joined(command.optional, "<anything>"),
    };
    [
        Cell::new("command name        ", command.name.as_ref()),
        Cell::new("reqd params     ", command.required.join(", ")),
        Cell::new("optional params ", optional),
        Cell::new("description     ", command.help.as_ref()),
    ]
}

fn joined(names: &[&str], more: &str) -> String {
    names.iter().copied().chain([more]).collect::<Vec<_>>().join(", ")
}

fn overview(ctx: &mut Ctx<'_>) -> Outcome {
    let show_all = ctx.params.flag("all")?;
    let commands = all();
    let names: Vec<&str> =
        commands.iter().filter(|command| show_all || !command.hidden).map(|command| command.name.as_ref()).collect();
    if ctx.is_minimal()? {
        return ctx.write(&print::minimal_items(&names));
    }
    let group = |wanted: &str| -> Vec<&str> {
        let of = |name: &str| match name.split('-').next() {
            Some(prefix @ ("host" | "vm")) => prefix.to_owned(),
            _ => "other".to_owned(),
        };
        names.iter().copied().filter(|name| of(name) == wanted).collect()
    };
    let text = format!(
        "{USAGE}\nTo get help on a specific command: xe help <command>\n\nHost commands:\n{}\nVM commands:\n{}\nOther commands:\n{}",
        print::wrapped(&group("host")),
        print::wrapped(&group("vm")),
        print::wrapped(&group("other"))
    );
    ctx.write(&text)
}

#[cfg(test)]
mod tests {
    use super::about;
    use crate::command::find;
    use crate::print::record;

    #[test]
    fn a_command_is_explained_from_its_definition() {
        let expected = "\
command name            : vdi-resize
        reqd params     : uuid, disk-size
        optional params : online
        description     : Makes a disk larger.


";
        assert_eq!(record(&about(&find("vdi-resize").unwrap())), expected);
    }
}
