//! The difference of two versions of one family: both trees side by side, pruning on identical pointers only
//! (rule V11). Births alone would miss holes: a null has none.

use tanada_format::node::span_blocks;
use tanada_format::{FANOUT, Pointer, ROOT_LEVEL};

use super::{NodeSource, node_behind};
use crate::failure::Failure;

/// What became of changed places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangedRun {
    pub place: u64,
    pub count: u64,
    /// Mapped now; else unmapped now and mapped before.
    pub mapped: bool,
}

/// The changed runs from `old` to `new` within `first..end`, at most `runs_max`. Neighbours of one kind are one run.
pub async fn diff<S: NodeSource>(
    source: &S,
    old: Pointer,
    new: Pointer,
    first: u64,
    end: u64,
    runs_max: usize,
) -> Result<Vec<ChangedRun>, Failure> {
    let mut finder = Finder { source, first, end, runs_max, runs: Vec::new() };
    finder.subtree(old, new, ROOT_LEVEL, 0).await?;
    finder.runs.truncate(runs_max);
    Ok(finder.runs)
}

struct Finder<'a, S> {
    source: &'a S,
    first: u64,
    end: u64,
    runs_max: usize,
    runs: Vec<ChangedRun>,
}

impl<S: NodeSource> Finder<'_, S> {
    async fn subtree(&mut self, old: Pointer, new: Pointer, level: u8, start: u64) -> Result<(), Failure> {
        let outside = start + span_blocks(level) <= self.first || start >= self.end;
        if outside || old == new || self.runs.len() > self.runs_max {
            return Ok(());
        }
        let before = node_behind(self.source, old).await?;
        let after = node_behind(self.source, new).await?;
        for slot in 0..FANOUT {
            let (old, new) = (before.pointers[slot], after.pointers[slot]);
            if level > 0 {
                let below = start + slot as u64 * span_blocks(level - 1);
                Box::pin(self.subtree(old, new, level - 1, below)).await?;
            } else if old != new {
                self.changed(start + slot as u64, !new.is_null());
            }
        }
        Ok(())
    }

    fn changed(&mut self, place: u64, mapped: bool) {
        if place < self.first || place >= self.end {
            return;
        }
        match self.runs.last_mut() {
            Some(last) if last.mapped == mapped && last.place + last.count == place => last.count += 1,
            _ => self.runs.push(ChangedRun { place, count: 1, mapped }),
        }
    }
}
