//! Changed blocks, disks over NBD and TLS, and the example of an incremental backup, as others' programs see them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tanada_blockd_api::Command as Verb;
use tanada_e2e::Scratch;
use tanada_e2e::store::Door;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

#[test]
fn others_see_the_blocks_that_changed() {
    let scratch = Scratch::start();
    let work = scratch.path("work");
    fs::create_dir(&work).unwrap();
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/changed_blocks.py"));
    let (url, store, run) = (scratch.https_url(), scratch.path("fast.store"), scratch.path("run"));
    let arguments = [Path::new(&url), Path::new("root"), Path::new(scratch.password()), &store, &run, &work];
    let said = scratch.python_ok(script, arguments.into_iter().chain([examples().as_path()]));
    assert_eq!(said, "changed blocks by the SDK: ok\n");
}

/// A machine with two disks, and what is to be done with the example's script.
struct Backup {
    scratch: Scratch,
    sr: String,
    vm: String,
    /// In bytes; the second is no multiple of the blocks that are copied.
    sizes: [u64; 2],
}

impl Backup {
    fn start() -> Backup {
        let scratch = Scratch::start();
        let location = format!("device-config:location={}", scratch.path("fast.store").display());
        let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=1GiB"]);
        let vm = scratch.xe_ok(["vm-create", "name-label=db1"]);
        let sizes = [20 * MIB, 8 * MIB + 12 * KIB];
        for (device, size) in sizes.iter().enumerate() {
            let words = [format!("disk-size={size}"), format!("device={device}"), format!("sr-uuid={sr}")];
            scratch.xe_ok(["vm-disk-add", "vm=db1", &words[0], &words[1], &words[2]]);
        }
        Backup { scratch, sr, vm, sizes }
    }

    fn disk(&self, device: usize) -> String {
        self.scratch.disk(&self.vm, device)
    }

    /// Writes as a guest would: past the control plane, here and there. `commands` are qemu-io's.
    fn write(&self, device: usize, commands: &[&str]) {
        let vdi = self.disk(device);
        let dir = self.scratch.path("run/sr").join(&self.sr);
        let mut blockd = Door::open(&dir).unwrap();
        let (token, target) = (String::from("a-guest"), vdi.parse().unwrap());
        blockd.control(Verb::Attach { token: token.clone(), target, writable: true }).unwrap();
        let mut program = Command::new("qemu-io");
        program.args(["-f", "raw"]).stdin(Stdio::null()).stdout(Stdio::null());
        program.args(commands.iter().chain(&["flush"]).flat_map(|command| ["-c", command]));
        let socket = dir.join("nbd.sock");
        let status = program.arg(format!("nbd+unix:///{token}?socket={}", socket.display())).status().unwrap();
        assert!(status.success(), "qemu-io {commands:?}: {status}");
        blockd.control(Verb::Detach { token }).unwrap();
    }

    /// The disks as they are now, as the daemon exports them.
    fn contents(&self) -> [Vec<u8>; 2] {
        [0, 1].map(|device| {
            let file = self.scratch.path("now.raw");
            let words = [format!("uuid={}", self.disk(device)), format!("filename={}", file.display())];
            self.scratch.xe_ok(["vdi-export", &words[0], &words[1], "format=raw"]);
            let content = fs::read(&file).unwrap();
            fs::remove_file(&file).unwrap();
            content
        })
    }

    fn script(&self, words: &[&str]) -> Result<String, String> {
        let mut program = Command::new("python3");
        program.arg(examples().join("incremental_backup.py")).args(words).stdin(Stdio::null());
        let output = program.output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }

    fn to(&self) -> String {
        self.scratch.path("backups").display().to_string()
    }

    fn night(&self) -> Result<String, String> {
        let (url, to) = (self.scratch.https_url(), self.to());
        let [password, certificate] =
            ["password", "state/tls/cert.pem"].map(|name| self.scratch.path(name).display().to_string());
        let words = ["--password-file", &password, "--ca", &certificate, "--vm", "db1", "--to", &to];
        self.script(&[&["backup", "--host", &url], &words[..]].concat())
    }

    /// A night of somebody who does not say which certificate he expects.
    fn night_of_the_careless(&self) -> Result<String, String> {
        let (url, to, password) = (self.scratch.https_url(), self.to(), self.scratch.path("password"));
        let password = password.display().to_string();
        self.script(&["backup", "--host", &url, "--password-file", &password, "--vm", "db1", "--to", &to])
    }

    fn restored(&self, device: usize, night: usize) -> Result<Vec<u8>, String> {
        let (to, device, night) = (self.to(), device.to_string(), night.to_string());
        let file = self.scratch.path("restored.raw");
        let output = file.display().to_string();
        self.script(&["restore", "--to", &to, "--disk", &device, "--night", &night, "--output", &output])?;
        Ok(fs::read(file).unwrap())
    }

    /// Bytes of disk data that a night of the backup holds.
    fn stored(&self, device: usize, night: usize) -> u64 {
        let path = self.scratch.path("backups").join(format!("{device}/night-{night:04}/blocks.data"));
        fs::metadata(path).unwrap().len()
    }
}

#[test]
fn any_night_comes_back_from_a_full_and_the_deltas_after_it() {
    let backup = Backup::start();
    let mut nights = Vec::new();
    backup.write(0, &["write -P 0x11 0 3m", "write -P 0x12 19m 1m"]);
    backup.write(1, &["write -P 0x13 8m 12k"]);
    nights.push(backup.contents());
    let said = backup.night().unwrap();
    assert!(said.starts_with("consistency: shut down\n"), "{said}");
    assert!(said.contains("disk 0: night 1, full: 4194304 bytes"), "{said}");
    let data = backup.scratch.path("backups/0/night-0001/blocks.data");
    assert_eq!(fs::metadata(data).unwrap().permissions().mode() & 0o777, 0o600, "others may read the disk");
    let refusal = backup.night_of_the_careless().unwrap_err();
    assert!(refusal.contains("CERTIFICATE_VERIFY_FAILED"), "{refusal}");

    // Over a border of blocks, a hole where data was, and the last block, which is not whole.
    backup.write(0, &["write -P 0x21 1020k 8k", "write -z 2m 64k"]);
    backup.write(1, &["write -P 0x22 8m 4k"]);
    nights.push(backup.contents());
    let said = backup.night().unwrap();
    assert!(said.contains("disk 0: night 2, since night 1: 131072 bytes"), "{said}");
    assert_eq!(backup.stored(1, 2), 12 * KIB);

    // A night without a change, then one with a larger disk.
    nights.push(backup.contents());
    backup.night().unwrap();
    assert_eq!((backup.stored(0, 3), backup.stored(1, 3)), (0, 0));
    let larger = format!("disk-size={}", backup.sizes[1] + MIB);
    backup.scratch.xe_ok(["vdi-resize", &format!("uuid={}", backup.disk(1)), &larger]);
    backup.write(1, &["write -P 0x41 9m 4k"]);
    nights.push(backup.contents());
    backup.night().unwrap();

    for (night, disks) in nights.iter().enumerate() {
        for (device, content) in disks.iter().enumerate() {
            let restored = backup.restored(device, night + 1).unwrap();
            assert!(restored == *content, "disk {device} of night {} is another", night + 1);
        }
    }
    // One place in time for each disk is what stays on the host.
    let left = backup.scratch.xe_ok(["vdi-list", &format!("sr-uuid={}", backup.sr), "is-a-snapshot=true", "--minimal"]);
    assert_eq!(left.split(',').count(), 2, "{left}");

    let data = backup.scratch.path("backups/0/night-0002/blocks.data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&data, bytes).unwrap();
    backup.restored(0, 1).unwrap();
    let refusal = backup.restored(0, 3).unwrap_err();
    assert!(refusal.contains("night-0002/blocks.data is damaged"), "{refusal}");
}

#[test]
fn a_night_that_fails_leaves_nothing_on_the_host() {
    let backup = Backup::start();
    let names = || {
        let only = [format!("sr-uuid={}", backup.sr), "is-a-snapshot=true".into()];
        backup.scratch.xe_ok(["vdi-list", &only[0], &only[1], "--minimal"])
    };
    backup.night().unwrap();
    let kept = names();
    // The first of two disks cannot be written; the second has not come yet.
    let (place, aside) = (backup.scratch.path("backups/0"), backup.scratch.path("backups/aside"));
    fs::rename(&place, &aside).unwrap();
    fs::write(&place, "in the way").unwrap();
    backup.night().unwrap_err();
    assert_eq!(names(), kept);
    // As if the run before had lost its power when it had its snapshot.
    fs::remove_file(&place).unwrap();
    fs::rename(&aside, &place).unwrap();
    let snapshot = backup.scratch.xe_ok(["vm-snapshot", "vm=db1", "new-name-label=cut off"]);
    let of = format!("vm-uuid={snapshot}");
    let disks = backup.scratch.xe_ok(["vbd-list", &of, "params=vdi-uuid", "--minimal"]);
    let disks: Vec<String> = disks.split(',').map(|uuid| format!("{uuid:?}")).collect();
    let unfinished = format!("{{\"snapshot\": {snapshot:?}, \"disks\": [{}]}}", disks.join(", "));
    fs::write(backup.scratch.path("backups/unfinished"), unfinished).unwrap();
    // A manifest that a power cut left empty is no night.
    let torn = backup.scratch.path("backups/1/night-0002");
    fs::create_dir(&torn).unwrap();
    fs::write(torn.join("manifest.json"), "").unwrap();
    let said = backup.night().unwrap();
    assert!(said.contains("disk 0: night 2, since night 1: 0 bytes"), "{said}");
    assert!(said.contains("disk 1: night 2, since night 1: 0 bytes"), "{said}");
    assert_eq!(names().split(',').count(), 2);
    assert_eq!(backup.scratch.xe_ok(["snapshot-list", "--minimal"]), "");
    // Two at once would write the same night.
    let lock = fs::File::open(backup.scratch.path("backups/lock")).unwrap();
    lock.lock().unwrap();
    let refusal = backup.night().unwrap_err();
    assert!(refusal.contains("another backup to"), "{refusal}");
}

#[test]
fn xe_asks_for_changed_blocks() {
    let backup = Backup::start();
    let (scratch, disk) = (&backup.scratch, backup.disk(0));
    let by_uuid = |uuid: &str| format!("uuid={uuid}");
    let kind = |uuid: &str| scratch.xe_ok(["vdi-param-get", &by_uuid(uuid), "param-name=type"]);
    scratch.xe_ok(["vdi-enable-cbt", &by_uuid(&disk)]);
    let old = scratch.xe_ok(["vdi-snapshot", &by_uuid(&disk)]);
    // The second and the last of 320 pieces of 64 KiB.
    backup.write(0, &["write 64k 4k", "write 20476k 4k"]);
    let new = scratch.xe_ok(["vdi-snapshot", &by_uuid(&disk)]);
    let between = [format!("vdi-from-uuid={old}"), format!("vdi-to-uuid={new}")];
    let changed = || scratch.xe_ok(["vdi-list-changed-blocks", &between[0], &between[1]]);
    let expected = format!("Q{}AQ==", "A".repeat(51));
    assert_eq!(changed(), expected);
    scratch.xe_ok(["vdi-data-destroy", &by_uuid(&old)]);
    assert_eq!((kind(&old).as_str(), changed()), ("cbt_metadata", expected));
    scratch.xe_ok(["vdi-disable-cbt", &by_uuid(&disk)]);
    let refusal = scratch.xe_fails(["vdi-data-destroy", &by_uuid(&scratch.xe_ok(["vdi-snapshot", &by_uuid(&disk)]))]);
    assert!(refusal.contains("does not have changed block tracking metadata"), "{refusal}");
}
