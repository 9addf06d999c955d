//! Single disks as images: VHD, qcow2, tar, framed and plain; whole and as deltas; interrupted, damaged, too large.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tanada_e2e::{Scratch, tanada};
use tanada_witness::noise;

const MIB: usize = 1 << 20;
const SIZE: usize = 21 * MIB + 4096;

struct World {
    scratch: Scratch,
    sr: String,
    /// Tasks of imports that were looked at.
    seen: Vec<String>,
}

/// What the server answers over one connection.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.head)).trim()
    }
}

fn first() -> Vec<u8> {
    let mut image = vec![0; SIZE];
    image[..3 * MIB].copy_from_slice(&noise(3 * MIB, 1));
    image[9 * MIB + 512..10 * MIB].copy_from_slice(&noise(MIB - 512, 2));
    image[21 * MIB..].copy_from_slice(&noise(4096, 3));
    image
}

/// Overwritten, zeroed and filled in places.
fn second() -> Vec<u8> {
    let mut image = first();
    image[MIB..MIB + 8192].copy_from_slice(&noise(8192, 4));
    image[9 * MIB..10 * MIB].fill(0);
    image[15 * MIB..16 * MIB].copy_from_slice(&noise(MIB, 5));
    image
}

impl World {
    fn new() -> World {
        let scratch = Scratch::start();
        let location = format!("device-config:location={}", scratch.path("fast.store").display());
        let sr = scratch.xe_ok(["sr-create", "type=tanada", "name-label=fast", &location, "physical-size=1GiB"]);
        World { scratch, sr, seen: Vec::new() }
    }

    fn disk(&self, content: &[u8]) -> String {
        let size = format!("virtual-size={}", content.len());
        let vdi =
            self.scratch.xe_ok(["vdi-create", &format!("sr-uuid={}", self.sr), "name-label=disk", &size, "type=user"]);
        self.import(&vdi, "raw", content, &[]).unwrap();
        vdi
    }

    fn import(&self, vdi: &str, format: &str, image: &[u8], more: &[&str]) -> Result<(), String> {
        let file = self.scratch.path("import");
        fs::write(&file, image).unwrap();
        let mut words = vec![
            "vdi-import".to_owned(),
            format!("uuid={vdi}"),
            format!("filename={}", file.display()),
            format!("format={format}"),
        ];
        words.extend(more.iter().map(|word| (*word).to_owned()));
        let ran = self.scratch.xe(words);
        if ran.status == 0 { Ok(()) } else { Err(ran.err) }
    }

    fn export(&self, vdi: &str, format: &str, more: &[&str]) -> PathBuf {
        let file = self.scratch.path(&format!("{vdi}.{format}"));
        drop(fs::remove_file(&file));
        let mut words = vec![
            "vdi-export".to_owned(),
            format!("uuid={vdi}"),
            format!("filename={}", file.display()),
            format!("format={format}"),
        ];
        words.extend(more.iter().map(|word| (*word).to_owned()));
        self.scratch.xe_ok(words);
        file
    }

    fn content(&self, vdi: &str) -> Vec<u8> {
        fs::read(self.export(vdi, "raw", &[])).unwrap()
    }

    fn snapshot(&self, vdi: &str) -> String {
        self.scratch.xe_ok(["vdi-snapshot", &format!("uuid={vdi}")])
    }

    fn clone(&self, vdi: &str) -> String {
        self.scratch.xe_ok(["vdi-clone", &format!("uuid={vdi}")])
    }

    /// One request; root without a password, which the local socket takes.
    fn http(&self, request: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = UnixStream::connect(self.scratch.socket()).unwrap();
        let length = if headers.contains("Content-Length") {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\n{length}{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A server that has read enough may close before all is sent.
        drop(stream.write_all(body));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut received = Vec::new();
        drop(stream.read_to_end(&mut received));
        let start = received.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let body = received.split_off(start);
        let head = String::from_utf8(received).unwrap().to_lowercase();
        Answer { status: head[9..12].parse().unwrap(), head, body }
    }

    /// Writes parts of a disk, in xapi's frames.
    fn write(&mut self, vdi: &str, parts: &[(usize, &[u8])]) {
        let frame = |at: usize, bytes: &[u8]| {
            [&(at as u64).to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
        };
        let frames = parts.iter().map(|(at, bytes)| frame(*at, bytes)).chain([frame(0, b"")]).collect::<Vec<_>>();
        self.http(&format!("PUT /import_raw_vdi?vdi={vdi}&chunked=1"), "", &frames.concat());
        let (status, error, _) = self.ended();
        assert_eq!(status, "success", "{error}");
    }

    /// How the import that was asked for last has ended: status, error, and what else its task says.
    fn ended(&mut self) -> (String, String, String) {
        let seen = self.seen.clone();
        let uuid = self.scratch.eventually("the import's task ends", |scratch| {
            let tasks = scratch.xe_ok(["task-list", "name-label=import_raw_vdi", "--minimal"]);
            let new = tasks.split(',').find(|uuid| !seen.iter().any(|old| old == uuid)).unwrap_or_default().to_owned();
            let status = ["task-param-get".to_owned(), format!("uuid={new}"), "param-name=status".to_owned()];
            let status = scratch.xe(status).out;
            if matches!(status.trim(), "success" | "failure") { Ok(new) } else { Err(format!("{tasks}: {status}")) }
        });
        let by_uuid = format!("uuid={uuid}");
        self.seen.push(uuid);
        let param = |name: &str| self.scratch.xe_ok(["task-param-get", &by_uuid, &format!("param-name={name}")]);
        (param("status"), param("error_info"), param("other-config"))
    }
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn whole_disks_go_out_and_in_in_every_format() {
    let world = World::new();
    let vdi = world.disk(&first());
    let raw = world.export(&vdi, "raw", &[]);
    assert!(fs::read(&raw).unwrap() == first());
    for (format, theirs) in [("vhd", "vpc"), ("qcow2", "qcow2"), ("tar", "")] {
        let file = world.export(&vdi, format, &[]);
        // Only what is mapped is there.
        let length = fs::metadata(&file).unwrap().len() as usize;
        assert!(length < 12 * MIB, "{format}: {length}");
        if !theirs.is_empty() {
            let said = qemu_img(&["compare", "-f", theirs, "-F", "raw", text(&file), text(&raw)]);
            assert!(said.contains("identical"), "{said}");
        }
        let image = fs::read(&file).unwrap();
        // Into an empty disk, and over one that is full of something else.
        let (empty, full) = (world.disk(&vec![0; SIZE]), world.disk(&noise(SIZE, 8)));
        for target in [&empty, &full] {
            world.import(target, format, &image, &[]).unwrap_or_else(|error| panic!("{format}: {error}"));
            assert!(world.content(target) == first(), "{format}");
        }
    }
    for (theirs, options, format) in [
        ("vpc", "subformat=dynamic,force_size=on", "vhd"),
        ("vpc", "subformat=fixed,force_size=on", "vhd"),
        ("qcow2", "cluster_size=64k", "qcow2"),
    ] {
        let file = world.scratch.path("theirs");
        qemu_img(&["convert", "-f", "raw", "-O", theirs, "-o", options, text(&raw), text(&file)]);
        let target = world.disk(&noise(SIZE, 8));
        world.import(&target, format, &fs::read(&file).unwrap(), &[]).unwrap();
        assert!(world.content(&target) == first(), "{theirs} {options}");
    }
}

#[test]
fn deltas_hold_what_changed_and_are_laid_over_a_clone() {
    let mut world = World::new();
    let vdi = world.disk(&first());
    let old = world.snapshot(&vdi);
    let changed = second();
    let ranges = [MIB..MIB + 8192, 9 * MIB..10 * MIB, 15 * MIB..16 * MIB];
    world.write(&vdi, &ranges.map(|range| (range.start, &changed[range])));
    let new = world.snapshot(&vdi);
    let base = format!("base={old}");
    for (format, most) in [("vhd", 3 * (2 * MIB + 512) + 4096), ("qcow2", 2 * MIB)] {
        let file = world.export(&new, format, &[&base]);
        let delta = fs::read(&file).unwrap();
        assert!(delta.len() < most, "{format}: {}", delta.len());
        let target = world.clone(&old);
        world.import(&target, format, &delta, &[]).unwrap();
        assert!(world.content(&target) == second(), "{format}");
        // The same delta backwards.
        let back = world.export(&old, format, &[&format!("base={new}")]);
        world.import(&target, format, &fs::read(back).unwrap(), &[]).unwrap();
        assert!(world.content(&target) == first(), "{format}");
        // Told to be whole, what it lacks is zero.
        world.import(&target, format, &delta, &["delta=false"]).unwrap();
        let lacking = &world.content(&target)[2 * MIB..3 * MIB];
        assert!(lacking.iter().all(|byte| *byte == 0), "{format}");
    }
    let whole = world.export(&old, "qcow2", &[]);
    let delta = world.export(&new, "qcow2", &[&base]);
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", text(&whole), text(&delta)]);
    let raw = world.export(&new, "raw", &[]);
    let said = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(&delta), text(&raw)]);
    assert!(said.contains("identical"), "{said}");
    let refused = world.scratch.xe(["vdi-export", &format!("uuid={new}"), "filename=/tmp/none", "format=raw", &base]);
    assert!(refused.err.contains("vhd or qcow2"), "{}", refused.err);
}

#[test]
fn an_interrupted_transfer_goes_on_where_it_stopped() {
    let mut world = World::new();
    let vdi = world.disk(&first());
    let snapshot = world.snapshot(&vdi);
    for format in ["raw", "vhd", "qcow2", "tar"] {
        let path = format!("GET /export_raw_vdi?vdi={snapshot}&format={format}");
        let whole = world.http(&path, "", b"");
        assert_eq!((whole.status, whole.header("content-length")), (200, whole.body.len().to_string().as_str()));
        let total = whole.body.len();
        for (start, end) in [(1, total), (2 * MIB + 700, total), (MIB, MIB + 100_001), (total - 1, total)] {
            let range = format!("Range: bytes={start}-{}\r\n", end - 1);
            let part = world.http(&path, &range, b"");
            assert_eq!(part.status, 206);
            assert_eq!(part.header("content-range"), format!("bytes {start}-{}/{total}", end - 1));
            assert!(part.body == whole.body[start..end], "{format} {start}..{end}");
            let rest = world.http(&format!("{path}&offset={start}"), "", b"");
            assert!(rest.status == 200 && rest.body == whole.body[start..], "{format} from {start}");
        }
        assert_eq!(world.http(&path, &format!("Range: bytes={total}-\r\n"), b"").status, 416);
    }
    // The same by `xe`: half of a file is there.
    let file = world.export(&snapshot, "vhd", &[]);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let (vdi, filename) = (format!("uuid={snapshot}"), format!("filename={}", file.display()));
    world.scratch.xe_ok(["vdi-export", &vdi, &filename, "format=vhd", "resume=true"]);
    assert!(fs::read(&file).unwrap() == whole);
    // In: a stream that breaks off, then the rest of it.
    let target = world.disk(&noise(SIZE, 9));
    let announced = format!("Content-Length: {SIZE}\r\n");
    let path = format!("PUT /import_raw_vdi?vdi={target}");
    world.http(&path, &announced, &first()[..5 * MIB + 1000]);
    let (status, error, noted) = world.ended();
    assert_eq!(status, "failure", "{error}");
    assert!(noted.contains(&format!("resume_offset: {}", 5 * MIB)), "{noted}");
    world.http(&format!("{path}&offset={}", 5 * MIB), "", &first()[5 * MIB..]);
    assert_eq!(world.ended().0, "success");
    assert!(world.content(&target) == first());
    let mut later = first();
    later[9 * MIB..].copy_from_slice(&noise(SIZE - 9 * MIB, 6));
    world.import(&target, "raw", &later, &[&format!("offset={}", 9 * MIB)]).unwrap();
    assert!(world.content(&target) == later);
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_written() {
    let world = World::new();
    let large = world.disk(&noise(SIZE, 1));
    let before = noise(4 * MIB, 2);
    let small = world.disk(&before);
    for format in ["raw", "vhd", "qcow2"] {
        let image = fs::read(world.export(&large, format, &[])).unwrap();
        let error = world.import(&small, format, &image, &[]).unwrap_err();
        assert!(error.contains("too small"), "{format}: {error}");
        assert!(world.content(&small) == before, "{format}");
    }
    // Damaged and cut streams fail, and leave the disk usable.
    for format in ["vhd", "qcow2", "tar"] {
        let image = fs::read(world.export(&small, format, &[])).unwrap();
        assert!(world.import(&small, format, &image[..image.len() - 1], &[]).is_err() || format == "qcow2", "{format}");
        assert!(world.import(&small, format, &image[..image.len() / 2], &[]).is_err(), "{format}");
        assert!(world.import(&small, format, &before, &[]).is_err(), "{format}");
        world.import(&small, format, &image, &[]).unwrap();
        assert!(world.content(&small) == before, "{format}");
    }
    let unknown = world.http(&format!("GET /export_raw_vdi?vdi={small}&format=vmdk"), "", b"");
    assert_eq!(unknown.status, 404);
    let sr = &world.sr;
    let new = world.http(&format!("PUT /import_raw_vdi?sr_uuid={sr}&format=vhd"), "", b"conectix");
    assert_eq!(new.status, 400);
    let size = format!("virtual-size={}", 2041u64 << 30);
    let huge = world.scratch.xe_ok(["vdi-create", &format!("sr-uuid={sr}"), "name-label=huge", &size, "type=user"]);
    let vhd = world.http(&format!("GET /export_raw_vdi?vdi={huge}&format=vhd"), "", b"");
    assert!(vhd.status == 500 && String::from_utf8_lossy(&vhd.body).contains("VDI_TOO_LARGE"));
    let qcow2 = world.export(&huge, "qcow2", &[]);
    assert!(qemu_img(&["info", text(&qcow2)]).contains(&(2041u64 << 30).to_string()), "2041 GiB");
}

/// Xen Orchestra does not know the length of what it sends, and xapi has frames of its own.
#[test]
fn streams_of_unknown_length_end_where_they_say() {
    let mut world = World::new();
    let vdi = world.disk(&first());
    let open = format!("Content-Length: {}\r\n", 1u64 << 50);
    for format in ["vhd", "qcow2", "tar"] {
        let image = fs::read(world.export(&vdi, format, &[])).unwrap();
        let target = world.disk(&vec![0; SIZE]);
        world.http(&format!("PUT /import_raw_vdi?vdi={target}&format={format}"), &open, &image);
        let (status, error, _) = world.ended();
        assert_eq!(status, "success", "{format}: {error}");
        assert!(world.content(&target) == first(), "{format}");
    }
    // A pipe, through `xe`: it says nothing of its length.
    for (format, from) in [("raw", "filename=-"), ("raw", "filename=/dev/stdin"), ("qcow2", "filename=/dev/stdin")] {
        let file = world.export(&vdi, format, &[]);
        let target = world.disk(&noise(SIZE, 3));
        let mut cat = Command::new("cat").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
        let status = Command::new(tanada())
            .args(["xe", "vdi-import", &format!("uuid={target}"), from, &format!("format={format}")])
            .env("TANADA_SOCKET", world.scratch.socket())
            .stdin(cat.stdout.take().unwrap())
            .status()
            .unwrap();
        assert!(cat.wait().unwrap().success() && status.success(), "{format}");
        assert!(world.content(&target) == first(), "{format}");
    }
    let mut expected = first();
    let parts = [(20 * MIB, noise(4096, 6)), (512, noise(1024, 7))];
    for (at, bytes) in &parts {
        expected[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    world.write(&vdi, &parts.each_ref().map(|(at, bytes)| (*at, &bytes[..])));
    assert!(world.content(&vdi) == expected);
}

/// Begun, and then nothing: neither side goes on.
#[test]
fn a_cancelled_transfer_lets_go_of_its_disk() {
    let mut world = World::new();
    let full = noise(SIZE, 2);
    let vdi = world.disk(&full);
    let image = fs::read(world.export(&vdi, "vhd", &[])).unwrap();
    let announced = format!("Content-Length: {}\r\n", image.len());
    for (request, sent) in [("GET /export_raw_vdi", &[][..]), ("PUT /import_raw_vdi", &image[..image.len() / 2])] {
        let mut stream = UnixStream::connect(world.scratch.socket()).unwrap();
        let length = if sent.is_empty() { "" } else { announced.as_str() };
        let head = format!(
            "{request}?vdi={vdi}&format=vhd HTTP/1.1\r\nHost: x\r\nAuthorization: Basic cm9vdDo=\r\n{length}\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(sent).unwrap();
        let label = format!("name-label={}", &request[5..]);
        let task = world.scratch.eventually("the transfer begins", |scratch| {
            let task = scratch.xe_ok(["task-list", "status=pending", &label, "--minimal"]);
            if task.is_empty() { Err(task) } else { Ok(task) }
        });
        let by_uuid = format!("uuid={task}");
        world.scratch.xe_ok(["task-cancel", &by_uuid]);
        world.scratch.eventually("the task ends", |scratch| {
            let status = scratch.xe_ok(["task-param-get", &by_uuid, "param-name=status"]);
            if status == "cancelled" { Ok(()) } else { Err(status) }
        });
        // With the connection still there, the disk can be written to again.
        world.import(&vdi, "raw", &full, &[]).unwrap();
        drop(stream);
    }
    assert!(world.content(&vdi) == full);
}
