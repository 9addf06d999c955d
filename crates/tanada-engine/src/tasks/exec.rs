//! A tiny single-threaded executor, so that work of many steps (open, checkpoint, walk, cold reads) is straight code.
//!
//! Deterministic: tasks are polled in the order in which they became ready. A task never keeps the engine's state
//! borrowed across an await; everything it waits for is a [`Slot`] that an event fills.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

type Queue = Arc<Mutex<VecDeque<u64>>>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

struct TaskWake {
    id: u64,
    ready: Queue,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.id);
    }
}

#[derive(Default)]
pub struct Executor {
    tasks: BTreeMap<u64, (Task, Waker)>,
    ready: Queue,
    next: u64,
}

impl Executor {
    pub fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        let id = self.next;
        self.next += 1;
        let waker = Waker::from(Arc::new(TaskWake { id, ready: Arc::clone(&self.ready) }));
        self.tasks.insert(id, (Box::pin(task), waker));
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
    }

    /// Polls what is ready until nothing is.
    pub fn run(&mut self) {
        loop {
            let next = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(id) = next else { return };
            let Some((task, waker)) = self.tasks.get_mut(&id) else { continue };
            let mut context = Context::from_waker(waker);
            if task.as_mut().poll(&mut context).is_ready() {
                self.tasks.remove(&id);
            }
        }
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

struct Cell<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// The waiting end of a value that an event will bring.
pub struct Slot<T> {
    cell: Rc<RefCell<Cell<T>>>,
}

/// The other end.
pub struct Filler<T> {
    cell: Rc<RefCell<Cell<T>>>,
}

pub fn slot<T>() -> (Filler<T>, Slot<T>) {
    let cell = Rc::new(RefCell::new(Cell { value: None, waker: None }));
    (Filler { cell: Rc::clone(&cell) }, Slot { cell })
}

impl<T> Filler<T> {
    pub fn fill(self, value: T) {
        let mut cell = self.cell.borrow_mut();
        cell.value = Some(value);
        if let Some(waker) = cell.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Slot<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut cell = self.cell.borrow_mut();
        match cell.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                cell.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
