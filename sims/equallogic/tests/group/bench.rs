//! A group, and the programs that talk to it.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use sim_equallogic::{Handle, Options, start};

pub const ALICE: &str = "iqn.2026-01.test:alice";
pub const BOB: &str = "iqn.2026-01.test:bob";
/// What every script switches off first.
const QUIET: &[&str] = &["paging", "events", "formatoutput", "confirmation", "reprintBadInput"];

pub struct Bench {
    pub group: Handle,
    pub dir: tempfile::TempDir,
}

impl Bench {
    /// A group whose account was made fit for scripts.
    pub fn quiet() -> Bench {
        let bench = Bench::noisy(|_| {});
        for setting in QUIET {
            bench.run(&format!("cli-settings {setting} off"));
        }
        bench
    }

    /// A group with the settings of the array.
    pub fn noisy(change: impl FnOnce(&mut Options)) -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let mut options = Options::new(dir.path().join("group"));
        change(&mut options);
        Bench { group: start(options).expect("a group"), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ssh` with a password, towards the group; gives up by itself.
    pub fn ssh(&self, options: &[&str], password: &str) -> Command {
        let mut command = Command::new("/usr/bin/timeout");
        command
            .args(["60", "sshpass", "-e", "ssh", "-F", "none", "-o", "StrictHostKeyChecking=accept-new"])
            .args(["-o", "LogLevel=ERROR", "-o", "NumberOfPasswordPrompts=1"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.path("known").display()))
            .args(["-p", &self.group.ssh().port().to_string()])
            .args(options)
            .args(["-o", "User=grpadmin"])
            .arg(self.group.ssh().ip().to_string())
            .env("SSHPASS", password);
        command
    }

    /// One command over an exec channel; what it printed.
    pub fn run(&self, command: &str) -> String {
        let output = self.ssh(&[], "grpadmin").arg(command).output().expect("ssh");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n")
    }

    /// The same, for what has to succeed.
    pub fn done(&self, command: &str) -> String {
        let said = self.run(command);
        assert!(!said.contains("% Error"), "{command}: {said}");
        said
    }

    /// A value of a property page.
    pub fn property(&self, command: &str, key: &str) -> String {
        let said = self.run(command).replace('\n', "\r\n");
        let start = said.find(&format!("\r\n{key}: ")).unwrap_or_else(|| panic!("{key} is not in {said}"));
        let value = &said[start + key.len() + 4..];
        value.split("\r\n").next().unwrap_or_default().to_string()
    }

    pub fn iqn(&self, volume: &str) -> String {
        self.group.with_array(|array| array.group.volumes[volume].iqn.clone())
    }

    /// A shell that stays open.
    pub fn shell(&self) -> Shell {
        let mut child =
            self.ssh(&["-T"], "grpadmin").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ssh");
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Shell { child, input, output }
    }

    /// QEMU's options for a target.
    pub fn image(&self, iqn: &str, initiator: &str, user: Option<&str>) -> String {
        let login = user.map(|user| format!(",user={user},password-secret=s")).unwrap_or_default();
        let portal = self.group.portal();
        format!("driver=iscsi,transport=tcp,portal={portal},target={iqn},lun=0,initiator-name={initiator}{login}")
    }

    /// Lets QEMU do I/O on a target; whether it could, and what it said. The secret is `secretsecret`.
    pub fn qemu_io(&self, image: &str, commands: &[&str]) -> (bool, String) {
        let mut args = vec!["--image-opts", "--object", "secret,id=s,data=secretsecret"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(image);
        program("/usr/bin/qemu-io", &args)
    }

    /// I/O that has to succeed.
    pub fn io(&self, volume: &str, commands: &[&str]) {
        let (ok, said) = self.qemu_io(&self.image(&self.iqn(volume), ALICE, None), commands);
        assert!(ok && !said.contains("failed"), "{volume} {commands:?}: {said}");
    }

    /// A volume that Alice may use without CHAP.
    pub fn volume(&self, name: &str, words: &str) {
        self.done(&format!("volume create {name} {words}"));
        self.done(&format!("volume select {name} access create initiator {ALICE}"));
    }
}

/// Runs a program; whether it succeeded, and its output of both kinds.
pub fn program(path: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new("/usr/bin/timeout").arg("60").arg(path).args(args).output().expect("timeout");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A session without a terminal, as scripts have it.
pub struct Shell {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Shell {
    pub fn send(&mut self, text: &str) {
        // Whether the other side is still there shows when reading.
        let _ = self.input.write_all(text.as_bytes());
        let _ = self.input.flush();
    }

    /// All that comes until `end` does, or until the other side closes.
    pub fn until(&mut self, end: &str) -> String {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(end.as_bytes()) {
            match self.output.read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                _ => break,
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// A command's answer, from its echo to the prompt.
    pub fn ask(&mut self, command: &str) -> String {
        self.send(&format!("{command}\r"));
        self.until("group1> ")
    }

    /// What is left until the connection ends.
    pub fn rest(mut self) -> String {
        let mut text = Vec::new();
        // An end by force ends the text as well.
        let _ = self.output.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
