//! The older XML interface (ZAPI), as little of it as clients of the REST interface still ask for: versions, nodes, and the
//! group snapshot that needs no consistency group (`cg-start`, `cg-commit`) with what follows it.
//!
//! ```text
//!  <netapp vfiler="svm1"><cg-start><snapshot>s</snapshot><volumes><volume-name>v</volume-name></volumes></cg-start></netapp>
//!  <netapp><results status="passed"><cg-id>1</cg-id></results></netapp>
//!  <netapp><results status="failed" errno="13005" reason="..."/></netapp>
//! ```

use quick_xml::Reader;
use quick_xml::escape::{escape, unescape};
use quick_xml::events::Event;
use uuid::Uuid;

use crate::api::error::ApiError;
use crate::model::Array;

/// Where clients post to.
pub const PATH: &str = "/servlets/netapp.servlets.admin.XMLrequest_filer";
/// Version of the interface itself: that of ONTAP 9.15.
const ONTAPI: (u32, u32) = (1, 241);
/// "There is no such call."
const UNKNOWN_CALL: u32 = 13005;
/// "There is no such object."
const NOT_FOUND: u32 = 15661;
const DEPTH_MAX: usize = 32;

/// An element: name, text, children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

impl Element {
    fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }
    /// The text at a path of names.
    fn get(&self, path: &str) -> Option<&str> {
        path.split('/').try_fold(self, |element, name| element.child(name)).map(|element| element.text.as_str())
    }
    /// The first element of a name, at any depth.
    fn find(&self, name: &str) -> Option<&Element> {
        self.children.iter().find_map(|child| if child.name == name { Some(child) } else { child.find(name) })
    }
}

struct Failure {
    number: u32,
    reason: String,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure { number: error.code.parse().unwrap_or(UNKNOWN_CALL), reason: error.message }
    }
}

/// Answers one request.
pub fn answer(array: &mut Array, account_svm: Option<&str>, body: &[u8]) -> String {
    let done = parse(body).and_then(|(vfiler, call)| {
        let svm = vfiler.or_else(|| account_svm.map(String::from));
        perform(array, svm.as_deref(), &call)
    });
    let results = match done {
        Ok(inner) => format!("<results status=\"passed\">{inner}</results>"),
        Err(failure) => format!(
            "<results status=\"failed\" errno=\"{}\" reason=\"{}\"></results>",
            failure.number,
            escape(&failure.reason)
        ),
    };
    let (major, minor) = ONTAPI;
    format!(
        "<?xml version='1.0' encoding='UTF-8' ?>\n\
         <netapp version='{major}.{minor}' xmlns='http://www.netapp.com/filer/admin'>{results}</netapp>\n"
    )
}

/// The `vfiler` attribute and the one call inside.
fn parse(body: &[u8]) -> Result<(Option<String>, Element), Failure> {
    let bad = |reason: String| Failure { number: 13001, reason };
    let text = std::str::from_utf8(body).map_err(|error| bad(error.to_string()))?;
    let mut reader = Reader::from_str(text);
    let mut vfiler = None;
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().map_err(|error| bad(error.to_string()))?;
        match event {
            Event::Start(start) => {
                let name = start.local_name().as_ref().to_string();
                if name == "netapp" {
                    let found = start.try_get_attribute("vfiler").map_err(|error| bad(error.to_string()))?;
                    vfiler = found.map(|attribute| attribute.value.into_owned());
                }
                if open.len() > DEPTH_MAX {
                    return Err(bad(format!("more than {DEPTH_MAX} elements inside one another")));
                }
                open.push(Element { name, ..Element::default() });
            }
            Event::Empty(empty) => {
                let name = empty.local_name().as_ref().to_string();
                if let Some(last) = open.last_mut() {
                    last.children.push(Element { name, ..Element::default() });
                }
            }
            Event::End(_) => {
                let Some(done) = open.pop() else { return Err(bad("an end without a beginning".into())) };
                match open.last_mut() {
                    Some(last) => last.children.push(done),
                    None => return Err(bad("an end without a beginning".into())),
                }
            }
            Event::Text(text) => append(&mut open, &text),
            Event::GeneralRef(reference) => {
                let word = format!("&{};", &*reference);
                let plain = unescape(&word).map_err(|error| bad(error.to_string()))?.into_owned();
                append(&mut open, &plain);
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let call = open.first().and_then(|root| root.child("netapp")).and_then(|netapp| netapp.children.first());
    call.cloned().map(|call| (vfiler, call)).ok_or_else(|| bad("no call in the request".into()))
}

fn append(open: &mut [Element], text: &str) {
    if let Some(last) = open.last_mut() {
        last.text.push_str(text.trim());
    }
}

fn perform(array: &mut Array, svm: Option<&str>, call: &Element) -> Result<String, Failure> {
    match call.name.as_str() {
        "system-get-ontapi-version" => {
            Ok(format!("<major-version>{}</major-version><minor-version>{}</minor-version>", ONTAPI.0, ONTAPI.1))
        }
        "system-get-version" => {
            let [generation, major, minor] = array.state.cluster.version;
            Ok(format!(
                "<build-timestamp>1780315200</build-timestamp><is-clustered>true</is-clustered>\
                 <version>NetApp Release {generation}.{major}.{minor}</version><version-tuple><system-version-tuple>\
                 <generation>{generation}</generation><major>{major}</major><minor>{minor}</minor>\
                 </system-version-tuple></version-tuple>"
            ))
        }
        "system-node-get-iter" => {
            let nodes = array.state.nodes.iter().map(|node| {
                format!(
                    "<node-details-info><node>{}</node><node-model>{}</node-model><is-all-flash-optimized>true\
                     </is-all-flash-optimized></node-details-info>",
                    node.name, node.model
                )
            });
            Ok(list(nodes.collect()))
        }
        "cg-start" => {
            let svm = svm.ok_or_else(|| Failure { number: 13001, reason: "no SVM is named".into() })?;
            let name = required(call, "snapshot")?;
            let volumes = call.child("volumes").into_iter().flat_map(|volumes| &volumes.children);
            let names: Vec<String> = volumes.map(|volume| volume.text.clone()).collect();
            Ok(format!("<cg-id>{}</cg-id>", array.start_loose_group(svm, name, &names)?))
        }
        "cg-commit" => {
            let id = required(call, "cg-id")?;
            let number =
                id.parse().map_err(|_| Failure { number: 13001, reason: format!("cg-id {id} is no number") })?;
            array.commit_loose_group(number)?;
            Ok(String::new())
        }
        "snapshot-get-iter" => Ok(snapshots(array, svm, call)),
        "snapshot-rename" => {
            let (volume, snapshot) = snapshot(array, svm, required(call, "volume")?, required(call, "current-name")?)?;
            array.rename_snapshot(volume, snapshot, Some(required(call, "new-name")?), None)?;
            Ok(String::new())
        }
        "snapshot-delete" => {
            let (volume, snapshot) = snapshot(array, svm, required(call, "volume")?, required(call, "snapshot")?)?;
            array.delete_snapshot(volume, snapshot)?;
            Ok(String::new())
        }
        other => Err(Failure { number: UNKNOWN_CALL, reason: format!("Unable to find API: {other}") }),
    }
}

fn required<'a>(call: &'a Element, name: &str) -> Result<&'a str, Failure> {
    call.get(name).ok_or_else(|| Failure { number: 13001, reason: format!("{}: {name} is missing", call.name) })
}

fn list(records: Vec<String>) -> String {
    format!("<attributes-list>{}</attributes-list><num-records>{}</num-records>", records.concat(), records.len())
}

fn snapshot(array: &Array, svm: Option<&str>, volume: &str, name: &str) -> Result<(Uuid, Uuid), Failure> {
    let volume = svm.and_then(|svm| array.volume_named(svm, volume)).map(|volume| volume.uuid);
    let found = volume.and_then(|volume| Some((volume, array.snapshot_named(volume, name)?.uuid)));
    found.ok_or_else(|| Failure { number: NOT_FOUND, reason: format!("there is no snapshot {name}") })
}

/// Snapshots by the name and volume of the query (`*` and `|` are not used by those who ask).
fn snapshots(array: &Array, svm: Option<&str>, call: &Element) -> String {
    let query = call.find("snapshot-info");
    let asked = |name: &str| query.and_then(|query| query.get(name)).map(str::to_string);
    let (wanted, volume) = (asked("name"), asked("volume"));
    let records = array.state.snapshots.values().filter_map(|snapshot| {
        let home = array.state.volumes.get(&snapshot.volume)?;
        let is_asked = svm.is_none_or(|svm| home.svm == svm)
            && wanted.as_ref().is_none_or(|name| *name == snapshot.name)
            && volume.as_ref().is_none_or(|name| *name == home.name);
        let owners = array.owners(snapshot);
        let owner = |owner: &&str| format!("<snapshot-owner><owner>{owner}</owner></snapshot-owner>");
        is_asked.then(|| {
            format!(
                "<snapshot-info><name>{}</name><volume>{}</volume><vserver>{}</vserver><busy>{}</busy>\
                 <snapshot-instance-uuid>{}</snapshot-instance-uuid><snapshot-owners-list>{}</snapshot-owners-list>\
                 </snapshot-info>",
                escape(&snapshot.name),
                escape(&home.name),
                escape(&home.svm),
                !owners.is_empty(),
                snapshot.uuid,
                owners.iter().map(owner).collect::<String>()
            )
        })
    });
    list(records.collect())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn requests_are_taken_apart() {
        let body = b"<?xml version='1.0'?><netapp xmlns=\"http://www.netapp.com/filer/admin\" version=\"1.0\" vfiler=\"svm1\">\
            <cg-start><snapshot>a&amp;b</snapshot><volumes><volume-name>v1</volume-name><volume-name>v2</volume-name>\
            </volumes><timeout/></cg-start></netapp>";
        let (vfiler, call) = parse(body).unwrap_or_else(|failure| panic!("{}", failure.reason));
        assert_eq!((vfiler.as_deref(), call.name.as_str()), (Some("svm1"), "cg-start"));
        assert_eq!(call.get("snapshot"), Some("a&b"));
        assert_eq!(call.child("volumes").map(|volumes| volumes.children.len()), Some(2));
        assert!(parse(b"<netapp>").is_err() && parse(b"").is_err() && parse(b"</a>").is_err());
        assert!(parse("<a>".repeat(100).as_bytes()).is_err(), "depth is bounded");
    }
}
