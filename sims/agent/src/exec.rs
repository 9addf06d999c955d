//! `guest-exec` of what a host asks a guest for: `vssadmin list writers` and `reg query` on Windows, on Linux a shell that
//! tells how the agent was started.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::scenario::{Hook, Scenario};
use crate::words::Refusal;
use crate::writers;

/// A program that has been started.
pub(crate) struct Run {
    exit_code: i64,
    out: Vec<u8>,
    err: Vec<u8>,
    /// The first question finds it still running.
    was_asked: bool,
}

impl Run {
    /// Starts what `arguments` name.
    pub fn start(scenario: &Scenario, arguments: &Value, after_freeze: bool) -> Result<Run, Refusal> {
        let path = arguments.get("path").and_then(Value::as_str).unwrap_or_default();
        let words: Vec<&str> =
            arguments.get("arg").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let program = path.rsplit(['\\', '/']).next().unwrap_or_default().to_ascii_lowercase();
        let (exit_code, out, err) = match (scenario.is_windows(), program.trim_end_matches(".exe"), words.as_slice()) {
            (true, "vssadmin", ["list", "writers"]) => {
                (0, writers::listing(&scenario.writers, scenario.language, after_freeze), Vec::new())
            }
            (true, "reg", ["query", ..]) => match scenario.vss_option {
                Some(option) => (0, registry(option).into_bytes(), Vec::new()),
                None => {
                    (1, Vec::new(), b"ERROR: The system was unable to find the specified registry key.\r\n".to_vec())
                }
            },
            // Whoever asks for the agent's command line and configuration, by whatever script.
            (false, "sh", ["-c", _]) => (0, started_with(scenario.hook).to_vec(), Vec::new()),
            _ => {
                let words = format!("Failed to execute child process \"{path}\" (No such file or directory)");
                return Err(Refusal::generic(format!("Guest agent command failed, error was '{words}'")));
            }
        };
        Ok(Run { exit_code, out, err, was_asked: false })
    }

    /// The answer to `guest-exec-status`.
    pub fn status(&mut self) -> Value {
        if !self.was_asked {
            self.was_asked = true;
            return json!({ "exited": false });
        }
        let mut status = json!({ "exited": true, "exitcode": self.exit_code });
        for (member, bytes) in [("out-data", &self.out), ("err-data", &self.err)] {
            if !bytes.is_empty() {
                status[member] = BASE64.encode(bytes).into();
            }
        }
        status
    }

    pub fn has_ended(&self) -> bool {
        self.was_asked
    }
}

/// The agent's command line, a line for each argument, an empty line, no configuration file.
fn started_with(hook: Hook) -> &'static [u8] {
    match hook {
        Hook::None => b"/usr/sbin/qemu-ga\n\n",
        _ => b"/usr/sbin/qemu-ga\n-F\n\n",
    }
}

fn registry(option: u32) -> String {
    let key = "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\QEMU Guest Agent VSS Provider";
    format!("\r\n{key}\r\n    VssOption    REG_DWORD    {option:#x}\r\n\r\n")
}
