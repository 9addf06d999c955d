//! The filter language: `field=value` with wildcards, alternatives, comparisons, ranges, negation, null.
//!
//! ```text
//!  expression = alternative { ("|" | ",") alternative }        any of them
//!  alternative = "!" alternative | "null" | "<" x | ">" x | "<=" x | ">=" x | a ".." b | pattern
//!  pattern     = text with "*"; in quotes or braces it is taken as it stands
//! ```
//! A field inside an array matches when any element does. Numbers may carry KB, MB, GB, TB, PB (powers of 1024).

use serde_json::Value;

/// All values at a dotted path, through arrays.
pub fn values<'a>(record: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![record];
    for key in path.split('.') {
        found = found
            .into_iter()
            .flat_map(|value| match value {
                Value::Array(list) => list.iter().filter_map(|element| element.get(key)).collect(),
                other => other.get(key).into_iter().collect::<Vec<_>>(),
            })
            .collect();
    }
    found.into_iter().flat_map(|value| value.as_array().map_or(vec![value], |list| list.iter().collect())).collect()
}

/// Whether a record passes one filter.
pub fn matches(record: &Value, path: &str, expression: &str) -> bool {
    let found: Vec<&Value> = values(record, path).into_iter().filter(|value| !value.is_null()).collect();
    alternatives(expression).iter().any(|alternative| matches_one(&found, alternative))
}

fn matches_one(found: &[&Value], alternative: &str) -> bool {
    if let Some(rest) = alternative.strip_prefix('!') {
        return !matches_one(found, rest);
    }
    if alternative == "null" {
        return found.is_empty();
    }
    found.iter().any(|value| compare(&text(value), alternative))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn compare(value: &str, alternative: &str) -> bool {
    for (sign, accepts) in [("<=", [true, true, false]), (">=", [false, true, true])] {
        if let Some(bound) = alternative.strip_prefix(sign) {
            return accepts[order(value, bound)];
        }
    }
    for (sign, wanted) in [('<', 0), ('>', 2)] {
        if let Some(bound) = alternative.strip_prefix(sign) {
            return order(value, bound) == wanted;
        }
    }
    if let Some((low, high)) = alternative.split_once("..") {
        return order(value, low) >= 1 && order(value, high) <= 1;
    }
    let quoted =
        [('"', '"'), ('{', '}')].iter().find_map(|(open, close)| alternative.strip_prefix(*open)?.strip_suffix(*close));
    match quoted {
        Some(literal) => value == literal,
        None if number(alternative).is_some() && number(value) == number(alternative) => true,
        None => wildcard(value, alternative),
    }
}

/// 0, 1, 2 for less, equal, greater.
fn order(value: &str, bound: &str) -> usize {
    let ordering = match (number(value), number(bound)) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        // RFC 3339 times in one zone order as text.
        _ => value.cmp(bound),
    };
    (ordering as i8 + 1) as usize
}

fn number(text: &str) -> Option<f64> {
    let units = [("KB", 10), ("MB", 20), ("GB", 30), ("TB", 40), ("PB", 50)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.' || byte == b'-');
    if !plain {
        return None;
    }
    digits.parse::<f64>().ok().map(|number| number * f64::powi(2.0, shift))
}

fn wildcard(value: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(first) = parts.next() else { return value.is_empty() };
    let Some(mut rest) = value.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Splits at `|` and `,` outside quotes and braces.
fn alternatives(expression: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut closing = None;
    for letter in expression.chars() {
        match (closing, letter) {
            (None, '|' | ',') => {
                found.push(String::new());
                continue;
            }
            (None, '"') => closing = Some('"'),
            (None, '{') => closing = Some('}'),
            (Some(end), letter) if letter == end => closing = None,
            _ => {}
        }
        if let Some(last) = found.last_mut() {
            last.push(letter);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::matches;
    use serde_json::json;

    #[test]
    fn filters_do_what_the_reference_says() {
        let record = json!({
            "name": "/vol/fv0/a|b", "space": { "size": 10_737_418_240u64 }, "enabled": true, "uuid": "71cd",
            "initiators": [{ "name": "iqn.a" }, { "name": "iqn.b" }], "services": ["data_core", "data_iscsi"],
            "create_time": "2026-03-01T10:00:00+00:00", "comment": null
        });
        for (path, expression, expected) in [
            ("name", "/vol/fv0/*", true),
            ("name", "*|*", true),
            ("name", "\"/vol/fv0/a|b\"", true),
            ("name", "{/vol/fv0/a|b}", true),
            ("name", "/vol/fv0", false),
            ("name", "!/vol/fv1/*", true),
            ("space.size", "10GB", true),
            ("space.size", ">=10737418240", true),
            ("space.size", "<10GB", false),
            ("space.size", "1GB..20GB", true),
            ("enabled", "true", true),
            ("enabled", "false", false),
            ("initiators.name", "iqn.b", true),
            ("initiators.name", "iqn.c,iqn.a", true),
            ("initiators.name", "iqn.c|iqn.d", false),
            ("services", "data_iscsi", true),
            ("comment", "null", true),
            ("comment", "!null", false),
            ("absent.field", "null", true),
            ("absent.field", "*", false),
            ("uuid", "71cd", true),
            ("create_time", ">2026-02-01T00:00:00+00:00", true),
        ] {
            assert_eq!(matches(&record, path, expression), expected, "{path}={expression}");
        }
    }
}
