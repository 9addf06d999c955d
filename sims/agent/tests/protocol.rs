//! The stand-in over its socket, as a host sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sim_agent::{Agent, Freeze, Port, Scenario, named};

const AMPLE: Duration = Duration::from_secs(30);

struct Bench {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    agent: Agent,
}

impl Bench {
    fn new(scenario: Scenario) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let agent = Agent::start(&socket, scenario).unwrap();
        Bench { _dir: dir, socket, agent }
    }

    fn connect(&self) -> Host {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(AMPLE)).unwrap();
        Host { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    }
}

struct Host {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Host {
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn ask(&mut self, command: &str) {
        self.send(format!("{}\n", json!({ "execute": command, "id": command })).as_bytes());
    }

    fn line(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).unwrap();
        line
    }

    fn reply(&mut self) -> Value {
        serde_json::from_slice(&self.line()).unwrap()
    }
}

#[test]
fn a_sync_is_answered_behind_the_delimiter_and_after_the_complaint() {
    let junk = Port { junk: vec!["old".into()], ..Port::default() };
    let bench = Bench::new(Scenario { port: junk, ..Scenario::linux() });
    let mut host = bench.connect();
    host.send(b"\xFF{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":77}}\n");
    assert_eq!(host.reply()["error"]["class"], "GenericError");
    assert_eq!(host.line(), b"old\n");
    assert_eq!(host.line(), b"\xFF{\"return\":77}\n");
    host.ask("guest-ping");
    assert_eq!(host.reply(), json!({ "return": {}, "id": "guest-ping" }));
    assert_eq!(bench.agent.commands(), ["guest-ping"]);
}

#[test]
fn the_second_client_waits_for_the_first_and_gets_its_late_reply() {
    let bench = Bench::new(Scenario::linux().freeze(Freeze::HoldsSilently));
    let mut first = bench.connect();
    first.ask("guest-fsfreeze-freeze");
    assert!(bench.agent.wait_for(AMPLE, |facts| facts.is_held));
    let mut second = bench.connect();
    second.ask("guest-fsfreeze-status");
    assert_eq!(bench.agent.facts().clients, 1, "one client at a time");
    drop(first);
    assert!(bench.agent.wait_for(AMPLE, |facts| facts.clients == 2));
    // The status waits behind the freeze in the one queue of the guest.
    assert_eq!(bench.agent.commands(), ["guest-fsfreeze-freeze"]);
    bench.agent.release();
    assert_eq!(second.reply(), json!({ "return": 3, "id": "guest-fsfreeze-freeze" }));
    assert_eq!(second.reply()["return"], "frozen");
}

#[test]
fn a_killed_agent_leaves_the_freeze_and_the_next_one_finds_it() {
    let bench = Bench::new(Scenario::linux().freeze(Freeze::DiesAfter));
    let mut host = bench.connect();
    host.ask("guest-fsfreeze-freeze");
    assert!(bench.agent.wait_for(AMPLE, |facts| !facts.is_alive && facts.is_held));
    bench.agent.restart();
    host.ask("guest-fsfreeze-status");
    assert_eq!(host.reply()["return"], "frozen");
    host.ask("guest-fsfreeze-thaw");
    assert_eq!(host.reply()["return"], 3);
    assert!(!bench.agent.is_held());
}

#[test]
fn ten_seconds_of_the_guest_cost_none() {
    let scenario = named().into_iter().find(|named| named.name == "windows-2022").unwrap().scenario;
    let bench = Bench::new(Scenario { clock_rate: 0.0, freeze: Freeze::Holds { after_ms: 0 }, ..scenario });
    let mut host = bench.connect();
    host.ask("guest-fsfreeze-freeze");
    assert_eq!(host.reply()["return"], 2);
    bench.agent.advance(Duration::from_millis(9_999));
    assert!(bench.agent.is_held());
    bench.agent.advance(Duration::from_millis(1));
    assert!(!bench.agent.is_held() && bench.agent.facts().says_frozen);
    bench.agent.change(|scenario| scenario.thaw = sim_agent::Thaw::ByTheRules { after_ms: 0 });
    host.ask("guest-fsfreeze-thaw");
    let error = host.reply()["error"]["desc"].as_str().unwrap().to_owned();
    assert!(error.starts_with(sim_agent::HOLD_LAPSED), "{error}");
}

#[test]
fn nobody_answers_where_there_is_no_agent_and_a_new_one_reads_what_waits() {
    let bench = Bench::new(Scenario { is_alive: false, ..Scenario::linux() });
    let mut host = bench.connect();
    host.ask("guest-ping");
    host.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(host.stream.read(&mut [0; 1]).is_err());
    host.stream.set_read_timeout(Some(AMPLE)).unwrap();
    bench.agent.restart();
    assert_eq!(host.reply(), json!({ "return": {}, "id": "guest-ping" }));
}

#[test]
fn programs_in_a_windows_guest_are_asked_for_their_end() {
    let bench = Bench::new(Scenario { vss_option: Some(5), ..Scenario::default() });
    let mut host = bench.connect();
    let arguments = json!({ "path": "reg.exe", "arg": ["query", "HKLM\\x", "/v", "VssOption"] });
    host.send(format!("{}\n", json!({ "execute": "guest-exec", "arguments": arguments })).as_bytes());
    let pid = host.reply()["return"]["pid"].clone();
    let status = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
    let mut ask = || {
        host.send(format!("{status}\n").as_bytes());
        host.reply()
    };
    assert_eq!(ask()["return"], json!({ "exited": false }));
    assert_eq!(ask()["return"]["exitcode"], 0);
    assert_eq!(ask()["error"]["class"], "GenericError");
}
