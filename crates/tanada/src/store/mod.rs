//! `tanada store check|dump|stat|id FILE`: looks at a store from outside. Reads only; trusts nothing that it reads.
//!
//! Exit codes: 0 clean, 1 damaged, 2 cannot be read (no such file, no store, in use, wrong arguments).

mod dump;
mod file;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use tanada_format::Superblock;
use tanada_format::check::{CheckError, CheckOptions, CheckReport, check, read_superblocks};

use file::StoreFile;

const USAGE: &str = "\
usage: tanada store check [--data] FILE     verifies everything; with --data every block's checksum, too
       tanada store dump [--records] FILE   layout, superblocks, versions, journal; with --records each record
       tanada store stat FILE               what uses the space
       tanada store id FILE                 one line of JSON: the store's uuid and its size in bytes";

const DAMAGED: u8 = 1;
const UNREADABLE: u8 = 2;

struct Arguments {
    path: PathBuf,
    /// `--data` or `--records`.
    thorough: bool,
}

/// Runs `verb` (check, dump, stat or id) with the arguments behind it.
pub fn main(verb: &str, args: Vec<OsString>) -> ExitCode {
    let outcome = parse(verb, args).and_then(|arguments| {
        let source = StoreFile::open(&arguments.path, verb == "check")?;
        let text = |error: &dyn std::fmt::Display| format!("{}: {error}", arguments.path.display());
        match verb {
            "check" => run_check(&source, arguments.thorough).map_err(|error| text(&error)),
            "id" => print_id(&source).map_err(|error| text(&error)),
            "dump" => dump::dump(&source, arguments.thorough).map_err(|error| text(&error)),
            _ => run_stat(&source).map_err(|error| text(&error)),
        }
    });
    outcome.unwrap_or_else(|message| {
        eprintln!("tanada store {verb}: {message}");
        ExitCode::from(UNREADABLE)
    })
}

fn parse(verb: &str, args: Vec<OsString>) -> Result<Arguments, String> {
    let option = match verb {
        "check" => "--data",
        "dump" => "--records",
        "stat" | "id" => "",
        other => return Err(format!("'{other}' is none of check, dump, stat, id\n{USAGE}")),
    };
    let (options, paths): (Vec<OsString>, Vec<OsString>) =
        args.into_iter().partition(|arg| arg.to_string_lossy().starts_with("--"));
    if let Some(unknown) = options.iter().find(|given| option.is_empty() || *given != option) {
        return Err(format!("option {} is not known\n{USAGE}", unknown.to_string_lossy()));
    }
    match <[OsString; 1]>::try_from(paths) {
        Ok([path]) => Ok(Arguments { path: path.into(), thorough: !options.is_empty() }),
        Err(paths) => Err(format!("{} files given, one is needed\n{USAGE}", paths.len())),
    }
}

fn run_check(source: &StoreFile, data: bool) -> Result<ExitCode, tanada_format::check::CheckError> {
    let report = check(source, CheckOptions { data })?;
    print_summary(&report);
    for note in &report.notes {
        println!("note: {note}");
    }
    for finding in &report.findings {
        println!("damage: {finding}");
    }
    if report.findings_left_out > 0 {
        println!("damage: and {} more", report.findings_left_out);
    }
    if report.is_clean() {
        println!("clean{}", if data { "" } else { " (data blocks not read; --data reads them)" });
        return Ok(ExitCode::SUCCESS);
    }
    println!("damaged: {} findings", report.findings.len() as u64 + report.findings_left_out);
    Ok(ExitCode::from(DAMAGED))
}

/// Which store this is; looks at the superblocks alone, so a store in use is told as well.
fn print_id(source: &StoreFile) -> Result<ExitCode, CheckError> {
    let copies = read_superblocks(source).map_err(CheckError::Unreadable)?;
    let Some(newest) = Superblock::newest(&copies) else {
        let first = copies.into_iter().flatten().find_map(Result::err);
        return Err(first.map_or(CheckError::Unreadable("no superblock".to_owned()), CheckError::NoStore));
    };
    println!("{{\"store\":\"{}\",\"physical\":{}}}", newest.store, newest.geometry.store_bytes());
    Ok(ExitCode::SUCCESS)
}

fn print_summary(report: &CheckReport) {
    let superblock = &report.superblock;
    println!(
        "store {}, {} bytes, checkpoint {}",
        superblock.store,
        superblock.geometry.store_bytes(),
        superblock.checkpoint
    );
    println!(
        "journal: a recovery replays {} records from {} blocks, {} to before {}; {} data blocks verified; it ends because {}",
        report.journal.records(),
        report.journal.blocks.len(),
        superblock.journal_seq,
        report.journal.end_seq,
        report.journal.verified_blocks,
        report.journal.end_reason
    );
    println!(
        "{} versions, {} blocks reachable, {} marked used, {} of them the catalog's",
        report.versions.len(),
        report.reachable_blocks,
        report.used_blocks,
        report.catalog_blocks
    );
}

fn run_stat(source: &StoreFile) -> Result<ExitCode, tanada_format::check::CheckError> {
    let report = check(source, CheckOptions::default())?;
    let geometry = &report.superblock.geometry;
    let fixed = geometry.store_blocks() - geometry.allocatable_blocks();
    let lines = [
        ("managed", geometry.store_blocks()),
        ("superblocks, journal, bitmaps", fixed),
        ("used by data and maps", report.used_blocks - report.catalog_blocks.min(report.used_blocks)),
        ("used by the catalog", report.catalog_blocks),
        ("free at the checkpoint", geometry.allocatable_blocks().saturating_sub(report.used_blocks)),
    ];
    for (name, blocks) in lines {
        println!("{name:<32} {:>18} bytes", blocks * 4096);
    }
    println!(
        "\n{:<38} {:<10} {:<6} {:>16} {:>16} {:>16}",
        "uuid", "kind", "state", "size", "mapped", "not its parent's"
    );
    for usage in &report.versions {
        let version = &usage.version;
        println!(
            "{:<38} {:<10} {:<6} {:>16} {:>16} {:>16}",
            version.uuid.to_string(),
            format!("{:?}", version.kind).to_lowercase(),
            format!("{:?}", version.state).to_lowercase(),
            version.size,
            usage.mapped_blocks * 4096,
            usage.own_blocks * 4096
        );
    }
    println!(
        "\nas of checkpoint {}; {} journal records came after it",
        report.superblock.checkpoint,
        report.journal.records()
    );
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}
