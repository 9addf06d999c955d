//! Requests as the array's reference means them: retries, jobs, pages.
//!
//! ```text
//!  write ─▶ 200/201 ─────────────────────────────▶ done
//!        ─▶ 202 {job} ─▶ poll ─▶ success ────────▶ done
//!                             └▶ failure ────────▶ refused (the job's code)
//!                             └▶ 404: forgotten ─▶ done, outcome unknown: the caller reads the thing again
//!        ─▶ 429, 503, 500/65541, "busy", no answer: again after a pause, until the budget is spent
//!        ─▶ any other error ─────────────────────▶ refused
//! ```
//! A request whose answer was lost is sent again. That is right here because every request of this driver names what it
//! makes: the second one is told that it exists (or is gone), and the callers take that for what it is.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::error::{ArrayError, ArrayResult, Refusal, code};
use crate::http::{Lost, Reply, Transport};
use crate::query::Query;

/// Pages followed before an answer counts as endless.
const PAGES_MAX: usize = 1000;
/// No `Retry-After` is obeyed beyond this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// How patient the client is.
#[derive(Debug, Clone)]
pub struct Patience {
    /// One exchange.
    pub exchange: Duration,
    /// A request with all its repetitions.
    pub request: Duration,
    /// Repetitions after a lost answer.
    pub losses: u32,
    /// From the first pause to the longest.
    pub pause: (Duration, Duration),
    /// A job, from its start.
    pub job: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            exchange: Duration::from_secs(60),
            // Clones are refused as long as the node's split load is at its limit; 30 s is what others wait.
            request: Duration::from_secs(90),
            losses: 4,
            pause: (Duration::from_millis(250), Duration::from_secs(3)),
            job: Duration::from_secs(600),
        }
    }
}

/// What a write came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Written {
    /// Done; the answer's body.
    Done(Value),
    /// The job ended but its record is gone.
    Unknown,
}

pub struct Rest {
    transport: Transport,
    patience: Patience,
    random: SystemRandom,
}

impl Rest {
    pub fn new(transport: Transport, patience: Patience) -> Rest {
        Rest { transport, patience, random: SystemRandom::new() }
    }

    /// The first pause between two attempts.
    pub fn pause(&self) -> Duration {
        self.patience.pause.0
    }

    /// One object. `path` begins after `/api`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, query: &Query) -> ArrayResult<T> {
        let value = self.send(&Method::GET, &query.after(&format!("/api{path}")), None).await?;
        read(&format!("GET {path}"), value)
    }

    /// All records, over all pages.
    pub async fn list<T: DeserializeOwned>(&self, path: &str, query: &Query) -> ArrayResult<Vec<T>> {
        let call = format!("GET {path}");
        let mut found = Vec::new();
        let mut next = Some(query.after(&format!("/api{path}")));
        for _ in 0..PAGES_MAX {
            let Some(page) = next.take() else { return Ok(found) };
            let mut value = self.send(&Method::GET, &page, None).await?;
            let records = value.get_mut("records").map_or(Value::Array(Vec::new()), Value::take);
            found.extend(read::<Vec<T>>(&call, records)?);
            next = value.pointer("/_links/next/href").and_then(Value::as_str).map(str::to_owned);
            if next.as_deref().is_some_and(|href| !href.starts_with('/') || href == page) {
                return Err(malformed(&call, "a link to the next page that leads nowhere"));
            }
        }
        Err(malformed(&call, "pages without end"))
    }

    /// A change, waited for.
    pub async fn write(&self, method: Method, path: &str, query: &Query, body: &Value) -> ArrayResult<Written> {
        let deadline = Instant::now() + self.patience.request;
        let mut pause = self.patience.pause.0;
        loop {
            let result = self.write_once(&method, path, query, body).await;
            match result {
                // A job that failed because something else is under way is as good as a request refused for that.
                Err(error) if error.is_busy() && !error.is_any(code::SNAPSHOT_LOCKED) && Instant::now() < deadline => {
                    tracing::debug!(%error, "busy; tried again");
                    pause = self.rest(pause).await;
                }
                other => return other,
            }
        }
    }

    async fn write_once(&self, method: &Method, path: &str, query: &Query, body: &Value) -> ArrayResult<Written> {
        let call = format!("{method} {path}");
        let value = self.send(method, &query.after(&format!("/api{path}")), Some(body)).await?;
        match value.pointer("/job/uuid").and_then(Value::as_str) {
            None => Ok(Written::Done(value)),
            Some(job) => self.await_job(&call, job).await,
        }
    }

    async fn await_job(&self, call: &str, job: &str) -> ArrayResult<Written> {
        let path = format!("/api/cluster/jobs/{}?fields=state,message,code,error", crate::query::segment(job));
        let deadline = Instant::now() + self.patience.job;
        let mut pause = self.patience.pause.0;
        loop {
            let value = match self.send(&Method::GET, &path, None).await {
                Err(error) if error.is_not_found() => return Ok(Written::Unknown),
                other => other?,
            };
            match value.get("state").and_then(Value::as_str) {
                Some("success") => return Ok(Written::Done(value)),
                Some("failure" | "cancelled" | "expired") => {
                    return Err(ArrayError::Refused(job_refusal(call, &value)));
                }
                Some("queued" | "running" | "paused") if Instant::now() < deadline => pause = self.rest(pause).await,
                Some("queued" | "running" | "paused") => {
                    let seconds = self.patience.job.as_secs();
                    return Err(ArrayError::Unreachable(format!("{call}: job {job} did not end within {seconds} s")));
                }
                other => return Err(malformed(call, &format!("job {job} is in the state {other:?}"))),
            }
        }
    }

    /// One request, repeated while that is right.
    async fn send(&self, method: &Method, path: &str, body: Option<&Value>) -> ArrayResult<Value> {
        let call = format!("{method} {}", path.split('?').next().unwrap_or(path));
        let bytes = body.map(|body| Bytes::from(body.to_string()));
        let deadline = Instant::now() + self.patience.request;
        let (mut pause, mut losses) = (self.patience.pause.0, 0);
        loop {
            let reply = self.transport.exchange(method, path, bytes.as_ref(), self.patience.exchange).await;
            let reply = match reply {
                Ok(reply) => reply,
                Err(Lost::Untrusted(words)) => return Err(ArrayError::Untrusted(words)),
                Err(Lost::Unconnected(words) | Lost::Unanswered(words)) => {
                    if losses >= self.patience.losses || Instant::now() >= deadline {
                        return Err(ArrayError::Unreachable(format!("{call}: {words}")));
                    }
                    tracing::debug!(%call, %words, "no answer; asked again");
                    losses += 1;
                    pause = self.rest(pause).await;
                    continue;
                }
            };
            let refusal = match outcome(&call, &reply) {
                Ok(value) => return Ok(value),
                Err(ArrayError::Refused(refusal)) => refusal,
                Err(other) => return Err(other),
            };
            if !overloaded(&refusal) || Instant::now() >= deadline {
                return Err(ArrayError::Refused(refusal));
            }
            match reply.retry_after {
                Some(wanted) => sleep(wanted.min(RETRY_AFTER_MAX)).await,
                None => pause = self.rest(pause).await,
            }
        }
    }

    /// Sleeps about `pause` (other clients wait too, hence the jitter) and returns the next one.
    async fn rest(&self, pause: Duration) -> Duration {
        let mut byte = [128; 1];
        if self.random.fill(&mut byte).is_err() {
            tracing::debug!("no random number for a pause");
        }
        sleep(pause.mul_f64(0.75 + f64::from(byte[0]) / 512.0)).await;
        (pause * 2).min(self.patience.pause.1)
    }
}

/// The body of an answer, or what the array refused.
fn outcome(call: &str, reply: &Reply) -> ArrayResult<Value> {
    let parsed = match reply.body.iter().all(u8::is_ascii_whitespace) {
        true => Ok(json!({})),
        false => serde_json::from_slice::<Value>(&reply.body),
    };
    if (200..300).contains(&reply.status) {
        return parsed.map_err(|error| malformed(call, &format!("an answer that is no JSON: {error}")));
    }
    let body = parsed.unwrap_or_default();
    let error = body.get("error").cloned().unwrap_or_default();
    let words = error.get("message").and_then(Value::as_str).unwrap_or("the array gave no reason").to_owned();
    let details = error.get("arguments").and_then(Value::as_array).into_iter().flatten();
    let details: Vec<&str> = details.filter_map(|detail| detail.get("message")?.as_str()).collect();
    let message = if details.is_empty() { words } else { format!("{words} ({})", details.join("; ")) };
    let refusal = Refusal { call: call.to_owned(), status: reply.status, code: number(error.get("code")), message };
    Err(ArrayError::Refused(refusal))
}

fn job_refusal(call: &str, job: &Value) -> Refusal {
    let text = |pointer: &str| job.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
    let message = text("/error/message").or(text("/message")).unwrap_or("the job gave no reason").to_owned();
    let code = match number(job.pointer("/error/code")) {
        0 => number(job.get("code")),
        found => found,
    };
    Refusal { call: call.to_owned(), status: 200, code, message }
}

/// Codes are strings in errors and numbers in jobs.
fn number(value: Option<&Value>) -> u64 {
    let Some(value) = value else { return 0 };
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn overloaded(refusal: &Refusal) -> bool {
    matches!(refusal.status, 429 | 503) || matches!(refusal.code, code::RPC_TIMEOUT | code::TOO_MANY_REQUESTS)
}

fn read<T: DeserializeOwned>(call: &str, value: Value) -> ArrayResult<T> {
    serde_json::from_value(value).map_err(|error| malformed(call, &format!("an answer of another shape: {error}")))
}

fn malformed(call: &str, why: &str) -> ArrayError {
    ArrayError::Malformed { call: call.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{job_refusal, outcome, overloaded};
    use crate::error::ArrayError;
    use crate::http::Reply;
    use bytes::Bytes;
    use serde_json::json;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status, retry_after: None, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn answers_are_told_from_refusals() {
        assert_eq!(outcome("x", &reply(200, "")), Ok(json!({})));
        assert_eq!(outcome("x", &reply(201, r#"{"a":1}"#)), Ok(json!({"a":1})));
        assert!(matches!(outcome("x", &reply(200, "<html>")), Err(ArrayError::Malformed { .. })));
        let body = r#"{"error":{"message":"m","code":"5374242","arguments":[{"code":"1","message":"why"}]}}"#;
        let Err(ArrayError::Refused(refusal)) = outcome("POST /l", &reply(409, body)) else { panic!("not refused") };
        assert_eq!((refusal.code, refusal.status), (5_374_242, 409));
        assert_eq!(refusal.message, "m (why)");
        let Err(ArrayError::Refused(refusal)) = outcome("x", &reply(503, "<html>")) else { panic!("not refused") };
        assert!(overloaded(&refusal));
        assert_eq!(refusal.code, 0);
    }

    #[test]
    fn a_failed_job_is_a_refusal_with_its_code() {
        let old = json!({"state":"failure","code":1_638_555,"message":"busy"});
        assert_eq!(job_refusal("x", &old).code, 1_638_555);
        let new = json!({"state":"failure","code":4,"message":"","error":{"code":"1638555","message":"locked"}});
        let refusal = job_refusal("x", &new);
        assert_eq!((refusal.code, refusal.message.as_str()), (1_638_555, "locked"));
    }
}
