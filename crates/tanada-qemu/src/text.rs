//! Words that come from a guest, made fit to be kept and shown.
//!
//! What a guest says ends in records, messages, logs and on terminals. So it is bounded, and what would move a cursor, change
//! colours or begin a line of its own is replaced.

/// At most `chars_max` characters of the text, each control character as U+FFFD.
pub fn printable(text: &str, chars_max: usize) -> String {
    text.chars()
        .take(chars_max)
        .map(|letter| if is_control(letter) { char::REPLACEMENT_CHARACTER } else { letter })
        .collect()
}

/// Control characters, and those that turn the direction of what follows around.
fn is_control(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_moves_a_cursor_or_begins_a_line() {
        let words = printable("Debian\u{1b}[2J\r\nERROR all is lost\u{9b}1m\u{202e}x", 100);
        assert_eq!(words, "Debian\u{fffd}[2J\u{fffd}\u{fffd}ERROR all is lost\u{fffd}1m\u{fffd}x");
        assert_eq!(printable("größer, 大きい", 100), "größer, 大きい");
        assert_eq!(printable(&"ü".repeat(1000), 3), "üüü");
    }
}
