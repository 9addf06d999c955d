//! The commands: one definition each, from which the parser's checks, the help, the completion and the run follow.
//!
//! | module | holds |
//! |---|---|
//! | [`generic`] | `X-list`, `X-param-*` of every class in [`crate::record`] |
//! | [`select`] | which VMs a command works on |
//! | [`vm`], [`install`], [`vmdisk`], [`uninstall`], [`snapshot`] | machines and their copies |
//! | [`attach`] | snapshots at a backup server |
//! | [`quiesce`] | how consistent snapshots are, and would be |
//! | [`network`] | interfaces of machines |
//! | [`vdi`], [`vbd`], [`sr`] | storage and devices |
//! | [`transfer`] | export and import |
//! | [`other`], [`help`] | tasks, events, messages, secrets, schedules; help |

mod attach;
mod event;
mod generic;
mod help;
mod install;
mod network;
mod other;
mod quiesce;
mod select;
mod snapshot;
mod sr;
mod transfer;
mod uninstall;
mod vbd;
mod vdi;
mod vm;
mod vmdisk;

use crate::context::Ctx;
use crate::failure::Failure;
use crate::nearest::nearest;
use crate::params::{COMMON, Params};
use crate::record::{Class, class, filter};
use std::borrow::Cow;

pub use help::USAGE;

pub type Outcome = Result<(), Failure>;

/// What a command does.
#[derive(Clone, Copy)]
pub enum Run {
    Plain(fn(&mut Ctx<'_>) -> Outcome),
    /// One of the generic commands, for this class.
    Of(&'static Class, fn(&mut Ctx<'_>, &'static Class) -> Outcome),
}

/// What parameters a command takes besides those that it names.
#[derive(Clone, Copy)]
pub enum Others {
    None,
    /// Conditions on fields of this class.
    Conditions(&'static Class),
    /// Conditions that select VMs, and `vm=`.
    Selectors,
    /// Fields of this class that can be set.
    Settings(&'static Class),
    Anything,
}

#[derive(Clone)]
pub struct Command {
    pub name: Cow<'static, str>,
    pub required: &'static [&'static str],
    /// A name that ends in a colon stands for a map: `device-config:`.
    pub optional: &'static [&'static str],
    pub others: Others,
    pub help: Cow<'static, str>,
    /// Left out of plain help.
    pub hidden: bool,
    pub run: Run,
}

impl Command {
    pub const fn new(
        name: &'static str,
        required: &'static [&'static str],
        optional: &'static [&'static str],
        help: &'static str,
        run: fn(&mut Ctx<'_>) -> Outcome,
    ) -> Command {
        Command {
            name: Cow::Borrowed(name),
            required,
            optional,
            others: Others::None,
            help: Cow::Borrowed(help),
            hidden: false,
            run: Run::Plain(run),
        }
    }

    pub const fn hidden(mut self) -> Command {
        self.hidden = true;
        self
    }

    pub const fn others(mut self, others: Others) -> Command {
        self.others = others;
        self
    }

    /// Takes the conditions that select VMs.
    pub const fn selects_vms(self) -> Command {
        self.others(Others::Selectors)
    }

    /// Missing and unknown parameters, before anything is sent.
    pub fn check(&self, params: &Params) -> Outcome {
        if let Some(name) = self.required.iter().find(|name| params.get(name).is_none()) {
            return Err(Failure::MissingParameter((*name).to_owned()));
        }
        params.0.iter().try_for_each(|(key, _)| if self.knows(key) { Ok(()) } else { Err(self.unknown(key)) })
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.required.iter().chain(self.optional).chain(COMMON).copied()
    }

    /// Does the definition itself name the parameter?
    fn names_key(&self, key: &str) -> bool {
        self.names().any(|name| match name.strip_suffix(':') {
            Some(map) => key.strip_prefix(map).is_some_and(|rest| rest.starts_with(':') || rest.starts_with('-')),
            None => name == key,
        })
    }

    fn knows(&self, key: &str) -> bool {
        self.names_key(key)
            || match self.others {
                Others::None => false,
                Others::Anything => true,
                Others::Selectors => key == "vm" || class("vm").is_some_and(|vm| filter::address(vm, key).is_some()),
                Others::Conditions(class) | Others::Settings(class) => filter::address(class, key).is_some(),
            }
    }

    fn unknown(&self, key: &str) -> Failure {
        let fields: &[_] = match self.others {
            Others::Conditions(class) | Others::Settings(class) => class.fields,
            Others::Selectors => class("vm").map_or(&[], |vm| vm.fields),
            Others::None | Others::Anything => &[],
        };
        let names = self.names().map(|name| name.trim_end_matches(':'));
        let near = nearest(key, names.chain(fields.iter().map(|field| field.name)));
        let hint = near.map(|near| format!(". Did you mean '{near}'?")).unwrap_or_default();
        let what = if fields.is_empty() { "parameter" } else { "field" };
        let also =
            if fields.is_empty() { format!(" for {}; see 'xe help {}'", self.name, self.name) } else { String::new() };
        Failure::cli(format!("Unknown {what} '{key}'{also}{hint}"))
    }

    pub fn run(&self, ctx: &mut Ctx<'_>) -> Outcome {
        match self.run {
            Run::Plain(run) => run(ctx),
            Run::Of(class, run) => run(ctx, class),
        }
    }

    /// Parameters that are conditions: all that are neither common nor named in the definition.
    pub fn conditions(&self, params: &Params) -> Vec<(String, String)> {
        params.0.iter().filter(|(key, _)| !self.names_key(key)).cloned().collect()
    }
}

/// Every command, sorted by name.
pub fn all() -> Vec<Command> {
    let tables = [
        vm::COMMANDS,
        network::COMMANDS,
        install::COMMANDS,
        vmdisk::COMMANDS,
        uninstall::COMMANDS,
        snapshot::COMMANDS,
        attach::COMMANDS,
        quiesce::COMMANDS,
        vdi::COMMANDS,
        vbd::COMMANDS,
        sr::COMMANDS,
        transfer::COMMANDS,
        event::COMMANDS,
        other::COMMANDS,
        help::COMMANDS,
    ];
    let mut commands: Vec<Command> = tables.iter().flat_map(|table| table.iter().cloned()).collect();
    commands.extend(generic::commands());
    commands.sort_by(|a, b| a.name.cmp(&b.name));
    commands
}

pub fn find(name: &str) -> Option<Command> {
    all().into_iter().find(|command| command.name == name)
}

pub fn unknown(name: &str) -> Failure {
    let commands = all();
    let near = nearest(name, commands.iter().map(|command| command.name.as_ref()));
    Failure::UnknownCommand { name: name.to_owned(), nearest: near.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Params, all, find, unknown};

    #[test]
    fn names_are_unique() {
        let commands = all();
        for pair in commands.windows(2) {
            assert_ne!(pair[0].name, pair[1].name);
        }
        for command in &commands {
            assert!(!command.help.is_empty() && command.help.ends_with('.'), "{}: {}", command.name, command.help);
        }
    }

    fn check(name: &str, params: &str, expected: Result<(), &str>) {
        let pairs = params.split_whitespace().map(|word| word.split_once('=').unwrap_or((word, "")));
        let params = Params(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
        let outcome = find(name).unwrap().check(&params);
        let shown = outcome.map_err(|failure| match failure {
            Failure::MissingParameter(name) => format!("missing {name}"),
            Failure::Cli(text) => text,
            other => format!("{other:?}"),
        });
        assert_eq!(shown, expected.map_err(str::to_owned), "{name}");
    }

    #[test]
    fn parameters_are_checked_before_anything_is_sent() {
        check("vdi-create", "name-label=x virtual-size=1", Err("missing sr-uuid"));
        check("vdi-create", "sr-uuid=u name-label=x virtual-size=1 sm-config:a=b", Ok(()));
        check(
            "vdi-create",
            "sr-uuid=u name-label=x virtual-size=1 typ=user",
            Err("Unknown parameter 'typ' for vdi-create; see 'xe help vdi-create'. Did you mean 'type'?"),
        );
        check("sr-create", "name-label=a type=tanada device-config-location=/x device-config:y=z", Ok(()));
        check("vm-list", "powerstate=halted", Err("Unknown field 'powerstate'. Did you mean 'power-state'?"));
        check("vm-list", "other-config:x=y params=all minimal=true", Ok(()));
        check("vm-start", "vm=x force", Ok(()));
        check("vm-start", "name-lable=x", Err("Unknown field 'name-lable'. Did you mean 'name-label'?"));
        check("vm-param-set", "uuid=x name-label=y other-config:k=v", Ok(()));
    }

    #[test]
    fn a_mistyped_command_is_guessed() {
        assert_eq!(
            unknown("vm-snapshto"),
            Failure::UnknownCommand { name: "vm-snapshto".into(), nearest: Some("vm-snapshot".into()) }
        );
    }
}
