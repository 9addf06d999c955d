//! `/cluster/counter/tables`: as many performance counters as a scheduler needs to find that nobody is busy.

use serde_json::{Value, json};

use crate::api::error::{ApiError, ApiResult};
use crate::api::resource::{Resource, Spec};
use crate::model::{Array, now_ms};

/// Tables with their counters and the counter that each is divided by.
const TABLES: &[(&str, &[(&str, &str)])] = &[
    ("system", &[("average_processor_busy_percent", "cpu_elapsed_time")]),
    ("system:constituent", &[("average_processor_busy_percent", "cpu_elapsed_time")]),
    ("processor", &[("domain_busy_percent", "elapsed_time"), ("elapsed_time", "")]),
    ("wafl", &[("cp_phase_times", "total_cp_msecs"), ("total_cp_msecs", "")]),
];
/// What a processor's time is divided into.
const DOMAINS: &[&str] = &["idle", "kahuna", "storage", "raid", "target", "exempt", "protocol"];
const CP_PHASES: &[&str] = &["cp_setup", "cp_pre_p0", "cp_p1_clean", "cp_p2_flush", "cp_p3a_volinfo"];

fn unknown(table: &str) -> ApiError {
    ApiError::missing(8586225, format!("The counter table \"{table}\" does not exist."))
}

pub struct Tables;

impl Resource for Tables {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "cluster/counter/tables",
            keys: &["name"],
            always: &[],
            expensive: &[],
            parameters: &[],
            fields: &["name", "description", "counter_schemas"],
            is_cluster_only: true,
        }
    }
    fn records(&self, _: &Array, _: &[String]) -> ApiResult<Vec<Value>> {
        let schema = |(name, base): &(&str, &str)| {
            let mut schema =
                json!({ "name": name, "type": if base.is_empty() { "delta" } else { "percent" }, "unit": "none" });
            if !base.is_empty() {
                schema["denominator"] = json!({ "name": base });
            }
            schema
        };
        let table = |(name, counters): &(&str, &[(&str, &str)])| json!({ "name": name, "counter_schemas": counters.iter().map(schema).collect::<Vec<_>>() });
        Ok(TABLES.iter().map(table).collect())
    }
    fn narrowed_field(&self) -> Option<&'static str> {
        Some("counter_schemas")
    }
    fn not_found(&self) -> ApiError {
        unknown("of this name")
    }
}

pub struct Rows;

impl Resource for Rows {
    fn spec(&self) -> &'static Spec {
        &Spec {
            path: "cluster/counter/tables/{}/rows",
            keys: &["id"],
            always: &["counter_table.name"],
            expensive: &[],
            parameters: &[],
            fields: &["id", "counter_table", "counters", "properties", "aggregation"],
            is_cluster_only: true,
        }
    }
    fn records(&self, array: &Array, above: &[String]) -> ApiResult<Vec<Value>> {
        let name = above.first().map(String::as_str).unwrap_or_default();
        let (name, counters) = TABLES.iter().find(|(own, _)| *own == name).ok_or_else(|| unknown(name))?;
        // Time passes and nobody works.
        let time = now_ms();
        let counter = |(name, base): &(&str, &str)| match *name {
            "domain_busy_percent" => {
                let values: Vec<u64> = DOMAINS.iter().map(|domain| if *domain == "idle" { time } else { 0 }).collect();
                json!({ "name": name, "labels": DOMAINS, "values": values })
            }
            "cp_phase_times" => json!({ "name": name, "labels": CP_PHASES, "values": vec![1; CP_PHASES.len()] }),
            name if base.is_empty() => json!({ "name": name, "value": time }),
            name => json!({ "name": name, "value": 1 }),
        };
        let base = |(_, base): &(&str, &str)| {
            (!base.is_empty() && counters.iter().all(|(own, _)| own != base))
                .then(|| json!({ "name": base, "value": time }))
        };
        let values: Vec<Value> = counters.iter().map(counter).chain(counters.iter().filter_map(base)).collect();
        let instance = if *name == "processor" { "processor0" } else { name };
        Ok(array
            .state
            .nodes
            .iter()
            .map(|node| {
                json!({ "id": format!("{}:{instance}", node.name), "counter_table": { "name": name }, "counters": values })
            })
            .collect())
    }
    fn narrowed_field(&self) -> Option<&'static str> {
        Some("counters")
    }
}
