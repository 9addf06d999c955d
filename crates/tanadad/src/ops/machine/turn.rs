//! One cut of a machine at a time.
//!
//! XenAPI lets snapshots and checkpoints of one machine be asked for together. Each of them may freeze the guest, hold its
//! processors or move its memory, and what the second does in the middle of the first shows in neither: a memory with a
//! frozen guest in it, a machine that goes on between its memory and its disks. So they take turns, as they came.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tanada_xapi::{ApiResult, Ref};
use tokio::sync::OwnedMutexGuard;

use crate::context::CallContext;
use crate::ops::allowed;

/// The machines that are being cut, or are waited for.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<Ref, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, vm: &Ref) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(vm).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(vm.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// Waits for the machine's turn, which lasts until the answer is dropped. The operation is marked already.
///
/// # Errors
/// `TASK_CANCELLED`; what stands against the operation by now.
pub async fn turn(ctx: &CallContext, vm: &Ref, operation: &str) -> ApiResult<OwnedMutexGuard<()>> {
    let turn = ctx.task.until_cancelled(ctx.daemon.turns.of(vm).lock_owned()).await?;
    // The power may have been taken away meanwhile.
    ctx.db().read(|state| allowed::vm(state, vm, operation))?;
    Ok(turn)
}
