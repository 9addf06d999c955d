//! What names and sizes may be.

use crate::api::error::{ApiError, ApiResult};

const VOLUME_NAME_MAX: usize = 203;
const LUN_BASE_MAX: usize = 255;
const IGROUP_NAME_MAX: usize = 96;
const SNAPSHOT_NAME_MAX: usize = 255;
const INITIATOR_NAME_MAX: usize = 223;

pub fn check_volume(name: &str) -> ApiResult<()> {
    if name.len() > VOLUME_NAME_MAX {
        return Err(
            ApiError::invalid(917886, format!("Volume name \"{name}\" is longer than {VOLUME_NAME_MAX}.")).at("name")
        );
    }
    let first = name.bytes().next().unwrap_or(b'0');
    if !(first.is_ascii_alphabetic() || first == b'_') {
        let words = format!("Volume name \"{name}\" must begin with a letter or an underscore.");
        return Err(ApiError::invalid(917887, words).at("name"));
    }
    match name.chars().find(|letter| !(letter.is_ascii_alphanumeric() || *letter == '_')) {
        Some(bad) => {
            Err(ApiError::invalid(917888, format!("Volume name \"{name}\" has the character \"{bad}\".")).at("name"))
        }
        None => Ok(()),
    }
}

/// Splits `/vol/<volume>/<base>`; qtrees are not kept.
pub fn split_lun(path: &str) -> ApiResult<(&str, &str)> {
    let invalid = || {
        ApiError::invalid(5374127, format!("The LUN path \"{path}\" is not of the form /vol/volume/lun.")).at("name")
    };
    let (volume, base) = path.strip_prefix("/vol/").and_then(|rest| rest.split_once('/')).ok_or_else(invalid)?;
    if volume.is_empty() || base.is_empty() || base.contains('/') {
        return Err(invalid());
    }
    if base.len() > LUN_BASE_MAX {
        return Err(
            ApiError::invalid(5376462, format!("The LUN name \"{base}\" is longer than {LUN_BASE_MAX}.")).at("name")
        );
    }
    let good = |letter: char| letter.is_ascii_alphanumeric() || "-._{}".contains(letter);
    match base.chars().find(|letter| !good(*letter)) {
        Some(bad) => {
            Err(ApiError::invalid(5374121, format!("The LUN name \"{base}\" has the character \"{bad}\".")).at("name"))
        }
        None => Ok((volume, base)),
    }
}

pub fn check_snapshot(name: &str) -> ApiResult<()> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || "-._+@:".contains(letter);
    if name.is_empty() || name.len() > SNAPSHOT_NAME_MAX || !name.chars().all(good) {
        return Err(ApiError::invalid(1638518, format!("The snapshot name \"{name}\" is invalid.")).at("name"));
    }
    if name.starts_with("snapmirror.") || name.starts_with("hourly.") {
        return Err(
            ApiError::invalid(1638477, format!("The prefix of the snapshot name \"{name}\" is reserved.")).at("name")
        );
    }
    Ok(())
}

pub fn check_igroup(name: &str) -> ApiResult<()> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || "-._:".contains(letter);
    if name.is_empty() || name.len() > IGROUP_NAME_MAX || !name.chars().all(good) {
        return Err(ApiError::invalid(5373958, format!("The initiator group name \"{name}\" is invalid.")).at("name"));
    }
    Ok(())
}

/// An iSCSI qualified name.
pub fn check_initiator(name: &str) -> ApiResult<()> {
    let good = |letter: char| letter.is_ascii_alphanumeric() || ".-:".contains(letter);
    let (kind, rest) = name.split_once('.').unwrap_or((name, ""));
    let shaped = match kind {
        "iqn" => {
            let mut date = rest.split(['-', '.']);
            let year = date.next().is_some_and(|year| year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()));
            year && date.next().is_some_and(|month| month.len() == 2)
        }
        "eui" | "naa" => rest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        _ => false,
    };
    if !shaped || name.len() > INITIATOR_NAME_MAX || !name.chars().all(good) {
        return Err(ApiError::invalid(5374039, format!("The initiator name \"{name}\" is invalid.")).at("name"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{check_initiator, check_snapshot, check_volume, split_lun};

    #[test]
    fn names_are_judged_with_the_documented_codes() {
        let code = |result: crate::api::error::ApiResult<()>| result.map_or_else(|error| error.code, |()| "ok".into());
        assert_eq!(code(check_volume("tanada_1")), "ok");
        assert_eq!(code(check_volume("1a")), "917887");
        assert_eq!(code(check_volume("a-b")), "917888");
        assert_eq!(code(check_volume(&"a".repeat(204))), "917886");
        assert_eq!(code(split_lun("/vol/a/x.{1}_-").map(drop)), "ok");
        assert_eq!(code(split_lun("/vol/a/b c").map(drop)), "5374121");
        assert_eq!(code(split_lun("/vol/a").map(drop)), "5374127");
        assert_eq!(code(split_lun("/vol/a/q/b").map(drop)), "5374127");
        assert_eq!(code(check_snapshot("a b")), "1638518");
        assert_eq!(code(check_initiator("iqn.2026-01.org.tanada:vm-1")), "ok");
        assert_eq!(code(check_initiator("iqn.26-01.x")), "5374039");
        assert_eq!(code(check_initiator("host1")), "5374039");
    }
}
