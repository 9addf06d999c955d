use proptest::prelude::*;

use super::{Page, Table};

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_string).collect()
}

const PAGE: &str = "____________________________ Volume Information _____________________________
Name: disk7
Size: 1035MB
iSCSI Alias: disk7
iSCSI Name: iqn.2001-05.com.equallogic:0-8a0906-1a2b3c40d-00f0000001c5e9
aa-disk7
Snap-Depletion: delete-oldest
Description: 
Snap-Reserve-Avail: 100% (105MB)
Status: online
Bind:
Type: not-replicated
____________________________ Access Records _________________________________
ID  Initiator                     Ipaddress       AuthMethod UserName   Apply-To
--- ----------------------------- --------------- ---------- ---------- --------
1   iqn.1993-08.org.debian:01:222 *.*.*.*         none                  both
      7dab76162
12  iqn.1993-08.org.debian:01:a   *.*.*.*         chap       tanada-1a2 volume
                                                               b3c4d5
";

#[test]
fn pages_are_read_by_key_and_broken_values_put_together() {
    let page = Page::parse(&lines(PAGE));
    assert_eq!(page.get("Name"), "disk7");
    assert_eq!(page.get("iSCSI Name"), "iqn.2001-05.com.equallogic:0-8a0906-1a2b3c40d-00f0000001c5e9aa-disk7");
    assert_eq!(page.get("Description"), "");
    assert_eq!(page.get("Bind"), "");
    assert_eq!(page.get("Snap-Reserve-Avail"), "100% (105MB)");
    assert_eq!(page.get("Status"), "online");
    assert_eq!(page.get("Initiator"), "");
}

#[test]
fn tables_are_cut_at_the_dashes() {
    let table = Table::parse(&lines(PAGE));
    assert_eq!(table.column("UserName"), Some(4));
    assert_eq!(table.rows.len(), 2, "{table:?}");
    assert_eq!(table.rows[0], ["1", "iqn.1993-08.org.debian:01:2227dab76162", "*.*.*.*", "none", "", "both"]);
    assert_eq!(table.rows[1], ["12", "iqn.1993-08.org.debian:01:a", "*.*.*.*", "chap", "tanada-1a2b3c4d5", "volume"]);
}

#[test]
fn what_is_not_there_is_empty() {
    assert!(Page::parse(&[]).is_empty());
    assert_eq!(Table::parse(&[]), Table::default());
    assert_eq!(Table::parse(&lines("No records.\n")), Table::default());
    assert_eq!(Table::parse(&lines("Name\n----\n")).rows.len(), 0);
}

proptest! {
    #[test]
    fn hostile_text_does_not_panic(text in "[-_ a-zA-Z0-9:%\u{e9}\n]{0,300}") {
        let lines = lines(&text);
        let _ = Page::parse(&lines);
        let table = Table::parse(&lines);
        prop_assert!(table.rows.iter().all(|row| row.len() == table.header.len()));
    }

    #[test]
    fn any_cell_comes_back_however_it_is_broken(name in "[a-z0-9][a-z0-9.:-]{0,60}", other in "[a-z]{0,5}") {
        // As a group prints it: broken inside its column, indented by two in the rows that go on.
        let mut text = String::from("Name            Other\n--------------- -----\n");
        let (first, mut rest) = name.split_at(name.len().min(15));
        text.push_str(&format!("{first:<15} {other}\n"));
        while !rest.is_empty() {
            let (part, left) = rest.split_at(rest.len().min(13));
            text.push_str(&format!("  {part}\n"));
            rest = left;
        }
        let table = Table::parse(&lines(&text));
        prop_assert_eq!(table.rows, vec![vec![name, other]]);
    }
}
