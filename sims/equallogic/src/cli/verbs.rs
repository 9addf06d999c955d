//! All commands.

use crate::array::size::{parse_mb, show_mb};
use crate::array::{AccountKind, Array, Settings};
use crate::cli::grammar::{Opt, Request, Verb};
use crate::cli::words::Word;
use crate::cli::{CliError, Effect, Reply, access, collection, group, snapshot, volume};

/// A command at work.
pub struct Call<'a> {
    pub array: &'a mut Array,
    pub account: &'a str,
    request: &'a Request,
}

type Run = fn(&mut Call<'_>) -> Result<Reply, CliError>;

const fn flag(word: &'static str) -> Opt {
    Opt { word, value: false }
}

const fn value(word: &'static str) -> Opt {
    Opt { word, value: true }
}

const fn look(pattern: &'static str, run: Run) -> Verb {
    Verb { pattern, options: &[], changes: false, confirm: None, run }
}

const fn act(pattern: &'static str, run: Run) -> Verb {
    Verb { pattern, options: &[], changes: true, confirm: None, run }
}

const fn with(pattern: &'static str, options: &'static [Opt], run: Run) -> Verb {
    Verb { pattern, options, changes: true, confirm: None, run }
}

const fn ask(pattern: &'static str, question: &'static str, run: Run) -> Verb {
    Verb { pattern, options: &[], changes: true, confirm: Some(question), run }
}

const CREATE: &[Opt] = &[
    value("pool"),
    flag("thin-provision"),
    value("thin-min-reserve"),
    value("thin-growth-warn"),
    value("thin-growth-max"),
    value("snap-reserve"),
    value("snap-warn"),
    value("snap-depletion"),
    value("description"),
    flag("read-write"),
    flag("read-only"),
    flag("online"),
    flag("offline"),
    flag("unrestricted"),
    value("iscsi-alias"),
    value("sector-size"),
];
const COPY: &[Opt] = &[
    value("description"),
    flag("online"),
    flag("offline"),
    flag("unrestricted"),
    flag("read-write"),
    flag("read-only"),
];
const ACCESS: &[Opt] =
    &[value("initiator"), value("ipaddress"), value("username"), value("authmethod"), value("apply-to")];
const SIZE: &[Opt] = &[flag("no-snap")];
const DESCRIPTION: &[Opt] = &[value("description")];

pub static VERBS: &[Verb] = &[
    Verb { options: &[flag("-volume")], ..look("volume show [volume]", volume::show) },
    with("volume create <volume> <size>", CREATE, volume::create),
    act("volume rename <volume> <name>", volume::rename),
    ask("volume delete <volume>", "Do you really want to delete the volume? (y/n) [n] ", volume::delete),
    look("volume select <volume>", volume::enter),
    look("volume select <volume> show", volume::show),
    act("volume select <volume> online", volume::online),
    act("volume select <volume> offline", volume::offline),
    act("volume select <volume> read-only", volume::read_only),
    act("volume select <volume> read-write", volume::read_write),
    with("volume select <volume> size <size>", SIZE, volume::size),
    with("volume select <volume> shrink <size>", SIZE, volume::shrink),
    act("volume select <volume> description <text>", volume::set),
    act("volume select <volume> iscsi-alias <text>", volume::set),
    act("volume select <volume> multihost-access <switch>", volume::set),
    act("volume select <volume> thin-provision <switch>", volume::set),
    act("volume select <volume> thin-min-reserve <percent>", volume::set),
    act("volume select <volume> thin-growth-warn <percent>", volume::set),
    act("volume select <volume> thin-growth-max <percent>", volume::set),
    act("volume select <volume> snap-reserve <percent>", volume::set),
    act("volume select <volume> snap-warn <percent>", volume::set),
    act("volume select <volume> snap-depletion <policy>", volume::set),
    with("volume select <volume> clone <name>", COPY, volume::clone),
    act("volume select <volume> convert-to <kind>", volume::convert),
    with("volume select <volume> create-thin-clone <name>", COPY, volume::thin_clone),
    act("volume select <volume> detach", volume::detach),
    with("volume select <volume> access create", ACCESS, access::create),
    look("volume select <volume> access show", access::show),
    look("volume select <volume> access select <id> show", access::show_one),
    act("volume select <volume> access delete <id>", access::delete),
    with("volume select <volume> snapshot create-now", DESCRIPTION, snapshot::create),
    act("volume select <volume> snapshot rename <snapshot> <name>", snapshot::rename),
    look("volume select <volume> snapshot show", snapshot::list),
    act("volume select <volume> snapshot delete <snapshot>", snapshot::delete),
    look("volume select <volume> snapshot select <snapshot>", snapshot::enter),
    look("volume select <volume> snapshot select <snapshot> show", snapshot::show),
    act("volume select <volume> snapshot select <snapshot> online", snapshot::online),
    act("volume select <volume> snapshot select <snapshot> offline", snapshot::offline),
    act("volume select <volume> snapshot select <snapshot> read-only", snapshot::read_only),
    act("volume select <volume> snapshot select <snapshot> read-write", snapshot::read_write),
    act("volume select <volume> snapshot select <snapshot> description <text>", snapshot::describe),
    with("volume select <volume> snapshot select <snapshot> clone <name>", COPY, snapshot::clone),
    act("volume select <volume> snapshot select <snapshot> restore", snapshot::restore),
    look("volume collection show [collection]", collection::show),
    with("volume collection create <collection>", &[value("volume"), value("description")], collection::create),
    act("volume collection delete <collection>", collection::delete),
    look("volume collection select <collection> show", collection::show),
    act("volume collection select <collection> add <volumes>", collection::add),
    act("volume collection select <collection> remove <volumes>", collection::remove),
    with("volume collection select <collection> snapcoll create-now", DESCRIPTION, collection::snapshot),
    look("volume collection select <collection> snapcoll show", collection::list_snapshots),
    look("volume collection select <collection> snapcoll select <snapcoll> show", collection::show_snapshots),
    act("volume collection select <collection> snapcoll delete <snapcoll>", collection::delete_snapshots),
    look("pool show [pool]", group::pools),
    look("pool select <pool>", group::enter_pool),
    look("pool select <pool> show", group::pools),
    look("member show [member]", group::members),
    look("member select <member> show", group::members),
    look("grpparams show", group::parameters),
    act("grpparams info-messages <switch>", group::info_messages),
    with("chapuser create <user>", &[value("password")], access::create_user),
    act("chapuser delete <user>", access::delete_user),
    look("chapuser show [user]", access::show_users),
    with("chapuser select <user>", &[value("password")], access::change_user),
    with("account create <account> <kind>", &[value("password")], group::create_account),
    act("account delete <account>", group::delete_account),
    look("account show", group::accounts),
    look("cli-settings show", group::settings),
    look("cli-settings <setting> <switch>", group::set),
    look("stty columns <number>", group::columns),
    look("stty hardwrap <switch>", group::hard_wrap),
    look("show", group::overview),
    look("whoami", group::whoami),
    look("exit", |_| Ok(Reply::effect(Effect::Leave))),
    look("logout", |_| Ok(Reply::effect(Effect::Logout))),
];

pub fn run(array: &mut Array, account: &str, request: &Request) -> Result<Reply, CliError> {
    let kind = array.group.accounts.get(account).map(|found| found.kind);
    if request.verb.changes && kind != Some(AccountKind::GroupAdmin) {
        return Err(CliError::refused("Permission denied."));
    }
    (request.verb.run)(&mut Call { array, account, request })
}

impl Call<'_> {
    /// An argument of the pattern; those may be relied on.
    pub fn argument(&self, at: usize) -> String {
        self.request.arguments.get(at).cloned().unwrap_or_default()
    }

    pub fn optional(&self, at: usize) -> Option<String> {
        self.request.arguments.get(at).cloned()
    }

    pub fn option(&self, word: &str) -> Option<&str> {
        let given = self.request.options.iter().rev().find(|(name, _)| *name == word);
        given.map(|(_, value)| value.as_str())
    }

    pub fn has(&self, word: &str) -> bool {
        self.option(word).is_some()
    }

    /// The n-th keyword of the pattern.
    pub fn keyword(&self, at: usize) -> &'static str {
        self.request.verb.pattern.split(' ').nth(at).unwrap_or_default()
    }

    /// Whether the second of two flags that exclude each other was given, or neither (`default`).
    pub fn either(&self, no: &str, yes: &str, default: bool) -> Result<bool, CliError> {
        match (self.has(no), self.has(yes)) {
            (true, true) => Err(CliError::syntax(format!("{no} and {yes} exclude each other."))),
            (false, false) => Ok(default),
            (_, yes) => Ok(yes),
        }
    }

    pub fn settings(&self) -> Settings {
        self.array.group.accounts.get(self.account).map(|account| account.settings).unwrap_or_default()
    }

    /// A size as this account wants to see it.
    pub fn size(&self, mb: u64) -> String {
        show_mb(mb, self.settings().display_in_mb)
    }
}

pub fn size_mb(text: &str) -> Result<u64, CliError> {
    parse_mb(text).ok_or_else(|| CliError::syntax(format!("Bad size: {text}; a number with MB, GB or TB is expected.")))
}

pub fn percent(text: &str) -> Result<u64, CliError> {
    let number = text.strip_suffix('%').unwrap_or(text).parse();
    number.map_err(|_| CliError::syntax(format!("Bad percentage: {text}; a number with or without % is expected.")))
}

pub fn switch(text: &str, on: &str, off: &str) -> Result<bool, CliError> {
    match () {
        () if !text.is_empty() && text == on => Ok(true),
        () if !text.is_empty() && text == off => Ok(false),
        () if text.len() > 1 && on.starts_with(text) => Ok(true),
        () if text.len() > 1 && off.starts_with(text) => Ok(false),
        () => Err(CliError::syntax(format!("Bad value: {text}; {on} or {off} is expected."))),
    }
}

/// The sub-mode in which a name is selected.
pub fn enter(keywords: &[&str], label: &str, name: &str) -> Reply {
    let mut words: Vec<Word> = keywords.iter().map(|word| Word::plain(word)).collect();
    words.push(Word { text: name.into(), quoted: true });
    Reply::effect(Effect::Enter { words, label: format!("{label}_{name}") })
}

pub fn pair(key: &str, value: impl Into<String>) -> (String, String) {
    (key.into(), value.into())
}
