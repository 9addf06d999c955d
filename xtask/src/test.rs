//! `cargo xtask test`: what CI runs.

use anyhow::{Context, Result, bail};

use crate::{demo, fuzz, guest, kills, setup, sh};

/// Deaths of blockd under load.
const KILLS: u64 = 15;

/// Sets up what tests need, runs those of all crates, the fuzzer for a while, some deaths under load, then the main job.
pub fn run() -> Result<()> {
    setup::packages()?;
    let python = setup::python()?;
    let (ontap_client, cinder_netapp) = (setup::ontap_client()?, setup::cinder_netapp()?);
    let cinder = setup::cinder()?;
    let guest = guest::build()?;
    sh::run("cargo", &["fmt", "--all", "--check"])?;
    sh::run("cargo", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    sh::run("cargo", &["build", "--quiet", "--package", "tanada"])?;
    let binary = sh::target_dir().join("debug/tanada");
    let mut tests = std::process::Command::new("cargo");
    tests
        .args(["test", "--workspace", "--quiet", "--", "--test-threads=2"])
        .current_dir(sh::root())
        .env("TANADA_BIN", &binary)
        .env("TANADA_PYTHON", &python)
        .env("SIM_ONTAP_CLIENT", &ontap_client)
        .env("SIM_ONTAP_CINDER", &cinder_netapp)
        .env("TANADA_CINDER", &cinder)
        .env("TANADA_GUEST_KERNEL", &guest.kernel)
        .env("TANADA_GUEST_INITRD", &guest.initrd)
        .env("TANADA_GUEST_DISK", &guest.disk);
    if !tests.status().context("starting cargo test")?.success() {
        bail!("tests failed");
    }
    fuzz::short()?;
    kills::run(kills::Options { count: KILLS, seed: 1, guest: false, dev: true })?;
    demo::run(demo::Options { keep: false, dev: true, generations: 50, sr: demo::storage::Kind::Tanada })
}
