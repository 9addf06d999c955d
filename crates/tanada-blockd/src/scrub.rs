//! `tanada store scrub`: has a served store verify itself, and tells how that stands.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::bail;
use tanada_blockd_api::{Answer, Command, DamagedPart, ScrubDamage, ScrubReport, ScrubState};
use tanada_units::MIB;

use crate::ask::Client;
use crate::options::{self, ScrubOptions, ScrubVerb};

/// Who waits for the end looks so often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn run(args: Vec<OsString>) -> anyhow::Result<()> {
    let options = options::scrub(args)?;
    let mut client = Client::connect(&options.runtime_dir)?;
    match options.verb {
        ScrubVerb::Start { rate, anew } => {
            client.ask(Command::ScrubStart { rate, anew })?;
        }
        ScrubVerb::Stop => {
            client.ask(Command::ScrubStop)?;
        }
        ScrubVerb::Status => {}
    }
    let report = if options.wait { wait(&mut client, &options)? } else { look(&mut client)? };
    print!("{}", words(&report));
    if report.damaged > 0 {
        bail!("{} blocks are damaged", report.damaged);
    }
    Ok(())
}

fn look(client: &mut Client) -> anyhow::Result<ScrubReport> {
    match client.ask(Command::ScrubStatus)? {
        Answer::Scrub(report) => Ok(*report),
        other => bail!("blockd answered {other:?}"),
    }
}

/// Looks until nothing runs any more. A blockd that ends is waited for: the next one goes on.
fn wait(client: &mut Client, options: &ScrubOptions) -> anyhow::Result<ScrubReport> {
    let show = std::io::stderr().is_terminal();
    loop {
        match look(client) {
            Ok(report) if report.state != ScrubState::Running => return Ok(report),
            Ok(report) if show => {
                let _ = write!(std::io::stderr(), "\r{}\x1b[K", progress(&report));
            }
            Ok(_) => {}
            // The keeper's socket takes connections while blockd is away.
            Err(_) => *client = Client::connect(&options.runtime_dir)?,
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn progress(report: &ScrubReport) -> String {
    let percent = (report.bytes_done * 100).checked_div(report.bytes_total).unwrap_or(100);
    let left = match report.seconds_left {
        Some(seconds) => format!(", {}:{:02}:{:02} left", seconds / 3600, seconds / 60 % 60, seconds % 60),
        None => String::new(),
    };
    format!(
        "{} of {} MiB verified ({percent} %), {} MiB/s{left}, {} damaged",
        report.bytes_done / MIB,
        report.bytes_total / MIB,
        report.bytes_per_second / MIB,
        report.damaged
    )
}

/// The report for people.
fn words(report: &ScrubReport) -> String {
    let mut text = match report.state {
        ScrubState::Never => "nothing was ever scrubbed here\n".to_owned(),
        ScrubState::Running => format!("running: {}\n", progress(report)),
        ScrubState::Stopped => format!("stopped: {}\n", progress(report)),
        ScrubState::Finished => format!(
            "finished: {} MiB verified, {} blocks damaged, ended at {} (seconds since 1970)\n",
            report.bytes_done / MIB,
            report.damaged,
            report.ended_at.unwrap_or_default()
        ),
    };
    for damage in &report.damage {
        text += &line(damage);
    }
    let untold = report.damaged.saturating_sub(report.damage.len() as u64);
    if untold > 0 {
        text += &format!("and {untold} more\n");
    }
    text
}

fn line(damage: &ScrubDamage) -> String {
    let what = match damage.part {
        DamagedPart::Data => "data".to_owned(),
        DamagedPart::Map { level } => format!("map node of level {level}"),
        DamagedPart::Bitmap { region } => format!("bitmap page of region {region}"),
        DamagedPart::Catalog => "catalog".to_owned(),
        DamagedPart::Journal => "journal".to_owned(),
        DamagedPart::Superblock => "superblock".to_owned(),
    };
    let volume = damage.volume.map(|id| format!(" volume {id}")).unwrap_or_default();
    let generation = damage.generation.map(|id| format!(" generation {id}")).unwrap_or_default();
    let place = match damage.part {
        DamagedPart::Data | DamagedPart::Map { .. } => {
            format!(" offset {} length {}", damage.offset, damage.length)
        }
        _ => String::new(),
    };
    format!("damaged {what}:{volume}{generation}{place} block {}: {}\n", damage.block, damage.message)
}

#[cfg(test)]
mod tests {
    use super::words;
    use tanada_blockd_api::{DamagedPart, ScrubDamage, ScrubReport, ScrubState};
    use uuid::Uuid;

    #[test]
    fn a_report_names_what_is_damaged() {
        let damage = ScrubDamage {
            part: DamagedPart::Data,
            block: 77,
            volume: Some(Uuid::from_u128(1)),
            generation: Some(Uuid::from_u128(2)),
            offset: 8192,
            length: 4096,
            message: "checksum is 0x1, should be 0x2".to_owned(),
        };
        let report =
            ScrubReport { state: ScrubState::Finished, damaged: 3, damage: vec![damage], ..Default::default() };
        let text = words(&report);
        for part in ["3 blocks damaged", "block 77", "offset 8192", "-000000000001", "-000000000002", "and 2 more"] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
    }
}
