//! What reading is made of: looking up (delta, frozen delta, tree: the same three steps with 0 or 1,000 generations), and
//! reading again what does not verify. Guests' reads are in [`crate::guest::read`].

use std::rc::Rc;

use tanada_disk::Buf;
use tanada_format::node::slot_of;
use tanada_format::pointer::{BLOCK_MAX, EPOCH_MAX};
use tanada_format::{BLOCK_BYTES, FANOUT, Node, Pointer, ROOT_LEVEL, crc32c};
use uuid::Uuid;

use crate::api::Alert;
use crate::failure::{EIO, Failure};
use crate::map::delta::Lookup;
use crate::map::tree::NodeSource;
use crate::state::{BLOCK, Handle, State};
use crate::versions::VersionId;

/// What is said of a lost place.
const LOST: &str = "what was here is lost with a map node that was damaged; a full overwrite heals it";

/// Why a look-up cannot end now.
pub enum Missing {
    /// It needs this node.
    Node(Pointer),
    /// The version was replaced and is gone.
    Version,
}

impl State {
    /// The pointers of `count` places from `place` on, all within one leaf.
    pub fn look_up(&mut self, id: VersionId, place: u64, count: usize, out: &mut Vec<Pointer>) -> Result<(), Missing> {
        let version = self.versions.get(id).ok_or(Missing::Version)?;
        let (delta, frozen) = (version.delta.leaf(place), version.frozen.leaf(place));
        let first = slot_of(place, 0);
        let before = out.len();
        let mut absent = false;
        for slot in first..first + count {
            let found = match delta.get(slot) {
                Lookup::Absent => frozen.get(slot),
                found => found,
            };
            match found {
                Lookup::Data(pointer) => out.push(pointer),
                Lookup::Hole => out.push(Pointer::NULL),
                Lookup::Absent => {
                    absent = true;
                    out.push(absent_mark());
                }
            }
        }
        if !absent {
            return Ok(());
        }
        let leaf = match leaf_of(&mut self.cache, version.tree, place) {
            Ok(leaf) => leaf,
            Err(missing) => {
                out.truncate(before);
                return Err(missing);
            }
        };
        for (slot, pointer) in (first..).zip(&mut out[before..]).filter(|(_, pointer)| **pointer == absent_mark()) {
            *pointer = leaf.as_ref().map_or(Pointer::NULL, |leaf| leaf.pointers[slot]);
        }
        Ok(())
    }
}

/// Marks places that no delta speaks of, while looking up: a pointer that nobody has, for no store is that large.
fn absent_mark() -> Pointer {
    Pointer::new(BLOCK_MAX, EPOCH_MAX, u32::MAX)
}

/// The leaf above `place`, as far as the cache goes; `Ok(None)` where nothing is mapped.
fn leaf_of(cache: &mut crate::map::cache::NodeCache, tree: Pointer, place: u64) -> Result<Option<Rc<Node>>, Missing> {
    let mut pointer = tree;
    for level in (1..=ROOT_LEVEL).rev() {
        if !pointer.has_block() {
            return Ok(without_block(pointer));
        }
        let node = cache.get(pointer).ok_or(Missing::Node(pointer))?;
        pointer = node.pointers[slot_of(place, level)];
    }
    if !pointer.has_block() {
        return Ok(without_block(pointer));
    }
    cache.get(pointer).map(Some).ok_or(Missing::Node(pointer))
}

/// The leaf below a pointer that is null or lost.
fn without_block(pointer: Pointer) -> Option<Rc<Node>> {
    pointer.is_lost().then(|| Rc::new(Node::filled(pointer)))
}

impl NodeSource for Handle {
    async fn node(&self, pointer: Pointer) -> Result<Rc<Node>, Failure> {
        if let Some(node) = self.with(|state| state.cache.get(pointer)) {
            return Ok(node);
        }
        let store_blocks = self.with(|state| state.alloc.geometry().store_blocks());
        let mut refused = String::new();
        for _ in 0..2 {
            match self.read_blocks(pointer.block(), BLOCK_BYTES as u32).await {
                Err(error) => refused = error.to_string(),
                Ok(bytes) => match Node::decode(&bytes, pointer.crc(), store_blocks) {
                    Ok(node) => {
                        let node = Rc::new(node);
                        self.with(|state| state.cache.insert(pointer, Rc::clone(&node)));
                        return Ok(node);
                    }
                    Err(error) => refused = error.to_string(),
                },
            }
        }
        let message = format!("map node at block {} is damaged: {refused}", pointer.block());
        Err(Failure::new(EIO, message))
    }
}

impl Handle {
    /// The pointers of `count` places from `place` on.
    pub async fn look_up(&self, id: VersionId, place: u64, count: u64) -> Result<Vec<Pointer>, Failure> {
        let mut pointers = Vec::with_capacity(count as usize);
        while (pointers.len() as u64) < count {
            let at = place + pointers.len() as u64;
            let in_leaf = (FANOUT - slot_of(at, 0)).min((count - pointers.len() as u64) as usize);
            while let Err(missing) = self.with(|state| state.look_up(id, at, in_leaf, &mut pointers)) {
                match missing {
                    Missing::Node(node) => {
                        if let Err(failure) = self.node(node).await {
                            return Err(self.with(|state| state.damage(id, at, &failure.message)));
                        }
                    }
                    Missing::Version => return Err(Failure::new(EIO, "the volume was replaced while it was read")),
                }
            }
        }
        Ok(pointers)
    }

    /// The content of one block of `version`, verified; `None` for a hole.
    pub async fn fetch_block(&self, version: VersionId, place: u64) -> Result<Option<Buf>, Failure> {
        let pointer = self.look_up(version, place, 1).await?[0];
        if pointer.is_null() {
            return Ok(None);
        }
        if pointer.is_lost() {
            return Err(self.with(|state| state.damage(version, place, LOST)));
        }
        match self.read_blocks(pointer.block(), BLOCK_BYTES as u32).await {
            Ok(bytes) if crc32c(&bytes) == pointer.crc() => Ok(Some(bytes)),
            _ => self.fetch_again(version, place, pointer).await,
        }
    }

    /// Rule W4: looks up again where the pointer changed meanwhile, else reads once more, then it is damage.
    pub async fn fetch_again(&self, version: VersionId, place: u64, old: Pointer) -> Result<Option<Buf>, Failure> {
        let now = self.look_up(version, place, 1).await?[0];
        if now.is_null() {
            return Ok(None);
        }
        if now.is_lost() {
            return Err(self.with(|state| state.damage(version, place, LOST)));
        }
        let said = match self.read_blocks(now.block(), BLOCK_BYTES as u32).await {
            Ok(bytes) if crc32c(&bytes) == now.crc() => return Ok(Some(bytes)),
            Ok(bytes) => format!("checksum is {:#010x}, should be {:#010x}", crc32c(&bytes), now.crc()),
            Err(error) => error.to_string(),
        };
        let said = format!("block {} of the store: {said}", now.block());
        tracing::error!(block = now.block(), old = old.block(), version, place, "damaged block");
        Err(self.with(|state| state.damage(version, place, &said)))
    }
}

impl State {
    /// Raises the alarm over damage at a place and makes the guest's error.
    fn damage(&mut self, id: VersionId, place: u64, said: &str) -> Failure {
        let volume = self.versions.get(id).map_or_else(Uuid::nil, |version| version.uuid);
        let offset = place * BLOCK;
        self.alert(Alert::Damage { volume, offset, message: said.to_owned() });
        Failure::new(EIO, format!("volume {volume} is damaged at offset {offset}: {said}"))
    }
}
