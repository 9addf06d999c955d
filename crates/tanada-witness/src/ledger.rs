//! The outside ledger of a database's clients, and the judgement over a restored copy of that database.
//!
//! Each client numbers its transactions 1, 2, 3 ... without ever using a number twice, and tells the outcome of each to a
//! place that no snapshot holds (a serial console whose other end is a file of the host), one line per outcome:
//!
//! ```text
//! ~L done  CLIENT NUMBER MS CRC    the database said that it is committed
//! ~L void  CLIENT NUMBER MS CRC    the connection broke before COMMIT was sent: it must never be seen
//! ~L doubt CLIENT NUMBER MS CRC    the connection broke after that: it may be there or not, but whole
//! ~L mark  TEXT   NUMBER MS CRC    something happened, such as: the database is at rest
//! ```
//! `MS` is the client machine's clock since its boot in milliseconds; `CRC` is CRC-32C of what precedes it, in hexadecimal.
//! A console may lose or mix lines. What cannot be read counts for nothing, which never accuses a sound copy: a number
//! without a line is held to be neither committed nor void.
//!
//! The copy passes when every number that was done when the snapshot was asked for is there, no void one is, none is newer
//! than what the clients can have begun until it was answered, and every transaction is whole ([`Ledger::judge`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use anyhow::{Context, Result, bail};

const SIGN: &str = "~L ";

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub what: What,
    pub number: u64,
    /// Since the client's machine booted.
    pub at_ms: u64,
}

/// What a line tells of its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Done(u32),
    Void(u32),
    Doubt(u32),
    /// One word.
    Mark(String),
}

impl Display for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.what {
            What::Done(client) => format!("done {client}"),
            What::Void(client) => format!("void {client}"),
            What::Doubt(client) => format!("doubt {client}"),
            What::Mark(text) => format!("mark {text}"),
        };
        let text = format!("{what} {} {}", self.number, self.at_ms);
        write!(out, "{SIGN}{text} {:08x}", crc32c::crc32c(text.as_bytes()))
    }
}

impl Entry {
    /// The entry at the end of a console's line; None where there is none that is whole.
    pub fn parse(line: &str) -> Option<Entry> {
        let (_, text) = line.trim_end().rsplit_once(SIGN)?;
        let (checked, sum) = text.rsplit_once(' ')?;
        if u32::from_str_radix(sum, 16).ok()? != crc32c::crc32c(checked.as_bytes()) {
            return None;
        }
        let words: Vec<&str> = checked.split(' ').collect();
        let [kind, who, number, at_ms] = words[..] else { return None };
        let what = match kind {
            "done" => What::Done(who.parse().ok()?),
            "void" => What::Void(who.parse().ok()?),
            "doubt" => What::Doubt(who.parse().ok()?),
            "mark" => What::Mark(who.to_owned()),
            _ => return None,
        };
        Some(Entry { what, number: number.parse().ok()?, at_ms: at_ms.parse().ok()? })
    }
}

/// What one client told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Client {
    done: BTreeSet<u64>,
    void: BTreeSet<u64>,
    newest: u64,
    done_at_ms: Vec<u64>,
}

/// All that was told up to some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    clients: BTreeMap<u32, Client>,
}

impl Ledger {
    /// From a console's text.
    pub fn read(text: &str) -> Ledger {
        let mut ledger = Ledger::default();
        text.lines().filter_map(Entry::parse).for_each(|entry| ledger.add(&entry));
        ledger
    }

    /// The ledger as it was when the newest `mark` of that word was written; None where there is none.
    pub fn read_until_mark(text: &str, word: &str) -> Option<Ledger> {
        let entries: Vec<Entry> = text.lines().filter_map(Entry::parse).collect();
        let end = entries.iter().rposition(|entry| matches!(&entry.what, What::Mark(found) if found == word))?;
        let mut ledger = Ledger::default();
        entries[..end].iter().for_each(|entry| ledger.add(entry));
        Some(ledger)
    }

    fn add(&mut self, entry: &Entry) {
        let (What::Done(who) | What::Void(who) | What::Doubt(who)) = &entry.what else { return };
        let client = self.clients.entry(*who).or_default();
        client.newest = client.newest.max(entry.number);
        match entry.what {
            What::Done(_) => {
                client.done.insert(entry.number);
                client.done_at_ms.push(entry.at_ms);
            }
            What::Void(_) => {
                client.void.insert(entry.number);
            }
            What::Doubt(_) | What::Mark(_) => {}
        }
    }

    /// Transactions that were acknowledged.
    pub fn done(&self) -> usize {
        self.clients.values().map(|client| client.done.len()).sum()
    }

    /// The longest time that one client went without an acknowledgement, among those that ended after `self` and within
    /// `later`; in milliseconds.
    pub fn longest_wait_ms(&self, later: &Ledger) -> u64 {
        let waits = later.clients.iter().flat_map(|(who, client)| {
            let known = self.clients.get(who).map_or(0, |client| client.done_at_ms.len());
            let times = client.done_at_ms.get(known.saturating_sub(1)..).unwrap_or_default();
            times.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))
        });
        waits.max().unwrap_or(0)
    }

    /// Judges a copy whose snapshot was asked for when the ledger was `self` and answered when it was `after`.
    pub fn judge(&self, after: &Ledger, found: &Found) -> Result<Verdict> {
        if (found.sum, found.half, found.wrong) != (0, 0, 0) {
            bail!(
                "transactions are torn: the balances add up to {}, {} transactions have one half, {} accounts do not \
                 match their entries; zeros expected",
                found.sum,
                found.half,
                found.wrong
            );
        }
        let mut verdict = Verdict { required: self.done(), present: found.present(), lost: 0 };
        for (who, client) in &self.clients {
            verdict.lost += client.done.iter().filter(|number| !found.holds(*who, **number)).count();
        }
        for (who, (last, _)) in &found.clients {
            let told = after.clients.get(who).with_context(|| format!("client {who} is not in the ledger"))?;
            if *last > told.newest + 1 {
                bail!("client {who}: number {last} is there, but {} was the newest that it told", told.newest);
            }
            if let Some(number) = told.void.iter().find(|number| found.holds(*who, **number)) {
                bail!("client {who}: number {number} is there, though it was never asked to be committed");
            }
        }
        Ok(verdict)
    }
}

/// What a judgement came to, in transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged before the snapshot was asked for.
    pub required: usize,
    pub present: usize,
    /// Required, and not there: 0 is the promise.
    pub lost: usize,
}

/// What is in a database, as `tanada-teller audit` prints it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// All balances together: what one account lost another has, so 0.
    pub sum: i64,
    /// Transactions of which one half alone is there.
    pub half: u64,
    /// Accounts whose balance is not the sum of their entries.
    pub wrong: u64,
    /// For each client its highest number, and the ones below that are not there.
    pub clients: BTreeMap<u32, (u64, BTreeSet<u64>)>,
}

impl Display for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "sum {}\nhalf {}\nwrong {}", self.sum, self.half, self.wrong)?;
        for (who, (last, absent)) in &self.clients {
            let absent: Vec<String> = absent.iter().map(u64::to_string).collect();
            writeln!(out, "client {who} {last} absent={}", absent.join(","))?;
        }
        Ok(())
    }
}

impl Found {
    /// From the audit's lines; others are passed over.
    pub fn parse(text: &str) -> Result<Found> {
        let (mut found, mut told) = (Found::default(), 0);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| word.parse::<u64>().with_context(|| format!("'{line}': a number expected"));
            match words[..] {
                ["sum", value] => {
                    found.sum = value.parse().with_context(|| format!("'{line}': a number expected"))?;
                    told += 1;
                }
                ["half", value] => {
                    found.half = number(value)?;
                    told += 1;
                }
                ["wrong", value] => {
                    found.wrong = number(value)?;
                    told += 1;
                }
                ["client", who, last, absent] => {
                    let who = who.parse().with_context(|| format!("'{line}': a client's number expected"))?;
                    let absent =
                        absent.strip_prefix("absent=").with_context(|| format!("'{line}': absent= expected"))?;
                    let absent: Result<_> = absent.split(',').filter(|word| !word.is_empty()).map(number).collect();
                    found.clients.insert(who, (number(last)?, absent?));
                }
                _ => {}
            }
        }
        if told != 3 {
            bail!("the audit does not tell sum, half and wrong: {text}");
        }
        Ok(found)
    }

    fn holds(&self, client: u32, number: u64) -> bool {
        self.clients.get(&client).is_some_and(|(last, absent)| number <= *last && !absent.contains(&number))
    }

    fn present(&self) -> usize {
        self.clients.values().map(|(last, absent)| *last as usize - absent.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Found, Ledger, What};

    fn line(what: What, number: u64) -> String {
        format!("{}\r\n", Entry { what, number, at_ms: number * 10 })
    }

    fn done(last: u64) -> String {
        (1..=last).map(|number| line(What::Done(1), number)).collect()
    }

    fn found(last: u64, absent: &str) -> Found {
        Found::parse(&format!("sum 0\nhalf 0\nwrong 0\nclient 1 {last} absent={absent}\n")).unwrap()
    }

    #[test]
    fn lines_survive_a_console_and_damaged_ones_count_for_nothing() {
        let whole = line(What::Doubt(7), 12);
        assert_eq!(Entry::parse(&format!("[ 1.0] kernel talks{whole}")).unwrap().what, What::Doubt(7));
        assert_eq!(Entry::parse(&whole.replace("12", "13")), None);
        assert_eq!(Entry::parse("login: "), None);
        assert_eq!(Ledger::read(&done(3).replace("done 1 2", "done 1 9")).done(), 2);
    }

    #[test]
    fn a_copy_with_all_that_was_acknowledged_passes() {
        let before = Ledger::read(&done(5));
        let after = Ledger::read(&(done(7) + &line(What::Void(1), 8)));
        for last in 5..=7 {
            assert_eq!(before.judge(&after, &found(last, "")).unwrap().lost, 0, "up to {last}");
        }
    }

    #[test]
    fn lost_void_future_and_torn_transactions_are_seen() {
        let before = Ledger::read(&done(5));
        let after = Ledger::read(&(done(7) + &line(What::Void(1), 8)));
        assert_eq!(before.judge(&after, &found(4, "")).unwrap().lost, 1);
        assert_eq!(before.judge(&after, &found(7, "2,3")).unwrap().lost, 2);
        before.judge(&after, &found(8, "")).expect_err("number 8 is void");
        before.judge(&after, &found(10, "8,9")).expect_err("number 10 cannot have begun");
        for torn in ["sum 1\nhalf 0\nwrong 0", "sum 0\nhalf 1\nwrong 0", "sum 0\nhalf 0\nwrong 2"] {
            before.judge(&after, &Found::parse(torn).unwrap()).expect_err(torn);
        }
        Found::parse("sum 0\nhalf 0\n").expect_err("an audit that ended early");
    }

    #[test]
    fn a_doubtful_one_may_be_there_or_not() {
        let before = Ledger::read(&(done(5) + &line(What::Doubt(1), 6)));
        for copy in [found(5, ""), found(6, "")] {
            assert_eq!(before.judge(&before, &copy).unwrap().lost, 0);
        }
    }

    #[test]
    fn a_mark_ends_the_ledger_and_waits_are_measured() {
        let text = done(3) + &line(What::Mark("stopped".into()), 0) + &line(What::Done(1), 60);
        let (at_mark, all) = (Ledger::read_until_mark(&text, "stopped").unwrap(), Ledger::read(&text));
        assert_eq!((at_mark.done(), all.done()), (3, 4));
        assert_eq!(at_mark.longest_wait_ms(&all), 570);
        assert_eq!(Ledger::read_until_mark(&text, "other"), None);
    }

    #[test]
    fn an_audit_reads_back() {
        let found = found(9, "2,4");
        assert_eq!(Found::parse(&found.to_string()).unwrap(), found);
    }
}
