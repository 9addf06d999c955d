//! Volumes and online snapshots as iSCSI targets: the array's blocks in files, shown by `sim-target`.
//!
//! A target of the group has one target in tgtd for logins without CHAP and one for each CHAP account that its records
//! name; the login router chooses by the group's own judgement ([`Group::admit`]).
//!
//! Two hosts that log in to a volume at the very same moment are not kept apart: each is judged by who is in already.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sim_target::faults::{Action, Faults};
use sim_target::router::{Director, Discovery, Login as Knock, Refusal, Route, Router};
use sim_target::{Chap, Identity, Target, TargetError, blocks};

use crate::array::blocks::{Blocks, DiskId, Export, Login};
use crate::array::name::naa;
use crate::array::size::{PAGE_BYTES, Pages};
use crate::array::{Group, LoginRefusal};

/// What the router asks about: the group as of the last change.
pub struct Judge {
    group: Mutex<Group>,
    router: OnceLock<Weak<Router>>,
    /// The group's portal and the member's: the first only redirects to the second.
    portals: OnceLock<(SocketAddr, SocketAddr)>,
    faults: Faults,
}

impl Judge {
    pub fn new(group: Group, faults: Faults) -> Judge {
        Judge { group: Mutex::new(group), router: OnceLock::new(), portals: OnceLock::new(), faults }
    }

    /// From now on logins at `group` are redirected to `member`.
    pub fn redirect(&self, group: SocketAddr, member: SocketAddr) {
        // A group has one pair of portals for as long as it runs.
        let _ = self.portals.set((group, member));
    }

    fn group(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logins(&self) -> Vec<Login> {
        let router = self.router.get().and_then(Weak::upgrade);
        router.map(|router| logins(&router)).unwrap_or_default()
    }
}

fn logins(router: &Router) -> Vec<Login> {
    let sessions = router.sessions().into_iter();
    sessions
        .map(|session| Login {
            iqn: session.login.target,
            initiator: session.login.initiator,
            address: session.peer.ip().to_string(),
        })
        .collect()
}

impl Director for Judge {
    fn login(&self, knock: &Knock) -> Route {
        match self.faults.take("iscsi login") {
            Some(Action::DelayMs(time)) => thread::sleep(Duration::from_millis(time)),
            Some(_) => return Route::Refuse(Refusal::SERVICE_UNAVAILABLE),
            None => {}
        }
        let logins = self.logins();
        let admitted = self.group().admit(&knock.initiator, &knock.peer.ip().to_string(), &knock.target, &logins);
        match (admitted, self.portals.get()) {
            (Ok(_), Some((group, member))) if *group == knock.portal => Route::Redirect { portal: member.to_string() },
            (Ok(admission), _) => Route::Accept { target: inner(admission.disk, admission.chap_user.as_deref()) },
            (Err(LoginRefusal::NoTarget), _) => Route::Refuse(Refusal::NOT_FOUND),
            (Err(LoginRefusal::NoRecord | LoginRefusal::SecondHost), _) => Route::Refuse(Refusal::NOT_AUTHORISED),
        }
    }

    fn discover(&self, initiator: &str, portal: SocketAddr) -> Result<Discovery, Refusal> {
        let visible = self.group().visible(initiator);
        let portals = vec![format!("{portal},1")];
        Ok(Discovery { targets: visible.into_iter().map(|iqn| (iqn, portals.clone())).collect(), chap: None })
    }

    fn naa(&self, knock: &Knock, _: u16) -> Option<[u8; 16]> {
        u128::from_str_radix(&naa(&knock.target)?, 16).ok().map(u128::to_be_bytes)
    }
}

/// The name in tgtd.
fn inner(disk: DiskId, user: Option<&str>) -> String {
    let user: String = user.unwrap_or_default().bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("iqn.2001-05.com.equallogic:disk{}:{user}", disk.0)
}

struct Shown {
    export: Export,
    secret: Option<String>,
}

/// The disks of a group, with their targets.
pub struct Disks {
    dir: PathBuf,
    target: Arc<Target>,
    router: Arc<Router>,
    judge: Arc<Judge>,
    shown: BTreeMap<String, Shown>,
    compared: BTreeMap<(DiskId, DiskId), ([Stamp; 2], Pages)>,
}

/// By this a change of a file shows.
type Stamp = (i64, i64, u64);

impl Disks {
    /// Removes the disks that the group does not know: they were under way when it ended.
    pub fn new(
        dir: &Path,
        group: &Group,
        target: Arc<Target>,
        router: Arc<Router>,
        judge: Arc<Judge>,
    ) -> io::Result<Disks> {
        // A second call would find the same router.
        let _ = judge.router.set(Arc::downgrade(&router));
        let disks = Disks { dir: dir.into(), target, router, judge, shown: BTreeMap::new(), compared: BTreeMap::new() };
        let known: Vec<PathBuf> = group.disks().map(|disk| disks.path(disk)).collect();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if !known.contains(&path) {
                fs::remove_file(path)?;
            }
        }
        Ok(disks)
    }

    fn path(&self, disk: DiskId) -> PathBuf {
        self.dir.join(format!("disk{}", disk.0))
    }

    fn show(&mut self, name: &str, export: &Export, user: Option<&(String, String)>) -> io::Result<()> {
        let secret = user.map(|(_, secret)| secret.clone());
        match self.shown.get(name) {
            Some(old) if old.export.pages == export.pages && old.export.thin == export.thin => {
                if old.export.read_only != export.read_only {
                    self.target.set_read_only(name, 0, export.read_only).map_err(other)?;
                }
                if old.secret != secret {
                    self.target.set_chap(name, chap(user).as_ref(), None).map_err(other)?;
                }
            }
            Some(_) => {
                let (target, path) = (&self.target, self.path(export.disk));
                let again = || {
                    target.remove_lun(name, 0)?;
                    target.add_lun(name, 0, &path, &identity(export), export.thin, export.read_only)
                };
                self.router.held(again).map_err(other)?;
            }
            None => {
                self.target.add_target(name).map_err(other)?;
                self.target.set_chap(name, chap(user).as_ref(), None).map_err(other)?;
                let path = self.path(export.disk);
                self.target.add_lun(name, 0, &path, &identity(export), export.thin, export.read_only).map_err(other)?;
            }
        }
        self.shown.insert(name.to_string(), Shown { export: export.clone(), secret });
        Ok(())
    }

    fn stamp(&self, disk: DiskId) -> io::Result<Stamp> {
        let facts = fs::metadata(self.path(disk))?;
        Ok((facts.mtime(), facts.mtime_nsec(), facts.len()))
    }
}

fn chap(user: Option<&(String, String)>) -> Option<Chap> {
    user.map(|(user, secret)| Chap { user: user.clone(), secret: secret.clone() })
}

fn other(error: TargetError) -> io::Error {
    io::Error::other(error)
}

fn identity(export: &Export) -> Identity {
    let serial = naa(&export.iqn).unwrap_or_default().to_uppercase();
    Identity { vendor: "EQLOGIC".into(), product: "100E-00".into(), revision: "10.0".into(), serial }
}

impl Blocks for Disks {
    fn create(&mut self, disk: DiskId, pages: Pages) -> io::Result<()> {
        blocks::create(&self.path(disk), pages.bytes()).map_err(other)
    }

    fn resize(&mut self, disk: DiskId, pages: Pages) -> io::Result<()> {
        blocks::resize(&self.path(disk), pages.bytes()).map_err(other)
    }

    fn remove(&mut self, disk: DiskId) -> io::Result<()> {
        self.compared.retain(|(one, two), _| *one != disk && *two != disk);
        fs::remove_file(self.path(disk))
    }

    fn copy(&mut self, pairs: &[(DiskId, DiskId)]) -> io::Result<()> {
        let paths: Vec<(PathBuf, PathBuf)> =
            pairs.iter().map(|(from, to)| (self.path(*from), self.path(*to))).collect();
        let borrowed: Vec<(&Path, &Path)> = paths.iter().map(|(from, to)| (from.as_path(), to.as_path())).collect();
        self.target.copy_at_one_instant(&borrowed).map(|_| ()).map_err(other)
    }

    fn used(&mut self, disk: DiskId) -> io::Result<Pages> {
        Ok(Pages(pages_with_data(&File::open(self.path(disk))?)?.len() as u64))
    }

    fn differing(&mut self, one: DiskId, two: DiskId) -> io::Result<Pages> {
        let stamps = [self.stamp(one)?, self.stamp(two)?];
        if let Some((_, pages)) = self.compared.get(&(one, two)).filter(|(known, _)| *known == stamps) {
            return Ok(*pages);
        }
        let pages = compare(&File::open(self.path(one))?, &File::open(self.path(two))?)?;
        self.compared.insert((one, two), (stamps, pages));
        Ok(pages)
    }

    fn publish(&mut self, group: &Group) -> io::Result<()> {
        // From here on nobody new gets in where a target is about to go.
        *self.judge.group() = group.clone();
        let exports = group.exports();
        let online = |disk: DiskId| exports.iter().any(|export| export.disk == disk);
        let gone: Vec<String> =
            self.shown.iter().filter(|(_, shown)| !online(shown.export.disk)).map(|(name, _)| name.clone()).collect();
        for name in gone {
            // Its sessions end with it.
            self.target.remove_target(&name).map_err(other)?;
            self.shown.remove(&name);
        }
        for export in &exports {
            self.show(&inner(export.disk, None), export, None)?;
            for account in &export.chap {
                self.show(&inner(export.disk, Some(&account.0)), export, Some(account))?;
            }
        }
        Ok(())
    }

    fn logins(&self) -> Vec<Login> {
        logins(&self.router)
    }
}

/// Numbers of the pages that hold data.
fn pages_with_data(file: &File) -> io::Result<Vec<u64>> {
    let (mut pages, mut at) = (Vec::new(), 0);
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data from here to the end.
            Err(Errno::NXIO) => return Ok(pages),
            Err(error) => return Err(error.into()),
        };
        pages.push(start / PAGE_BYTES);
        at = (start / PAGE_BYTES + 1) * PAGE_BYTES;
    }
}

fn compare(one: &File, two: &File) -> io::Result<Pages> {
    let mut pages = pages_with_data(one)?;
    pages.extend(pages_with_data(two)?);
    pages.sort_unstable();
    pages.dedup();
    let mut buffers = [Vec::new(), Vec::new()];
    let mut count = 0;
    for page in pages {
        for (buffer, file) in buffers.iter_mut().zip([one, two]) {
            read_page(file, page, buffer)?;
        }
        count += u64::from(buffers[0] != buffers[1]);
    }
    Ok(Pages(count))
}

/// A page's bytes, with zeroes behind the end of the file.
fn read_page(file: &File, page: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    buffer.resize(PAGE_BYTES as usize, 0);
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], page * PAGE_BYTES + done as u64)? {
            0 => return Ok(()),
            read => done += read,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sim_target::faults::Faults;
    use sim_target::router::{Director, Login as Knock, Refusal, Route};

    use super::{Judge, inner};
    use crate::array::volume::AccessRecord;
    use crate::array::{VolumeSpec, array};

    #[test]
    fn the_groups_portal_sends_whom_it_knows_to_the_member() {
        let (mut array, _) = array(10_000);
        let iqn = array.create_volume(VolumeSpec::new("v", 100)).expect("a volume");
        let disk = array.group.volumes["v"].disk;
        let group = "127.0.0.1:3260".parse().expect("an address");
        let member = "127.0.0.2:3260".parse().expect("an address");
        let knock = |portal| Knock {
            initiator: "iqn.a".into(),
            target: iqn.clone(),
            portal,
            peer: "127.0.0.9:40000".parse().expect("an address"),
        };
        let judge = Judge::new(array.group.clone(), Faults::default());
        judge.redirect(group, member);
        assert_eq!(judge.login(&knock(group)), Route::Refuse(Refusal::NOT_AUTHORISED));
        let record = AccessRecord { address: "127.0.0.9".into(), ..AccessRecord::unrestricted() };
        array.create_access("v", record).expect("a record");
        *judge.group() = array.group.clone();
        assert_eq!(judge.login(&knock(group)), Route::Redirect { portal: member.to_string() });
        assert_eq!(judge.login(&knock(member)), Route::Accept { target: inner(disk, None) });
        let elsewhere = Knock { peer: "127.0.0.8:1".parse().expect("an address"), ..knock(member) };
        assert_eq!(judge.login(&elsewhere), Route::Refuse(Refusal::NOT_AUTHORISED));
    }
}
