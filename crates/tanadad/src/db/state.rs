use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tanada_xapi::classes;
use tanada_xapi::{ApiError, ApiResult, Ref, Value};

use super::index::{Index, indexed};
use super::record::Record;
use super::relations::of_many;
use super::tx::{Changes, NEW_SEQUENCE};

/// Deletions remembered for `event.from`. A client that waits longer loses `del` events and notices by the counts.
pub const DELETIONS_KEPT: usize = 20_000;

/// Looking up objects: in the committed state, or in a transaction with its own changes visible.
pub trait View {
    fn find(&self, class: &str, id: &Ref) -> Option<Arc<Record>>;
    fn find_by_uuid(&self, class: &str, uuid: &str) -> Option<Arc<Record>>;
    /// All objects of a class in order of creation.
    fn all(&self, class: &str) -> Vec<Arc<Record>>;
    /// Objects of a class whose `field` says `value`, in order of creation: by an index, for references of relations, for
    /// `VM.suspend_VDI` and `VDI.location`. Nobody has a null reference or an empty text.
    fn having(&self, class: &str, field: &str, value: &str) -> Vec<Arc<Record>>;

    /// A text of the daemon's own.
    fn note(&self, name: &str) -> Option<String>;

    /// `HANDLE_INVALID` when there is no such object.
    fn get(&self, class: &str, id: &Ref) -> ApiResult<Arc<Record>> {
        self.find(class, id).ok_or_else(|| ApiError::handle_invalid(class, id))
    }

    /// `UUID_INVALID` when there is no such object.
    fn by_uuid(&self, class: &str, uuid: &str) -> ApiResult<Arc<Record>> {
        self.find_by_uuid(class, uuid).ok_or_else(|| ApiError::uuid_invalid(class, uuid))
    }

    fn by_name(&self, class: &str, name: &str) -> Vec<Arc<Record>> {
        let mut all = self.all(class);
        all.retain(|r| r.str("name_label") == name);
        all
    }

    /// The only object of a singleton class: `pool`, and `host` on a machine of its own.
    fn only(&self, class: &str) -> ApiResult<Arc<Record>> {
        self.all(class).into_iter().next().ok_or_else(|| ApiError::internal(format!("there is no {class}")))
    }

    /// The objects that a set of references names, those that exist.
    fn resolve(&self, class: &str, ids: &[Ref]) -> Vec<Arc<Record>> {
        ids.iter().filter_map(|id| self.find(class, id)).collect()
    }
}

#[derive(Default)]
struct Table {
    objects: HashMap<Ref, Arc<Record>>,
    by_uuid: HashMap<String, Ref>,
}

/// A deleted object.
#[derive(Debug, Clone)]
pub struct Deletion {
    pub class: &'static str,
    pub id: Ref,
    pub created_generation: u64,
    pub generation: u64,
}

/// The committed objects.
pub struct State {
    tables: HashMap<&'static str, Table>,
    index: Index,
    notes: BTreeMap<String, String>,
    generation: u64,
    sequence: u64,
    deletions: VecDeque<Deletion>,
    /// Deletions up to this generation may be forgotten.
    history_start: u64,
    #[cfg(test)]
    visited: std::sync::atomic::AtomicUsize,
}

impl State {
    pub(super) fn from_records(records: Vec<Record>, notes: BTreeMap<String, String>) -> State {
        // Tokens of an earlier life of the process must lie behind us: microseconds outrun any rate of changes.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let generation = u64::try_from(now.as_micros()).unwrap_or(1).max(1);
        let mut state = State {
            tables: HashMap::new(),
            index: Index::default(),
            notes,
            generation,
            sequence: 0,
            deletions: VecDeque::new(),
            history_start: 0,
            #[cfg(test)]
            visited: Default::default(),
        };
        for mut record in records {
            (record.created, record.modified) = (generation, generation);
            state.keep(record);
        }
        state.derive_all();
        for record in state.tables.values().flat_map(|table| table.objects.values()) {
            state.index.put(None, record);
        }
        state
    }

    /// Tests count what is looked at: work that grows with the database is found so, on any machine.
    fn look_at(&self, _records: usize) {
        #[cfg(test)]
        self.visited.fetch_add(_records, std::sync::atomic::Ordering::Relaxed);
    }

    /// Records looked at so far.
    #[cfg(test)]
    pub fn visited(&self) -> usize {
        self.visited.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Deletions that are still remembered, oldest first.
    pub fn deletions(&self) -> impl DoubleEndedIterator<Item = &Deletion> {
        self.deletions.iter()
    }

    /// Who has heard up to a generation before this one may have missed deletions.
    pub fn history_start(&self) -> u64 {
        self.history_start
    }

    /// Objects of the class changed after `generation`, the longest unchanged first.
    pub fn changed_since(&self, class: &str, generation: u64) -> impl Iterator<Item = &Arc<Record>> {
        self.index.changed_since(class, generation).inspect(|_| self.look_at(1))
    }

    /// Names of the notes that begin with `prefix`.
    pub fn notes_under(&self, prefix: &str) -> Vec<String> {
        let from = self.notes.range(prefix.to_owned()..);
        from.map(|(name, _)| name.clone()).take_while(|name| name.starts_with(prefix)).collect()
    }

    pub fn count(&self, class: &str) -> usize {
        self.tables.get(class).map_or(0, |t| t.objects.len())
    }

    /// Puts a transaction's changes into effect; `false` when they hold no object.
    pub(super) fn apply(&mut self, changes: Changes) -> bool {
        for (name, text) in changes.notes {
            match text {
                Some(text) => drop(self.notes.insert(name, text)),
                None => drop(self.notes.remove(&name)),
            }
        }
        if changes.objects.is_empty() {
            return false;
        }
        self.generation += 1;
        let mut objects: Vec<_> = changes.objects.into_iter().collect();
        objects.sort_by_key(|(_, change)| change.as_ref().map_or(0, |r| r.sequence));
        for ((class, id), change) in objects {
            match change {
                Some(mut record) => {
                    if record.sequence >= NEW_SEQUENCE {
                        record.sequence = 0;
                    }
                    record.modified = self.generation;
                    if record.created == 0 {
                        record.created = self.generation;
                    }
                    self.insert(record);
                }
                None => self.remove(class, id),
            }
        }
        true
    }

    fn insert(&mut self, record: Record) {
        let (class, id) = (record.class().name, record.id().clone());
        let old = self.tables.get(class).and_then(|table| table.objects.get(&id)).cloned();
        self.keep(record);
        if let Some(new) = self.tables.get(class).and_then(|table| table.objects.get(&id)) {
            self.index.put(old.as_deref(), new);
        }
    }

    /// [`State::insert`] without the index.
    fn keep(&mut self, mut record: Record) {
        if record.sequence == 0 {
            self.sequence += 1;
            record.sequence = self.sequence;
        }
        let table = self.tables.entry(record.class().name).or_default();
        if record.class().field("uuid").is_some() {
            if let Some(old) = table.objects.get(record.id())
                && old.uuid() != record.uuid()
            {
                table.by_uuid.remove(old.uuid());
            }
            table.by_uuid.insert(record.uuid().to_owned(), record.id().clone());
        }
        table.objects.insert(record.id().clone(), Arc::new(record));
    }

    fn remove(&mut self, class: &'static str, id: Ref) {
        let Some(table) = self.tables.get_mut(class) else { return };
        let Some(old) = table.objects.remove(&id) else { return };
        self.index.remove(&old);
        if old.class().field("uuid").is_some() {
            table.by_uuid.remove(old.uuid());
        }
        let deletion = Deletion { class, id, created_generation: old.created, generation: self.generation };
        self.deletions.push_back(deletion);
        if self.deletions.len() > DELETIONS_KEPT {
            let forgotten = self.deletions.pop_front();
            self.history_start = forgotten.map_or(self.history_start, |d| d.generation);
        }
    }

    /// Fills the "many" sides after loading.
    fn derive_all(&mut self) {
        let classes: Vec<&'static str> = self.tables.keys().copied().collect();
        for class in classes {
            for relation in of_many(class) {
                let mut members: HashMap<Ref, Vec<Value>> = HashMap::new();
                for record in self.all(relation.one_class) {
                    members.entry(record.reference(relation.one)).or_default().push(Value::from(record.id()));
                }
                let Some(table) = self.tables.get_mut(class) else { continue };
                for (id, refs) in members {
                    if let Some(record) = table.objects.get_mut(&id) {
                        // The types of both sides are checked by a test of the relation table.
                        let _ = Arc::make_mut(record).put(relation.many, Value::Set(refs));
                    }
                }
            }
        }
    }
}

impl View for State {
    fn find(&self, class: &str, id: &Ref) -> Option<Arc<Record>> {
        self.look_at(1);
        self.tables.get(class)?.objects.get(id).cloned()
    }

    fn find_by_uuid(&self, class: &str, uuid: &str) -> Option<Arc<Record>> {
        let table = self.tables.get(class)?;
        table.objects.get(table.by_uuid.get(uuid)?).cloned()
    }

    fn all(&self, class: &str) -> Vec<Arc<Record>> {
        let mut all: Vec<_> = self.tables.get(class).map_or_else(Vec::new, |t| t.objects.values().cloned().collect());
        all.sort_unstable_by_key(|r| r.sequence);
        self.look_at(all.len());
        all
    }

    fn having(&self, class: &str, field: &str, value: &str) -> Vec<Arc<Record>> {
        let Some(class) = classes::class(class).map(|class| class.name) else { return Vec::new() };
        let indexed = indexed(class).find(|indexed| *indexed == field);
        debug_assert!(indexed.is_some(), "{class}.{field} has no index");
        let found: Vec<_> =
            indexed.map(|field| self.index.having(class, field, value).cloned().collect()).unwrap_or_default();
        self.look_at(found.len());
        found
    }

    fn note(&self, name: &str) -> Option<String> {
        self.notes.get(name).cloned()
    }
}
