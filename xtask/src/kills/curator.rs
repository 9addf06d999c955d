//! Cuts, clones, reverts and deletes while writers write and servers die; every generation keeps its digest.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tanada_blockd_api::{Command, CutPair};
use uuid::Uuid;

use super::model::{Interval, judge_group};
use super::nbd::Nbd;
use super::plane::{Commander, Plane, patiently};
use super::writer::{Shared, Volume};
use crate::random::Random;

/// Generations kept at a time, over all volumes.
const KEPT_MAX: usize = 18;
/// Longest pause between two deeds.
const PAUSE_MS: u64 = 120;

/// What was done, for the report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deeds {
    pub cuts: u64,
    pub clones: u64,
    pub reverts: u64,
    pub deletions: u64,
    /// Generations read again and found unchanged.
    pub reread: u64,
}

struct Generation {
    id: Uuid,
    digest: u64,
}

pub struct Curator<'a> {
    plane: &'a Plane,
    volumes: &'a [Volume],
    shared: &'a Shared,
    commander: Commander<'a>,
    random: Random,
    kept: Vec<Generation>,
    deeds: Deeds,
    tokens: u64,
}

/// FNV-1a over words: equal content, equal digest.
fn digest(content: &[u8]) -> u64 {
    let words = content.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    words.fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29))
}

impl<'a> Curator<'a> {
    pub fn new(plane: &'a Plane, volumes: &'a [Volume], shared: &'a Shared, seed: u64) -> Curator<'a> {
        let commander = Commander::new(plane);
        let (random, deeds) = (Random(seed), Deeds::default());
        Curator { plane, volumes, shared, commander, random, kept: Vec::new(), deeds, tokens: 0 }
    }

    pub fn run(mut self) -> Result<Deeds> {
        while !self.shared.is_over() {
            thread::sleep(Duration::from_millis(self.random.below(PAUSE_MS)));
            if self.shared.is_calm() {
                continue;
            }
            match self.random.below(10) {
                0..=3 => self.cut()?,
                4 | 5 => self.clone_and_revert()?,
                6 | 7 => self.reread()?,
                _ => self.delete()?,
            }
            while self.kept.len() > KEPT_MAX {
                self.delete()?;
            }
        }
        // At the end all that is kept is read once more, then goes.
        for generation in std::mem::take(&mut self.kept) {
            self.compare(&generation)?;
            self.destroy(generation.id)?;
        }
        Ok(self.deeds)
    }

    /// Some or all volumes at one instant; each generation is judged against what its writer knows.
    fn cut(&mut self) -> Result<()> {
        let all = self.random.below(3) > 0;
        let members: Vec<&Volume> = self.volumes.iter().filter(|_| all || self.random.below(2) == 0).collect();
        if members.is_empty() {
            return Ok(());
        }
        let group: Vec<CutPair> =
            members.iter().map(|volume| CutPair { volume: volume.id, generation: Uuid::new_v4() }).collect();
        let bases: Vec<_> = members.iter().map(|volume| volume.begin_cut()).collect();
        let answer = self.commander.must(Command::Snapshot { group: group.clone() });
        let intervals: Vec<Interval> = members.iter().zip(bases).map(|(volume, base)| volume.end_cut(base)).collect();
        answer?;
        let contents = group.iter().map(|pair| self.content(pair.generation)).collect::<Result<Vec<_>>>()?;
        let pairs: Vec<(&Interval, &[u8])> = intervals.iter().zip(contents.iter().map(Vec::as_slice)).collect();
        judge_group(&pairs).context("a cut")?;
        for (pair, content) in group.iter().zip(&contents) {
            self.kept.push(Generation { id: pair.generation, digest: digest(content) });
        }
        self.deeds.cuts += 1;
        Ok(())
    }

    /// Reads a volume or generation as a whole, over and over until one server lives long enough.
    fn content(&mut self, target: Uuid) -> Result<Vec<u8>> {
        self.tokens += 1;
        let token = format!("curator-{}", self.tokens);
        self.commander.must(Command::Attach { token: token.clone(), target, writable: false })?;
        let plane = self.plane;
        let content = patiently("reading a generation", || Ok(Nbd::connect(&plane.nbd_socket(), &token)?.read_all()?));
        self.commander.must(Command::Detach { token })?;
        content
    }

    fn compare(&mut self, generation: &Generation) -> Result<()> {
        let content = self.content(generation.id)?;
        if digest(&content) != generation.digest {
            bail!("generation {} reads otherwise than when it was taken", generation.id);
        }
        self.deeds.reread += 1;
        Ok(())
    }

    fn any(&mut self) -> Option<usize> {
        (!self.kept.is_empty()).then(|| self.random.below(self.kept.len() as u64) as usize)
    }

    fn reread(&mut self) -> Result<()> {
        let Some(at) = self.any() else { return Ok(()) };
        let generation = self.kept.swap_remove(at);
        self.compare(&generation)?;
        self.kept.push(generation);
        Ok(())
    }

    /// A clone begins as its generation, is written to, goes back, and goes.
    fn clone_and_revert(&mut self) -> Result<()> {
        let Some(at) = self.any() else { return Ok(()) };
        let Generation { id: source, digest: expected } = self.kept[at];
        let volume = Uuid::new_v4();
        self.commander.must(Command::Clone { source, volume })?;
        self.deeds.clones += 1;
        if digest(&self.content(volume)?) != expected {
            bail!("a clone of {source} does not read as {source}");
        }
        self.scribble(volume)?;
        if self.random.below(2) == 0 {
            self.commander.must(Command::Revert { volume, generation: source })?;
            if digest(&self.content(volume)?) != expected {
                bail!("a clone of {source}, reverted to it, does not read as {source}");
            }
            self.deeds.reverts += 1;
        }
        self.destroy(volume)?;
        self.deeds.deletions += 1;
        Ok(())
    }

    /// Writes something here and there.
    fn scribble(&mut self, volume: Uuid) -> Result<()> {
        use tanada_nbd::proto::{CMD_WRITE, RequestHeader};
        self.tokens += 1;
        let token = format!("curator-{}", self.tokens);
        self.commander.must(Command::Attach { token: token.clone(), target: volume, writable: true })?;
        for _ in 0..4 {
            let place = self.random.below(1 << 20);
            let socket = self.plane.nbd_socket();
            patiently("writing to a clone", || {
                let mut nbd = Nbd::connect(&socket, &token)?;
                let offset = place * 4096 % nbd.size;
                nbd.send(RequestHeader { flags: 0, command: CMD_WRITE, cookie: 1, offset, length: 4096 }, &[7; 4096])?;
                let reply = nbd.reply()?;
                if reply.error != 0 {
                    bail!("a write to a clone fails with error {}", reply.error);
                }
                Ok(())
            })?;
        }
        self.commander.must(Command::Detach { token })?;
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let Some(at) = self.any() else { return Ok(()) };
        let generation = self.kept.swap_remove(at);
        self.deeds.deletions += 1;
        self.destroy(generation.id)
    }

    fn destroy(&mut self, target: Uuid) -> Result<()> {
        self.commander.must(Command::Destroy { target }).map(drop)
    }
}
