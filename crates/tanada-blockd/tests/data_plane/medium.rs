//! A file that fails when it is told to: a shell script behind nbdkit, seen as a file through nbdfuse.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tanada_format::check::{CheckOptions, ReadAt, check};
use tempfile::TempDir;

/// The plugin. `refuse` holds "FROM TO ERRNO": writes that begin there fail. `sync` says: the next sync fails, once.
const PLUGIN: &str = r#"#!/bin/sh
dir=$(dirname "$0")
case "$1" in
  get_size) stat -Lc %s "$dir/bytes" ;;
  pread) dd if="$dir/bytes" skip=$4 count=$3 iflag=count_bytes,skip_bytes bs=1M status=none ;;
  pwrite)
    if [ -e "$dir/refuse" ]; then
      read -r from to errno < "$dir/refuse"
      if [ "$4" -ge "$from" ] && [ "$4" -lt "$to" ]; then
        cat > /dev/null
        echo "$errno refused" >&2
        exit 1
      fi
    fi
    dd of="$dir/bytes" seek=$4 oflag=seek_bytes conv=notrunc bs=1M status=none ;;
  can_write|can_flush) exit 0 ;;
  flush)
    if [ -e "$dir/sync" ]; then
      rm "$dir/sync"
      echo "EIO the sync is refused" >&2
      exit 1
    fi ;;
  thread_model) echo serialize_all_requests ;;
  *) exit 2 ;;
esac
"#;

pub struct Medium {
    dir: TempDir,
    nbdkit: Child,
    nbdfuse: Child,
}

impl Medium {
    /// A medium of `bytes`, to be seen as [`Medium::path`].
    pub fn new(bytes: u64) -> Medium {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        File::create(path("bytes")).unwrap().set_len(bytes).unwrap();
        std::fs::write(path("plugin"), PLUGIN).unwrap();
        std::fs::set_permissions(path("plugin"), std::fs::Permissions::from_mode(0o755)).unwrap();
        File::create(path("file")).unwrap();
        let nbdkit = quietly("nbdkit").args(["-f", "-U"]).arg(path("socket")).arg("sh").arg(path("plugin")).spawn();
        let nbdkit = nbdkit.expect("nbdkit");
        until(|| path("socket").exists());
        let nbdfuse = quietly("nbdfuse").arg(path("file")).arg("--unix").arg(path("socket")).spawn().expect("nbdfuse");
        until(|| std::fs::metadata(path("file")).is_ok_and(|file| file.len() == bytes));
        Medium { dir, nbdkit, nbdfuse }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    /// What is on the medium, whatever it refuses.
    pub fn bytes(&self) -> PathBuf {
        self.dir.path().join("bytes")
    }

    /// The next sync fails; those after it succeed.
    pub fn fail_one_sync(&self) {
        std::fs::write(self.dir.path().join("sync"), "").unwrap();
    }

    /// Writes that begin at bytes `from..to` fail with the errno of this name.
    pub fn refuse(&self, from: u64, to: u64, errno: &str) {
        std::fs::write(self.dir.path().join("refuse.new"), format!("{from} {to} {errno}\n")).unwrap();
        std::fs::rename(self.dir.path().join("refuse.new"), self.dir.path().join("refuse")).unwrap();
    }

    pub fn recover(&self) {
        std::fs::remove_file(self.dir.path().join("refuse")).unwrap();
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        for child in [&mut self.nbdfuse, &mut self.nbdkit] {
            if let Some(pid) = Pid::from_raw(child.id() as i32) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}

fn quietly(program: &str) -> Process {
    let mut process = Process::new(program);
    process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process
}

/// These helpers tell nobody when they are ready.
fn until(is_so: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("a helper of the test does not get ready");
}

/// What the offline checker finds wrong with a store that nobody serves.
pub fn complaints(store: &Path) -> Vec<String> {
    struct Image(File);
    impl ReadAt for Image {
        fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
            self.0.read_exact_at(bytes, offset).map_err(|error| error.to_string())
        }
    }
    let image = Image(File::open(store).unwrap());
    match check(&image, CheckOptions { data: true }) {
        Ok(report) if report.is_clean() => Vec::new(),
        Ok(report) => vec![format!("{:?}", report.findings)],
        Err(error) => vec![error.to_string()],
    }
}
