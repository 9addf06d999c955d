//! `tanada-sim [--seed N] [--runs N] [--minutes N | --seconds N] [--kind KIND] [--trace]`: simulates until a seed fails.

use std::process::ExitCode;
use std::time::Duration;

use tanada_sim::{Kind, Options, run};

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("tanada-sim: {message}");
            return ExitCode::from(2);
        }
    };
    let report = run(&options);
    println!("{} runs from seed {}, digest {:016x}", report.runs, options.seed, report.digest);
    println!("{}", report.counters);
    match report.broken {
        None => ExitCode::SUCCESS,
        Some(broken) => {
            println!("seed {} is broken: {}", broken.seed, broken.message);
            let kind = options.kind.map_or(String::new(), |kind| format!(" --kind {}", kind.name()));
            println!("replay: cargo run -p tanada-sim -- --seed {}{kind} --runs 1 --trace", broken.seed);
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { runs: u64::MAX, ..Options::one(1) };
    while let Some(argument) = arguments.next() {
        if argument == "--trace" {
            options.trace = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        if argument == "--kind" {
            options.kind = Some(Kind::named(&value)?);
            continue;
        }
        let number: u64 = value.parse().map_err(|_| format!("{argument} {value}: a whole number is accepted"))?;
        match argument.as_str() {
            "--seed" => options.seed = number,
            "--runs" => options.runs = number,
            "--seconds" => options.time = Some(Duration::from_secs(number)),
            "--minutes" => options.time = Some(Duration::from_secs(60 * number)),
            _ => {
                return Err(format!(
                    "{argument}: accepted are --seed N, --runs N, --minutes N, --seconds N, --kind KIND, --trace"
                ));
            }
        }
    }
    if options.time.is_none() && options.runs == u64::MAX {
        options.runs = 100;
    }
    Ok(options)
}
