use proptest::prelude::*;
use uuid::Uuid;

use super::{
    DESCRIPTION_BYTES_MAX, Description, Kind, Role, account, collection, is_collection, management, mark, mark_of,
    parse_snapshot, role, snapshot, sr_of_management, template, token_of, volume,
};
use crate::size::PAGE_BYTES;

/// What all firmware takes for a volume.
const NAME_BYTES_MAX: usize = 63;
const SR: Uuid = Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);

#[test]
fn names_fit_and_tell_what_they_are() {
    let id = Uuid::from_u128(u128::MAX / 3);
    for name in [volume(SR, id), template(SR, id), management(SR), collection(SR, id), snapshot(id, 15 << 40)] {
        assert!(name.len() <= NAME_BYTES_MAX, "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{name}");
    }
    assert_eq!(role(SR, &volume(SR, id)), Some(Role::Disk));
    assert_eq!(role(SR, &template(SR, id)), Some(Role::Template));
    assert_eq!(role(SR, &management(SR)), Some(Role::Management));
    assert_eq!(role(id, &volume(SR, id)), None);
    assert_eq!(role(SR, &collection(SR, id)), None);
    assert!(is_collection(SR, &collection(SR, id)) && !is_collection(SR, &volume(SR, id)));
    assert_eq!(sr_of_management(&management(SR)), Some(SR));
    assert_eq!(sr_of_management(&volume(SR, id)), None);
    assert_eq!(parse_snapshot(&snapshot(id, 69 * PAGE_BYTES)), Some((id, 69 * PAGE_BYTES)));
    assert_eq!(parse_snapshot("tanada-2026-11-22-10:00:00.1.1"), None);
}

#[test]
fn accounts_carry_their_token_or_are_refused() {
    let token = "a".repeat(32);
    let generation = Uuid::from_u128(u128::MAX / 3);
    let (volume, snapshot) = (account(SR, &token, None).unwrap(), account(SR, &token, Some(generation)).unwrap());
    assert_eq!((token_of(SR, &volume), token_of(SR, &snapshot)), (Some(token.as_str()), Some(token.as_str())));
    assert_eq!((mark_of(&volume), mark_of(&snapshot)), (None, Some(mark(generation).as_str())));
    assert_eq!(token_of(Uuid::nil(), &volume), None);
    for wrong in ["", "a b", "a\"b", "a_b", "a.b", &"a".repeat(60)] {
        assert_eq!(account(SR, wrong, None), None, "{wrong:?}");
    }
    let longest = "a".repeat(47);
    assert_eq!(account(SR, &longest, None).map(|name| name.len()), Some(63));
    assert_eq!(account(SR, &longest, Some(generation)), None);
}

#[test]
fn the_longest_description_fits() {
    let id = Uuid::from_u128(u128::MAX);
    let full = Description {
        kind: Kind::Disk,
        id,
        parent: Some(id),
        template: Some(id),
        reverting: Some(10),
        name: String::from("never whole"),
    };
    assert!(full.encode().len() <= DESCRIPTION_BYTES_MAX, "{}", full.encode().len());
    let read = Description::parse(&full.encode()).expect("a description");
    assert_eq!((read.id, read.parent, read.template, read.reverting), (id, Some(id), Some(id), Some(10)));
}

#[test]
fn foreign_descriptions_are_not_ours_and_unknown_fields_are_skipped() {
    for foreign in
        ["", "backup of mail", "tanada2,k=disk,v=00000000000000000000000000000001", "tanada1,k=disk", "tanada1,k=moon"]
    {
        assert_eq!(Description::parse(foreign), None, "{foreign}");
    }
    let newer = "tanada1,k=husk,z=9,v=00000000000000000000000000000001,later";
    assert_eq!(Description::parse(newer), Some(Description::new(Kind::Husk, Uuid::from_u128(1))));
}

proptest! {
    #[test]
    fn descriptions_of_any_name_read_back(name in "\\PC{0,20}", id in any::<u128>()) {
        let told = Description { name: name.clone(), ..Description::new(Kind::Sr, Uuid::from_u128(id)) };
        let text = told.encode();
        prop_assert!(text.len() <= DESCRIPTION_BYTES_MAX);
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-=,:".contains(&byte)));
        let read = Description::parse(&text).expect("a description");
        prop_assert!(name.starts_with(&read.name));
    }

    #[test]
    fn hostile_descriptions_do_not_panic(text in "\\PC{0,200}", fields in "[a-z=,:0-9]{0,120}") {
        let _ = (Description::parse(&text), Description::parse(&format!("tanada1,{fields}")), parse_snapshot(&text));
    }
}
