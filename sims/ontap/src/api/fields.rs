//! Which fields an answer holds.
//!
//! - A collection without `fields` gives keys, names and whatever was filtered by; an instance gives the standard set.
//! - `*` is the standard set, `**` everything, `a,b.c` a list, `b.{c,d}` a short form, `!b.c` leaves out.
//! - Expensive fields come only when they are named, not when something above them is.

use serde_json::{Map, Value};

use crate::api::request::is_within;

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    everything: bool,
    standard: bool,
    named: Vec<String>,
    without: Vec<String>,
}

impl Selection {
    /// The value of `fields`. An empty one asks for nothing beyond the keys.
    pub fn parse(text: &str) -> Selection {
        let mut selection = Selection::default();
        for word in split(text) {
            match word.as_str() {
                "" => {}
                "**" => selection.everything = true,
                "*" => selection.standard = true,
                // "a.*" is "a".
                word => match word.trim_end_matches(".*").strip_prefix('!') {
                    Some(path) => selection.without.push(path.to_string()),
                    None => selection.named.push(word.trim_end_matches(".*").to_string()),
                },
            }
        }
        // "!x" alone: everything standard but x.
        if selection.named.is_empty() && !selection.everything && !selection.without.is_empty() {
            selection.standard = true;
        }
        selection
    }

    pub fn standard() -> Selection {
        Selection { standard: true, ..Selection::default() }
    }

    pub fn name(&mut self, path: &str) {
        self.named.push(path.to_string());
    }

    pub fn named(&self) -> &[String] {
        &self.named
    }

    fn wants(&self, path: &str, expensive: &[&str]) -> bool {
        if self.without.iter().any(|without| is_within(path, without)) {
            return false;
        }
        let cost = expensive.iter().find(|expensive| is_within(path, expensive));
        let is_named = self.named.iter().any(|named| match cost {
            Some(cost) => is_within(path, named) && is_within(named, cost),
            None => is_within(path, named),
        });
        self.everything || is_named || (self.standard && cost.is_none())
    }

    /// The wanted part of a record.
    pub fn apply(&self, record: &Value, expensive: &[&str]) -> Value {
        self.part(record, "", expensive).unwrap_or_else(|| Value::Object(Map::new()))
    }

    fn part(&self, value: &Value, path: &str, expensive: &[&str]) -> Option<Value> {
        match value {
            Value::Null => None,
            Value::Object(map) => {
                let parts: Map<String, Value> = map
                    .iter()
                    .filter_map(|(key, value)| {
                        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                        Some((key.clone(), self.part(value, &path, expensive)?))
                    })
                    .collect();
                (!parts.is_empty() || (map.is_empty() && self.wants(path, expensive))).then_some(Value::Object(parts))
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                let parts: Vec<Value> = list.iter().filter_map(|element| self.part(element, path, expensive)).collect();
                (!parts.is_empty()).then_some(Value::Array(parts))
            }
            leaf => self.wants(path, expensive).then(|| leaf.clone()),
        }
    }
}

/// Splits at commas and opens `b.{c,d}`.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let comma = rest.find(',').unwrap_or(rest.len());
        match rest.find('{') {
            Some(open) if open < comma => {
                let close = rest.find('}').unwrap_or(rest.len());
                let inner = rest.get(open + 1..close).unwrap_or_default();
                words.extend(inner.split(',').map(|word| format!("{}{}", &rest[..open], word.trim())));
                rest = rest.get(close + 1..).unwrap_or_default().trim_start_matches(',');
            }
            _ => {
                words.push(rest[..comma].trim().to_string());
                rest = rest.get(comma + 1..).unwrap_or_default();
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::Selection;
    use serde_json::json;

    #[test]
    fn fields_are_chosen_as_asked() {
        let record = json!({
            "uuid": "u", "name": "n", "space": { "size": 1, "used": 2, "snapshot": { "used": 3 } },
            "lun_maps": [{ "igroup": { "name": "g" }, "logical_unit_number": 0 }], "comment": null
        });
        let expensive = ["space.snapshot", "lun_maps"];
        let chosen = |fields: &str| Selection::parse(fields).apply(&record, &expensive);
        assert_eq!(chosen("space.size,name"), json!({ "name": "n", "space": { "size": 1 } }));
        assert_eq!(chosen("space"), json!({ "space": { "size": 1, "used": 2 } }));
        assert_eq!(chosen("space.*"), json!({ "space": { "size": 1, "used": 2 } }));
        assert_eq!(chosen("space.{size,used}"), json!({ "space": { "size": 1, "used": 2 } }));
        assert_eq!(chosen("*"), json!({ "uuid": "u", "name": "n", "space": { "size": 1, "used": 2 } }));
        assert_eq!(chosen("*,!space"), json!({ "uuid": "u", "name": "n" }));
        assert_eq!(chosen("space.snapshot.used"), json!({ "space": { "snapshot": { "used": 3 } } }));
        assert_eq!(chosen("lun_maps.igroup.name"), json!({ "lun_maps": [{ "igroup": { "name": "g" } }] }));
        assert_eq!(chosen("**").as_object().map(|map| map.len()), Some(4));
        assert_eq!(chosen(""), json!({}));
    }
}
