//! As much of PostgreSQL's protocol (version 3) as a client on a trusted local socket needs: simple queries as text.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

const PROTOCOL_3_0: u32 = 196_608;
/// Rows of an audit are short; more than this is no answer of ours.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Why a query has no result.
#[derive(Debug)]
pub enum Failure {
    /// The connection is gone; whether the server got the query is not known.
    Lost(String),
    /// The server refused it and goes on.
    Refused(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Lost(error.to_string())
    }
}

/// The rows of a query's last statement that has some, and the tag of its last statement.
#[derive(Debug, Default)]
pub struct Answer {
    pub rows: Vec<Vec<String>>,
    pub tag: String,
}

/// A session as `postgres` on the database `postgres`.
pub struct Session {
    stream: UnixStream,
}

impl Session {
    pub fn open(socket: &str) -> Result<Session, Failure> {
        let mut session = Session { stream: UnixStream::connect(socket)? };
        let mut body = PROTOCOL_3_0.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        session.stream.write_all(&(body.len() as u32 + 4).to_be_bytes())?;
        session.stream.write_all(&body)?;
        session.until_ready()?;
        Ok(session)
    }

    /// Runs statements; several, separated by semicolons, outside of an explicit transaction are one transaction.
    pub fn query(&mut self, sql: &str) -> Result<Answer, Failure> {
        let mut message = vec![b'Q'];
        message.extend_from_slice(&(sql.len() as u32 + 5).to_be_bytes());
        message.extend_from_slice(sql.as_bytes());
        message.push(0);
        self.stream.write_all(&message)?;
        self.until_ready()
    }

    /// Reads up to ReadyForQuery. A fatal error is not followed by one, but by the end of the stream.
    fn until_ready(&mut self) -> Result<Answer, Failure> {
        let mut answer = Answer::default();
        let mut refusal = None;
        loop {
            let (kind, body) = match self.message() {
                Ok(message) => message,
                Err(error) => return Err(Failure::Lost(refusal.unwrap_or_else(|| error.to_string()))),
            };
            match kind {
                b'R' if body != [0; 4] => return Err(Failure::Refused("the server asks for a password".into())),
                b'T' => answer.rows.clear(),
                b'D' => answer.rows.push(columns(&body)?),
                b'C' => answer.tag = text(&body),
                b'E' => refusal = Some(error_text(&body)),
                b'Z' => return refusal.map_or(Ok(answer), |words| Err(Failure::Refused(words))),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(io::Error::other(format!("a message of {length} bytes: 4 to {MESSAGE_BYTES_MAX} expected")));
        }
        let mut body = vec![0; length - 4];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }
}

/// The columns of a row as text; NULL is empty.
fn columns(body: &[u8]) -> Result<Vec<String>, Failure> {
    let torn = || Failure::Lost("a row ends early".into());
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(torn)?;
    let mut found = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(torn)?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let (value, after) = after.split_at_checked(length).ok_or_else(torn)?;
        found.push(text(value));
        rest = after;
    }
    Ok(found)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// Severity, code and message of an error: fields begin with a letter and end with a zero.
fn error_text(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0).filter_map(|field| field.split_first());
    let wanted = fields.filter(|(kind, _)| b"SCM".contains(kind)).map(|(_, value)| text(value));
    wanted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{columns, error_text};

    #[test]
    fn rows_and_errors_are_read() {
        let row = [&[0, 2][..], &[0, 0, 0, 2], b"42", &[0xFF; 4]].concat();
        assert_eq!(columns(&row).unwrap(), ["42", ""]);
        columns(&row[..5]).expect_err("a row that ends early");
        assert_eq!(error_text(b"SFATAL\0C57P01\0Mterminating\0Fpostgres.c\0\0"), "FATAL 57P01 terminating");
    }
}
