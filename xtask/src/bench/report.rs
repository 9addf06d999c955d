//! Figures gathered: rows against their targets, what the peers did beside them, and what could not be measured.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::chart::Curve;
use super::machine::Machine;
use super::stats::{least, median, most};
use super::targets::{Of, TARGETS, Target};
use super::undo;

/// Error messages of other programs can be long.
const NOTE_CHARS_MAX: usize = 400;

/// What one row gave, or why it gave nothing.
#[derive(Debug, Default)]
struct Row {
    values: Vec<f64>,
    /// One a round.
    ratios: Vec<f64>,
    /// Shown instead of the median of `values`: a percentile, or the worst of several.
    value: Option<f64>,
    details: Map<String, Value>,
    missing: Option<String>,
}

/// One peer in one workload, for the reader to compare.
#[derive(Debug, Clone)]
pub struct PeerRow {
    pub group: String,
    pub workload: String,
    pub peer: String,
    pub unit: &'static str,
    pub values: Vec<f64>,
    pub ratio: Option<f64>,
    pub p50_us: f64,
    pub p99_us: f64,
    pub cpu_us: f64,
}

#[derive(Debug)]
pub struct Report {
    machine: Machine,
    how: Value,
    rows: BTreeMap<&'static str, Row>,
    peers: Vec<PeerRow>,
    notes: Vec<String>,
    pub curves: Vec<Curve>,
}

impl Report {
    pub fn new(machine: Machine, how: Value) -> Report {
        Report { machine, how, rows: BTreeMap::new(), peers: Vec::new(), notes: Vec::new(), curves: Vec::new() }
    }

    fn row(&mut self, id: &'static str) -> &mut Row {
        let row = self.rows.entry(id).or_default();
        row.missing = None;
        row
    }

    /// A row with a value and a ratio to its reference each round.
    pub fn compared(&mut self, id: &'static str, values: Vec<f64>, ratios: Vec<f64>) {
        let row = self.row(id);
        (row.values, row.ratios) = (values, ratios);
    }

    /// A row whose value is its own target; `values` are what it was taken from.
    pub fn value(&mut self, id: &'static str, value: f64, values: Vec<f64>) {
        let row = self.row(id);
        (row.value, row.values) = (Some(value), values);
    }

    /// Something more about a row that has a value.
    pub fn detail(&mut self, id: &'static str, name: &str, value: Value) {
        if let Some(row) = self.rows.get_mut(id) {
            row.details.insert(name.into(), value);
        }
    }

    /// Rows that have nothing yet stay without, for this reason.
    pub fn missing(&mut self, ids: &[&'static str], reason: &str) {
        for id in ids {
            let row = self.rows.entry(id).or_default();
            if row.values.is_empty() && row.value.is_none() {
                row.missing.get_or_insert_with(|| reason.to_string());
            }
        }
    }

    pub fn peer(&mut self, row: PeerRow) {
        self.peers.push(row);
    }

    /// Anything that the reader of the figures has to know; of longer texts the beginning.
    pub fn note(&mut self, text: impl Into<String>) {
        undo::stop_if_ending();
        let mut text = text.into().replace('\n', " ");
        if let Some((end, _)) = text.char_indices().nth(NOTE_CHARS_MAX) {
            text.replace_range(end.., "...");
        }
        eprintln!("bench: {text}");
        self.notes.push(text);
    }

    pub fn print(&self) {
        println!("{}\n{}\n", self.machine, self.how);
        let head = ["min", "median", "max", "unit", "ratio", "must", "aim"];
        println!(
            "{:<70} {:>9} {:>9} {:>9} {:<8} {:>6} {:>7} {:>7}  must aim",
            "what", head[0], head[1], head[2], head[3], head[4], head[5], head[6]
        );
        for (target, row) in self.shown() {
            self.print_row(target, row);
        }
        self.print_peers();
        if !self.notes.is_empty() {
            println!("\nNotes:");
        }
        for note in &self.notes {
            println!("- {note}");
        }
    }

    fn shown(&self) -> impl Iterator<Item = (&'static Target, &Row)> {
        TARGETS.iter().filter_map(|target| self.rows.get(target.id).map(|row| (target, row)))
    }

    fn print_row(&self, target: &Target, row: &Row) {
        let limits = format!("{:>7} {:>7}", or_dash(target.must), or_dash(target.aim));
        if let Some(reason) = &row.missing {
            println!("{:<70} not measured: {reason}; {limits}", target.name);
            return;
        }
        let ratio = (!row.ratios.is_empty()).then(|| median(&row.ratios));
        let verdict = |limit: Option<f64>| match (limit, judged(target, row)) {
            (None, _) | (_, None) => "",
            (limit, Some(value)) if target.is_met(limit, value) => "yes",
            _ => "NO",
        };
        println!(
            "{:<70} {:>9} {:>9} {:>9} {:<8} {:>6} {limits}  {:<4} {}",
            target.name,
            number(least(&row.values)),
            number(row.value.unwrap_or_else(|| median(&row.values))),
            number(most(&row.values)),
            target.unit,
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            verdict(target.must),
            verdict(target.aim),
        );
    }

    fn print_peers(&self) {
        if self.peers.is_empty() {
            return;
        }
        println!(
            "\n{:<18} {:<34} {:<30} {:>9} {:>9} {:>9} {:<8} {:>6} {:>9} {:>9} {:>7}",
            "in", "workload", "peer", "min", "median", "max", "unit", "ratio", "p50 us", "p99 us", "CPU us"
        );
        for row in &self.peers {
            println!(
                "{:<18} {:<34} {:<30} {:>9} {:>9} {:>9} {:<8} {:>6} {:>9} {:>9} {:>7}",
                row.group,
                row.workload,
                row.peer,
                number(least(&row.values)),
                number(median(&row.values)),
                number(most(&row.values)),
                row.unit,
                row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                number(row.p50_us),
                number(row.p99_us),
                number(row.cpu_us),
            );
        }
    }

    pub fn json(&self) -> Result<String> {
        let rows: Vec<Value> = self.shown().map(|(target, row)| row_json(target, row)).collect();
        let peers: Vec<Value> = self.peers.iter().map(peer_json).collect();
        let curves: Vec<Value> = self.curves.iter().map(Curve::json).collect();
        let whole = json!({
            "machine": self.machine.to_string(), "how": self.how, "rows": rows, "peers": peers, "curves": curves,
            "notes": self.notes,
        });
        Ok(serde_json::to_string_pretty(&whole)? + "\n")
    }

    /// What was measured of each row, for the chart.
    pub fn bars(&self) -> Vec<(&'static Target, f64)> {
        self.shown().filter_map(|(target, row)| judged(target, row).map(|figure| (target, figure))).collect()
    }

    pub fn machine(&self) -> String {
        self.machine.to_string()
    }
}

/// The figure that the target speaks of; `None` where it was not measured.
fn judged(target: &Target, row: &Row) -> Option<f64> {
    let figure = match target.of {
        Of::Ratio(_) => median(&row.ratios),
        Of::Value => row.value.unwrap_or_else(|| median(&row.values)),
    };
    figure.is_finite().then_some(figure)
}

fn row_json(target: &Target, row: &Row) -> Value {
    let figure = judged(target, row);
    let met = |limit| figure.is_some_and(|figure| target.is_met(limit, figure));
    let value = row.value.unwrap_or_else(|| median(&row.values));
    let mut json = json!({
        "id": target.id, "name": target.name, "value": finite(value), "unit": target.unit,
        "ratio": finite(median(&row.ratios)), "target": target.must, "met": met(target.must),
        "aim": target.aim, "aim_met": met(target.aim),
        "min": finite(least(&row.values)), "max": finite(most(&row.values)),
        "ratio_min": finite(least(&row.ratios)), "ratio_max": finite(most(&row.ratios)),
    });
    if let Of::Ratio(reference) = target.of {
        json["ratio_to"] = reference.into();
    }
    if let Some(reason) = &row.missing {
        json["reason"] = format!("not measured: {reason}").into();
    }
    if !row.details.is_empty() {
        json["details"] = Value::Object(row.details.clone());
    }
    json
}

fn peer_json(row: &PeerRow) -> Value {
    json!({
        "in": row.group, "workload": row.workload, "peer": row.peer, "value": finite(median(&row.values)),
        "unit": row.unit, "min": finite(least(&row.values)), "max": finite(most(&row.values)), "ratio": row.ratio,
        "p50_us": finite(row.p50_us), "p99_us": finite(row.p99_us), "cpu_us": finite(row.cpu_us),
    })
}

/// JSON has no NaN: null.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some((value * 1000.0).round() / 1000.0)
}

fn or_dash(limit: Option<f64>) -> String {
    limit.map_or_else(|| "-".to_string(), |limit| limit.to_string())
}

/// Three or more digits.
fn number(value: f64) -> String {
    match value {
        value if !value.is_finite() => String::new(),
        value if value.abs() < 10.0 => format!("{value:.2}"),
        value if value.abs() < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Machine, Report};
    use serde_json::{Value, json};

    #[test]
    fn a_row_is_judged_by_its_must() {
        let mut report = Report::new(Machine::default(), json!({}));
        report.compared("randwrite", vec![100.0, 120.0, 110.0], vec![1.4, 1.6, 1.7]);
        report.missing(&["randwrite", "flush"], "the peer fell over");
        report.value("pause-1", 11.0, vec![1.0, 11.0]);
        let json: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        let rows = json["rows"].as_array().unwrap();
        let row = |id: &str| rows.iter().find(|row| row["id"] == id).unwrap();
        let randwrite = row("randwrite");
        assert_eq!((&randwrite["value"], &randwrite["ratio"]), (&json!(110.0), &json!(1.6)));
        assert_eq!(
            (&randwrite["met"], &randwrite["aim_met"], &randwrite["target"]),
            (&json!(true), &json!(false), &json!(1.5))
        );
        assert_eq!((&row("flush")["met"], &row("flush")["value"]), (&json!(false), &Value::Null));
        assert_eq!(row("flush")["reason"], "not measured: the peer fell over");
        assert_eq!((&row("pause-1")["met"], &row("pause-1")["value"]), (&json!(false), &json!(11.0)));
    }
}
