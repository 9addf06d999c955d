//! Sizes as the array counts them: 15 MB pages inside, MB, GB and TB (of 1024) outside.

use serde::{Deserialize, Serialize};

/// Bytes in a megabyte of the command line.
pub const MB: u64 = 1 << 20;
/// Megabytes in a page, the unit in which the array hands out space.
pub const PAGE_MB: u64 = 15;
/// Bytes in a page.
pub const PAGE_BYTES: u64 = PAGE_MB * MB;

/// A number of 15 MB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pages(pub u64);

impl Pages {
    /// The pages that hold so many megabytes.
    pub fn from_mb(mb: u64) -> Pages {
        Pages(mb.div_ceil(PAGE_MB))
    }

    pub fn mb(self) -> u64 {
        self.0.saturating_mul(PAGE_MB)
    }

    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_BYTES)
    }

    /// So many hundredths of these pages, rounded up.
    pub fn percent(self, percent: u64) -> Pages {
        Pages(self.0.saturating_mul(percent).div_ceil(100))
    }

    pub fn plus(self, other: Pages) -> Pages {
        Pages(self.0.saturating_add(other.0))
    }

    pub fn minus(self, other: Pages) -> Pages {
        Pages(self.0.saturating_sub(other.0))
    }
}

/// Megabytes of a size as typed: a bare number is MB; `MB GB TB`, `M G T` in either case may follow; decimals are taken.
pub fn parse_mb(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_uppercase().as_str() {
        "" | "M" | "MB" => 1,
        "G" | "GB" => 1 << 10,
        "T" | "TB" => 1 << 20,
        _ => return None,
    };
    if !number.contains('.') {
        return number.parse::<u64>().ok()?.checked_mul(factor).filter(|mb| *mb > 0);
    }
    let mb = (number.parse::<f64>().ok()? * factor as f64).ceil();
    (1.0..1e15).contains(&mb).then_some(mb as u64)
}

/// A size as shown: at most two decimals and the unit glued on, or whole megabytes where the account wants those.
pub fn show_mb(mb: u64, always_mb: bool) -> String {
    const GB: u64 = 1 << 10;
    const TB: u64 = 1 << 20;
    let (unit, name) = match mb {
        _ if always_mb => (1, "MB"),
        TB.. => (TB, "TB"),
        GB.. => (GB, "GB"),
        _ => (1, "MB"),
    };
    let hundredths = mb.saturating_mul(100).saturating_add(unit / 2) / unit;
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::{Pages, parse_mb, show_mb};

    #[test]
    fn sizes_are_read_in_all_spellings() {
        for (text, mb) in [("40", 40), ("1G", 1024), ("1gb", 1024), ("2T", 2 << 20), ("30MB", 30), ("1.5G", 1536)] {
            assert_eq!(parse_mb(text), Some(mb), "{text}");
        }
        for text in ["", "G", "1KB", "-1", "0", "1.2.3G", "99999999999999999999T", "18446744073709551615T"] {
            assert_eq!(parse_mb(text), None, "{text}");
        }
    }

    #[test]
    fn one_gigabyte_is_sixty_nine_pages() {
        let pages = Pages::from_mb(1024);
        assert_eq!((pages.0, pages.mb(), pages.bytes()), (69, 1035, 1_085_276_160));
        assert_eq!(show_mb(pages.mb(), false), "1.01GB");
        assert_eq!(show_mb(pages.percent(10).mb(), false), "105MB");
    }

    #[test]
    fn the_unit_follows_the_magnitude() {
        for (mb, text) in [
            (0, "0MB"),
            (1023, "1023MB"),
            (1024, "1GB"),
            (922_112, "900.5GB"),
            (1_572_864, "1.5TB"),
            (2_097_150, "2TB"),
        ] {
            assert_eq!(show_mb(mb, false), text);
        }
        assert_eq!(show_mb(1 << 20, true), "1048576MB");
    }
}
