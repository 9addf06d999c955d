//! A client of the control socket for programs that ask one thing and end.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use tanada_blockd_api::{
    Answer, Command, Envelope, Event, Greeting, LINE_BYTES_MAX, Outcome, PROTOCOL_MAJOR, Response,
};

pub(crate) struct Client {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
    next: u64,
}

/// What the server says: an answer, or something that happened.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Line {
    Response(Response),
    #[expect(dead_code, reason = "told from answers, then left aside")]
    Event(Event),
}

impl Client {
    /// Connects to the blockd of a runtime directory.
    pub(crate) fn connect(runtime_dir: &Path) -> anyhow::Result<Client> {
        let path = runtime_dir.join("control.sock");
        let stream = UnixStream::connect(&path)
            .with_context(|| format!("connect to {}; is the store being served from there?", path.display()))?;
        let lines = BufReader::new(stream.try_clone().context("duplicate a descriptor")?);
        let mut client = Client { stream, lines, next: 1 };
        let greeting: Greeting = serde_json::from_str(&client.line()?).context("understand the greeting")?;
        if greeting.protocol_major != PROTOCOL_MAJOR {
            bail!("blockd speaks version {} of the protocol, this program {PROTOCOL_MAJOR}", greeting.protocol_major);
        }
        Ok(client)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let count = (&mut self.lines).take(LINE_BYTES_MAX as u64).read_line(&mut line).context("hear from blockd")?;
        if count == 0 {
            bail!("blockd has ended the connection");
        }
        Ok(line)
    }

    /// Asks and waits for the answer. Events that come meanwhile are left aside.
    pub(crate) fn ask(&mut self, command: Command) -> anyhow::Result<Answer> {
        let id = self.next;
        self.next += 1;
        let mut bytes = serde_json::to_vec(&Envelope { id, command })?;
        bytes.push(b'\n');
        self.stream.write_all(&bytes).context("speak to blockd")?;
        loop {
            match serde_json::from_str(&self.line()?).context("understand blockd")? {
                Line::Response(Response { id: of, outcome: Outcome::Ok(answer) }) if of == id => return Ok(answer),
                Line::Response(Response { id: of, outcome: Outcome::Error(failure) }) if of == id => {
                    return Err(failure.into());
                }
                Line::Response(_) | Line::Event(_) => {}
            }
        }
    }
}
