//! What a Windows guest tells about VSS beyond its agent's own commands: its writers, and the kind of backup that the agent
//! asks for.
//!
//! The agent never looks at the writers one by one: a writer that failed at the freeze fails neither freeze nor thaw. Where
//! `guest-exec` is allowed, `vssadmin list writers` tells. It prints in the language of the system and in the code page of
//! its console, so nothing is read by its words: a writer is a line at the margin, two lines with a GUID, a line with a
//! state's number in brackets, a line with its last error. The number is Windows' `VSS_WRITER_STATE`: 1 to 5 are stages of
//! a backup, 6 and above are failures.

use std::time::Duration;

use tanada_qemu::QemuError;
use tanada_qemu::agent::{ExecRequest, GuestAgent};
use tanada_qemu::text::printable;

use crate::verdict::Verdict;
use crate::{Cause, Downgrade, Level, Participant};

/// The first state that is a failure (`VSS_WS_FAILED_AT_IDENTIFY`).
const STATE_FAILED_MIN: u32 = 6;
/// A guest cannot fill a certificate.
const WRITERS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 200;
/// Writers named in a message; the certificate has them all.
const NAMED_MAX: usize = 8;
/// What is looked at of an output, in bytes: 200 writers take 60 KiB. And of a line.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
const LINE_BYTES_MAX: usize = 1000;
/// Where the agent reads which kind of backup to ask for.
const KEY: &str = r"HKLM\SYSTEM\CurrentControlSet\Services\QEMU Guest Agent VSS Provider";
const VALUE: &str = "VssOption";

/// A VSS writer as the guest lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    pub name: String,
    /// Its GUID, which is the same in every language.
    pub id: String,
    /// `VSS_WRITER_STATE`; none where the guest did not tell.
    pub state: Option<u32>,
    /// In the guest's language.
    pub error: String,
}

impl Writer {
    pub fn has_failed(&self) -> bool {
        self.state.is_none_or(|state| state == 0 || state >= STATE_FAILED_MIN)
    }

    /// As the certificate keeps it.
    pub fn participant(&self) -> Participant {
        let stage = match self.state {
            Some(1) => "stable".to_owned(),
            Some(2..=5) => "waiting".to_owned(),
            Some(7) => "failed when the backup was prepared".to_owned(),
            Some(8) => "failed when the snapshot was prepared".to_owned(),
            Some(9) => "failed at the freeze".to_owned(),
            Some(10) => "failed at the thaw".to_owned(),
            Some(state @ (6 | 11..)) => format!("failed, state {state}"),
            Some(0) | None => "does not tell its state".to_owned(),
        };
        let error =
            if self.has_failed() && !self.error.is_empty() { format!(": {}", self.error) } else { String::new() };
        Participant { name: self.name.clone(), result: format!("{stage}{error}"), ok: !self.has_failed() }
    }
}

/// The kinds of backup that the agent can ask VSS for, by `VssOption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupType {
    Full,
    Incremental,
    Differential,
    Log,
    Copy,
}

impl BackupType {
    /// What the agent makes of the number; what it does not know is a full backup to it.
    pub const fn of_option(option: u32) -> BackupType {
        match option {
            2 => BackupType::Incremental,
            3 => BackupType::Differential,
            4 => BackupType::Log,
            5 => BackupType::Copy,
            _ => BackupType::Full,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            BackupType::Full => "full",
            BackupType::Incremental => "incremental",
            BackupType::Differential => "differential",
            BackupType::Log => "log",
            BackupType::Copy => "copy",
        }
    }
}

/// The guest's writers, as they are now. Ask after the thaw: a frozen guest runs nothing.
///
/// # Errors
/// Those of the agent; `guest-exec` is switched off in many guests. A program that fails, or that tells nothing that can be
/// understood, is an error too: no writers would mean that all is well.
pub async fn writers(agent: &GuestAgent, limit: Duration) -> Result<Vec<Writer>, QemuError> {
    let request = ExecRequest {
        path: "vssadmin.exe".into(),
        arguments: vec!["list".into(), "writers".into()],
        ..ExecRequest::default()
    };
    let outcome = agent.exec(&request, limit).await?;
    let writers = parse_writers(&outcome.stdout);
    if outcome.exit_code == Some(0) && !writers.is_empty() {
        return Ok(writers);
    }
    let detail = format!("exit status {:?} and {} writers", outcome.exit_code, writers.len());
    Err(QemuError::Protocol { what: "vssadmin list writers in the guest".into(), detail })
}

/// The kind of backup that the agent asks for: full where the registry says nothing, which is what old agents do in any case.
///
/// # Errors
/// Those of the agent.
pub async fn backup_type(agent: &GuestAgent, limit: Duration) -> Result<BackupType, QemuError> {
    let arguments = ["query", KEY, "/v", VALUE].map(str::to_owned).to_vec();
    let request = ExecRequest { path: "reg.exe".into(), arguments, ..ExecRequest::default() };
    let outcome = agent.exec(&request, limit).await?;
    Ok(parse_option(&outcome.stdout).map_or(BackupType::Full, BackupType::of_option))
}

/// The writers that failed, in a sentence that stays one however many there are; `None` where none did.
pub fn failures(writers: &[Writer]) -> Option<String> {
    let failed: Vec<&Writer> = writers.iter().filter(|writer| writer.has_failed()).collect();
    let named = failed.iter().take(NAMED_MAX);
    let mut words: Vec<String> =
        named.map(|writer| format!("{} ({})", writer.name, writer.participant().result)).collect();
    if failed.len() > NAMED_MAX {
        words.push(format!("and {} more", failed.len() - NAMED_MAX));
    }
    (!words.is_empty()).then(|| words.join(", "))
}

/// Puts what the writers said after the thaw into the verdict, and answers it as the certificate keeps it. One that failed
/// takes the level of programs away and leaves that of the file systems: the writes were held all the same.
pub fn judge_writers(verdict: &mut Verdict, writers: &[Writer]) -> Vec<Participant> {
    if verdict.level == Level::Application
        && let Some(failed) = failures(writers)
    {
        verdict.level = Level::FileSystem;
        let words = format!("not every program was at rest: {failed}");
        verdict.downgrade = Some(Downgrade::new(Cause::WriterFailed, words));
    }
    writers.iter().map(Writer::participant).collect()
}

/// Understands what `vssadmin list writers` prints, whatever the language. Never fails: what is not understood is left out.
pub fn parse_writers(output: &[u8]) -> Vec<Writer> {
    let text = String::from_utf8_lossy(&output[..output.len().min(OUTPUT_BYTES_MAX)]);
    let mut writers: Vec<Writer> = Vec::new();
    // The line at the margin above, until its writer has begun.
    let mut heading: Option<&str> = None;
    // The line after the state is the last error.
    let mut error_is_next = false;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let line = start_of(line);
        let is_indented = line.starts_with([' ', '\t']);
        if !is_indented {
            heading = Some(line);
            error_is_next = false;
            continue;
        }
        if let (Some(above), Some(id)) = (heading, guid(line)) {
            if writers.len() == WRITERS_MAX {
                break;
            }
            writers.push(Writer { name: name(above), id, state: None, error: String::new() });
            heading = None;
        } else if heading.is_none()
            && let Some(writer) = writers.last_mut()
        {
            if error_is_next {
                writer.error = cut(after_colon(line));
                error_is_next = false;
            } else if writer.state.is_none()
                && let Some(state) = bracketed(line)
            {
                writer.state = Some(state);
                error_is_next = true;
            }
        }
    }
    writers
}

/// What `reg query` prints of a number.
fn parse_option(output: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(&output[..output.len().min(OUTPUT_BYTES_MAX)]);
    let mut words = text.split_whitespace().skip_while(|word| *word != "REG_DWORD").skip(1);
    u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}

fn after_colon(line: &str) -> &str {
    line.split_once(':').map_or(line, |(_, value)| value).trim()
}

/// A name without its quotes, which differ between languages.
fn name(line: &str) -> String {
    let quotes = |letter: char| {
        letter.is_whitespace() || "'\"`\u{2018}\u{2019}\u{201a}\u{201c}\u{201d}\u{201e}«»‹›「」".contains(letter)
    };
    cut(after_colon(line).trim_matches(quotes))
}

fn cut(text: &str) -> String {
    printable(text, TEXT_CHARS_MAX)
}

/// The line, as far as it is looked at: a guest's line may be as long as its output, and each bracket in it is followed to
/// the next one.
fn start_of(line: &str) -> &str {
    &line[..line.floor_char_boundary(LINE_BYTES_MAX)]
}

/// `{8-4-4-4-12}` hexadecimal digits, in lower case.
fn guid(line: &str) -> Option<String> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    for (start, _) in line.match_indices('{') {
        let (inner, _) = line[start + 1..].split_once('}')?;
        let groups: Vec<&str> = inner.split('-').collect();
        let is_hex = |group: &&str| group.bytes().all(|byte| byte.is_ascii_hexdigit());
        if groups.iter().map(|group| group.len()).eq(GROUPS) && groups.iter().all(is_hex) {
            return Some(format!("{{{}}}", inner.to_ascii_lowercase()));
        }
    }
    None
}

/// A number that stands in brackets. In some code pages an opening bracket is the second half of a letter: the last one counts.
fn bracketed(line: &str) -> Option<u32> {
    let mut found = None;
    for (start, _) in line.match_indices('[') {
        let inner = line[start + 1..].split(']').next().unwrap_or_default();
        found = inner.parse().ok().or(found);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::{BackupType, Writer, failures, parse_option, parse_writers};

    const ENGLISH: &str = "vssadmin 1.1 - Volume Shadow Copy Service administrative command-line tool\r\n\
        (C) Copyright 2001-2013 Microsoft Corp.\r\n\r\n\
        Writer name: 'Task Scheduler Writer'\r\n   Writer Id: {D61D61C8-D73A-4EEE-8CDD-F6F9786B7124}\r\n   \
        Writer Instance Id: {1bddd48e-5052-49db-9b07-b96f96727e6b}\r\n   State: [1] Stable\r\n   Last error: No error\r\n\r\n\
        Writer name: 'SqlServerWriter'\r\n   Writer Id: {a65faa63-5ea8-4ebc-9dbd-a0c4db26912a}\r\n   \
        Writer Instance Id: {1bddd48e-5052-49db-9b07-b96f96727e6c}\r\n   State: [8] Failed\r\n   \
        Last error: Non-retryable error\r\n";

    #[test]
    fn the_listing_is_understood_and_a_failure_told() {
        let writers = parse_writers(ENGLISH.as_bytes());
        let expected = [
            Writer {
                name: "Task Scheduler Writer".into(),
                id: "{d61d61c8-d73a-4eee-8cdd-f6f9786b7124}".into(),
                state: Some(1),
                error: "No error".into(),
            },
            Writer {
                name: "SqlServerWriter".into(),
                id: "{a65faa63-5ea8-4ebc-9dbd-a0c4db26912a}".into(),
                state: Some(8),
                error: "Non-retryable error".into(),
            },
        ];
        assert_eq!(writers, expected);
        let told: Vec<_> = writers.iter().map(Writer::participant).collect();
        assert_eq!((told[0].ok, told[0].result.as_str()), (true, "stable"));
        assert_eq!(
            (told[1].ok, told[1].result.as_str()),
            (false, "failed when the snapshot was prepared: Non-retryable error")
        );
    }

    #[test]
    fn other_languages_have_other_words_and_quotes() {
        let german =
            b"Verfassername: \"SqlServerWriter\"\r\n   Verfasserkennung: {a65faa63-5ea8-4ebc-9dbd-a0c4db26912a}\r\n   \
            Verfasserinstanzkennung: {1bddd48e-5052-49db-9b07-b96f96727e6c}\r\n   Status: [9] Fehlgeschlagen\r\n   \
            Letzter Fehler: Zeit\x81berschreitung\r\n";
        let found = parse_writers(german);
        assert_eq!((found.len(), found[0].name.as_str(), found[0].state), (1, "SqlServerWriter", Some(9)));
        assert!(found[0].has_failed());
        // A long vowel in code page 932 ends in the byte of a bracket.
        let japanese = b"\x83\x89\x83\x43\x83\x5e\x81\x5b\x96\xbc: 'X'\r\n   \x83\x89\x81\x5b Id: {a65faa63-5ea8-4ebc-9dbd-a0c4db26912a}\r\n   \x83\x89\x81\x5b: [5] \x88\xc0\r\n   \x8d\xc5: \x83\x47\r\n";
        let found = parse_writers(japanese);
        assert_eq!((found.len(), found[0].name.as_str(), found[0].state), (1, "X", Some(5)));
        assert!(!found[0].has_failed());
    }

    #[test]
    fn what_is_cut_off_is_not_taken_for_well() {
        let half = &ENGLISH.as_bytes()[..ENGLISH.find("   State: [8]").unwrap()];
        let writers = parse_writers(half);
        assert!(writers[1].has_failed(), "{writers:?}");
    }

    #[test]
    fn many_failures_are_one_sentence() {
        let writer = |number: usize| Writer {
            name: format!("w{number}"),
            id: String::new(),
            state: Some(8),
            error: String::new(),
        };
        assert_eq!(failures(&[]), None);
        assert_eq!(failures(&[Writer { state: Some(1), ..writer(0) }]), None);
        let one = failures(&[writer(1)]).unwrap();
        assert_eq!(one, "w1 (failed when the snapshot was prepared)");
        let many: Vec<Writer> = (0..200).map(writer).collect();
        let words = failures(&many).unwrap();
        assert!(words.contains("w7 (") && !words.contains("w8 (") && words.ends_with("and 192 more"), "{words}");
    }

    #[test]
    fn a_line_of_brackets_takes_no_time() {
        for bracket in ["{", "["] {
            let output =
                format!("Name: 'x'\r\n  {{a65faa63-5ea8-4ebc-9dbd-a0c4db26912a}}\r\n   {}]", bracket.repeat(8 << 20));
            assert_eq!(parse_writers(output.as_bytes()).len(), 1);
            // Without a writer's id before it.
            assert!(parse_writers(format!("x\r\n {}}}", bracket.repeat(8 << 20)).as_bytes()).is_empty());
        }
    }

    #[test]
    fn the_backup_type_is_read_from_the_registry() {
        let text = b"\r\nHKEY_LOCAL_MACHINE\\SYSTEM\\x\r\n    VssOption    REG_DWORD    0x5\r\n";
        assert_eq!(parse_option(text).map(BackupType::of_option), Some(BackupType::Copy));
        assert_eq!(parse_option(b"ERROR"), None);
        assert_eq!(BackupType::of_option(77), BackupType::Full);
    }

    proptest! {
        #[test]
        fn no_output_breaks_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0..900_usize) {
            parse_writers(&bytes);
            parse_option(&bytes);
            let mut mixed = ENGLISH.as_bytes()[..cut.min(ENGLISH.len())].to_vec();
            mixed.extend_from_slice(&bytes);
            parse_writers(&mixed);
        }
    }
}
