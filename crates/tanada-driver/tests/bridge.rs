//! The bridge against a real iSCSI target: Debian's tgt, with CHAP and one initiator let in.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use tanada_driver::bridge::Bridges;
use tanada_driver::{Chap, DriverErrorKind, Endpoint, Secret, metadata};

const IQN: &str = "iqn.2026-01.org.tanada.test:disk";
const INITIATOR: &str = "iqn.2026-01.org.tanada:host-test";
const SECRET: &str = "twelve-or-more";
const SIZE: u64 = 8 << 20;

/// A tgtd of our own, ended with the test.
struct Target {
    process: Child,
    dir: tempfile::TempDir,
    portal: String,
}

impl Target {
    fn start() -> Target {
        let dir = tempfile::tempdir().unwrap();
        // Nobody else is told of this port; it is free again when the listener goes.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let portal = format!("127.0.0.1:{port}");
        let mut tgtd = Command::new("tgtd");
        tgtd.args(["-f", "--iscsi", &format!("portal={portal}")]).env("TGT_IPC_SOCKET", dir.path().join("ipc"));
        let process = tgtd.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut target = Target { process, dir, portal };
        // tgtd tells nobody when it listens.
        while !target.admin(&["--op", "show", "--mode", "target"]) {
            assert_eq!(target.process.try_wait().unwrap(), None, "tgtd ended instead of listening");
            std::thread::sleep(Duration::from_millis(10));
        }
        let disk = target.disk();
        fs::File::create(&disk).unwrap().set_len(SIZE).unwrap();
        let disk = disk.to_str().unwrap();
        for words in [
            format!("--op new --mode target --tid 1 -T {IQN}"),
            format!("--op new --mode logicalunit --tid 1 --lun 1 -b {disk}"),
            "--op update --mode logicalunit --tid 1 --lun 1 --params thin_provisioning=1".to_owned(),
            format!("--op bind --mode target --tid 1 -Q {INITIATOR}"),
            format!("--op new --mode account --user someone --password {SECRET}"),
            "--op bind --mode account --tid 1 --user someone".to_owned(),
        ] {
            assert!(target.admin(&words.split(' ').collect::<Vec<_>>()), "{words}");
        }
        target
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn admin(&self, words: &[&str]) -> bool {
        let mut tgtadm = Command::new("tgtadm");
        tgtadm.args(["--lld", "iscsi"]).args(words).env("TGT_IPC_SOCKET", self.dir.path().join("ipc"));
        tgtadm.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    fn parts(&self) -> Parts {
        Parts {
            portals: vec![self.portal.clone()],
            iqn: IQN.into(),
            lun: 1,
            initiator: INITIATOR.into(),
            chap: Some(Chap { user: "someone".into(), secret: Secret::new(SECRET) }),
        }
    }

    fn endpoint(&self) -> Endpoint {
        self.parts().endpoint()
    }
}

/// An endpoint in pieces, so that a test can change one.
#[derive(Clone)]
struct Parts {
    portals: Vec<String>,
    iqn: String,
    lun: u32,
    initiator: String,
    chap: Option<Chap>,
}

impl Parts {
    fn endpoint(self) -> Endpoint {
        let Parts { portals, iqn, lun, initiator, chap } = self;
        Endpoint::Iscsi { portals, iqn, lun, initiator, chap }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn bridges(target: &Target) -> Bridges {
    Bridges::new(target.dir.path().join("bridges"))
}

#[tokio::test]
async fn what_is_written_through_the_bridge_is_on_the_lun() {
    let target = Target::start();
    let bridge = bridges(&target).open(&target.endpoint(), true).await.unwrap();
    let client = bridge.connect().await.unwrap();
    assert_eq!(client.size(), SIZE);
    client.write_at(1 << 20, Bytes::from(vec![7; 4096])).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(fs::read(target.disk()).unwrap()[1 << 20..][..4096], [7; 4096]);
    let extents = client.extents(0, SIZE).await.unwrap();
    let mapped: u64 = extents.iter().filter(|extent| extent.data).map(|extent| extent.length).sum();
    assert!(mapped < SIZE / 2, "what was never written is skipped: {extents:?}");
    let (pid, socket) = (bridge.pid().unwrap(), bridge.socket().to_path_buf());
    drop(client);
    bridge.close().await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists() && !socket.exists());
}

#[tokio::test]
async fn a_secret_is_on_no_command_line_and_in_no_file() {
    let target = Target::start();
    let bridge = bridges(&target).open(&target.endpoint(), false).await.unwrap();
    let process = PathBuf::from(format!("/proc/{}", bridge.pid().unwrap()));
    for file in ["cmdline", "environ"] {
        let text = String::from_utf8_lossy(&fs::read(process.join(file)).unwrap()).into_owned();
        assert!(!text.contains(SECRET) && !text.contains(bridge.export()), "{file}: {text}");
    }
    let dir = bridge.socket().parent().unwrap();
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["nbd.sock"], "nothing else is left there");
    bridge.close().await;
}

#[tokio::test]
async fn who_is_not_let_in_hears_why_and_not_the_secret() {
    let target = Target::start();
    let bridges = bridges(&target);
    let wrong = Chap { user: "someone".into(), secret: Secret::new("another-secret") };
    let right = target.parts();
    for (parts, kind) in [
        (Parts { chap: Some(wrong), ..right.clone() }, DriverErrorKind::Io),
        (Parts { chap: None, ..right.clone() }, DriverErrorKind::Io),
        (Parts { lun: 9, ..right.clone() }, DriverErrorKind::NotFound),
        (Parts { iqn: format!("{IQN}-not"), ..right.clone() }, DriverErrorKind::NotFound),
        (Parts { initiator: format!("{INITIATOR}-other"), ..right.clone() }, DriverErrorKind::NotFound),
    ] {
        let endpoint = parts.endpoint();
        let error = bridges.open(&endpoint, true).await.err().expect("refused");
        assert_eq!(error.kind, kind, "{error} for {endpoint:?}");
        let shown = format!("{error:?} {endpoint:?}");
        assert!(!shown.contains(SECRET) && !shown.contains("another-secret"), "{shown}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let second = Parts { portals: vec![nobody.to_string(), target.portal.clone()], ..right }.endpoint();
    bridges.open(&second, false).await.expect("the second portal answers").close().await;
}

#[tokio::test]
async fn metadata_is_kept_on_a_lun() {
    let target = Target::start();
    let bridges = bridges(&target);
    assert_eq!(metadata::get(&bridges, &target.endpoint()).await.unwrap(), None);
    for text in ["first", "second, longer", "third"] {
        metadata::put(&bridges, &target.endpoint(), text.as_bytes()).await.unwrap();
        assert_eq!(metadata::get(&bridges, &target.endpoint()).await.unwrap().unwrap(), text.as_bytes());
    }
    let long = vec![b'x'; (SIZE / 2) as usize];
    let refused = metadata::put(&bridges, &target.endpoint(), &long).await.unwrap_err();
    assert_eq!(refused.kind, DriverErrorKind::InvalidArgument, "{refused}");
    assert_eq!(metadata::get(&bridges, &target.endpoint()).await.unwrap().unwrap(), b"third");
}
