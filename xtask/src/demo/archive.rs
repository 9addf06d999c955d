//! A template as a file: out, in again, and what happens to damaged files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::machine::Machine;
use super::snapshot::Generation;
use super::world::World;
use crate::sh;

/// Step 10, first half: export plain and zstd, import the latter, boot a machine from it.
pub fn there_and_back(world: &mut World, sr: &str, first: &Generation) -> Result<()> {
    let plain = export(world, first, "plain.xva", None)?;
    let packed = export(world, first, "packed.xva", Some("zstd"))?;
    sh::output("tar", &[Path::new("-tf"), &plain]).context("tar reads the archive")?;
    sh::output("zstd", &[Path::new("-tq"), &packed]).context("zstd reads the archive")?;
    let [plain_bytes, packed_bytes] = [&plain, &packed].map(|path| path.metadata().map(|meta| meta.len()));
    world.note(format!("plain {} KiB, zstd {} KiB", plain_bytes? >> 10, packed_bytes? >> 10));
    for (name, path) in [("plain", &plain), ("zstd", &packed)] {
        let template = Machine {
            uuid: world.xe(&["vm-import", &format!("filename={}", path.display()), &format!("sr-uuid={sr}")])?,
        };
        if world.param("template", &template.uuid, "is-a-template")? != "true" {
            bail!("the imported {} is no template", template.uuid);
        }
        let judgement = template.judge(world)?;
        if judgement != first.judgement {
            bail!(
                "the template imported from the {name} archive holds other data: {judgement:?}, {:?} expected",
                first.judgement
            );
        }
        let (was, is) = (certificate(world, &first.template)?, certificate(world, &template)?);
        if was != is {
            bail!("the template imported from the {name} archive has another certificate:\n{is}\nexpected:\n{was}");
        }
        if name == "zstd" {
            boot_from(world, &template)?;
        }
        world.xe(&["template-uninstall", &format!("template-uuid={}", template.uuid), "force=true"])?;
    }
    Ok(())
}

/// What a snapshot, or a template made of one, knows about its consistency; without its name and time.
fn certificate(world: &World, machine: &Machine) -> Result<String> {
    let page = world.xe(&["snapshot-certificate", &format!("uuid={}", machine.uuid)])?;
    let start = page.find("consistency:").with_context(|| format!("no level in {page}"))?;
    Ok(page[start..].to_owned())
}

fn boot_from(world: &mut World, template: &Machine) -> Result<()> {
    let uuid = world.xe(&["vm-install", &format!("template={}", template.uuid), "new-name-label=from-archive"])?;
    let machine = Machine { uuid };
    machine.start(world)?;
    let found = machine.guest(world, "cd /data && sha256sum -c known.sha256")?;
    world.note(format!("a machine of the imported template: {found}"));
    world.xe(&["vm-uninstall", &format!("uuid={}", machine.uuid), "force=true"]).map(drop)
}

fn export(world: &World, generation: &Generation, name: &str, compress: Option<&str>) -> Result<PathBuf> {
    let path = world.dir.join(name);
    let mut args = vec![
        "template-export".to_string(),
        format!("template-uuid={}", generation.template.uuid),
        format!("filename={}", path.display()),
    ];
    args.extend(compress.map(|method| format!("compress={method}")));
    world.xe(&args)?;
    Ok(path)
}

/// Step 10, second half: an archive cut short and archives with one bit turned are refused and leave nothing.
pub fn damaged_are_refused(world: &mut World, sr: &str) -> Result<()> {
    let before = inventory(world)?;
    let plain = fs::read(world.dir.join("plain.xva")).context("the plain archive")?;
    let packed = fs::read(world.dir.join("packed.xva")).context("the packed archive")?;
    let damaged = [
        ("cut short", plain[..plain.len() * 2 / 3].to_vec()),
        ("zstd, cut short", packed[..packed.len() / 2].to_vec()),
        ("a bit turned", turned(&plain, plain.len() / 2)),
        ("zstd, a bit turned", turned(&packed, packed.len() / 2)),
        ("not an archive", vec![0x42; 100_000]),
    ];
    for (what, bytes) in damaged {
        let path = world.dir.join("damaged.xva");
        fs::write(&path, bytes)?;
        let refusal =
            world.xe_fails(&["vm-import", &format!("filename={}", path.display()), &format!("sr-uuid={sr}")])?;
        let after = inventory(world)?;
        if after != before {
            bail!("the refused import ({what}) left something behind: {before:?} before, {after:?} after");
        }
        world.note(format!("{what}: {}", refusal.trim().replace('\n', "; ")));
    }
    Ok(())
}

fn turned(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    copy[at] ^= 0x10;
    copy
}

/// Everything an import could leave behind.
fn inventory(world: &World) -> Result<Vec<String>> {
    let lists = ["vm-list", "template-list", "snapshot-list", "vdi-list", "vbd-list", "vif-list"];
    lists
        .iter()
        .map(|list| {
            let text = world.xe(&[list, "--minimal"])?;
            let mut uuids: Vec<&str> = text.split(',').collect();
            uuids.sort_unstable();
            Ok(uuids.join(","))
        })
        .collect()
}
