//! `key=value` conditions: of lists, and of commands that select VMs. They compare with what would be printed.

use crate::failure::Failure;
use crate::nearest::nearest;
use crate::record::field::{Field, scalar};
use crate::record::lookup::Lookup;
use crate::record::{Class, Object};

/// A field, or one entry of a map or set.
#[derive(Clone, Copy)]
pub struct Address<'a> {
    pub field: &'static Field,
    /// After the colon: a map's key, or `contains` for a set.
    pub entry: Option<&'a str>,
}

/// What `key` means in `class`: a field, `map:key`, or the older `map-key` where the longest map name wins.
pub fn address<'a>(class: &Class, key: &'a str) -> Option<Address<'a>> {
    if let Some(field) = class.field(key) {
        return Some(Address { field, entry: None });
    }
    if let Some((name, entry)) = key.split_once(':') {
        let field = class.field(name).filter(|field| field.is_collection())?;
        return Some(Address { field, entry: Some(entry) });
    }
    let maps = class.fields.iter().filter(|field| field.is_map());
    let prefixed = maps.filter_map(|field| {
        let entry = key.strip_prefix(field.name)?.strip_prefix('-')?;
        Some(Address { field, entry: Some(entry) })
    });
    prefixed.max_by_key(|address| address.field.name.len())
}

pub fn unknown_field(class: &Class, key: &str) -> Failure {
    let near = nearest(key, class.fields.iter().map(|field| field.name));
    let hint = near.map(|near| format!(". Did you mean '{near}'?")).unwrap_or_default();
    Failure::cli(format!("Unknown field '{key}'{hint}"))
}

/// Does the object meet all conditions?
pub fn matches(
    class: &Class,
    lookup: &Lookup<'_>,
    object: &Object,
    conditions: &[(String, String)],
) -> Result<bool, Failure> {
    for (key, wanted) in conditions {
        let address = address(class, key).ok_or_else(|| unknown_field(class, key))?;
        if !meets(lookup, object, address, wanted)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn meets(lookup: &Lookup<'_>, object: &Object, address: Address<'_>, wanted: &str) -> Result<bool, Failure> {
    let field = address.field;
    match address.entry {
        None => {
            let text = field.shown.text(lookup, object)?;
            Ok(if field.name == "MAC" { text.eq_ignore_ascii_case(wanted) } else { text == wanted })
        }
        Some("contains") if field.is_set() => {
            let text = field.shown.text(lookup, object)?;
            Ok(text.split("; ").flat_map(|item| item.split(", ")).any(|item| item == wanted))
        }
        Some(entry) if field.is_map() => {
            let map = field.shown.map(lookup, object)?;
            Ok(map.and_then(|map| map.get(entry).map(scalar)).is_some_and(|value| value == wanted))
        }
        Some(entry) => {
            Err(Failure::cli(format!("'{}' is a set: use {}:contains=<value>, not '{entry}'", field.name, field.name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::address;
    use crate::record::class;

    #[test]
    fn keys_address_fields_and_entries() {
        let vm = class("vm").unwrap();
        for (key, expected) in [
            ("name-label", Some(("name-label", None))),
            ("other-config:a:b", Some(("other-config", Some("a:b")))),
            ("other-config-key", Some(("other-config", Some("key")))),
            ("other-x", Some(("other", Some("x")))),
            ("tags:contains", Some(("tags", Some("contains")))),
            ("name-label:x", None),
            ("nonsense", None),
        ] {
            assert_eq!(address(vm, key).map(|a| (a.field.name, a.entry)), expected, "{key}");
        }
    }
}
