//! What a snapshot would get, tried out: on the real guest, and with a stand-in for a Windows guest's agent in its place.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use sim_agent::{Agent, Scenario, named};

use super::machine::Machine;
use super::world::World;

/// `tanada doctor quiesce` of the real guest: frozen, thawed, and good for a quiesced snapshot.
pub fn of_the_guest(world: &mut World, origin: &Machine) -> Result<()> {
    let said = world.tanada(&["doctor", "quiesce", &format!("uuid={}", origin.uuid)])?;
    if !said.contains("A snapshot would be: file system") {
        bail!("the doctor found the guest not fit for a quiesced snapshot:\n{said}");
    }
    origin.guest(world, "echo thawed > /data/thawed && sync && rm /data/thawed")?;
    said.lines().for_each(|line| world.note(line));
    Ok(())
}

/// The same and a snapshot where a Windows agent answers, as documented: one that holds, one whose writer fails, one whose
/// hold lapses.
pub fn of_a_stand_in(world: &mut World, origin: &Machine) -> Result<()> {
    let place = StandIn::take(world, origin, "windows-2022")?;
    let outcome = judge(world, origin, &place);
    place.leave(world, origin)?;
    outcome
}

fn judge(world: &mut World, origin: &Machine, place: &StandIn) -> Result<()> {
    for (scenario, level, method) in [
        ("windows-2022", "application", "vss"),
        ("windows-writer-failed-japanese", "file system", "vss"),
        ("windows-lapsed", "crash", "vss"),
        ("windows-no-provider", "crash", "none"),
    ] {
        place.agent.change(|now| *now = scenario_of(scenario));
        let check = ["vm-quiesce-check", &format!("uuid={}", origin.uuid), "--minimal"];
        let said = world.xe_said(&check)?;
        if said != level {
            let all = world.xe_said(&["vm-quiesce-check", &format!("uuid={}", origin.uuid)])?;
            bail!("{scenario}: the doctor says '{said}', '{level}' expected\n{all}");
        }
        let name = format!("new-name-label={scenario}");
        let uuid = world.xe(&["vm-snapshot", &format!("uuid={}", origin.uuid), &name])?;
        let got = world.xe(&["snapshot-certificate", &format!("uuid={uuid}"), "--minimal"])?;
        let by = world.param_key("snapshot", &uuid, "snapshot-info", "method")?;
        if (got.as_str(), by.as_str()) != (level, method) {
            let all = world.xe(&["snapshot-certificate", &format!("uuid={uuid}")])?;
            bail!("{scenario}: the snapshot says {got} by {by}, {level} by {method} expected\n{all}");
        }
        if level == "crash" {
            let insisted = ["vm-snapshot-with-quiesce", &format!("uuid={}", origin.uuid), "new-name-label=insisted"];
            let refusal = world.xe_fails(&insisted)?;
            if !refusal.contains("quiesce") {
                bail!("{scenario}: a snapshot that was insisted on failed with other words: {refusal}");
            }
        }
        world.xe(&["snapshot-uninstall", &format!("snapshot-uuid={uuid}"), "force=true"])?;
        if place.agent.facts().is_held {
            bail!("{scenario}: the guest is still held");
        }
        world.note(format!("{scenario}: {got} by {by}"));
    }
    Ok(())
}

fn scenario_of(name: &str) -> Scenario {
    named().into_iter().find(|one| one.name == name).map(|one| one.scenario).unwrap_or_default()
}

/// A stand-in at the place of a machine's agent: its socket has the name of QEMU's, which is kept beside it.
struct StandIn {
    agent: Agent,
    socket: PathBuf,
    kept: PathBuf,
}

impl StandIn {
    /// The control plane is started anew: it holds a connection to the agent that was.
    fn take(world: &mut World, origin: &Machine, scenario: &str) -> Result<StandIn> {
        world.kill_daemon()?;
        let socket = world.dir.join("run/vm").join(&origin.uuid).join("agent.sock");
        let kept = socket.with_extension("kept");
        fs::rename(&socket, &kept).with_context(|| format!("moving {}", socket.display()))?;
        let agent = Agent::start(&socket, scenario_of(scenario)).context("starting the stand-in")?;
        world.start_daemon()?;
        origin.wait_for_agent(world)?;
        Ok(StandIn { agent, socket, kept })
    }

    fn leave(self, world: &mut World, origin: &Machine) -> Result<()> {
        world.kill_daemon()?;
        drop(self.agent);
        fs::rename(&self.kept, &self.socket).with_context(|| format!("moving {}", self.kept.display()))?;
        world.start_daemon()?;
        origin.wait_for_agent(world)
    }
}
