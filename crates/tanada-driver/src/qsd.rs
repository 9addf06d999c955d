//! One qemu-storage-daemon, commanded over its standard input and output.

use std::io;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

const PROGRAM: &str = "qemu-storage-daemon";
/// A login to a portal that is not there takes as long as the kernel tries.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// Why it did not do as it was told.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It does not start, or it ended.
    Program(String),
    Command(String),
    Deadline,
}

/// Killed when dropped.
pub(crate) struct Qsd {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Qsd {
    pub(crate) async fn start() -> Result<Qsd, Refusal> {
        let failed = |error: io::Error| Refusal::Program(format!("{PROGRAM} does not start: {error}"));
        let mut command = Command::new(PROGRAM);
        command.args(["--chardev", "stdio,id=monitor,signal=off", "--monitor", "chardev=monitor"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = spawn(command).await.map_err(failed)?;
        let missing = || failed(io::Error::other("no pipe"));
        let commands = child.stdin.take().ok_or_else(missing)?;
        let answers = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        let mut qsd = Qsd { child, commands, answers };
        qsd.execute("qmp_capabilities", json!({})).await?;
        Ok(qsd)
    }

    /// One command to its end. Its arguments may hold secrets and are not repeated in errors.
    pub(crate) async fn execute(&mut self, command: &str, arguments: Value) -> Result<(), Refusal> {
        timeout(COMMAND_DEADLINE, self.exchange(command, arguments)).await.map_err(|_| Refusal::Deadline)?
    }

    async fn exchange(&mut self, command: &str, arguments: Value) -> Result<(), Refusal> {
        let ended = |error: io::Error| Refusal::Program(format!("{PROGRAM} ended at {command}: {error}"));
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.commands.write_all(line.as_bytes()).await.map_err(ended)?;
        loop {
            let line = self.answers.next_line().await.map_err(ended)?;
            let line = line.ok_or_else(|| ended(io::ErrorKind::UnexpectedEof.into()))?;
            let answer: Value = serde_json::from_str(&line).map_err(|error| ended(error.into()))?;
            if let Some(error) = answer.get("error") {
                let words = error.get("desc").and_then(Value::as_str).unwrap_or("refused without a reason");
                return Err(Refusal::Command(words.to_owned()));
            }
            // Greeting and events have neither.
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to end (it logs out from its targets), and kills it when it does not.
    pub(crate) async fn end(mut self) {
        if self.execute("quit", json!({})).await.is_err() || timeout(COMMAND_DEADLINE, self.child.wait()).await.is_err()
        {
            drop(self.child.kill().await);
        }
    }
}

type Job = (Command, Handle, oneshot::Sender<io::Result<Child>>);

/// Starts a program that dies with this process. The kernel ties it to the *thread* that started it, and threads of the
/// runtime come and go: one thread that lives as long as the process starts them all.
async fn spawn(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Option<mpsc::Sender<Job>>> = OnceLock::new();
    // SAFETY: one system call between fork and exec, on constants.
    unsafe {
        command.pre_exec(|| set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from));
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("bridge-spawner".into()).spawn(move || {
            for (mut command, runtime, answer) in inbox {
                let _in_runtime = runtime.enter();
                drop(answer.send(command.spawn()));
            }
        });
        thread.ok().map(|_| jobs)
    });
    let gone = || io::Error::other("there is no thread to start it from");
    let (answer, child) = oneshot::channel();
    let jobs = spawner.as_ref().ok_or_else(gone)?;
    jobs.send((command, Handle::current(), answer)).map_err(|_| gone())?;
    child.await.map_err(|_| gone())?
}
