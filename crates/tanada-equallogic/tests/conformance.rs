//! The suite that every driver passes, on a simulated group.

use std::sync::Arc;

use sim_equallogic::{Options, start};
use tanada_conformance::{CaseReport, Scale, Subject, Verdict, run};
use tanada_driver::bridge::Bridges;
use tanada_driver::registry::{Backend, SrConfig};
use tanada_equallogic::EqualBackend;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_passes_every_case() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let sim = start(Options::new(dir.path().join("group"))).expect("a group");
    let bridges = Bridges::new(dir.path().join("bridges"));
    let backend: Arc<dyn Backend> = Arc::new(EqualBackend::new(bridges.clone()));
    let keys = [
        ("target", String::from("127.0.0.1")),
        ("port", sim.ssh().port().to_string()),
        ("portal", sim.portal().to_string()),
        ("hostkey", sim.fingerprint().to_string()),
        ("username", String::from("grpadmin")),
        ("password", String::from("grpadmin")),
        ("storagepool", String::from("default")),
    ];
    let config = SrConfig {
        sr: Uuid::new_v4(),
        device_config: keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        initiator: "iqn.2026-01.org.tanada:host-test".to_owned(),
        ..SrConfig::default()
    };
    backend.create(&config).await.expect("an SR is made");
    let subject = Subject { backend: Arc::clone(&backend), config: config.clone(), bridges };
    let told = |case: &CaseReport| println!("{:?} {}: {:?}", case.took, case.name, case.verdict);
    let report = run(&subject, Scale::SMALL, &[], &told).await;
    backend.erase(&config).await.expect("the SR is erased");
    let report = report.expect("the suite runs");
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "{report}");
    assert!(report.cases.iter().any(|case| matches!(case.verdict, Verdict::Passed(_))), "{report}");
    assert!(sim.with_array(|array| array.group.volumes.is_empty() && array.group.chap.is_empty()), "{report}");
}
