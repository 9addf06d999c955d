//! Map nodes in memory, within a budget.

use std::collections::VecDeque;
use std::collections::hash_map::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use tanada_format::{Node, Pointer};

/// Spreads block numbers, which are ours: nobody outside chooses them, so a product is enough.
#[derive(Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Slot {
    node: Rc<Node>,
    crc: u32,
    /// Looked up since the hand last passed.
    warm: bool,
}

/// Nodes by block; second chance for those looked up since the hand passed. Deterministic: the map is only looked up
/// in, never iterated.
pub struct NodeCache {
    slots: HashMap<u64, Slot, BuildHasherDefault<BlockHasher>>,
    ring: VecDeque<u64>,
    nodes_max: usize,
}

impl NodeCache {
    /// Room for `bytes` of nodes, at least 64 of them: a path of a few trees.
    pub fn new(bytes: u64) -> NodeCache {
        // A node takes 4 KiB and its entry, ring place and allocation some 100 bytes.
        let nodes_max = (bytes / 4200).max(64) as usize;
        NodeCache { slots: HashMap::default(), ring: VecDeque::new(), nodes_max }
    }

    /// The node behind `pointer`, if it is here. The checksum must match too: a block may have been written anew.
    pub fn get(&mut self, pointer: Pointer) -> Option<Rc<Node>> {
        let slot = self.slots.get_mut(&pointer.block()).filter(|slot| slot.crc == pointer.crc())?;
        slot.warm = true;
        Some(Rc::clone(&slot.node))
    }

    pub fn insert(&mut self, pointer: Pointer, node: Rc<Node>) {
        let slot = Slot { node, crc: pointer.crc(), warm: false };
        if self.slots.insert(pointer.block(), slot).is_none() {
            self.ring.push_back(pointer.block());
        }
        while self.slots.len() > self.nodes_max {
            self.evict();
        }
    }

    fn evict(&mut self) {
        let Some(block) = self.ring.pop_front() else { return };
        match self.slots.get_mut(&block) {
            Some(slot) if slot.warm => {
                slot.warm = false;
                self.ring.push_back(block);
            }
            _ => drop(self.slots.remove(&block)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NodeCache;
    use std::rc::Rc;
    use tanada_format::{Node, Pointer};

    #[test]
    fn the_budget_holds_and_what_is_used_stays() {
        let mut cache = NodeCache::new(0);
        for block in 1..=1000 {
            cache.insert(Pointer::new(block, 1, 7), Rc::new(Node::EMPTY));
            assert!(cache.get(Pointer::new(1, 1, 7)).is_some());
        }
        assert_eq!(cache.slots.len(), 64);
        assert!(cache.get(Pointer::new(1000, 1, 8)).is_none(), "another checksum is another node");
        assert!(cache.get(Pointer::new(2, 1, 7)).is_none());
    }
}
