//! `cargo xtask test`: what CI runs.

use anyhow::{Context, Result, bail};

use crate::demo::storage::Kind;
use crate::random::Random;
use crate::{demo, fuzz, guest, kills, setup, sh};

/// Deaths of blockd under load.
const KILLS: u64 = 15;

/// Generations taken and deleted by the main job on the embedded store.
const GENERATIONS: usize = 50;

/// The same on each simulated array, where a file system without reflinks makes every one a copy.
const GENERATIONS_ON_ARRAYS: usize = 4;

/// Seconds for simulations with seeds that were never tried; the same few are in `cargo test`.
const FRESH_SECONDS: &str = "180";

/// Fresh seeds lie below this: they are to be typed by somebody.
const FRESH_SEEDS: u64 = 1 << 32;

/// Sets up what tests need, runs those of all crates, fresh simulations, a few planted mistakes, the fuzzer for a while,
/// some deaths under load, then the main job on each kind of storage.
pub fn run() -> Result<()> {
    setup::packages()?;
    let python = setup::python()?;
    let (ontap_client, cinder_netapp) = (setup::ontap_client()?, setup::cinder_netapp()?);
    let cinder = setup::cinder()?;
    guest::build()?;
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
        .env("TANADA_GUEST_DIR", guest::dir());
    if !tests.status().context("starting cargo test")?.success() {
        bail!("tests failed");
    }
    simulate()?;
    fuzz::short()?;
    kills::run(kills::Options { count: KILLS, seed: 1, guest: false, dev: true })?;
    demo(GENERATIONS, Kind::Tanada)?;
    demo(GENERATIONS_ON_ARRAYS, Kind::Netapp)?;
    demo(GENERATIONS_ON_ARRAYS, Kind::Equal)?;
    demo::run(demo::Options { keep: false, dev: true, generations: 0, sr: Kind::Tanada, nightly: true })
}

fn demo(generations: usize, sr: Kind) -> Result<()> {
    demo::run(demo::Options { keep: false, dev: true, generations, sr, nightly: false })
}

/// Fresh seeds, whose first is printed and replays a failure; then the mistakes that are caught in seconds.
fn simulate() -> Result<()> {
    let seed = Random::from_clock().below(FRESH_SEEDS).to_string();
    println!("simulation from seed {seed}");
    let run = ["run", "--quiet", "--package", "tanada-sim", "--bin"];
    sh::run("cargo", &[&run[..], &["tanada-sim", "--", "--seed", &seed, "--seconds", FRESH_SECONDS]].concat())?;
    sh::run("cargo", &[&run[..], &["tanada-mistakes", "--", "--short"]].concat())
}
