//! SVG charts, written by hand.

use serde_json::{Value, json};

/// One line of a chart: a figure against kept generations.
#[derive(Debug, Clone)]
pub struct Curve {
    pub figure: String,
    pub peer: String,
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    pub fn json(&self) -> Value {
        json!({"figure": self.figure, "peer": self.peer, "points": self.points})
    }
}
