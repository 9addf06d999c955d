//! Sizes as a group takes and shows them. Space is given out in pages of 15 MB (1 MB = 1,048,576 bytes).
//!
//! A size that is no multiple of a page is rounded up by the group, which goes on showing the size asked for. So this
//! driver asks for whole pages only: the size shown, the size of the device and the size recorded are then one.

const MB: u64 = 1 << 20;
pub const PAGE_MB: u64 = 15;
pub const PAGE_BYTES: u64 = PAGE_MB * MB;
/// The classic limit of a volume.
pub const VOLUME_BYTES_MAX: u64 = 15 << 40;

/// Whole pages that hold `bytes`; at least one. In MB, as a command takes it.
pub fn request_mb(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES).max(1) * PAGE_MB
}

/// What a shown number stands for: with `displayinMB` it is exact, else rounded to two decimals of its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Nearest value, in bytes.
    pub bytes: u64,
    /// How far off it may be, in bytes; 0 = exact.
    pub slack: u64,
}

/// `105MB`, `1.01GB`, `1.5TB`; `None` for anything else.
pub fn parse(text: &str) -> Option<Shown> {
    let text = text.trim();
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.')?;
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_uppercase().as_str() {
        "KB" => 1 << 10,
        "MB" | "M" => MB,
        "GB" | "G" => 1 << 30,
        "TB" | "T" => 1 << 40,
        "PB" => 1 << 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() > 12 || fraction.len() > 6 {
        return None;
    }
    let scale = 10_u128.pow(fraction.len() as u32);
    let value = whole.parse::<u128>().ok()? * scale + if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let bytes = u64::try_from(value * u128::from(unit) / scale).ok()?;
    // Up to two decimals are shown and trailing zeros left out, so any number in a unit above MB may be rounded.
    Some(Shown { bytes, slack: if unit <= MB { 0 } else { unit / 200 + 1 } })
}

/// The size of a volume that was made of whole pages. Up to 1 TB the rounding of the display leaves one candidate; above,
/// the smallest is taken: never more than there is.
pub fn volume_bytes(text: &str) -> Option<u64> {
    let shown = parse(text)?;
    let lowest = shown.bytes.saturating_sub(shown.slack);
    Some(lowest.div_ceil(PAGE_BYTES) * PAGE_BYTES)
}

/// `100%` or `12 %`, and `100% (105MB)` without its parenthesis.
pub fn percent(text: &str) -> Option<u64> {
    text.split('%').next()?.trim().parse().ok()
}

/// The size in `100% (105MB)`.
pub fn in_parentheses(text: &str) -> Option<u64> {
    let inner = text.split_once('(')?.1.split_once(')')?.0;
    parse(inner).map(|shown| shown.bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MB, PAGE_BYTES, in_parentheses, parse, percent, request_mb, volume_bytes};

    #[test]
    fn requests_are_whole_pages() {
        assert_eq!(request_mb(0), 15);
        assert_eq!(request_mb(1 << 30), 1035);
        assert_eq!(request_mb(15 * MB), 15);
        assert_eq!(request_mb(15 * MB + 1), 30);
    }

    #[test]
    fn shown_sizes_are_read() {
        assert_eq!(parse("105MB").map(|shown| (shown.bytes, shown.slack)), Some((105 * MB, 0)));
        assert_eq!(parse("1.5TB").map(|shown| shown.bytes), Some(3 << 39));
        assert_eq!(volume_bytes("1035MB"), Some(1_085_276_160));
        assert_eq!(volume_bytes("1.01GB"), Some(1_085_276_160));
        assert_eq!((percent("100% (105MB)"), in_parentheses("100% (105MB)")), (Some(100), Some(105 * MB)));
        for wrong in ["", "MB", "1.2.3GB", "-1MB", "1 apple", "99999999999999999999TB", "1.12345678GB"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn two_decimals_of_a_gigabyte_tell_the_pages(pages in 1u64..69_905) {
            let bytes = pages * PAGE_BYTES;
            let shown = format!("{:.2}GB", bytes as f64 / (1u64 << 30) as f64);
            prop_assert_eq!(volume_bytes(&shown), Some(bytes));
            prop_assert_eq!(volume_bytes(&format!("{}MB", bytes / MB)), Some(bytes));
        }

        #[test]
        fn hostile_sizes_do_not_panic(text in "[0-9.%() GMTB-]{0,40}") {
            let _ = (parse(&text), volume_bytes(&text), percent(&text), in_parentheses(&text));
        }
    }
}
