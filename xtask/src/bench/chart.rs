//! One SVG of a run, written by hand: curves against kept generations, and every row against its must and aim.
//!
//! Readable on light and dark ground: nothing is painted behind, text and axes change with the reader's colour scheme.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::report::Report;
use super::targets::{Better, Target};

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

const WIDTH: f64 = 900.0;
const PANEL_WIDTH: f64 = 360.0;
const PANEL_HEIGHT: f64 = 180.0;
/// From one panel's left edge to the next one's, and from top to top.
const PANEL_STEP: (f64, f64) = (450.0, 250.0);
const PANEL_LEFT: f64 = 60.0;
const BAR_STEP: f64 = 20.0;
const BARS_LEFT: f64 = 470.0;
const BARS_WIDTH: f64 = 300.0;
/// Bars end here, in multiples of what the row must reach.
const BARS_MOST: f64 = 3.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#333}.t{font-weight:bold}.s{font-size:10px}.e{text-anchor:end}\
.m{text-anchor:middle}.g{stroke:#8884;fill:none}.l{fill:none;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#ddd}}";
/// Distinct for most eyes, on white and on black.
const COLOURS: [&str; 5] = ["#0a84c6", "#d9730d", "#2f9e62", "#a55fc4", "#b8a000"];
const GOOD: &str = "#2f9e62";
const FAIR: &str = "#0a84c6";
const BAD: &str = "#d9480f";

pub fn write(path: &Path, report: &Report) -> Result<()> {
    let svg = draw(&report.curves, &report.bars(), &report.machine());
    std::fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
}

fn draw(curves: &[Curve], bars: &[(&Target, f64)], machine: &str) -> String {
    let mut body = String::new();
    text(&mut body, 10.0, 16.0, "s", machine);
    let mut top = 30.0;
    let mut figures: Vec<&str> = Vec::new();
    for curve in curves {
        if !figures.contains(&curve.figure.as_str()) {
            figures.push(&curve.figure);
        }
    }
    figures.sort_unstable();
    if !figures.is_empty() {
        legend(&mut body, top + 10.0, &peers(curves));
        top += 34.0;
    }
    for (number, figure) in figures.iter().enumerate() {
        let left = PANEL_LEFT + PANEL_STEP.0 * (number % 2) as f64;
        let of_figure: Vec<&Curve> = curves.iter().filter(|curve| curve.figure == *figure).collect();
        panel(&mut body, (left, top + PANEL_STEP.1 * (number / 2) as f64), figure, &of_figure, &peers(curves));
    }
    top += PANEL_STEP.1 * figures.len().div_ceil(2) as f64;
    let bottom = draw_bars(&mut body, top, bars);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {bottom:.0}\"><style>{STYLE}</style>\n{body}</svg>\n"
    )
}

/// Names in the order of their colours.
fn peers(curves: &[Curve]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for curve in curves {
        if !names.contains(&curve.peer) {
            names.push(curve.peer.clone());
        }
    }
    names
}

fn colour(names: &[String], name: &str) -> &'static str {
    let at = names.iter().position(|known| known == name).unwrap_or(0);
    COLOURS[at % COLOURS.len()]
}

fn legend(body: &mut String, top: f64, names: &[String]) {
    let mut left = PANEL_LEFT;
    for name in names {
        let _ = writeln!(
            body,
            "<line x1=\"{left:.0}\" x2=\"{:.0}\" y1=\"{top:.0}\" y2=\"{top:.0}\" stroke=\"{}\" stroke-width=\"3\"/>",
            left + 18.0,
            colour(names, name)
        );
        text(body, left + 24.0, top + 4.0, "", name);
        left += 44.0 + 7.0 * name.len() as f64;
    }
}

/// Generations stand at equal distances, figures on a logarithmic scale.
fn panel(body: &mut String, (left, top): (f64, f64), title: &str, curves: &[&Curve], names: &[String]) {
    text(body, left, top + 8.0, "t", title);
    let top = top + 18.0;
    let mut kept: Vec<f64> = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.0)).collect();
    kept.sort_by(f64::total_cmp);
    kept.dedup();
    let values = || curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1.max(1.0)));
    let least = values().fold(f64::INFINITY, f64::min).log10().floor();
    let most = values().fold(1.0, f64::max).log10().ceil().max(least + 1.0);
    let x = |point: f64| {
        let at = kept.iter().position(|known| *known == point).unwrap_or(0) as f64;
        left + PANEL_WIDTH * at / (kept.len().max(2) - 1) as f64
    };
    let y = |value: f64| top + PANEL_HEIGHT * (most - value.max(1.0).log10()) / (most - least);
    let mut decade = least;
    while decade <= most {
        let at = y(10f64.powf(decade));
        let _ = writeln!(body, "<path class=\"g\" d=\"M{left:.0} {at:.1}h{PANEL_WIDTH}\"/>");
        text(body, left - 6.0, at + 4.0, "s e", &short(10f64.powf(decade)));
        decade += 1.0;
    }
    for point in &kept {
        text(body, x(*point), top + PANEL_HEIGHT + 16.0, "s m", &format!("{point}"));
    }
    text(body, left + PANEL_WIDTH / 2.0, top + PANEL_HEIGHT + 30.0, "s m", "generations kept");
    for curve in curves {
        let ends: Vec<String> =
            curve.points.iter().map(|(kept, value)| format!("{:.1},{:.1}", x(*kept), y(*value))).collect();
        let colour = colour(names, &curve.peer);
        let _ = writeln!(body, "<polyline class=\"l\" stroke=\"{colour}\" points=\"{}\"/>", ends.join(" "));
        for (kept, value) in &curve.points {
            let _ = writeln!(
                body,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}: {value:.0} at {kept}</title></circle>",
                x(*kept),
                y(*value),
                escaped(&curve.peer)
            );
        }
    }
}

/// Each row as a multiple of what it must reach, so that rows where less is better stand beside the others.
fn draw_bars(body: &mut String, top: f64, bars: &[(&Target, f64)]) -> f64 {
    let bars: Vec<_> = bars.iter().filter_map(|(target, figure)| Some((*target, *figure, target.must?))).collect();
    if bars.is_empty() {
        return top;
    }
    let title = "Reached, as a multiple of the must (a line at 1); the short mark is the aim";
    text(body, 10.0, top + 16.0, "t", title);
    let first = top + 30.0;
    let bottom = first + BAR_STEP * bars.len() as f64;
    let x = |multiple: f64| BARS_LEFT + BARS_WIDTH * multiple.clamp(0.0, BARS_MOST) / BARS_MOST;
    for (number, (target, figure, must)) in bars.iter().enumerate() {
        let at = first + BAR_STEP * number as f64;
        let reached = multiple(target, *figure, *must);
        let colour = match (target.is_met(target.must, *figure), target.is_met(target.aim, *figure)) {
            (false, _) => BAD,
            (true, false) => FAIR,
            (true, true) => GOOD,
        };
        text(body, BARS_LEFT - 8.0, at + 13.0, "s e", target.name);
        let _ = writeln!(
            body,
            "<rect x=\"{BARS_LEFT}\" y=\"{:.0}\" width=\"{:.1}\" height=\"12\" fill=\"{colour}\"/>",
            at + 3.0,
            x(reached) - BARS_LEFT
        );
        if let Some(aim) = target.aim {
            let mark = x(multiple(target, aim, *must));
            let _ = writeln!(body, "<path d=\"M{mark:.1} {:.0}v16\" stroke=\"#888\" stroke-width=\"2\"/>", at + 1.0);
        }
        let limits =
            format!("{figure:.2} (must {must}{})", target.aim.map_or(String::new(), |aim| format!(", aim {aim}")));
        text(body, BARS_LEFT + BARS_WIDTH + 8.0, at + 13.0, "s", &limits);
    }
    let _ = writeln!(body, "<path d=\"M{:.1} {first:.0}V{bottom:.0}\" stroke=\"#888\"/>", x(1.0));
    bottom + 14.0
}

fn multiple(target: &Target, figure: f64, must: f64) -> f64 {
    match target.better {
        Better::More => figure / must,
        Better::Less => must / figure,
    }
}

fn text(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let _ = writeln!(body, "<text x=\"{x:.0}\" y=\"{y:.0}\" class=\"{class}\">{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Curve, draw};
    use crate::bench::targets::by_id;

    #[test]
    fn rows_and_curves_are_drawn() {
        let curve = |peer: &str, points: &[(f64, f64)]| Curve {
            figure: "writes".into(),
            peer: peer.into(),
            points: points.to_vec(),
        };
        let curves = [curve("a<b", &[(0.0, 1000.0), (30.0, 900.0)]), curve("c", &[(0.0, 2000.0)])];
        let svg = draw(&curves, &[(by_id("randwrite").unwrap(), 1.69)], "a machine");
        assert!(svg.contains("a&lt;b") && svg.contains("1.69 (must 1.5, aim 2.3)") && svg.contains("a machine"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        // Where nothing was measured there is nothing to draw, and no panic.
        assert!(draw(&[], &[], "m").contains("</svg>"));
    }
}
