//! The suite over the embedded store: a real keeper and blockd.
//!
//! The program is `$TANADA_BIN`, else `tanada` beside the test in the target directory.

use std::path::PathBuf;
use std::sync::Arc;

use tanada_conformance::{Scale, Subject, Verdict, run};
use tanada_driver::bridge::Bridges;
use tanada_driver::embedded::{EmbeddedBackend, EmbeddedPlaces};
use tanada_driver::registry::{Backend, SrConfig};
use uuid::Uuid;

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("TANADA_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("this test's own path");
    let beside = own.ancestors().nth(2).expect("a test lies below its profile's directory").join("tanada");
    assert!(
        beside.exists(),
        "{} is not built: run `cargo build -p tanada` first, or `cargo xtask test`",
        beside.display()
    );
    beside
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_passes_every_case() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let places = EmbeddedPlaces {
        program: program(),
        run_dir: dir.path().join("run"),
        state_dir: dir.path().join("state"),
        scrub_every_days: 0,
    };
    let backend: Arc<dyn Backend> = Arc::new(EmbeddedBackend::new(places));
    let location = dir.path().join("store").display().to_string();
    let config = SrConfig {
        sr: Uuid::new_v4(),
        device_config: [("location".to_owned(), location), ("size".to_owned(), "8GiB".to_owned())].into(),
        initiator: "iqn.2026-01.org.tanada:host-test".to_owned(),
        ..SrConfig::default()
    };
    backend.create(&config).await.expect("a store is made");
    let subject = Subject {
        backend: Arc::clone(&backend),
        config: config.clone(),
        bridges: Bridges::new(dir.path().join("bridges")),
    };
    let told = |case: &tanada_conformance::CaseReport| println!("{:?} {}: {:?}", case.took, case.name, case.verdict);
    let report = run(&subject, Scale::SMALL, &[], &told).await;
    backend.erase(&config).await.expect("the store is erased");
    let report = report.expect("the suite runs");
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "{report}");
    assert!(
        report.cases.iter().all(|case| matches!(case.verdict, Verdict::Passed(_))),
        "the store can all of it: {report}"
    );
}
