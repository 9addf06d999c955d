//! Jobs: writes that go on after their answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::ApiError;
use crate::api::resource::Run;
use crate::model::{Array, now_ms, timestamp};

/// Trouble that a job is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFault {
    /// It fails with this error code and does nothing.
    pub fails: Option<String>,
    /// It does its work and then says that it failed.
    pub fails_after: Option<String>,
    /// Its record is gone when it has ended.
    pub vanishes: bool,
    /// It takes this long in addition.
    pub slow_ms: u64,
}

#[derive(Debug, Clone)]
struct Job {
    description: String,
    state: &'static str,
    message: String,
    code: i64,
    error: Option<Value>,
    start_time: String,
    end_time: Option<String>,
    ended_ms: Option<u64>,
    svm: Option<String>,
}

/// All jobs that are not forgotten yet.
pub struct Jobs {
    table: Mutex<BTreeMap<Uuid, Job>>,
    ended: Condvar,
    duration_ms: u64,
    expiry_ms: u64,
}

impl Jobs {
    pub fn new(duration_ms: u64, expiry_ms: u64) -> Jobs {
        Jobs { table: Mutex::default(), ended: Condvar::new(), duration_ms, expiry_ms }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Uuid, Job>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = now_ms().saturating_sub(self.expiry_ms);
        table.retain(|_, job| job.ended_ms.is_none_or(|ended| ended >= oldest));
        table
    }

    /// Starts a job on a thread of its own.
    pub fn start(
        self: &Arc<Jobs>,
        array: &Arc<Mutex<Array>>,
        description: String,
        svm: Option<String>,
        fault: JobFault,
        run: Run,
    ) -> Uuid {
        let uuid = Uuid::new_v4();
        let job = Job {
            description,
            state: "running",
            message: String::new(),
            code: 0,
            error: None,
            start_time: timestamp(),
            end_time: None,
            ended_ms: None,
            svm,
        };
        self.table().insert(uuid, job);
        let (jobs, array) = (Arc::clone(self), Arc::clone(array));
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(jobs.duration_ms + fault.slow_ms));
            let result = match &fault.fails {
                Some(code) => Err(ApiError::injected(code)),
                None => {
                    let done = run(&mut array.lock().unwrap_or_else(PoisonError::into_inner));
                    done.and_then(|()| fault.fails_after.as_ref().map_or(Ok(()), |code| Err(ApiError::injected(code))))
                }
            };
            jobs.end(uuid, result, fault.vanishes);
        });
        uuid
    }

    fn end(&self, uuid: Uuid, result: Result<(), ApiError>, vanishes: bool) {
        let mut table = self.table();
        if vanishes {
            table.remove(&uuid);
        } else if let Some(job) = table.get_mut(&uuid) {
            job.end_time = Some(timestamp());
            job.ended_ms = Some(now_ms());
            match result {
                Ok(()) => job.state = "success",
                Err(error) => {
                    job.state = "failure";
                    job.code = error.code.parse().unwrap_or(0);
                    job.error = Some(error.body()["error"].clone());
                    job.message = error.message;
                }
            }
        }
        self.ended.notify_all();
    }

    /// Waits for a job; none where it has not ended in time.
    pub fn wait(&self, uuid: Uuid, patience: Duration) -> Option<Result<(), ApiError>> {
        let start = Instant::now();
        let mut table = self.table();
        loop {
            match table.get(&uuid) {
                Some(job) if job.state == "success" => return Some(Ok(())),
                Some(job) if job.state == "failure" => {
                    let error = ApiError::injected(&job.code.to_string());
                    return Some(Err(ApiError { message: job.message.clone(), ..error }));
                }
                // It vanished, as it was told to.
                None => return None,
                Some(_) => {}
            }
            let left = patience.checked_sub(start.elapsed())?;
            table = self.ended.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn records(&self) -> Vec<Value> {
        let record = |(uuid, job): (&Uuid, &Job)| {
            let mut record = json!({
                "uuid": uuid, "description": job.description, "state": job.state, "message": job.message,
                "code": job.code, "start_time": job.start_time, "end_time": job.end_time, "error": job.error,
            });
            if let Some(svm) = &job.svm {
                record["svm"] = json!({ "name": svm });
            }
            record
        };
        self.table().iter().map(record).collect()
    }
}
