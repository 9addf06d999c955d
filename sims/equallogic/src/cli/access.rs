//! `volume select V access ...` and `chapuser ...`

use ring::rand::{SecureRandom, SystemRandom};

use crate::array::Refused;
use crate::array::volume::{AccessRecord, AppliesTo, Volume};
use crate::cli::layout::{Block, Columns};
use crate::cli::verbs::{Call, pair};
use crate::cli::volume::applies_to;
use crate::cli::{CliError, Reply};

type Answer = Result<Reply, CliError>;

const LIST: Columns =
    &[("ID", 3), ("Initiator", 29), ("Ipaddress", 15), ("AuthMethod", 10), ("UserName", 10), ("Apply-To", 8)];
const USERS: Columns = &[("Name", 30), ("Status", 10)];

pub fn create(call: &mut Call<'_>) -> Answer {
    let chap = match call.option("authmethod") {
        None => call.has("username"),
        Some("none") => false,
        Some("chap") => true,
        Some(other) => return Err(CliError::syntax(format!("Bad method: {other}; chap or none is expected."))),
    };
    let user = call.option("username").map(str::to_string);
    if chap && user.is_none() {
        return Err(CliError::syntax("authmethod chap needs a username."));
    }
    if !["initiator", "ipaddress", "username"].iter().any(|word| call.has(word)) {
        return Err(CliError::syntax("At least one of initiator, ipaddress and username is required."));
    }
    let record = AccessRecord {
        initiator: call.option("initiator").filter(|name| *name != "*").map(str::to_string),
        address: address(call.option("ipaddress").unwrap_or("*.*.*.*"))?,
        chap_user: user.filter(|_| chap),
        applies_to: call.option("apply-to").map_or(Ok(AppliesTo::Both), applies_to)?,
    };
    call.array.create_access(&call.argument(0), record)?;
    Ok(Reply::silent())
}

fn address(text: &str) -> Result<String, CliError> {
    let octets: Vec<&str> = text.split('.').collect();
    match octets.len() == 4 && octets.iter().all(|octet| *octet == "*" || octet.parse::<u8>().is_ok()) {
        true => Ok(text.into()),
        false => Err(CliError::syntax(format!("Bad address: {text}; four numbers or asterisks are expected."))),
    }
}

pub fn show(call: &mut Call<'_>) -> Answer {
    let volume = call.array.group.volume(&call.argument(0))?;
    Ok(Reply::blocks(vec![access_table(volume)]))
}

/// Old clients count lines in pairs from the echo: title, header and dashes make the first record's line an even one.
pub fn access_table(volume: &Volume) -> Block {
    let rows = volume.access.iter().map(|(id, record)| {
        vec![
            id.to_string(),
            record.initiator.clone().unwrap_or_else(|| "*".into()),
            record.address.clone(),
            method(record).into(),
            record.chap_user.clone().unwrap_or_default(),
            record.applies_to.word().into(),
        ]
    });
    Block::Table { title: Some("Access Records".into()), columns: LIST, rows: rows.collect() }
}

fn method(record: &AccessRecord) -> &'static str {
    if record.chap_user.is_some() { "chap" } else { "none" }
}

fn number(text: &str) -> Result<u32, CliError> {
    text.parse().map_err(|_| CliError::syntax(format!("Bad access record number: {text}.")))
}

pub fn show_one(call: &mut Call<'_>) -> Answer {
    let id = number(&call.argument(1))?;
    let found = call.array.group.volume(&call.argument(0))?.access.get(&id);
    let record = found.ok_or_else(|| Refused::missing("Access record", &id.to_string()))?;
    let pairs = vec![
        pair("ID", id.to_string()),
        pair("Initiator", record.initiator.clone().unwrap_or_else(|| "*".into())),
        pair("IPAddress", record.address.as_str()),
        pair("AuthMethod", method(record)),
        pair("UserName", record.chap_user.clone().unwrap_or_default()),
        pair("Apply-To", record.applies_to.word()),
    ];
    Ok(Reply::blocks(vec![Block::Page { title: "Access Record".into(), pairs }]))
}

pub fn delete(call: &mut Call<'_>) -> Answer {
    let id = number(&call.argument(1))?;
    call.array.delete_access(&call.argument(0), id)?;
    Ok(Reply::silent())
}

pub fn create_user(call: &mut Call<'_>) -> Answer {
    let secret = match call.option("password") {
        Some(given) => given.to_string(),
        None => generated()?,
    };
    call.array.create_chap_user(&call.argument(0), secret.clone())?;
    Ok(Reply::text(&["CHAP user creation succeeded.", &format!("Password is {secret}")]))
}

fn generated() -> Result<String, CliError> {
    let mut bytes = [0u8; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CliError::refused("Internal error: no random bytes."))?;
    const LETTERS: &[u8; 32] = b"ABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
}

pub fn change_user(call: &mut Call<'_>) -> Answer {
    let Some(secret) = call.option("password").map(str::to_string) else {
        return Err(CliError::syntax("Incomplete command: password is missing."));
    };
    call.array.set_chap_secret(&call.argument(0), secret)?;
    Ok(Reply::silent())
}

pub fn delete_user(call: &mut Call<'_>) -> Answer {
    call.array.delete_chap_user(&call.argument(0))?;
    Ok(Reply::text(&["CHAP user deletion succeeded."]))
}

pub fn show_users(call: &mut Call<'_>) -> Answer {
    let wanted = call.optional(0);
    let chosen = |name: &&String| wanted.as_ref().is_none_or(|wanted| wanted == *name);
    let names: Vec<&String> = call.array.group.chap.keys().filter(chosen).collect();
    if let (Some(name), true) = (&wanted, names.is_empty()) {
        return Err(Refused::missing("CHAP user", name).into());
    }
    let rows = names.into_iter().map(|name| vec![name.clone(), "enabled".into()]).collect();
    Ok(Reply::blocks(vec![Block::Table { title: None, columns: USERS, rows }]))
}
