//! A small array for the tests: one IQN, every initiator sees its own LUNs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use sim_target::router::{Director, Discovery, Login, Refusal, Route, Router};
use sim_target::{Chap, Identity, Target, blocks};

pub const IQN: &str = "iqn.2026-01.test:array";
pub const ALICE: &str = "iqn.2026-01.test:alice";
pub const BOB: &str = "iqn.2026-01.test:bob";
pub const NAA: [u8; 16] = *b"`23456789abcdefg";

/// Initiators with the target that they get; others are refused.
#[derive(Default)]
pub struct Book {
    pub routes: Mutex<BTreeMap<String, Route>>,
    pub discovery_chap: Mutex<Option<Chap>>,
}

impl Director for Book {
    fn login(&self, login: &Login) -> Route {
        if login.target != IQN {
            return Route::Refuse(Refusal::NOT_FOUND);
        }
        let routes = self.routes.lock().unwrap();
        routes.get(&login.initiator).cloned().unwrap_or(Route::Refuse(Refusal::NOT_AUTHORISED))
    }
    fn discover(&self, initiator: &str, portal: SocketAddr) -> Result<Discovery, Refusal> {
        let shown = self.routes.lock().unwrap().contains_key(initiator);
        let targets = shown.then(|| (IQN.to_string(), vec![format!("{portal},1")])).into_iter().collect();
        Ok(Discovery { targets, chap: self.discovery_chap.lock().unwrap().clone() })
    }
    fn naa(&self, _: &Login, lun: u16) -> Option<[u8; 16]> {
        (lun == 0).then_some(NAA)
    }
}

pub struct Array {
    pub dir: tempfile::TempDir,
    pub book: Arc<Book>,
    pub target: Arc<Target>,
    pub router: Router,
    pub portal: SocketAddr,
}

impl Array {
    pub fn start() -> Array {
        let dir = tempfile::tempdir().unwrap();
        let target = Arc::new(Target::start(dir.path()).unwrap());
        let book = Arc::new(Book::default());
        let router = Router::new(Arc::clone(&target), Arc::clone(&book) as Arc<dyn Director>).unwrap();
        let portal = router.open("127.0.0.1:0".parse().unwrap()).unwrap();
        Array { dir, book, target, router, portal }
    }

    /// Lets an initiator in; it gets a target of its own.
    pub fn welcome(&self, initiator: &str, inner: &str) {
        self.target.add_target(inner).unwrap();
        self.route(initiator, Route::Accept { target: inner.into() });
    }

    pub fn route(&self, initiator: &str, route: Route) {
        self.book.routes.lock().unwrap().insert(initiator.into(), route);
    }

    pub fn disk(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        blocks::create(&path, bytes).unwrap();
        path
    }

    pub fn show(&self, inner: &str, lun: u16, disk: &std::path::Path) {
        self.target.add_lun(inner, lun, disk, &identity(), true, false).unwrap();
    }

    /// QEMU's options for a LUN.
    pub fn image(&self, initiator: &str, lun: u16, chap: Option<&str>) -> String {
        let login = chap.map(|user| format!(",user={user},password-secret=s")).unwrap_or_default();
        format!(
            "driver=iscsi,transport=tcp,portal={},target={IQN},lun={lun},initiator-name={initiator}{login}",
            self.portal
        )
    }
}

pub fn identity() -> Identity {
    Identity {
        vendor: "MAKER".into(),
        product: "LUN of tests".into(),
        revision: "9151".into(),
        serial: "80A2zXqLm0k1".into(),
    }
}

/// Runs a program; its output of both kinds, and whether it succeeded.
pub fn run<S: AsRef<str>>(program: &str, args: impl IntoIterator<Item = S>) -> (bool, String) {
    let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_string()).collect();
    let output = Command::new(program).args(&args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}
