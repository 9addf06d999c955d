//! `tanada-teller`: a client of a PostgreSQL database that keeps an outside ledger, and the audit of a copy. Runs inside
//! the database guest; see `tanada_witness::ledger`.
//!
//! ```text
//! tanada-teller prepare SOCKET                          makes the tables, waits for the server before
//! tanada-teller work    SOCKET LEDGER CLIENT PAUSE_MS   transactions until killed; their outcomes go to LEDGER
//! tanada-teller audit   SOCKET                          what is in the database
//! tanada-teller mark    LEDGER WORD                     a mark in the ledger
//! ```
//! A transaction moves an amount between two accounts and enters it in two tables, under the client's next number.

mod postgres;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use postgres::{Failure, Session};
use tanada_witness::ledger::{Entry, Found, What};

const USAGE: &str = "usage: tanada-teller prepare SOCKET | work SOCKET LEDGER CLIENT PAUSE_MS | audit SOCKET | \
                     mark LEDGER WORD";
const ACCOUNTS: u64 = 16;
/// Between attempts to reach a server that is away.
const RETRY: Duration = Duration::from_millis(50);

const TABLES: &str = "\
CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE IF NOT EXISTS taken (client int, number bigint, account int, amount bigint, note text,
                                  PRIMARY KEY (client, number));
CREATE TABLE IF NOT EXISTS given (client int, number bigint, account int, amount bigint, note text,
                                  PRIMARY KEY (client, number));
INSERT INTO account SELECT id, 0 FROM generate_series(0, 15) id ON CONFLICT DO NOTHING;";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tanada-teller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    match args {
        ["prepare", socket] => reach(socket).query(TABLES).map(drop).map_err(told),
        ["work", socket, ledger, client, pause_ms] => {
            let client = client.parse().with_context(|| format!("client '{client}': a number expected"))?;
            let pause_ms = pause_ms.parse().with_context(|| format!("pause '{pause_ms}': milliseconds expected"))?;
            work(socket, &mut open_ledger(ledger)?, client, Duration::from_millis(pause_ms))
        }
        ["audit", socket] => {
            print!("{}", audit(&mut Session::open(socket).map_err(told)?)?);
            Ok(())
        }
        ["mark", ledger, word] if !word.contains(char::is_whitespace) => {
            tell(&mut open_ledger(ledger)?, What::Mark((*word).to_owned()), 0)
        }
        _ => bail!(USAGE),
    }
}

fn told(failure: Failure) -> anyhow::Error {
    match failure {
        Failure::Lost(words) => anyhow!("the connection broke: {words}"),
        Failure::Refused(words) => anyhow!("the server refused: {words}"),
    }
}

/// A session, as soon as the server gives one.
fn reach(socket: &str) -> Session {
    loop {
        match Session::open(socket) {
            Ok(session) => return session,
            Err(_) => sleep(RETRY),
        }
    }
}

/// A console must not become this program's terminal, nor kill it.
fn open_ledger(path: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).custom_flags(libc::O_NOCTTY);
    options.open(path).with_context(|| format!("opening the ledger {path}"))
}

/// One line by one write, so that those of several programs do not mix.
fn tell(ledger: &mut File, what: What, number: u64) -> Result<()> {
    let entry = Entry { what, number, at_ms: uptime_ms()? };
    ledger.write_all(format!("{entry}\n").as_bytes()).context("writing to the ledger")
}

fn uptime_ms() -> Result<u64> {
    let text = fs::read_to_string("/proc/uptime").context("reading /proc/uptime")?;
    let seconds: Option<f64> = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Ok((seconds.with_context(|| format!("/proc/uptime says '{text}'"))? * 1000.0) as u64)
}

fn work(socket: &str, ledger: &mut File, client: u32, pause: Duration) -> Result<()> {
    let mut session = reach(socket);
    let mut number = newest(&mut session, client)?;
    loop {
        number += 1;
        let outcome = transact(&mut session, client, number);
        match outcome {
            Outcome::Done => tell(ledger, What::Done(client), number)?,
            Outcome::Void => tell(ledger, What::Void(client), number)?,
            Outcome::Doubt => tell(ledger, What::Doubt(client), number)?,
        }
        if outcome == Outcome::Done {
            sleep(pause);
        } else {
            session = reach(socket);
        }
    }
}

fn newest(session: &mut Session, client: u32) -> Result<u64> {
    let sql = format!("SELECT coalesce(max(number), 0) FROM taken WHERE client = {client}");
    number(session, &sql)
}

fn number<T: std::str::FromStr>(session: &mut Session, sql: &str) -> Result<T> {
    let answer = session.query(sql).map_err(told)?;
    let value = answer.rows.first().and_then(|row| row.first()).and_then(|text| text.parse().ok());
    value.with_context(|| format!("{sql}: one number expected, {:?} came", answer.rows))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Void,
    Doubt,
}

/// One transaction. Accounts are locked in the order of their ids, so that clients cannot wait for each other in a circle.
fn transact(session: &mut Session, client: u32, number: u64) -> Outcome {
    let amount = number % 97 + 1;
    let low = number % (ACCOUNTS - 1);
    let high = low + 1 + number / ACCOUNTS % (ACCOUNTS - 1 - low);
    let note = "x".repeat(100);
    let body = format!(
        "BEGIN; UPDATE account SET balance = balance - {amount} WHERE id = {low}; \
         UPDATE account SET balance = balance + {amount} WHERE id = {high}; \
         INSERT INTO taken VALUES ({client}, {number}, {low}, -{amount}, '{note}'); \
         INSERT INTO given VALUES ({client}, {number}, {high}, {amount}, '{note}')"
    );
    if session.query(&body).is_err() {
        return Outcome::Void;
    }
    match session.query("COMMIT") {
        Ok(answer) if answer.tag == "COMMIT" => Outcome::Done,
        // It answers ROLLBACK to the COMMIT of a transaction that had failed.
        Ok(_) | Err(Failure::Refused(_)) => Outcome::Void,
        Err(Failure::Lost(_)) => Outcome::Doubt,
    }
}

fn audit(session: &mut Session) -> Result<Found> {
    let sum = number(session, "SELECT coalesce(sum(balance), 0) FROM account")?;
    let half = number(
        session,
        "SELECT count(*) FROM taken FULL JOIN given USING (client, number) \
         WHERE taken.amount IS NULL OR given.amount IS NULL OR taken.amount <> -given.amount",
    )?;
    let wrong = number(
        session,
        "SELECT count(*) FROM account WHERE balance <> \
         coalesce((SELECT sum(amount) FROM taken WHERE taken.account = account.id), 0) + \
         coalesce((SELECT sum(amount) FROM given WHERE given.account = account.id), 0)",
    )?;
    let sql = "SELECT client, last, coalesce((SELECT string_agg(n::text, ',') FROM generate_series(1, last) n \
               WHERE NOT EXISTS (SELECT FROM taken WHERE taken.client = newest.client AND number = n)), '') \
               FROM (SELECT client, max(number) AS last FROM taken GROUP BY client) newest";
    let mut clients = BTreeMap::new();
    for row in session.query(sql).map_err(told)?.rows {
        let [client, last, absent] = &row[..] else { bail!("{sql}: three columns expected, {row:?} came") };
        let absent: Result<_, _> = absent.split(',').filter(|word| !word.is_empty()).map(str::parse).collect();
        clients.insert(client.parse()?, (last.parse()?, absent?));
    }
    Ok(Found { sum, half, wrong, clients })
}
