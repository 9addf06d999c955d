//! One SVM of one array, as calls with types. A call is one thing that the array does; what it means for an SR is
//! decided above ([`crate::sr`]). All that can be repeated is: what exists already is adopted, what is gone is gone.
//!
//! Sizes are bytes. Errors are the array's own ([`ArrayError`]).

mod access;
mod discovery;
mod flexvol;
mod lun;
mod snapshot;

use std::time::Duration;

use hyper::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::error::{ArrayError, ArrayResult};
use crate::model::Svm;
use crate::query::Query;
use crate::rest::{Rest, Written};

pub use discovery::connect;
pub use flexvol::FlexVolSpec;
pub use lun::LunSpec;

/// A just made thing can be missing from answers for some seconds.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);

pub struct Array {
    rest: Rest,
    svm: Svm,
}

impl Array {
    pub fn svm(&self) -> &Svm {
        &self.svm
    }

    /// The first pause between two attempts at something that is busy.
    pub fn pause(&self) -> Duration {
        self.rest.pause()
    }

    fn here(&self) -> Query {
        Query::new().with("svm.name", &self.svm.name)
    }

    async fn post(&self, path: &str, query: &Query, body: &Value) -> ArrayResult<Written> {
        self.rest.write(Method::POST, path, query, body).await
    }

    async fn patch(&self, path: &str, query: &Query, body: &Value) -> ArrayResult<Written> {
        self.rest.write(Method::PATCH, path, query, body).await
    }

    async fn delete(&self, path: &str, query: &Query) -> ArrayResult<Written> {
        self.rest.write(Method::DELETE, path, query, &Value::Object(serde_json::Map::new())).await
    }
}

/// Asks `look` until it finds what was just made, or says that it does not appear.
async fn appears<T, F: Future<Output = ArrayResult<Option<T>>>>(what: &str, look: impl Fn() -> F) -> ArrayResult<T> {
    let deadline = Instant::now() + APPEARS_WITHIN;
    let mut pause = Duration::from_millis(100);
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            let seconds = APPEARS_WITHIN.as_secs();
            return Err(ArrayError::Unreachable(format!("{what} was made but does not appear within {seconds} s")));
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}
