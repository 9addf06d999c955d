//! A data write and its record sent together, where a flush is likely to follow: two trips to the device become one.
//!
//! ```text
//!   start_write --+--> data write -------+--> both ended --> applied, acknowledged, synced as always
//!                 +--> journal block ----+        |
//!                                                 +-- the data write failed --> the block written anew, empty --> error
//! ```
//! Rule J1 says that a record is appended when its data is there; else a flushed record may stand behind one whose data
//! was lost. A pair keeps what the rule is for:
//! 1. Its records are alone in their block, and nothing is recorded behind it until both have ended. So nothing that was
//!    acknowledged, synced or kept ever stands behind a record without its data, and replay stopping there loses nothing.
//! 2. Its records are applied when both have ended. Nothing is recorded in between, so the journal has the order in which
//!    records were applied (V1); no cut is made meanwhile either, so the block is on the right side of the next one.
//! 3. The block does not count as written before both have ended: no acknowledgement and no sync covers it (J6, J9).
//! 4. If the data write fails, the block is written anew without records before anything is recorded behind it. That is
//!    no breach of J5: no flush covered it.
//!
//! Other data writes may be in flight meanwhile; their records wait. A pair is begun only while none is, so that writers
//! at depth do not wait for each other.

use tanada_disk::DiskResult;
use tanada_format::Record;
use tanada_format::journal::RECORDS_BYTES;

use crate::guest::data::DataWrite;
use crate::state::{Pending, State};

/// Records between two flushes, at most, for writes to be paired: with more, a journal block for each of them costs more
/// than it saves.
const FLUSH_INTERVAL_MAX: u32 = 4;

#[derive(Default)]
pub struct Pairs {
    current: Option<Pair>,
    /// Data writes that ended meanwhile.
    held: Vec<(DataWrite, DiskResult)>,
}

struct Pair {
    seq: u64,
    is_block_written: bool,
    data: Option<(DataWrite, DiskResult)>,
}

impl Pairs {
    /// True where nothing may be recorded now.
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    /// The store has failed.
    pub fn clear(&mut self) {
        *self = Pairs::default();
    }
}

impl State {
    /// Appends the records of a data write that is about to start, where it may be paired.
    pub fn try_pair(&mut self, write: &mut DataWrite) {
        let may = self.syncs.expects_flush(FLUSH_INTERVAL_MAX)
            && self.data_in_flight == 1 // this one
            && self.pending.is_empty()
            // Each pair that is refused would keep its blocks until a checkpoint, which finds no room either.
            && self.medium_retry_at().is_none()
            && !self.pairs.is_busy();
        if !may || write.runs.iter().any(|run| !self.is_live_head(run.head)) {
            return;
        }
        let records: Vec<Record> = write.runs.iter().map(|run| run.record()).collect();
        if records.iter().map(Record::encoded_bytes).sum::<usize>() > RECORDS_BYTES {
            return;
        }
        let seq = self.journal.append_alone(&records);
        self.pairs.current = Some(Pair { seq, is_block_written: false, data: None });
        write.is_paired = true;
    }

    /// A data write has ended: of a pair, beside one, or alone.
    pub fn data_written(&mut self, write: DataWrite, result: DiskResult) {
        self.data_in_flight -= 1;
        match &mut self.pairs.current {
            Some(pair) if write.is_paired => {
                pair.data = Some((write, result));
                self.move_pair();
            }
            Some(_) => self.pairs.held.push((write, result)),
            None => self.record_write(write, result),
        }
    }

    /// The pair's journal block is on the device.
    pub fn pair_block_written(&mut self) {
        if let Some(pair) = &mut self.pairs.current {
            pair.is_block_written = true;
        }
        self.move_pair();
    }

    fn move_pair(&mut self) {
        let Some(pair) = self.pairs.current.as_mut().filter(|pair| pair.is_block_written) else { return };
        match pair.data.take() {
            None => {}
            Some((write, Ok(_))) => {
                let seq = pair.seq;
                self.pairs.current = None;
                self.apply_write(write, seq);
                self.end_pair();
            }
            Some(failed) => {
                pair.data = Some(failed);
                let op = self.journal.void_alone(&self.alloc.geometry());
                self.start_io(op, Pending::Void);
            }
        }
    }

    /// Nobody will take the pair's block for a record of data that is not there.
    pub fn voided(&mut self, result: DiskResult) {
        if let Err(error) = result {
            return self.fail(format!("writing the journal failed: {error}"));
        }
        if let Some((write, result)) = self.pairs.current.take().and_then(|pair| pair.data) {
            self.record_write(write, result);
        }
        self.end_pair();
    }

    fn end_pair(&mut self) {
        self.journal.settle_alone();
        self.acknowledge_up_to(self.journal.written());
        for (write, result) in std::mem::take(&mut self.pairs.held) {
            self.record_write(write, result);
        }
        self.room_waiters.drain(..).for_each(|filler| filler.fill(()));
    }
}
