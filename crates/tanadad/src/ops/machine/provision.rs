//! `VM.provision`: a copy of a template becomes a machine, with the disks that the template asks for.

use futures_util::FutureExt;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use crate::context::{Args, CallContext, Handlers};
use crate::db::View;
use crate::ops::intents::Plan;
use crate::ops::vdi::{NewDisk, create_disk};
use crate::ops::vdi_copy::discard;
use crate::ops::{allowed, vbd};

pub fn handlers() -> Handlers {
    vec![("VM.provision", |ctx, args| provision(ctx, args).boxed())]
}

/// A `disk` element of `other_config:disks`.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    device: String,
    size: u64,
    sr: String,
    bootable: bool,
    kind: String,
}

async fn provision(ctx: CallContext, args: Args) -> ApiResult<Value> {
    let vm = args.reference("vm")?;
    let _mark = ctx.begin("VM", &vm, "provision", |tx| allowed::vm(tx, &vm, "provision"))?;
    let machine = ctx.db().read(|state| state.get("VM", &vm))?;
    let wanted = parse(machine.entry("other_config", "disks").unwrap_or_default())?;
    let disks: Vec<(Wanted, NewDisk)> = ctx.db().read(|state| {
        let plan = |one: Wanted| {
            let sr = state.find_by_uuid("SR", &one.sr).ok_or_else(|| ApiError::uuid_invalid("sr", &one.sr))?;
            let disk = NewDisk::new(sr.id(), one.size, &one.device, "Created by template provisioner")
                .with("type", one.kind.as_str())
                .with("sm_config", Value::map([("vmhint", machine.uuid())]));
            Ok::<_, ApiError>((one, disk))
        };
        wanted.into_iter().map(plan).collect::<ApiResult<_>>()
    })?;
    let vdis: Vec<Ref> = disks.iter().map(|(_, disk)| disk.id.clone()).collect();
    let intent = Plan::Discard { vdis: vdis.iter().map(Ref::to_string).collect() }.write(&ctx.daemon)?;
    let made = async {
        for (_, disk) in &disks {
            create_disk(&ctx.daemon, disk).await?;
        }
        ctx.db().write(|tx| {
            tx.set("VM", &vm, "is_a_template", false)?;
            for (one, disk) in &disks {
                tx.create(
                    "VBD",
                    [
                        ("VM", Value::from(&vm)),
                        ("VDI", Value::from(&disk.id)),
                        ("userdevice", Value::from(one.device.as_str())),
                        ("bootable", Value::from(one.bootable)),
                        ("mode", Value::from("RW")),
                        ("type", Value::from("Disk")),
                        ("unpluggable", Value::from(one.kind != "system")),
                        ("other_config", Value::map([("owner", "")])),
                    ],
                )?;
            }
            tx.remove_entry("VM", &vm, "other_config", "disks")?;
            tx.remove_entry("VM", &vm, "other_config", "postinstall")?;
            tx.clear_intent(&intent);
            Ok(())
        })
    };
    match made.await {
        Ok(()) => Ok(Value::Void),
        Err(error) => {
            discard(&ctx.daemon, &vdis, &intent).await;
            Err(if error.is("SR_BACKEND_FAILURE_44") { ApiError::provision_failed_out_of_space() } else { error })
        }
    }
}

fn parse(text: &str) -> ApiResult<Vec<Wanted>> {
    let mut disks = Vec::new();
    if text.trim().is_empty() {
        return Ok(disks);
    }
    let wrong = |why: String| ApiError::invalid_value("other_config:disks", format!("{text}: {why}"));
    let mut reader = Reader::from_str(text);
    loop {
        match reader.read_event().map_err(|error| wrong(error.to_string()))? {
            Event::Start(element) | Event::Empty(element) if element.name().as_ref() == "disk" => {
                disks.push(disk(&element).map_err(wrong)?);
            }
            Event::Eof => return Ok(disks),
            _ => {}
        }
    }
}

fn disk(element: &BytesStart<'_>) -> Result<Wanted, String> {
    let attribute = |name: &str| -> Result<Option<String>, String> {
        let found = element.try_get_attribute(name).map_err(|error| error.to_string())?;
        Ok(found.map(|found| found.value.into_owned()))
    };
    let required = |name: &str| attribute(name)?.ok_or_else(|| format!("a disk without {name}"));
    let device = required("device")?;
    let number = vbd::device_number(&device).ok_or_else(|| format!("device {device:?} is none"))?;
    let size = required("size")?;
    Ok(Wanted {
        device: number.to_string(),
        size: size.parse().map_err(|_| format!("size {size:?} is no number of bytes"))?,
        sr: required("sr")?,
        bootable: required("bootable")? == "true",
        kind: attribute("type")?.unwrap_or_else(|| "system".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::{Wanted, parse};

    #[test]
    fn disks_are_read_from_the_template() {
        let text =
            r#"<provision><disk device="xvda" size="8589934592" sr="abc" bootable="true" type="user"/></provision>"#;
        let wanted =
            Wanted { device: "0".into(), size: 8 << 30, sr: "abc".into(), bootable: true, kind: "user".into() };
        assert_eq!(parse(text).unwrap(), [wanted]);
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn a_malformed_disk_fails() {
        for wrong in [
            r#"<provision><disk device="0" size="x" sr="" bootable="true"/></provision>"#,
            r#"<provision><disk device="0" sr="" bootable="true"/></provision>"#,
            r#"<provision><disk device="999" size="1" sr="" bootable="true"/></provision>"#,
            r#"<provision><disk device="0""#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
