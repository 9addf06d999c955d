//! Words that stand for values on the command line: booleans and sizes.

use crate::failure::Failure;

/// true/t/yes/y/1 and false/f/no/n/0, in any case.
pub fn parse_bool(name: &str, text: &str) -> Result<bool, Failure> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "0" => Ok(false),
        _ => Err(Failure::cli(format!(
            "Failed to parse parameter '{name}': '{text}' is not a boolean (true, t, yes, y, 1 or false, f, no, n, 0)"
        ))),
    }
}

pub fn parse_int(name: &str, text: &str) -> Result<i64, Failure> {
    text.trim().parse().map_err(|_| Failure::cli(format!("Parameter {name} must be an integer")))
}

/// Suffixes in lower case with the power of two that they multiply by.
const SUFFIXES: &[(&str, u32)] = &[
    ("bytes", 0),
    ("b", 0),
    ("kib", 10),
    ("kb", 10),
    ("k", 10),
    ("mib", 20),
    ("mb", 20),
    ("m", 20),
    ("gib", 30),
    ("gb", 30),
    ("g", 30),
    ("tib", 40),
    ("tb", 40),
    ("t", 40),
];

/// A number of bytes: an integer with an optional suffix (b, KiB, MiB, GiB, TiB and their short forms, powers of 1024).
pub fn parse_size(name: &str, text: &str) -> Result<i64, Failure> {
    let wrong = || {
        Failure::cli(format!(
            "Failed to parse parameter '{name}': '{text}' is not a size (an integer with an optional suffix: \
             bytes, KiB, MiB, GiB, TiB)"
        ))
    };
    let text_trimmed = text.trim();
    let digits_len = text_trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, suffix) = text_trimmed.split_at(digits_len);
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    let suffix = suffix.trim().to_ascii_lowercase();
    if suffix.is_empty() {
        return Ok(number);
    }
    let (_, shift) = SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or_else(wrong)?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::{parse_bool, parse_size};

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10bytes", 10),
            ("10b", 10),
            ("1KiB", 1024),
            ("3k", 3072),
            ("2MB", 2 << 20),
            ("8GiB", 8 << 30),
            ("5 gib", 5 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size("size", text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "1PiB", "9999999999TiB"] {
            assert!(parse_size("size", text).is_err(), "{text}");
        }
    }

    #[test]
    fn booleans() {
        for text in ["true", "T", "Yes", "y", "1"] {
            assert!(parse_bool("x", text).unwrap());
        }
        for text in ["false", "F", "No", "n", "0"] {
            assert!(!parse_bool("x", text).unwrap());
        }
        assert!(parse_bool("x", "maybe").is_err());
    }
}
