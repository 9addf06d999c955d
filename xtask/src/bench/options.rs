//! What the command line may ask for.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::rows::SCENARIOS;
use crate::sh;

const USAGE: &str = "known are --rounds N, --seconds N, --path DIR, --json FILE, --svg FILE, --quick, --rows NAME[,NAME] \
                     (--rows list shows the names)";

#[derive(Debug, Clone)]
pub struct Options {
    pub rounds: usize,
    /// How long each single measurement runs.
    pub seconds: u32,
    /// Where the files are: the medium that is measured.
    pub path: PathBuf,
    pub json: Option<PathBuf>,
    pub svg: Option<PathBuf>,
    /// Everything smaller and shorter: at most ten minutes in all.
    pub quick: bool,
    /// Only these rows; all where empty.
    pub rows: Vec<String>,
    /// Show the names of rows, measure nothing.
    pub list: bool,
}

impl Options {
    pub fn parse(args: &[&str]) -> Result<Options> {
        let mut options = Options {
            rounds: 0,
            seconds: 0,
            path: sh::target_dir().join("bench"),
            json: None,
            svg: None,
            quick: false,
            rows: Vec::new(),
            list: false,
        };
        let (mut rounds, mut seconds) = (None, None);
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("bench: {arg} needs a value"));
            match *arg {
                "--rounds" => rounds = Some(value()?.parse().context("--rounds: a number expected")?),
                "--seconds" => seconds = Some(value()?.parse().context("--seconds: a number expected")?),
                "--path" => options.path = PathBuf::from(value()?),
                "--json" => options.json = Some(PathBuf::from(value()?)),
                "--svg" => options.svg = Some(PathBuf::from(value()?)),
                "--quick" => options.quick = true,
                "--rows" if options.rows.is_empty() => options.rows = rows(value()?, &mut options.list)?,
                other => bail!("bench: unknown option {other}; {USAGE}"),
            }
        }
        options.rounds = rounds.unwrap_or(if options.quick { 3 } else { 5 });
        options.seconds = seconds.unwrap_or(if options.quick { 2 } else { 8 });
        if options.rounds == 0 || options.seconds == 0 {
            bail!("bench: --rounds and --seconds begin at 1");
        }
        Ok(options)
    }

    /// Whether a row is to be measured: named itself, by its scenario, or nothing named at all.
    pub fn wants(&self, id: &str, scenario: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|name| name == id || name == scenario)
    }
}

fn rows(names: &str, list: &mut bool) -> Result<Vec<String>> {
    if names == "list" {
        *list = true;
        return Ok(Vec::new());
    }
    let names: Vec<String> = names.split(',').map(str::to_string).collect();
    for name in &names {
        if !SCENARIOS.iter().any(|scenario| scenario.name == name || scenario.rows.contains(&name.as_str())) {
            bail!("bench: no row is called {name}; --rows list shows the names");
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn the_command_line_is_read() {
        let options = Options::parse(&["--quick", "--rows", "randwrite,aged", "--seconds", "9"]).unwrap();
        assert_eq!((options.rounds, options.seconds, options.quick), (3, 9, true));
        assert!(options.wants("randwrite", "plain") && !options.wants("randread", "plain"));
        assert!(options.wants("randwrite-aged50", "aged"));
        assert!(Options::parse(&["--rows", "nonsense"]).unwrap_err().to_string().contains("nonsense"));
        assert!(Options::parse(&["--rounds", "0"]).is_err() && Options::parse(&["--hurry"]).is_err());
        assert!(Options::parse(&["--rows", "list"]).unwrap().list);
    }
}
