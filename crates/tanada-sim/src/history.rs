//! What a block may hold, told by what clients sent and what they were answered.
//!
//! Events are numbered. An operation has the number at which it was submitted and, once answered, that of its answer. On
//! one block operations take effect in the order of submission (rule W1), so after any n of them its content is known.
//! A state of the store is one *instant* T where T is such that
//! - nothing submitted after T is in it, and
//! - everything answered before T is in it.
//!
//! A block that shows the content after its operation i therefore allows T between the submission of i and the earliest
//! answer to an operation after i. Content that several i explain gives several intervals. A set of blocks is one instant
//! exactly when the intersection over all blocks is not empty. The same test serves a read (T between its submission and
//! its answer), a snapshot of a group (T between submission and answer, over all members) and recovery (T before the crash,
//! over the whole store: rule J2).

use std::rc::Rc;

use crate::content::{BLOCK, Content};

/// A time that never comes: not answered.
pub const NEVER: u64 = u64::MAX;

/// Stands for an operation that cannot be told from others by what it left.
pub const UNKNOWN: usize = usize::MAX;

/// An operation on one volume, as clients saw it.
#[derive(Debug, Clone)]
pub struct Op {
    pub submitted: u64,
    /// When it was answered with success; [`NEVER`] if not, or with a failure: then it may be there or not.
    pub answered: u64,
    /// A flush (or its own FUA) promised that it survives a power cut.
    pub durable: bool,
}

/// What an operation does to one block.
#[derive(Debug, Clone)]
pub enum Change {
    Zero,
    /// Bytes laid over the block from byte `at` on.
    Patch {
        at: usize,
        bytes: Rc<[u8]>,
    },
}

impl Change {
    fn apply(&self, before: &Content) -> Content {
        match self {
            Change::Zero => Content::Zero,
            Change::Patch { at, bytes } if *at == 0 && bytes.len() == BLOCK => Content::from_bytes(bytes),
            Change::Patch { at, bytes } => before.patched(*at, bytes),
        }
    }
}

/// An operation on one block, and what the block may hold then.
#[derive(Debug, Clone)]
pub struct Step {
    pub op: usize,
    pub change: Change,
    /// It failed: it may have happened or not.
    pub doubtful: bool,
    /// It was seen in a generation that is durable, so here it cannot be missing.
    pub certain: bool,
    /// One content, or several where failed operations came before.
    pub contents: Vec<Content>,
}

/// A block's content, oldest first.
#[derive(Debug, Clone)]
pub struct BlockHistory {
    pub base: Vec<Content>,
    /// Operation that gave the base; names it when two versions are compared.
    pub base_op: usize,
    pub steps: Vec<Step>,
}

/// Inclusive.
pub type Interval = (u64, u64);

impl BlockHistory {
    pub fn settled(content: Content, op: usize) -> BlockHistory {
        BlockHistory { base: vec![content], base_op: op, steps: Vec::new() }
    }

    pub fn push(&mut self, op: usize, change: Change) {
        self.steps.push(Step { op, change, doubtful: false, certain: false, contents: Vec::new() });
        self.derive(self.steps.len() - 1);
    }

    /// A failed operation may have changed the block or not: what follows builds on either.
    pub fn doubt(&mut self, failed: usize) {
        let Some(at) = self.steps.iter().position(|step| step.op == failed) else { return };
        self.steps[at].doubtful = true;
        (at..self.steps.len()).for_each(|n| self.derive(n));
    }

    /// Works out the contents after step `n` from those before it.
    fn derive(&mut self, n: usize) {
        let before = if n == 0 { self.base.clone() } else { self.steps[n - 1].contents.clone() };
        let step = &mut self.steps[n];
        let mut contents: Vec<Content> = Vec::new();
        let after = before.iter().map(|content| step.change.apply(content));
        let unchanged = before.iter().filter(|_| step.doubtful).cloned();
        for content in after.chain(unchanged) {
            if !contents.contains(&content) {
                contents.push(content);
            }
        }
        step.contents = contents;
    }

    /// Forgets states that nothing outstanding can see any more: an operation after them was answered before `oldest`,
    /// the submission of the oldest outstanding request, and is `settled`.
    pub fn prune(&mut self, ops: &[Op], oldest: u64) {
        let settled = |step: &Step| ops[step.op].answered < oldest && ops[step.op].durable;
        if let Some(last) = self.steps.iter().rposition(settled) {
            let kept = self.steps.split_off(last + 1);
            if let Some(step) = self.steps.pop() {
                self.base = step.contents;
                self.base_op = step.op;
            }
            self.steps = kept;
        }
    }

    /// What the block may hold after its first `n` operations.
    fn contents_after(&self, n: usize) -> &[Content] {
        if n == 0 { &self.base } else { &self.steps[n - 1].contents }
    }

    /// The instants at which the block holds something that `matches`, as far as they touch `within`.
    /// States before an operation that `must` be there (told whether it is certain) do not count.
    pub fn instants(
        &self,
        ops: &[Op],
        matches: impl Fn(&Content) -> bool,
        must: impl Fn(&Op, bool) -> bool,
        within: Interval,
    ) -> Vec<Interval> {
        let mut intervals = Vec::new();
        let mut earliest_answer = NEVER;
        for n in (0..=self.steps.len()).rev() {
            let step = n.checked_sub(1).map(|n| &self.steps[n]);
            let contents = self.contents_after(n);
            let submitted = step.map_or(0, |step| ops[step.op].submitted);
            let interval = (submitted.max(within.0), earliest_answer.min(within.1));
            if interval.0 <= interval.1 && contents.iter().any(&matches) {
                intervals.push(interval);
            }
            let Some(step) = step else { break };
            earliest_answer = earliest_answer.min(ops[step.op].answered);
            // What changed nothing need not have left anything that could be missing.
            if must(&ops[step.op], step.certain) && self.contents_after(n - 1) != contents {
                break;
            }
        }
        intervals
    }

    /// What the block holds when nothing is outstanding, and the operation that gave it; `None` where a failed operation
    /// leaves several possibilities.
    pub fn now(&self) -> Option<(Content, usize)> {
        let (contents, op) = self.steps.last().map_or((&self.base, self.base_op), |step| (&step.contents, step.op));
        match &contents[..] {
            [content] => Some((content.clone(), op)),
            _ => None,
        }
    }

    /// The step that gave the content, if it is the only state that explains it.
    pub fn only_step(&mut self, content: &Content) -> Option<&mut Step> {
        let elsewhere = self.base.contains(content);
        let mut steps = self.steps.iter_mut().filter(|step| step.contents.contains(content));
        let step = steps.next()?;
        if elsewhere || steps.next().is_some() { None } else { Some(step) }
    }

    /// The operation that gave the content; names it when versions are compared. [`UNKNOWN`] where several may have.
    pub fn op_of(&self, content: &Content) -> usize {
        let mut ops = self.steps.iter().filter(|step| step.contents.contains(content)).map(|step| step.op);
        match (self.base.contains(content), ops.next(), ops.next()) {
            (false, Some(op), None) => op,
            (true, None, None) => self.base_op,
            _ => UNKNOWN,
        }
    }
}

/// What is in some interval of both, in intervals that do not meet.
pub fn intersect(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let (a, b) = (united(a), united(b));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut both = Vec::new();
    while let (Some(&&x), Some(&&y)) = (a.peek(), b.peek()) {
        let interval = (x.0.max(y.0), x.1.min(y.1));
        if interval.0 <= interval.1 {
            both.push(interval);
        }
        let first_to_end = if x.1 < y.1 { &mut a } else { &mut b };
        first_to_end.next();
    }
    both
}

/// The same instants in intervals in order that do not meet: many operations on a block give many that overlap.
fn united(intervals: &[Interval]) -> Vec<Interval> {
    let mut sorted: Vec<Interval> = intervals.iter().copied().filter(|interval| interval.0 <= interval.1).collect();
    sorted.sort_unstable();
    let mut united: Vec<Interval> = Vec::with_capacity(sorted.len());
    for interval in sorted {
        match united.last_mut() {
            Some(last) if interval.0 <= last.1.saturating_add(1) => last.1 = last.1.max(interval.1),
            _ => united.push(interval),
        }
    }
    united
}

#[cfg(test)]
mod tests {
    use super::{BlockHistory, Change, NEVER, Op, intersect};
    use crate::content::{BLOCK, Content};

    fn content(n: u8) -> Content {
        Content::from_bytes(&[n])
    }

    fn full(n: u8) -> Change {
        let mut bytes = vec![0; BLOCK];
        bytes[0] = n;
        Change::Patch { at: 0, bytes: bytes.into() }
    }

    fn op(submitted: u64, answered: u64) -> Op {
        Op { submitted, answered, durable: false }
    }

    /// Two dependent writes to two blocks: the later without the earlier is no instant.
    #[test]
    fn the_later_of_two_dependent_writes_alone_is_no_instant() {
        let ops = [op(1, 2), op(3, NEVER)];
        let mut first = BlockHistory::settled(content(0), 0);
        first.push(0, full(1));
        let mut second = BlockHistory::settled(content(0), 0);
        second.push(1, full(2));
        let see =
            |block: &BlockHistory, wanted: u8| block.instants(&ops, |c| *c == content(wanted), |_, _| false, (0, 9));
        assert!(!intersect(&see(&first, 1), &see(&second, 2)).is_empty());
        assert!(!intersect(&see(&first, 1), &see(&second, 0)).is_empty());
        assert!(!intersect(&see(&first, 0), &see(&second, 0)).is_empty());
        assert!(intersect(&see(&first, 0), &see(&second, 2)).is_empty());
    }

    /// Zeros over a hole leave nothing behind: the store may be at an instant before them.
    #[test]
    fn what_changed_nothing_rules_out_nothing() {
        let ops = [op(3, 4)];
        let mut block = BlockHistory::settled(content(0), 0);
        block.push(0, Change::Zero);
        assert_eq!(block.instants(&ops, |c| *c == content(0), |_, _| true, (0, 9)), [(3, 9), (0, 4)]);
    }

    #[test]
    fn what_must_be_there_rules_out_older_states() {
        let ops = [op(1, 2), op(3, 4)];
        let mut block = BlockHistory::settled(content(0), 0);
        block.push(0, full(1));
        block.push(1, full(2));
        let must = |op: &Op, _| op.answered == 2;
        assert!(block.instants(&ops, |c| *c == content(0), must, (0, 9)).is_empty());
        assert!(!block.instants(&ops, |c| *c == content(1), must, (0, 9)).is_empty());
    }

    #[test]
    fn an_intersection_is_what_both_allow_in_as_few_intervals_as_there_can_be() {
        let (a, b) = ([(5, 9), (1, 3), (4, 4), (20, NEVER)], [(3, 5), (8, 30), (9, 12)]);
        assert_eq!(intersect(&a, &b), [(3, 5), (8, 9), (20, 30)]);
        assert_eq!(intersect(&b, &a), intersect(&a, &b));
        assert_eq!(intersect(&a, &[(10, 19)]), []);
    }
}
