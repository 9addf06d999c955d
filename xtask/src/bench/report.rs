//! Figures gathered, as a table and as JSON.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::fio::Figures;

/// The peer that ratios are against.
const REFERENCE: &str = "qemu-nbd raw";

/// One figure with its spread.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub least: f64,
    pub median: f64,
    pub most: f64,
    /// Median of the per-round ratios to the reference; `None` where there is none.
    pub ratio: Option<f64>,
}

impl Row {
    pub fn spread(name: &str, unit: &'static str, mut values: Vec<f64>) -> Row {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        Row {
            name: name.into(),
            unit,
            least: at(0),
            // Of an even number of values, the mean of the two in the middle.
            median: (at(values.len().saturating_sub(1) / 2) + at(values.len() / 2)) / 2.0,
            most: at(values.len().saturating_sub(1)),
            ratio: None,
        }
    }
}

/// Key: generations kept, workload, peer.
type Key = (usize, String, &'static str);

#[derive(Default)]
pub struct Report {
    samples: BTreeMap<Key, Vec<Figures>>,
    rows: Vec<Row>,
}

impl Report {
    pub fn new() -> Report {
        Report::default()
    }

    pub fn add(&mut self, workload: &str, peer: &'static str, generations: usize, figures: Figures) {
        self.samples.entry((generations, workload.to_string(), peer)).or_default().push(figures);
    }

    pub fn extend(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    fn all_rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for ((generations, workload, peer), samples) in &self.samples {
            let reference = self.samples.get(&(*generations, workload.clone(), REFERENCE));
            for (unit, value) in
                [("IOPS", (|figures| figures.iops) as fn(&Figures) -> f64), ("p99 us", |figures| figures.p99_us)]
            {
                let values: Vec<f64> = samples.iter().map(value).collect();
                let mut row =
                    Row::spread(&format!("{workload}, {generations} generations, {peer}"), unit, values.clone());
                if let Some(reference) = reference {
                    let ratios = values.iter().zip(reference).map(|(own, other)| own / value(other)).collect();
                    row.ratio = Some(Row::spread("", "", ratios).median);
                }
                rows.push(row);
            }
        }
        rows.extend(self.rows.iter().cloned());
        rows
    }

    pub fn print(&self) {
        println!("{:<70} {:>8} {:>10} {:>10} {:>10} {:>7}", "what", "unit", "min", "median", "max", "ratio");
        for row in self.all_rows() {
            let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            println!(
                "{:<70} {:>8} {:>10.0} {:>10.0} {:>10.0} {:>7}",
                row.name, row.unit, row.least, row.median, row.most, ratio
            );
        }
    }

    pub fn json(&self) -> Result<String> {
        let rows: Vec<_> = self
            .all_rows()
            .into_iter()
            .map(|row| json!({"name": row.name, "unit": row.unit, "min": row.least, "value": row.median, "max": row.most, "ratio": row.ratio}))
            .collect();
        let machine = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            machine.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown").to_string();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Ok(serde_json::to_string_pretty(&json!({"machine": {"cpu": model, "cores": cores}, "rows": rows}))?)
    }
}
