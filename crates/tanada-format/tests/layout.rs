//! Guards the layout: whoever changes it must change `layout.txt` too, and think of the stores that exist.

use tanada_format::layout;

#[test]
fn the_layout_is_the_one_checked_in() {
    let expected = include_str!("layout.txt");
    let actual = layout::describe();
    assert!(
        actual == expected,
        "the on-disk layout changed. If that is meant: raise the format version or add a feature, tell it in \
         docs/format.md, and put this into tests/layout.txt:\n{actual}"
    );
}
