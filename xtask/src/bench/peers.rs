//! Those who are measured, each behind the same front: something for fio to connect to, and a process to look at.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::blockd::Blockd;
use super::fio::Place;
use super::process::{self, Server};
use super::undo::{Act, Guard};

pub const RAW: &str = "qemu-nbd raw";
pub const TANADA: &str = "tanada";

/// A name and what stands behind it.
#[derive(Debug)]
pub struct Peer {
    pub name: String,
    /// Only beside the others for orientation: two rounds do.
    pub is_context: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    QemuNbd(QemuNbd),
    /// One export of a store that may have more.
    Tanada {
        place: Place,
        token: String,
        pid: u32,
    },
    Nbdkit {
        socket: PathBuf,
        server: Server,
    },
    Medium(PathBuf),
}

impl Peer {
    pub fn tanada(name: &str, blockd: &Blockd, token: &str) -> Peer {
        let kind = Kind::Tanada { place: blockd.place(token), token: token.into(), pid: blockd.pid() };
        Peer { name: name.into(), is_context: false, kind }
    }

    pub fn qemu_nbd(name: &str, server: QemuNbd) -> Peer {
        Peer { name: name.into(), is_context: false, kind: Kind::QemuNbd(server) }
    }

    /// fio on a file without anybody between.
    pub fn medium(file: &Path) -> Peer {
        Peer { name: "medium, no NBD".into(), is_context: true, kind: Kind::Medium(file.to_owned()) }
    }

    /// Memory behind NBD: what this client can reach at most.
    pub fn nbdkit_memory(dir: &Path, bytes: u64) -> Result<Peer> {
        let socket = dir.join("nbdkit.sock");
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket).args(["memory", &bytes.to_string()]);
        let server = Server::start(command, &dir.join("nbdkit.log"))?;
        listening(&socket)?;
        Ok(Peer { name: "nbdkit memory".into(), is_context: true, kind: Kind::Nbdkit { socket, server } })
    }

    /// Measured in two rounds only.
    pub fn into_context(mut self) -> Peer {
        self.is_context = true;
        self
    }

    pub fn place(&self) -> Place {
        match &self.kind {
            Kind::QemuNbd(server) => server.place(),
            Kind::Tanada { place, .. } => place.clone(),
            Kind::Nbdkit { socket, .. } => at_socket(socket),
            Kind::Medium(file) => Place::File(file.clone()),
        }
    }

    /// Whose processor time counts.
    pub fn pid(&self) -> Option<u32> {
        match &self.kind {
            Kind::QemuNbd(server) => server.server.as_ref().map(Server::pid),
            Kind::Tanada { pid, .. } => Some(*pid),
            Kind::Nbdkit { server, .. } => Some(server.pid()),
            Kind::Medium(_) => None,
        }
    }

    /// Socket and export name, for the client of our own; `store` is Tanada's.
    pub fn export(&self, store: &Blockd) -> (PathBuf, String) {
        match &self.kind {
            Kind::QemuNbd(server) => (server.socket.clone(), String::new()),
            Kind::Nbdkit { socket, .. } => (socket.clone(), String::new()),
            Kind::Tanada { token, .. } => (store.nbd_socket(), token.clone()),
            Kind::Medium(file) => (file.clone(), String::new()),
        }
    }

    pub fn qemu(&mut self) -> Option<&mut QemuNbd> {
        match &mut self.kind {
            Kind::QemuNbd(server) => Some(server),
            _ => None,
        }
    }
}

/// qemu-nbd over an image that it owns.
#[derive(Debug)]
pub struct QemuNbd {
    format: &'static str,
    image: PathBuf,
    socket: PathBuf,
    // Before the files in order: it ends before they are removed.
    server: Option<Server>,
    files: Vec<Guard>,
    taken: usize,
}

impl QemuNbd {
    /// A sparse raw file, or an empty qcow2 image, under `dir`.
    pub fn create(dir: &Path, name: &str, format: &'static str, bytes: u64) -> Result<QemuNbd> {
        let image = dir.join(format!("{name}.{format}"));
        let guard = Guard::new(Act::Remove(image.clone()));
        match format {
            "raw" => File::create(&image)?.set_len(bytes)?,
            _ => drop(qemu_img(&["create", "-q", "-f", format, &image.to_string_lossy(), &bytes.to_string()])?),
        }
        let mut server = QemuNbd {
            format,
            image,
            socket: dir.join(format!("{name}-{format}.sock")),
            server: None,
            files: vec![guard],
            taken: 0,
        };
        server.start()?;
        Ok(server)
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    fn start(&mut self) -> Result<()> {
        let _ = std::fs::remove_file(&self.socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["-f", self.format, "--cache=none", "--aio=io_uring", "-t", "-e", "64", "-k"]);
        command.args([&self.socket, &self.image]);
        // It complains about every client that hangs up, as fio does: the log is nobody's to read.
        self.server = Some(Server::start(command, &self.socket.with_extension("log"))?);
        listening(&self.socket)
    }

    pub fn place(&self) -> Place {
        at_socket(&self.socket)
    }

    /// A snapshot inside the qcow2 image. The server is away meanwhile.
    pub fn internal_snapshot(&mut self) -> Result<()> {
        self.taken += 1;
        self.server = None;
        qemu_img(&["snapshot", "-c", &format!("g{}", self.taken), &self.image.to_string_lossy()])?;
        self.start()
    }

    /// Deletes the newest one.
    pub fn drop_internal_snapshot(&mut self) -> Result<()> {
        self.server = None;
        qemu_img(&["snapshot", "-d", &format!("g{}", self.taken), &self.image.to_string_lossy()])?;
        self.start()
    }

    /// An empty overlay over the image, which is served from now on. The server is away meanwhile.
    pub fn overlay(&mut self) -> Result<()> {
        self.taken += 1;
        self.server = None;
        let overlay = self.image.with_file_name(format!("overlay{}.qcow2", self.taken));
        self.files.push(Guard::new(Act::Remove(overlay.clone())));
        let (backing, format) = (self.image.to_string_lossy().into_owned(), self.format);
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", &backing, "-F", format, &overlay.to_string_lossy()])?;
        self.image = overlay;
        self.start()
    }

    /// A reflink copy of the image beside it, as a snapshot. The server stays: qemu-nbd with `cache=none` has nothing of
    /// its own that would be missing in the copy.
    pub fn reflink(&mut self) -> Result<()> {
        self.taken += 1;
        let copy = self.image.with_file_name(format!("copy{}", self.taken));
        let (image, copy) = (self.image.to_string_lossy().into_owned(), copy.to_string_lossy().into_owned());
        process::output("cp", &["--reflink=always", &image, &copy]).map(drop)
    }

    /// Removes the newest copy.
    pub fn drop_reflink(&mut self) -> Result<()> {
        let copy = self.image.with_file_name(format!("copy{}", self.taken));
        std::fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))
    }
}

fn qemu_img(args: &[&str]) -> Result<String> {
    process::output("qemu-img", args)
}

fn at_socket(socket: &Path) -> Place {
    Place::Nbd(format!("nbd+unix:///?socket={}", socket.display()))
}

fn listening(socket: &Path) -> Result<()> {
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        if start.elapsed() > Duration::from_secs(20) {
            bail!("nobody listens on {}", socket.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A file system with reflinks in a file, mounted; everything is undone when this is dropped.
#[derive(Debug)]
pub struct Reflinks {
    pub mount: PathBuf,
    // In order: unmounted, detached, removed.
    _mounted: Guard,
    _device: Guard,
    _image: Guard,
}

impl Reflinks {
    /// XFS on a loop device over a file that is written in full.
    pub fn create(dir: &Path, bytes: u64) -> Result<Reflinks> {
        let image = dir.join("xfs.image");
        let image_guard = Guard::new(Act::Remove(image.clone()));
        super::blockd::write_zeros(&image, bytes)?;
        let path = image.to_string_lossy().into_owned();
        process::output("mkfs.xfs", &["-q", "-K", "-m", "reflink=1", &path]).context("making XFS")?;
        let device = process::output("losetup", &["--find", "--show", "--direct-io=on", &path])?.trim().to_string();
        let device_guard = Guard::new(Act::DetachLoop(device.clone()));
        let mount = dir.join("xfs");
        std::fs::create_dir_all(&mount)?;
        process::output("mount", &["-t", "xfs", &device, &mount.to_string_lossy()])?;
        let mounted = Guard::new(Act::Unmount(mount.clone()));
        Ok(Reflinks { mount, _mounted: mounted, _device: device_guard, _image: image_guard })
    }
}
