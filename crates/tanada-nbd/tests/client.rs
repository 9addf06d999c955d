//! The client against servers that others wrote: nbdkit and qemu-nbd.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use tanada_nbd::client::{Client, Extent, NbdError};
use tanada_nbd::copy::copy;
use tempfile::TempDir;
use tokio::net::UnixListener;

const MIB: u64 = 1 << 20;

/// A server that ends with the test.
struct Server {
    child: Child,
    socket: PathBuf,
    _dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The server takes a listening socket as descriptor 3, so that nobody has to wait for it to be ready.
fn activated(program: &str, package: &str, arguments: &[&str]) -> Server {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let child = Command::new("sh")
        .arg("-c")
        .arg("export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 </dev/null")
        .arg("sh")
        .arg(program)
        .args(arguments)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed for this test (Debian package {package}): {error}"));
    Server { child, socket, _dir: dir }
}

fn nbdkit(arguments: &[&str]) -> Server {
    activated("nbdkit", "nbdkit", &[&["-f"], arguments].concat())
}

async fn connect(server: &Server) -> Client {
    Client::connect_unix(&server.socket, "").await.unwrap()
}

#[tokio::test]
async fn what_is_written_is_read_and_the_rest_is_holes() {
    let server = nbdkit(&["memory", "8M"]);
    let client = connect(&server).await;
    assert_eq!(client.size(), 8 * MIB);
    assert!(client.knows_extents() && !client.is_read_only());
    let mut writes = Vec::new();
    for n in 0..64u64 {
        let client = client.clone();
        writes.push(tokio::spawn(async move { client.write_at(n * 4096, Bytes::from(vec![n as u8 + 1; 4096])).await }));
    }
    for write in writes {
        write.await.unwrap().unwrap();
    }
    client.write_at_durably(4 * MIB, Bytes::from_static(b"fua")).await.unwrap();
    client.flush().await.unwrap();
    for n in 0..64u64 {
        let data = client.read_at(n * 4096, 4096).await.unwrap();
        assert!(data.iter().all(|byte| *byte == n as u8 + 1), "block {n}");
    }
    assert_eq!(&client.read_at(4 * MIB, 4).await.unwrap()[..], b"fua\0");
    let extents = client.extents(0, 8 * MIB).await.unwrap();
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 8 * MIB);
    assert!(extents[0].data && extents.iter().any(|extent| !extent.data), "{extents:?}");
    client.zero_at(0, 64 * 4096).await.unwrap();
    assert!(client.read_at(0, 64 * 4096).await.unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_refused_request_leaves_the_connection_good() {
    let server = nbdkit(&["--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"]);
    let client = connect(&server).await;
    let refused = client.write_at(0, Bytes::from_static(&[1; 512])).await.unwrap_err();
    assert!(matches!(refused, NbdError::Refused { command: "write", errno: 28, .. }), "{refused:?}");
    assert_eq!(client.read_at(0, 512).await.unwrap().len(), 512);
    let beyond = client.read_at(MIB, 512).await.unwrap_err();
    assert!(matches!(beyond, NbdError::Refused { command: "read", .. }), "{beyond:?}");
}

#[tokio::test]
async fn a_lost_server_fails_everything_in_flight_and_after() {
    let mut server = nbdkit(&["--filter=delay", "memory", "1M", "delay-read=600"]);
    let client = connect(&server).await;
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.read_at(0, 512).await })
    };
    tokio::task::yield_now().await;
    server.child.kill().unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(NbdError::Lost(_))));
    assert!(matches!(client.read_at(0, 512).await, Err(NbdError::Lost(_))));
}

#[tokio::test]
async fn an_unknown_export_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; MIB as usize]).unwrap();
    let image = image.to_str().unwrap();
    let qemu = activated("qemu-nbd", "qemu-utils", &["-f", "raw", "-x", "disk", "--persistent", "--shared=0", image]);
    let client = Client::connect_unix(&qemu.socket, "disk").await.unwrap();
    assert_eq!(client.read_at(MIB - 512, 512).await.unwrap(), vec![0; 512]);
    let refused = Client::connect_unix(&qemu.socket, "other").await.err().unwrap();
    assert!(matches!(refused, NbdError::NoExport { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_copy_is_equal_and_sparse() {
    let source = nbdkit(&["memory", "5000000"]);
    let target = nbdkit(&["memory", "8M"]);
    let (from, to) = (connect(&source).await, connect(&target).await);
    to.write_at(0, Bytes::from(vec![9; 4 * MIB as usize])).await.unwrap();
    from.write_at(3 * MIB + 100, Bytes::from_static(b"alpha")).await.unwrap();
    from.write_at(4_999_990, Bytes::from_static(b"omega")).await.unwrap();
    let mut last = 0;
    let copied = copy(&from, &to, false, 64 << 10, |_| std::future::ready(()), |done| last = done).await.unwrap();
    assert_eq!(last, 5_000_000);
    assert!(copied.written >= 10 && copied.written < 2 * MIB, "{copied:?}");
    let (left, right) = (from.read_at(0, 5_000_000).await.unwrap(), to.read_at(0, 5_000_000).await.unwrap());
    assert!(left == right);
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &[0x55; 64]).await.unwrap();
        stream
    });
    assert!(matches!(Client::connect_unix(&path, "x").await, Err(NbdError::Protocol(_))));
    drop(serving.await.unwrap());
}

#[tokio::test]
async fn extents_of_a_part_stay_in_the_part() {
    let server = nbdkit(&["memory", "8M"]);
    let client = connect(&server).await;
    client.write_at(MIB, Bytes::from(vec![1; MIB as usize])).await.unwrap();
    let extents = client.extents(MIB / 2, MIB).await.unwrap();
    let half = MIB / 2;
    let expected =
        [Extent { offset: half, length: half, data: false }, Extent { offset: MIB, length: half, data: true }];
    assert_eq!(extents, expected);
}
