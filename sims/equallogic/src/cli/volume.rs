//! `volume ...`

use crate::array::volume::{AppliesTo, Depletion, Kind, Thin, Volume};
use crate::array::{CloneSpec, Property, VolumeSpec};
use crate::cli::access::access_table;
use crate::cli::layout::{Block, Columns};
use crate::cli::snapshot::snapshot_table;
use crate::cli::verbs::{Call, enter as enter_mode, pair, percent, size_mb, switch};
use crate::cli::{CliError, Reply};

type Answer = Result<Reply, CliError>;

const LIST: Columns =
    &[("Name", 15), ("Size", 10), ("Snapshots", 9), ("Status", 7), ("Permission", 10), ("Connections", 11), ("T", 1)];
const CONNECTIONS: Columns = &[("Initiator", 45), ("IPAddress", 15)];

pub fn create(call: &mut Call<'_>) -> Answer {
    let mut spec = VolumeSpec::new(&call.argument(0), size_mb(&call.argument(1))?);
    if let Some(pool) = call.option("pool") {
        spec.pool = pool.into();
    }
    spec.description = call.option("description").unwrap_or_default().into();
    spec.alias = call.option("iscsi-alias").map(str::to_string);
    spec.thin = thin(call)?;
    spec.snap_reserve = call.option("snap-reserve").map_or(Ok(spec.snap_reserve), percent)?;
    spec.snap_warn = call.option("snap-warn").map_or(Ok(spec.snap_warn), percent)?;
    spec.depletion = call.option("snap-depletion").map_or(Ok(spec.depletion), depletion)?;
    spec.read_only = call.either("read-write", "read-only", false)?;
    spec.online = call.either("offline", "online", true)?;
    spec.unrestricted = call.has("unrestricted");
    spec.sector_bytes = match call.option("sector-size") {
        None | Some("512") => 512,
        Some("4096") => {
            return Err(CliError::refused("Sector size 4096 is not supported by the members of this group."));
        }
        Some(other) => return Err(CliError::syntax(format!("Bad sector size: {other}; 512 or 4096 is expected."))),
    };
    if spec.snap_reserve > 10_000 {
        return Err(CliError::refused(format!("Snapshot reserve {}% is more than 10000%.", spec.snap_reserve)));
    }
    let iqn = call.array.create_volume(spec)?;
    Ok(created("Volume creation succeeded.", &iqn))
}

fn thin(call: &Call<'_>) -> Result<Option<Thin>, CliError> {
    let mut thin = Thin::default();
    let given = |word| call.option(word).map(percent).transpose();
    let (least, warn, most) = (given("thin-min-reserve")?, given("thin-growth-warn")?, given("thin-growth-max")?);
    if !call.has("thin-provision") {
        return match least.or(warn).or(most) {
            None => Ok(None),
            Some(_) => Err(CliError::syntax("Thin provisioning limits need thin-provision.")),
        };
    }
    thin.min_reserve = least.unwrap_or(thin.min_reserve);
    thin.growth_warn = warn.unwrap_or(thin.growth_warn);
    thin.growth_max = most.unwrap_or(thin.growth_max);
    match thin.min_reserve <= thin.growth_max && thin.growth_max <= 100 {
        true => Ok(Some(thin)),
        false => Err(CliError::refused("The minimum reserve may not exceed the maximum in-use space, nor that 100%.")),
    }
}

fn depletion(word: &str) -> Result<Depletion, CliError> {
    Depletion::parse(word)
        .ok_or_else(|| CliError::syntax(format!("Bad policy: {word}; delete-oldest or volume-offline is expected.")))
}

/// The answer to all ways of making a volume; the period belongs to it.
pub fn created(success: &str, iqn: &str) -> Reply {
    Reply::text(&[success, &format!("iSCSI target name is {iqn}.")])
}

pub fn rename(call: &mut Call<'_>) -> Answer {
    call.array.rename_volume(&call.argument(0), &call.argument(1))?;
    Ok(Reply::silent())
}

pub fn delete(call: &mut Call<'_>) -> Answer {
    call.array.delete_volume(&call.argument(0))?;
    Ok(Reply::text(&["Volume deletion succeeded."]))
}

pub fn enter(call: &mut Call<'_>) -> Answer {
    let name = call.argument(0);
    call.array.group.volume(&name)?;
    Ok(enter_mode(&["volume", "select"], "volume", &name))
}

pub fn online(call: &mut Call<'_>) -> Answer {
    call.array.set_online(&call.argument(0), true)?;
    Ok(Reply::silent())
}

pub fn offline(call: &mut Call<'_>) -> Answer {
    call.array.set_online(&call.argument(0), false)?;
    Ok(Reply::silent())
}

pub fn read_only(call: &mut Call<'_>) -> Answer {
    call.array.set_read_only(&call.argument(0), true)?;
    Ok(Reply::silent())
}

pub fn read_write(call: &mut Call<'_>) -> Answer {
    call.array.set_read_only(&call.argument(0), false)?;
    Ok(Reply::silent())
}

pub fn size(call: &mut Call<'_>) -> Answer {
    let mb = size_mb(&call.argument(1))?;
    call.array.grow_volume(&call.argument(0), mb, !call.has("no-snap"))?;
    Ok(Reply::silent())
}

pub fn shrink(call: &mut Call<'_>) -> Answer {
    let mb = size_mb(&call.argument(1))?;
    call.array.shrink_volume(&call.argument(0), mb, !call.has("no-snap"))?;
    Ok(Reply::silent())
}

/// All commands that set one property: its keyword is the fourth word.
pub fn set(call: &mut Call<'_>) -> Answer {
    let text = call.argument(1);
    let property = match call.keyword(3) {
        "description" => Property::Description(text),
        "iscsi-alias" => Property::Alias(text),
        "multihost-access" => Property::MultihostAccess(switch(&text, "enable", "disable")?),
        "thin-provision" => Property::Thin(switch(&text, "enable", "disable")?),
        "thin-min-reserve" => Property::ThinMinReserve(percent(&text)?),
        "thin-growth-warn" => Property::ThinGrowthWarn(percent(&text)?),
        "thin-growth-max" => Property::ThinGrowthMax(percent(&text)?),
        "snap-reserve" => Property::SnapReserve(percent(&text)?),
        "snap-warn" => Property::SnapWarn(percent(&text)?),
        _ => Property::SnapDepletion(depletion(&text)?),
    };
    call.array.set_property(&call.argument(0), property)?;
    Ok(Reply::silent())
}

/// What `clone` and its relatives were told about the copy.
pub fn copy_spec(call: &Call<'_>, name: String) -> Result<CloneSpec, CliError> {
    Ok(CloneSpec {
        name,
        description: call.option("description").unwrap_or_default().into(),
        online: call.either("offline", "online", true)?,
        unrestricted: call.has("unrestricted"),
    })
}

pub fn clone(call: &mut Call<'_>) -> Answer {
    let spec = copy_spec(call, call.argument(1))?;
    let iqn = call.array.clone_volume(&call.argument(0), spec)?;
    Ok(created("Volume clone creation succeeded.", &iqn))
}

pub fn convert(call: &mut Call<'_>) -> Answer {
    match call.argument(1).as_str() {
        "template" => call.array.convert_to_template(&call.argument(0))?,
        other => return Err(CliError::syntax(format!("Bad kind: {other}; template is expected."))),
    }
    Ok(Reply::silent())
}

pub fn thin_clone(call: &mut Call<'_>) -> Answer {
    let spec = copy_spec(call, call.argument(1))?;
    let iqn = call.array.thin_clone(&call.argument(0), spec)?;
    Ok(created("Thin clone creation succeeded.", &iqn))
}

pub fn detach(call: &mut Call<'_>) -> Answer {
    call.array.detach_thin_clone(&call.argument(0))?;
    Ok(Reply::silent())
}

pub fn show(call: &mut Call<'_>) -> Answer {
    match call.optional(0) {
        Some(name) => show_one(call, &name),
        None => Ok(list(call)),
    }
}

fn list(call: &Call<'_>) -> Reply {
    let rows = call.array.group.volumes.iter().map(|(name, volume)| {
        vec![
            name.clone(),
            call.size(volume.size_mb),
            volume.snapshots.len().to_string(),
            if volume.is_online() { "online" } else { "offline" }.into(),
            permission(volume.read_only).into(),
            call.array.connections(&volume.iqn).to_string(),
            if volume.thin.is_some() { "Y" } else { "N" }.into(),
        ]
    });
    Reply::blocks(vec![Block::Table { title: None, columns: LIST, rows: rows.collect() }])
}

pub fn permission(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "read-write" }
}

fn show_one(call: &Call<'_>, name: &str) -> Answer {
    let volume = call.array.group.volume(name)?;
    let mut pairs = recorded(call, name, volume);
    pairs.extend(newer(call, volume));
    let mut blocks = vec![Block::Page { title: "Volume Information".into(), pairs }];
    if !volume.access.is_empty() {
        blocks.push(access_table(volume));
    }
    if !volume.snapshots.is_empty() {
        blocks.push(snapshot_table(call, volume, Some("Snapshots")));
    }
    let logins = call.array.logins().into_iter().filter(|login| login.iqn == volume.iqn);
    let rows: Vec<Vec<String>> = logins.map(|login| vec![login.initiator, login.address]).collect();
    if !rows.is_empty() {
        blocks.push(Block::Table { title: Some("Connections".into()), columns: CONNECTIONS, rows });
    }
    Ok(Reply::blocks(blocks))
}

/// The keys of recorded transcripts, in their order.
fn recorded(call: &Call<'_>, name: &str, volume: &Volume) -> Vec<(String, String)> {
    let left = volume.snap_reserve_pages().minus(volume.snap_held());
    let percent_left = (left.0 * 100).checked_div(volume.snap_reserve_pages().0).unwrap_or(0);
    vec![
        pair("Name", name),
        pair("Size", call.size(volume.size_mb)),
        pair("VolReserve", call.size(volume.reserve.mb())),
        pair("VolReserveInUse", call.size(volume.in_use.mb())),
        pair("ReplReserveInUse", "0MB"),
        pair("iSCSI Alias", volume.alias.as_str()),
        pair("iSCSI Name", volume.iqn.as_str()),
        pair("ActualMembers", "1"),
        pair("Snap-Warn", format!("{}%", volume.snap_warn)),
        pair("Snap-Depletion", volume.depletion.word()),
        pair("Description", volume.description.as_str()),
        pair("Snap-Reserve", format!("{}%", volume.snap_reserve)),
        pair("Snap-Reserve-Avail", format!("{percent_left}% ({})", call.size(left.mb()))),
        pair("Permission", permission(volume.read_only)),
        pair("DesiredStatus", if volume.online { "online" } else { "offline" }),
        pair("Status", volume.status()),
        pair("Connections", call.array.connections(&volume.iqn).to_string()),
        pair("Snapshots", volume.snapshots.len().to_string()),
        pair("Bind", ""),
        pair("Type", "not-replicated"),
        pair("ReplicationReserveSpace", "0MB"),
    ]
}

/// Keys that newer firmware adds; their spellings are this simulator's own.
fn newer(call: &Call<'_>, volume: &Volume) -> Vec<(String, String)> {
    let enabled = |on: bool| if on { "enabled" } else { "disabled" };
    let mut pairs = vec![pair("Pool", volume.pool.as_str()), pair("Thin-Provision", enabled(volume.thin.is_some()))];
    if let Some(thin) = volume.thin {
        let share = |percent: u64| format!("{percent}% ({})", call.size(volume.pages.percent(percent).mb()));
        pairs.push(pair("Thin-Min-Reserve", share(thin.min_reserve)));
        pairs.push(pair("Thin-Growth-Warn", share(thin.growth_warn)));
        pairs.push(pair("Thin-Growth-Max", share(thin.growth_max)));
    }
    pairs.push(pair("Multi-Host-Access", enabled(volume.multihost)));
    pairs.push(pair("Template", (volume.kind == Kind::Template).to_string()));
    let template = match &volume.kind {
        Kind::ThinClone(template) => Some(template.as_str()),
        _ => None,
    };
    pairs.push(pair("Thin-Clone", template.is_some().to_string()));
    pairs.push(pair("Template-Volume", template.unwrap_or_default()));
    pairs.push(pair("Sector-Size", volume.sector_bytes.to_string()));
    pairs.push(pair("Volume-Size-Pages", volume.pages.0.to_string()));
    pairs
}

/// What an access record applies to.
pub fn applies_to(word: &str) -> Result<AppliesTo, CliError> {
    let all = [AppliesTo::Volume, AppliesTo::Snapshot, AppliesTo::Both];
    let found = all.into_iter().find(|one| one.word() == word);
    found.ok_or_else(|| CliError::syntax(format!("Bad value: {word}; volume, snapshot or both is expected.")))
}
