//! Growth, shrinking, failing writes, damage, requests that overlap.

mod shell;

use shell::{MIB, Random, Shell, block, bytes_of, formatted, id};
use tanada_disk::Buf;
use tanada_engine::{Alert, Control, EngineConfig, ExportId, ExtentKind, Reply, Request};

fn small(journal_blocks: u64) -> Shell {
    Shell::open(formatted(64 * MIB, journal_blocks * 4096), EngineConfig::new(64 * MIB))
}

#[test]
fn a_store_grows_and_uses_what_it_gained() {
    let mut config = EngineConfig::new(24 * MIB);
    config.device_can_grow = true;
    let mut shell = Shell::open(formatted(24 * MIB, MIB), config);
    let export = shell.create(id(1), 64 * MIB);
    let free = shell.stat().free;
    shell.must(Control::GrowStore { size: 300 * MIB });
    assert!(shell.stat().free > free + 250 * MIB);
    for n in 0..60 {
        shell.write(export, n * MIB, &vec![n as u8 + 1; MIB as usize]);
    }
    shell.config.device_bytes = 300 * MIB;
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 59 * MIB, 4096), [60; 4096]);
    shell.must(Control::Checkpoint);
    let mut shell = shell.reopen();
    let export = shell.export(id(1), true);
    assert_eq!(shell.read(export, 40 * MIB, 4096), [41; 4096]);
    assert_eq!(shell.control(Control::GrowStore { size: MIB }).expect_err("no shrinking").errno, 22);
}

#[test]
fn what_shrinking_cut_off_reads_as_zeros_when_it_grows_again() {
    let mut shell = small(256);
    let export = shell.create(id(1), 600 * MIB);
    shell.write(export, 500 * MIB, &block(1));
    shell.write(export, MIB, &block(2));
    shell.write(export, 3 * MIB, &block(3));
    shell.must(Control::Resize { id: id(1), size: 2 * MIB });
    let refused = shell.ask(Request::Read { export, offset: 2 * MIB, length: 4096 });
    assert_eq!(refused.expect_err("beyond the end").errno, 22);
    shell.must(Control::Resize { id: id(1), size: 600 * MIB });
    assert_eq!(shell.read(export, 500 * MIB, 4096), [0; 4096]);
    assert_eq!(shell.read(export, 3 * MIB, 4096), [0; 4096]);
    assert_eq!(shell.read(export, MIB, 4096), block(2));
    shell.must(Control::Settle);
    let usage = shell.usage(id(1));
    assert_eq!(usage.mapped, 4096);
}

#[test]
fn a_failed_data_write_fails_its_request_alone() {
    let mut shell = small(256);
    let export = shell.create(id(1), MIB);
    shell.write(export, 0, &block(1));
    shell.device.fail = Some(('w', 1));
    let refused = shell.ask(Request::Write { export, offset: 0, data: Buf::copy_from(&block(2)), fua: false });
    assert_eq!(refused.expect_err("the device failed").errno, 5);
    assert_eq!(shell.read(export, 0, 4096), block(1));
    shell.write(export, 0, &block(3));
    assert_eq!(shell.read(export, 0, 4096), block(3));
}

#[test]
fn damage_is_named_and_a_full_overwrite_heals_it() {
    let mut shell = small(256);
    let export = shell.create(id(1), MIB);
    shell.write(export, 8192, &block(0xd_a7a));
    let device_block = *shell.device.blocks.iter().find(|(_, bytes)| **bytes == block(0xd_a7a)).expect("it is there").0;
    shell.device.blocks.get_mut(&device_block).expect("it is there")[77] ^= 1;
    let refused = shell.ask(Request::Read { export, offset: 8192, length: 512 }).expect_err("damaged");
    assert_eq!(refused.errno, 5);
    let patched = shell.ask(Request::Write { export, offset: 8192 + 512, data: Buf::copy_from(&[1; 512]), fua: false });
    assert_eq!(patched.expect_err("damage gets no fresh checksum (W2)").errno, 5);
    let told = |alert: &Alert| matches!(alert, Alert::Damage { volume, offset: 8192, .. } if *volume == id(1));
    assert!(shell.alerts.iter().any(told), "{:?}", shell.alerts);
    shell.write(export, 8192, &block(4));
    assert_eq!(shell.read(export, 8192, 4096), block(4));
}

#[test]
fn parts_of_one_block_written_at_once_are_all_there() {
    let mut shell = small(256);
    shell.random = Some(Random(1));
    let export = shell.create(id(1), MIB);
    shell.write(export, 0, &block(1));
    let ids: Vec<u64> = (0..8)
        .map(|n| {
            let data = Buf::copy_from(&[n as u8 + 1; 512]);
            shell.submit(Request::Write { export, offset: n * 512, data, fua: n % 2 == 0 })
        })
        .collect();
    ids.into_iter().for_each(|id| drop(shell.wait(id).expect("written")));
    let expected: Vec<u8> = (0..8u8).flat_map(|n| [n + 1; 512]).collect();
    assert_eq!(shell.read(export, 0, 4096), expected);
}

#[test]
fn writes_in_flight_and_a_snapshot_agree_on_one_instant() {
    for seed in 0..30 {
        let mut shell = small(256);
        shell.random = Some(Random(seed));
        let (a, b) = (shell.create(id(1), MIB), shell.create(id(2), MIB));
        // b is written only after the same number was acknowledged on a: at no instant may b be ahead.
        let mut next = 1u64;
        let mut waits: Option<(u64, ExportId)> = None;
        let mut cut = None;
        for turn in 0..400 {
            if waits.is_none_or(|(id, _)| shell.replies.contains_key(&id)) {
                let export = match waits.take() {
                    Some((id, export)) => {
                        shell.replies.remove(&id).expect("there").expect("written");
                        if export == a { b } else { a }
                    }
                    None => a,
                };
                let data = Buf::copy_from(&block(next));
                next += u64::from(export == b);
                waits = Some((shell.submit(Request::Write { export, offset: 0, data, fua: false }), export));
            }
            if turn == 150 {
                let group = vec![(id(1), id(3)), (id(2), id(4))];
                cut = Some(shell.submit(Request::Control(Control::Snapshot { group })));
            }
            shell.step();
        }
        shell.wait(cut.expect("submitted")).expect("cut");
        let (a, b) = (shell.export(id(3), false), shell.export(id(4), false));
        let number = |bytes: Vec<u8>| (0..next + 1).find(|n| block(*n) == bytes).unwrap_or(0);
        let (on_a, on_b) = (number(shell.read(a, 0, 4096)), number(shell.read(b, 0, 4096)));
        assert!(on_b <= on_a && on_a <= on_b + 1, "seed {seed}: a has {on_a}, b has {on_b}");
    }
}

#[test]
fn changed_extents_of_a_volume_since_a_generation() {
    let mut shell = small(256);
    let export = shell.create(id(1), MIB);
    shell.write(export, 0, &[1; 65536]);
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.write(export, 4096, &block(1));
    let request = Request::Extents { export, offset: 0, length: 65536, extents_max: 8, since: Some(id(2)) };
    let Ok(Reply::Extents(extents)) = shell.ask(request) else { panic!("extents") };
    let kinds: Vec<_> = extents.iter().map(|extent| (extent.offset, extent.length, extent.kind)).collect();
    assert_eq!(
        kinds,
        [(0, 4096, ExtentKind::Same), (4096, 4096, ExtentKind::Data), (8192, 65536 - 8192, ExtentKind::Same)]
    );
}

#[test]
fn verbs_are_idempotent_and_say_so() {
    let mut shell = small(256);
    let export = shell.create(id(1), MIB);
    let again = |shell: &mut Shell, control: Control| match shell.must(control) {
        Reply::Changed { changed } | Reply::Cut { changed, .. } => changed,
        other => panic!("{other:?}"),
    };
    assert!(!again(&mut shell, Control::CreateVolume { id: id(1), size: MIB }));
    assert_eq!(shell.control(Control::CreateVolume { id: id(1), size: 2 * MIB }).expect_err("other size").errno, 17);
    let snapshot = Control::Snapshot { group: vec![(id(1), id(2))] };
    assert!(again(&mut shell, snapshot.clone()));
    assert!(!again(&mut shell, snapshot));
    let clone = Control::Clone { source: id(2), volume: id(3) };
    assert!(again(&mut shell, clone.clone()));
    assert!(!again(&mut shell, clone));
    assert_eq!(shell.control(Control::Destroy { id: id(1) }).expect_err("open").errno, 16);
    shell.close(export);
    assert!(again(&mut shell, Control::Destroy { id: id(1) }));
    assert!(!again(&mut shell, Control::Destroy { id: id(1) }));
    assert_eq!(shell.control(Control::Open { id: id(9), writable: false }).expect_err("unknown").errno, 2);
}

#[test]
fn a_clone_of_a_volume_takes_a_hidden_generation_that_goes_by_itself() {
    let mut shell = small(256);
    let export = shell.create(id(1), MIB);
    shell.write(export, 0, &block(1));
    shell.must(Control::Clone { source: id(1), volume: id(2) });
    shell.write(export, 0, &block(2));
    let clone = shell.export(id(2), true);
    assert_eq!(shell.read(clone, 0, 4096), block(1));
    assert_eq!(shell.stat().generations, 0);
    shell.close(clone);
    shell.must(Control::Destroy { id: id(2) });
    shell.must(Control::Settle);
    assert_eq!(shell.usage(id(1)).mapped, 4096);
    assert_eq!(shell.usage(id(1)).shared, 0);
    let Ok(Reply::Data(segments)) = shell.ask(Request::Read { export, offset: 0, length: 4096 }) else { panic!() };
    assert_eq!(bytes_of(&segments), block(2));
}

#[test]
fn what_a_ghost_holds_is_reported_and_comes_back() {
    let mut shell = small(256);
    let export = shell.create(id(1), 4 * MIB);
    shell.write(export, 0, &vec![9; MIB as usize]);
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.must(Control::Clone { source: id(2), volume: id(3) });
    let clone = shell.export(id(3), true);
    shell.write(export, 0, &vec![8; MIB as usize]);
    shell.write(clone, 0, &vec![7; MIB as usize]);
    shell.must(Control::Destroy { id: id(2) });
    shell.must(Control::Checkpoint);
    shell.stat();
    while shell.step() && shell.now < 1_000_000 {}
    assert!(shell.stat().ghost_held >= MIB, "{:?}", shell.stat());
    shell.close(clone);
    shell.must(Control::Destroy { id: id(3) });
    let used = shell.stat().used;
    shell.must(Control::Settle);
    let after = shell.stat();
    assert!(after.used <= used - 2 * MIB, "the clone's and the ghost's blocks are back: {after:?}");
    assert_eq!((after.ghost_held, after.dying), (0, 0));
    assert_eq!(shell.read(export, 0, 4096), [8; 4096]);
}

#[test]
fn a_writer_in_a_full_store_waits_for_what_a_deletion_gives_back() {
    let mut shell = Shell::open(formatted(32 * MIB, MIB), EngineConfig::new(32 * MIB));
    let (a, b) = (shell.create(id(1), 64 * MIB), shell.create(id(2), 64 * MIB));
    for n in 0..10 {
        shell.write(a, n * MIB, &vec![1; MIB as usize]);
    }
    shell.must(Control::Checkpoint);
    let mut written = 0;
    while shell
        .ask(Request::Write { export: b, offset: written * 65536, data: Buf::copy_from(&[2; 65536]), fua: false })
        .is_ok()
    {
        written += 1;
    }
    shell.close(a);
    shell.must(Control::Destroy { id: id(1) });
    for n in written..written + 100 {
        shell.write(b, n * 65536, &[3; 65536]);
    }
    assert_eq!(shell.read(b, (written + 99) * 65536, 4096), [3; 4096]);
    assert!(shell.alerts.contains(&Alert::Full));
}

#[test]
fn an_idle_store_comes_to_rest() {
    let mut shell = small(256);
    for n in 1..4 {
        let export = shell.create(id(n), MIB);
        if n > 1 {
            shell.write(export, 0, &block(n as u64));
        }
        shell.close(export);
    }
    shell.must(Control::Checkpoint);
    for n in 1..4 {
        shell.must(Control::Destroy { id: id(n) });
    }
    // Nothing more is asked: by itself it checkpoints, walks, checkpoints, hands space back, and asks for no more turns.
    let rests = (0..20_000).any(|_| !shell.step());
    assert!(rests, "still wants a turn at {:?}, now is {}", shell.engine.deadline(), shell.now);
    assert_eq!(shell.stat().dying, 0);
}

/// A difference waits for a checkpoint; what is destroyed meanwhile may be given back in part before it is read.
#[test]
fn a_generation_that_goes_away_while_it_is_about_to_be_compared_is_missing() {
    let mut shell = Shell::fresh(64 * MIB);
    let export = shell.create(id(1), MIB);
    shell.write(export, 0, &block(1));
    shell.must(Control::Snapshot { group: vec![(id(1), id(2))] });
    shell.must(Control::Checkpoint);
    shell.write(export, 0, &block(2));
    let difference = Control::Difference { from: id(2), to: id(1), offset: 0, extents_max: 10 };
    let asked = shell.submit(Request::Control(difference.clone()));
    let destroyed = shell.submit(Request::Control(Control::Destroy { id: id(2) }));
    shell.wait(destroyed).expect("destroyed");
    let missing = shell.wait(asked).expect_err("it is going away");
    assert_eq!((missing.errno, shell.control(difference).expect_err("gone").errno), (2, 2), "{missing}");
}

#[test]
fn a_part_of_a_block_that_waited_for_a_discard_of_nothing_is_written_without_a_further_event() {
    let mut shell = small(256);
    let export = shell.create(id(1), 4 * MIB);
    while shell.step() {} // nothing is due any more that would wake a sleeper by chance
    let discard = shell.submit(Request::Discard { export, offset: 0, length: 8192, fua: false });
    let data = Buf::copy_from(&[7; 100]);
    let part = shell.submit(Request::Write { export, offset: 5000, data, fua: false });
    shell.wait(discard).expect("discarded");
    shell.wait(part).expect("written");
    assert!(shell.read(export, 5000, 100) == [7; 100]);
}
