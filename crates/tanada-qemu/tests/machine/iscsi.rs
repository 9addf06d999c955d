//! A machine whose disk is a LUN behind CHAP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{host, machine, scratch, start};
use serde_json::json;
use sim_target::router::{Director, Discovery, Login, Refusal, Route, Router};
use sim_target::{Chap, Identity, Target, blocks};
use tanada_qemu::QemuError;
use tanada_qemu::hotplug::{self, Unplugged};
use tanada_qemu::launch;
use tanada_qemu::machine::{Boot, DiskSpec};
use tanada_qemu::qmp::QUICK;
use tanada_qemu::source::{ChapLogin, DiskSource, Lun};
use uuid::Uuid;

const IQN: &str = "iqn.2026-01.org.tanada.test:disk";
const SECRET: &str = "twelve-or-more";

/// An array with one disk that everybody may log in to who knows the secret.
struct Array {
    portal: SocketAddr,
    router: Router,
    target: Arc<Target>,
    file: PathBuf,
}

fn identity() -> Identity {
    let text = String::from("test");
    Identity { vendor: text.clone(), product: text.clone(), revision: text.clone(), serial: text }
}

struct Everybody;

impl Director for Everybody {
    fn login(&self, login: &Login) -> Route {
        Route::Accept { target: login.target.clone() }
    }

    fn discover(&self, _: &str, _: SocketAddr) -> Result<Discovery, Refusal> {
        Err(Refusal::NOT_FOUND)
    }

    fn naa(&self, _: &Login, _: u16) -> Option<[u8; 16]> {
        None
    }
}

impl Array {
    fn start(dir: &Path, secret: &str) -> Array {
        let target = Target::start(dir).unwrap();
        let file = dir.join("blocks");
        blocks::create(&file, 8 << 20).unwrap();
        target.add_target(IQN).unwrap();
        target.add_lun(IQN, 0, &file, &identity(), true, false).unwrap();
        target.set_chap(IQN, Some(&Chap { user: "someone".into(), secret: secret.into() }), None).unwrap();
        let target = Arc::new(target);
        let router = Router::new(target.clone(), Arc::new(Everybody)).unwrap();
        let portal = router.open("127.0.0.1:0".parse().unwrap()).unwrap();
        Array { portal, router, target, file }
    }

    fn grow(&self, size: u64) {
        self.router.held(|| {
            self.target.remove_lun(IQN, 0).unwrap();
            blocks::resize(&self.file, size).unwrap();
            self.target.add_lun(IQN, 0, &self.file, &identity(), true, false).unwrap();
        });
    }

    fn disk(&self) -> DiskSpec {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        DiskSpec {
            id: Uuid::new_v4(),
            source: DiskSource::Iscsi(Lun {
                portals: vec![nobody.to_string(), self.portal.to_string()],
                iqn: IQN.into(),
                number: 0,
                initiator: "iqn.2026-01.org.tanada:vm-test".into(),
                chap: Some(ChapLogin { user: "someone".into(), secret: SECRET.into() }),
            }),
            read_only: false,
            serial: "s".into(),
            boot_index: Some(0),
            slot: None,
        }
    }
}

#[tokio::test]
async fn a_lun_is_plugged_by_the_portal_that_answers_and_its_secret_stays_nowhere() {
    let dir = scratch();
    let array = Array::start(dir.path(), SECRET);
    let mut spec = machine(Boot::Bios);
    spec.disks.push(array.disk());
    let machine = launch::launch(&spec, &host(), &dir.path().join("vm")).await.unwrap();
    let process = format!("/proc/{}", machine.process.pid());
    let line = String::from_utf8_lossy(&std::fs::read(format!("{process}/cmdline")).unwrap()).into_owned();
    let log = std::fs::read_to_string(machine.dir.stderr_log()).unwrap();
    assert!(!line.contains(SECRET) && !log.contains(SECRET), "{line} {log}");
    let objects = machine.qmp.execute("qom-list", json!({ "path": "/objects" }), QUICK).await.unwrap().to_string();
    assert!(!objects.contains("chap-"), "{objects}");
    assert!(!format!("{:?}", spec.disks[0]).contains(SECRET));
    assert_eq!(hotplug::disks(&machine.qmp).await.unwrap().len(), 1);

    let disk = spec.disks[0].id;
    assert!(hotplug::grown(&machine.qmp, disk, 16 << 20).await.is_err(), "the array has 8 MiB");
    array.grow(16 << 20);
    hotplug::grown(&machine.qmp, disk, 16 << 20).await.unwrap();
    let blocks = machine.qmp.execute("query-block", json!({}), QUICK).await.unwrap().to_string();
    assert!(blocks.contains(&format!("\"virtual-size\":{}", 16 << 20)), "{blocks}");
    machine.process.kill().await;
}

#[tokio::test]
async fn a_login_that_is_refused_leaves_nothing_behind() {
    let dir = scratch();
    let array = Array::start(dir.path(), "another-secret");
    let machine = start(&machine(Boot::Bios), dir.path()).await;
    let disk = array.disk();
    for _ in 0..2 {
        let error = hotplug::plug(&machine.qmp, &disk).await.unwrap_err();
        assert!(matches!(error, QemuError::Refused { .. }) && !error.to_string().contains(SECRET), "{error}");
    }
    let objects = machine.qmp.execute("qom-list", json!({ "path": "/objects" }), QUICK).await.unwrap().to_string();
    assert!(!objects.contains("chap-"), "{objects}");
    assert_eq!(hotplug::unplug(&machine.qmp, disk.id, Duration::ZERO).await.unwrap(), Unplugged::Absent);
    machine.process.kill().await;
}
