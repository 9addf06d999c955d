//! `tanada doctor quiesce` as an administrator reads it, through a running daemon: a stand-in for a Windows guest's agent
//! answers in the place of the real guest's.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use sim_agent::{Agent, Facts, Scenario, named};
use tanada_e2e::{Scratch, guest, tanada};

/// Far more than anything takes here.
const AMPLE: Duration = Duration::from_secs(60);

struct World {
    scratch: Scratch,
    vm: String,
    agent: Agent,
}

impl World {
    /// A running machine; QEMU's socket of its agent is put aside while no daemon is connected to it.
    fn new() -> World {
        let mut scratch = guest::host();
        let sr = guest::store(&scratch, "fast");
        let vm = guest::start(&scratch, "win1", &[(&sr, &guest::root_image())]);
        // From now on QEMU tells that an agent has opened the port.
        guest::run(&mut scratch, &vm, "true");
        scratch.kill_daemon();
        let socket: PathBuf = scratch.path("run/vm").join(&vm).join("agent.sock");
        fs::rename(&socket, socket.with_extension("kept")).expect("the agent's socket");
        let agent = Agent::start(&socket, Scenario::default()).expect("the stand-in");
        scratch.start_daemon();
        World { scratch, vm, agent }
    }

    /// What the doctor prints of this guest, without times, and its exit status.
    fn doctor(&self, scenario: Scenario, options: &[&str]) -> (String, i32) {
        self.agent.change(|now| *now = scenario);
        let mut command = Command::new(tanada());
        command.args(["doctor", "quiesce", &format!("uuid={}", self.vm)]).args(options);
        command.env("TANADA_SOCKET", self.scratch.socket()).env("HOME", self.scratch.path("")).stdin(Stdio::null());
        let output = command.output().expect("starting the doctor");
        let text = String::from_utf8_lossy(&output.stdout);
        // The first line names the machine.
        let lines: Vec<String> = text.lines().skip(1).map(without_times).collect();
        (lines.join("\n"), output.status.code().unwrap_or(-1))
    }

    /// Lets what hangs go on, and waits until the guest is at work again.
    fn recover(&self) {
        self.agent.release();
        let at_work = |facts: &Facts| !facts.is_held && !facts.says_frozen && !facts.is_busy;
        assert!(self.agent.wait_for(AMPLE, at_work), "{:?}", self.agent.facts());
    }
}

/// The column of times, and every number of milliseconds, left out.
fn without_times(line: &str) -> String {
    let step = line.get(..23).zip(line.get(23..33)).zip(line.get(35..));
    let line = match step {
        Some(((step, time), words)) if time.trim().is_empty() || time.ends_with('s') => format!("{step} {words}"),
        _ => line.to_owned(),
    };
    let words: Vec<&str> = line.split(' ').collect();
    let shown = words.iter().enumerate().map(|(at, word)| {
        let is_time = words.get(at + 1).is_some_and(|unit| unit.starts_with("ms")) && word.parse::<u64>().is_ok();
        if is_time { "N" } else { word }
    });
    shown.collect::<Vec<_>>().join(" ")
}

fn scenario(name: &str) -> Scenario {
    named().into_iter().find(|one| one.name == name).unwrap_or_else(|| panic!("no scenario {name}")).scenario
}

#[test]
fn it_tells_what_happened_and_what_to_do() {
    let world = World::new();
    let copies = |name: &str| Scenario { vss_option: Some(5), ..scenario(name) };
    // Windows lets go while the guest is to be held for longer.
    let lapsing = Scenario { hold_ms_max: Some(1_000), ..copies("windows-2022") };
    let found = |rest: &str| format!("{FOUND}{rest}");
    let mut wrong = Vec::new();
    let mut check = |guest: Scenario, options: &[&str], (words, status): (String, i32)| {
        let (said, ended) = world.doctor(guest, options);
        if (&said, ended) != (&words, status) {
            wrong.push(format!("{said}\nstatus {ended}; expected was\n{words}\nstatus {status}"));
        }
        world.recover();
    };
    check(copies("windows-2022"), &[], (found(GOOD), 0));
    check(copies("windows-writer-failed"), &[], (found(WRITER_FAILED), 0));
    check(lapsing, &["hold=2000"], (found(LAPSED), 1));
    check(copies("windows-no-provider"), &[], (NO_PROVIDER.to_owned(), 1));
    let vm = format!("uuid={}", world.vm);
    world.scratch.xe_ok(["vm-param-set", &vm, "other-config:tanada-freeze-seconds=2"]);
    // The freeze comes after all, and the thaw behind it.
    check(copies("windows-hangs"), &[], (found(HANGS), 1));
    check(copies("windows-hangs-frozen"), &[], (found(HANGS), 1));
    check(copies("windows-2022"), &[], (found(GOOD), 0));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Where the agent's provider works, in front of the rest.
const FOUND: &str = "\
ok       port           an agent in the guest has opened its port
ok       agent          it answers
ok       system         Windows Server 2022 Standard, qemu-ga 10.0.3
ok       backup type    copy: the guest's own database backups are left alone
";

const GOOD: &str = "\
ok       writers before 3, none has failed
ok       storage        a cut is expected to take N ms; a freeze may last N ms
ok       freeze         2 file systems or volumes
ok       hold           frozen until the thaw was asked for
ok       thaw           2 file systems or volumes
ok       writers after  3, none has failed
A snapshot would be: application (programs that take part in freezing were at rest, and file systems need no recovery)";
/// The writer has been broken since an earlier snapshot.
const WRITER_FAILED: &str = "\
FAILED   writers before SqlServerWriter (failed at the freeze: 0x800423f4)
ok       storage        a cut is expected to take N ms; a freeze may last N ms
ok       freeze         2 file systems or volumes
ok       hold           frozen until the thaw was asked for
ok       thaw           2 file systems or volumes
FAILED   writers after  SqlServerWriter (failed at the freeze: 0x800423f4)
A snapshot would be: file system (file systems need no recovery; programs find their files as after a power cut)
Advice: restart the services of the writers that failed; the Application event log of the guest says why they did";

const LAPSED: &str = "\
ok       writers before 3, none has failed
ok       storage        a cut is expected to take N ms; a freeze may last N ms
ok       freeze         2 file systems or volumes
ok       hold           frozen until the thaw was asked for
FAILED   thaw           couldn't hold writes: fsfreeze is limited up to 10 seconds: Windows error 0x80042314
ok       writers after  3, none has failed
A snapshot would be: crash (as after a power cut: file systems and databases recover when they are started)
Advice: repeat at a quieter time: Windows holds its writes for ten seconds at most";

const NO_PROVIDER: &str = "\
ok       port           an agent in the guest has opened its port
ok       agent          it answers
FAILED   system         Windows Server 2022 Standard, qemu-ga 10.0.3: the agent's VSS provider is not installed or does not work
A snapshot would be: crash (as after a power cut: file systems and databases recover when they are started)
Advice: repair the agent's VSS provider: run 'qemu-ga -s vss-install' in the guest as administrator";

const HANGS: &str = "\
ok       writers before 3, none has failed
ok       storage        a cut is expected to take N ms; a freeze may last N ms
FAILED   freeze         the guest did not freeze in time: guest agent guest-fsfreeze-freeze: no answer within N ms
A snapshot would be: crash (as after a power cut: file systems and databases recover when they are started)
Advice: look for a freeze hook or VSS writer that hangs, or allow more time (other-config:tanada-freeze-seconds)";
