//! What every driver must do.

use std::sync::Arc;

use tanada_conformance::{CaseReport, Scale, Subject, run};
use tanada_driver::registry::Backend;
use uuid::Uuid;

use crate::array::Array;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_passes_every_case_that_the_array_can_do() {
    let array = Array::with(|options| {
        options.lun_jobs = true;
        options.job_ms = 2;
        options.split_ms = 20;
    });
    let before = array.sim.census();
    let backend: Arc<dyn Backend> = Arc::new(array.backend());
    let config = array.config(Uuid::new_v4());
    backend.create(&config).await.unwrap();
    let subject = Subject { backend: Arc::clone(&backend), config: config.clone(), bridges: array.bridges() };
    let told = |case: &CaseReport| println!("{:?} {}: {:?}", case.took, case.name, case.verdict);
    let report = run(&subject, Scale::SMALL, &[], &told).await;
    backend.erase(&config).await.unwrap();
    let report = report.unwrap();
    println!("{report}");
    assert_eq!(report.failures().count(), 0, "{report}");
    assert_eq!(array.sim.census(), before);
}
