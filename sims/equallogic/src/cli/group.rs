//! The group itself: pools, members, accounts, settings of accounts and sessions.

use crate::array::size::Pages;
use crate::array::{Account, AccountKind, Refused, Settings};
use crate::cli::layout::{Block, Columns};
use crate::cli::verbs::{Call, enter as enter_mode, pair, switch};
use crate::cli::{CliError, Effect, Reply};

type Answer = Result<Reply, CliError>;

const POOLS: Columns =
    &[("Name", 20), ("Default", 7), ("Members", 7), ("Volumes", 7), ("Capacity", 10), ("FreeSpace", 10)];
const MEMBERS: Columns = &[
    ("Name", 10),
    ("Status", 7),
    ("Version", 20),
    ("Disks", 5),
    ("Capacity", 10),
    ("FreeSpace", 10),
    ("Connections", 11),
];
const ACCOUNTS: Columns = &[("Name", 20), ("Type", 12), ("Status", 8)];
/// Sizes of the terminal that `stty columns` takes.
const COLUMNS_MIN: usize = 20;
const COLUMNS_MAX: usize = 1024;

pub fn pools(call: &mut Call<'_>) -> Answer {
    if let Some(name) = call.optional(0) {
        return pool(call, &name);
    }
    let group = &call.array.group;
    let rows = group.pools.iter().map(|(name, pool)| {
        vec![
            name.clone(),
            (name == "default").to_string(),
            "1".into(),
            group.volumes.values().filter(|volume| volume.pool == *name).count().to_string(),
            call.size(pool.capacity.mb()),
            call.size(group.free(name).mb()),
        ]
    });
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: POOLS, rows: rows.collect() }]))
}

fn pool(call: &Call<'_>, name: &str) -> Answer {
    let group = &call.array.group;
    let pool = group.pools.get(name).ok_or_else(|| Refused::missing("Pool", name))?;
    let volumes = || group.volumes.values().filter(|volume| volume.pool == name);
    let sum = |pages: &mut dyn Iterator<Item = Pages>| call.size(pages.fold(Pages(0), Pages::plus).mb());
    let pairs = vec![
        pair("Name", name),
        pair("Default", (name == "default").to_string()),
        pair("Description", ""),
        pair("TotalVolumes", volumes().count().to_string()),
        pair("VolumesOnline", volumes().filter(|volume| volume.is_online()).count().to_string()),
        pair("TotalSnapshots", volumes().map(|volume| volume.snapshots.len()).sum::<usize>().to_string()),
        pair("TotalMembers", "1"),
        pair("TotalCapacity", call.size(pool.capacity.mb())),
        pair("FreeSpace", call.size(group.free(name).mb())),
        pair("VolumeReserve", sum(&mut volumes().map(|volume| volume.reserve))),
        pair("VolumeReserveInUse", sum(&mut volumes().map(|volume| volume.in_use))),
        pair("VolumeReportedSpace", sum(&mut volumes().map(|volume| volume.pages))),
        pair("SnapshotReserve", sum(&mut volumes().map(|volume| volume.snap_reserve_pages()))),
        pair("SnapshotReserveInUse", sum(&mut volumes().map(|volume| volume.snap_held()))),
    ];
    Ok(Reply::blocks(vec![Block::Page { title: "Pool Information".into(), pairs }]))
}

pub fn enter_pool(call: &mut Call<'_>) -> Answer {
    let name = call.argument(0);
    match call.array.group.pools.contains_key(&name) {
        true => Ok(enter_mode(&["pool", "select"], "pool", &name)),
        false => Err(Refused::missing("Pool", &name).into()),
    }
}

pub fn members(call: &mut Call<'_>) -> Answer {
    const ONLY: &str = "member1";
    if let Some(other) = call.optional(0).filter(|name| name != ONLY) {
        return Err(Refused::missing("Member", &other).into());
    }
    let group = &call.array.group;
    let capacity = group.pools.values().fold(Pages(0), |sum, pool| sum.plus(pool.capacity));
    let free = group.pools.keys().fold(Pages(0), |sum, pool| sum.plus(group.free(pool)));
    let row = vec![
        ONLY.into(),
        "online".into(),
        group.firmware.clone(),
        "16".into(),
        call.size(capacity.mb()),
        call.size(free.mb()),
        call.array.logins().len().to_string(),
    ];
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: MEMBERS, rows: vec![row] }]))
}

pub fn parameters(call: &mut Call<'_>) -> Answer {
    let group = &call.array.group;
    let pairs = vec![
        pair("Name", group.name.as_str()),
        pair("Group-Ipaddress", group.address.as_str()),
        pair("Description", ""),
        pair("Location", "default"),
        pair("Info-messages", if group.info_messages { "enabled" } else { "disabled" }),
        pair("Def-Snap-Reserve", "100%"),
        pair("Def-Snap-Warn", "10%"),
        pair("Def-Snap-Depletion", "delete-oldest"),
        pair("Def-Thin-Min-Reserve", "10%"),
    ];
    Ok(Reply::blocks(vec![Block::Page { title: "Group Configuration".into(), pairs }]))
}

pub fn info_messages(call: &mut Call<'_>) -> Answer {
    call.array.group.info_messages = switch(&call.argument(0), "enable", "disable")?;
    Ok(Reply::silent())
}

pub fn create_account(call: &mut Call<'_>) -> Answer {
    let (name, kind) = (call.argument(0), call.argument(1));
    let kind = match kind.as_str() {
        "admin" => AccountKind::GroupAdmin,
        "read-only" => AccountKind::ReadOnly,
        other => return Err(CliError::syntax(format!("Bad account type: {other}; admin or read-only is expected."))),
    };
    let password = call.option("password").unwrap_or_default().to_string();
    if !(3..=13).contains(&password.len()) || !password.is_ascii() {
        return Err(CliError::refused("Passwords have 3 to 13 ASCII characters."));
    }
    if call.array.group.accounts.contains_key(&name) {
        return Err(CliError::refused(format!("Account {name} already exists.")));
    }
    let account = Account { password, kind, settings: Settings::default() };
    call.array.group.accounts.insert(name, account);
    Ok(Reply::silent())
}

pub fn delete_account(call: &mut Call<'_>) -> Answer {
    let name = call.argument(0);
    if name == "grpadmin" {
        return Err(CliError::refused("Account grpadmin cannot be deleted."));
    }
    let gone = call.array.group.accounts.remove(&name);
    gone.map(|_| Reply::silent()).ok_or_else(|| Refused::missing("Account", &name).into())
}

pub fn accounts(call: &mut Call<'_>) -> Answer {
    let rows = call.array.group.accounts.iter().map(|(name, account)| {
        let kind = match account.kind {
            AccountKind::GroupAdmin => "admin",
            AccountKind::ReadOnly => "read-only",
        };
        vec![name.clone(), kind.into(), "enabled".into()]
    });
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: ACCOUNTS, rows: rows.collect() }]))
}

/// The switch that a name in `cli-settings` means; names may be shortened.
fn setting<'a>(settings: &'a mut Settings, name: &str) -> Option<&'a mut bool> {
    const NAMES: [&str; 7] =
        ["paging", "events", "formatoutput", "confirmation", "reprintBadInput", "idlelogout", "displayinMB"];
    let typed = name.to_ascii_lowercase();
    let mut fitting = NAMES.iter().enumerate().filter(|(_, full)| full.to_ascii_lowercase().starts_with(&typed));
    let (at, _) = fitting.next()?;
    if typed.is_empty() || fitting.next().is_some() {
        return None;
    }
    let all = [
        &mut settings.paging,
        &mut settings.events,
        &mut settings.format_output,
        &mut settings.confirmation,
        &mut settings.reprint_bad_input,
        &mut settings.idle_logout,
        &mut settings.display_in_mb,
    ];
    all.into_iter().nth(at)
}

pub fn set(call: &mut Call<'_>) -> Answer {
    let (name, on) = (call.argument(0), switch(&call.argument(1), "on", "off")?);
    let account = call.array.group.accounts.get_mut(call.account);
    let account = account.ok_or_else(|| Refused::missing("Account", call.account))?;
    let found = setting(&mut account.settings, &name);
    *found.ok_or_else(|| CliError::syntax(format!("Bad setting: {name}.")))? = on;
    Ok(Reply::silent())
}

pub fn settings(call: &mut Call<'_>) -> Answer {
    let settings = call.settings();
    let shown = |key: &str, on: bool| pair(key, if on { "on" } else { "off" });
    let pairs = vec![
        shown("paging", settings.paging),
        shown("events", settings.events),
        shown("formatoutput", settings.format_output),
        shown("confirmation", settings.confirmation),
        shown("reprintBadInput", settings.reprint_bad_input),
        shown("idlelogout", settings.idle_logout),
        shown("displayinMB", settings.display_in_mb),
    ];
    Ok(Reply::blocks(vec![Block::Page { title: "CLI Settings".into(), pairs }]))
}

pub fn columns(call: &mut Call<'_>) -> Answer {
    let text = call.argument(0);
    let number = text.parse::<usize>().ok().filter(|number| (COLUMNS_MIN..=COLUMNS_MAX).contains(number));
    let number = number.ok_or_else(|| {
        CliError::syntax(format!("Bad number of columns: {text}; {COLUMNS_MIN} to {COLUMNS_MAX} is expected."))
    })?;
    Ok(Reply::effect(Effect::Columns(number)))
}

pub fn hard_wrap(call: &mut Call<'_>) -> Answer {
    Ok(Reply::effect(Effect::HardWrap(switch(&call.argument(0), "on", "off")?)))
}

pub fn overview(call: &mut Call<'_>) -> Answer {
    let group = &call.array.group;
    let pairs = vec![
        pair("Name", group.name.as_str()),
        pair("Group-Ipaddress", group.address.as_str()),
        pair("TotalMembers", "1"),
        pair("TotalVolumes", group.volumes.len().to_string()),
        pair("TotalPools", group.pools.len().to_string()),
    ];
    Ok(Reply::blocks(vec![Block::Page { title: "Group Information".into(), pairs }]))
}

pub fn whoami(call: &mut Call<'_>) -> Answer {
    Ok(Reply::text(&[call.account]))
}
