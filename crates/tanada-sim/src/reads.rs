//! Reads against the history: what a guest may see, and what a failure may be.

use tanada_engine::{Reply, Segment};
use tanada_units::Uuid;

use crate::content::{BLOCK, Content};
use crate::history::Interval;
use crate::model::Kept;
use crate::world::{Stop, World, wrong};

impl World {
    pub fn check_read(
        &self,
        target: Uuid,
        offset: u64,
        length: u64,
        within: Interval,
        reply: Reply,
    ) -> Result<(), Stop> {
        let bytes = flatten(reply, length)?;
        let mut done = 0;
        while done < bytes.len() {
            let at = ((offset + done as u64) % BLOCK as u64) as usize;
            let take = (bytes.len() - done).min(BLOCK - at);
            let block = (offset + done as u64) / BLOCK as u64;
            let seen = &bytes[done..done + take];
            let matches = |content: &Content| &content.bytes()[at..at + take] == seen;
            if !self.may_read(target, block, matches, within) {
                let seen = Content::from_bytes(seen);
                return wrong(format!(
                    "read of {target} block {block} byte {at} gave {seen:?}, {}",
                    self.expected(target, block)
                ));
            }
            done += take;
        }
        Ok(())
    }

    fn may_read(&self, target: Uuid, block: u64, matches: impl Fn(&Content) -> bool, within: Interval) -> bool {
        if let Some(volume) = self.model.volumes.get(&target) {
            return match volume.blocks.get(&block) {
                Some(history) => !history.instants(&self.model.ops, matches, |_, _| false, within).is_empty(),
                None => matches(&Content::Zero),
            };
        }
        match self.model.generations.get(&target).map(|generation| &generation.kept) {
            Some(Kept::Settled(settled)) => matches(settled.get(&block).map_or(&Content::Zero, |(content, _)| content)),
            Some(Kept::Open { blocks, within, .. }) => match blocks.get(&block) {
                Some(history) => !history.instants(&self.model.ops, matches, |_, _| false, *within).is_empty(),
                None => matches(&Content::Zero),
            },
            None => true,
        }
    }

    /// For messages: what the block may hold.
    pub fn expected(&self, target: Uuid, block: u64) -> String {
        let tell = |history: &crate::history::BlockHistory| {
            let mut text = format!("allowed: {:?}", history.base);
            for step in &history.steps {
                let op = &self.model.ops[step.op];
                let answered = if op.answered == u64::MAX { "never".to_owned() } else { op.answered.to_string() };
                text += &format!(
                    " then {:?} (submitted {}, answered {answered}, durable {})",
                    step.contents, op.submitted, op.durable
                );
            }
            text
        };
        if let Some(volume) = self.model.volumes.get(&target) {
            return volume.blocks.get(&block).map_or("allowed: zeros".to_owned(), tell);
        }
        match self.model.generations.get(&target).map(|generation| &generation.kept) {
            Some(Kept::Settled(settled)) => format!("allowed: {:?}", settled.get(&block)),
            Some(Kept::Open { blocks, within, .. }) => {
                format!("within {within:?} {}", blocks.get(&block).map_or("allowed: zeros".to_owned(), tell))
            }
            None => "unknown target".to_owned(),
        }
    }
}

/// The bytes of a reply to a read.
pub fn flatten(reply: Reply, length: u64) -> Result<Vec<u8>, Stop> {
    let Reply::Data(segments) = reply else { return wrong(format!("a read was answered with {reply:?}")) };
    let mut bytes = Vec::with_capacity(length as usize);
    for segment in segments {
        match segment {
            Segment::Data(data) => bytes.extend_from_slice(&data),
            Segment::Zeros(zeros) => bytes.resize(bytes.len() + zeros as usize, 0),
        }
    }
    if bytes.len() as u64 != length {
        return wrong(format!("a read of {length} bytes was answered with {} bytes", bytes.len()));
    }
    Ok(bytes)
}
