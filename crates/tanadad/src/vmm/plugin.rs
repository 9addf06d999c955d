//! `VM.call_plugin(vm, "guest-agent", fn, args)`: what an administrator may have the guest agent do. Answers JSON text.
//!
//! | fn | args | answer |
//! |---|---|---|
//! | `ping` | | `{}` |
//! | `info`, `osinfo`, `network`, `fsinfo` | | the agent's own words |
//! | `exec` | `command` (for `/bin/sh -c`) or `path` and `arg0`, `arg1`, ...; `input`; `timeout` in seconds | `{"exitcode", "stdout", "stderr", "truncated"}` |
//! | `read-file` | `path`, `timeout` | `{"content"}`, in base64 |
//! | `write-file` | `path`, `content` in base64, `timeout` | `{}` |

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use tanada_qemu::QemuError;
use tanada_qemu::agent::{ExecRequest, GuestAgent};
use tanada_xapi::{ApiError, ApiResult, Map, Value};

use super::Running;

/// The plugin's name; another is [`crate::ops::machine::trial`].
pub const NAME: &str = "guest-agent";

const TIMEOUT_DEFAULT_S: u64 = 120;
const TIMEOUT_MAX_S: u64 = 3600;
const PING_LIMIT: Duration = Duration::from_secs(5);
/// Files are for configuration and reports, not for disks.
const FILE_BYTES_MAX: usize = 16 << 20;

/// Runs one function of the plugin.
pub async fn call(machine: &Running, function: &str, args: &Map) -> ApiResult<String> {
    if !machine.agent_present() {
        return Err(failure(function, "the guest's agent has not opened its port"));
    }
    let agent = machine.agent();
    let answer = match function {
        "ping" => agent.ping(PING_LIMIT).await.map(|()| json!({})),
        "info" => agent.info().await,
        "osinfo" => agent.osinfo().await,
        "network" => agent.network_interfaces().await,
        "fsinfo" => agent.fsinfo().await,
        "exec" => exec(&agent, args).await?,
        "read-file" => read_file(&agent, args).await?,
        "write-file" => write_file(&agent, args).await?,
        _ => {
            let words = "ping, info, osinfo, network, fsinfo, exec, read-file and write-file are accepted";
            return Err(ApiError::invalid_value("fn", format!("{function}: {words}")));
        }
    };
    answer.map(|answer| answer.to_string()).map_err(|error| failure(function, error))
}

async fn exec(agent: &GuestAgent, args: &Map) -> ApiResult<Result<Json, QemuError>> {
    let limit = limit(args)?;
    let mut request = match (argument(args, "command"), argument(args, "path")) {
        (Some(command), None) => ExecRequest {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), command.into()],
            ..ExecRequest::default()
        },
        (None, Some(path)) => {
            let arguments = (0..).map_while(|number| argument(args, &format!("arg{number}")).map(str::to_owned));
            ExecRequest { path: path.into(), arguments: arguments.collect(), ..ExecRequest::default() }
        }
        _ => return Err(ApiError::invalid_value("args", "exec: either command or path is accepted")),
    };
    request.input = argument(args, "input").unwrap_or_default().as_bytes().to_vec();
    Ok(agent.exec(&request, limit).await.map(|outcome| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut answer = json!({
            "exitcode": outcome.exit_code,
            "stdout": text(&outcome.stdout),
            "stderr": text(&outcome.stderr),
            "truncated": outcome.truncated,
        });
        if let Some(signal) = outcome.signal {
            answer["signal"] = signal.into();
        }
        answer
    }))
}

async fn read_file(agent: &GuestAgent, args: &Map) -> ApiResult<Result<Json, QemuError>> {
    let (path, limit) = (needed(args, "path")?, limit(args)?);
    let content = agent.read_file(path, FILE_BYTES_MAX, limit).await;
    Ok(content.map(|content| json!({ "content": BASE64.encode(content) })))
}

async fn write_file(agent: &GuestAgent, args: &Map) -> ApiResult<Result<Json, QemuError>> {
    let (path, limit) = (needed(args, "path")?, limit(args)?);
    let content = BASE64.decode(needed(args, "content")?);
    let content =
        content.map_err(|error| ApiError::invalid_value("content", format!("base64 is accepted: {error}")))?;
    Ok(agent.write_file(path, &content, limit).await.map(|()| json!({})))
}

fn argument<'a>(args: &'a Map, name: &str) -> Option<&'a str> {
    args.get(name).and_then(Value::as_str)
}

fn needed<'a>(args: &'a Map, name: &str) -> ApiResult<&'a str> {
    argument(args, name).ok_or_else(|| ApiError::invalid_value("args", format!("{name} is needed")))
}

fn limit(args: &Map) -> ApiResult<Duration> {
    let seconds = match argument(args, "timeout") {
        None => TIMEOUT_DEFAULT_S,
        Some(text) => match text.parse() {
            Ok(seconds) if (1..=TIMEOUT_MAX_S).contains(&seconds) => seconds,
            _ => {
                return Err(ApiError::invalid_value(
                    "timeout",
                    format!("{text}: 1 to {TIMEOUT_MAX_S} seconds are accepted"),
                ));
            }
        },
    };
    Ok(Duration::from_secs(seconds))
}

fn failure(function: &str, error: impl std::fmt::Display) -> ApiError {
    ApiError::new("XENAPI_PLUGIN_FAILURE", vec![function.to_owned(), "guest-agent".to_owned(), error.to_string()])
}
