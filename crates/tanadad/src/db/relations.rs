//! Which field is derived from which.

/// "`many_class.many` holds the objects of `one_class` whose `one` names it."
#[derive(Debug)]
pub struct Relation {
    pub one_class: &'static str,
    pub one: &'static str,
    pub many_class: &'static str,
    pub many: &'static str,
}

const fn relation(
    one_class: &'static str,
    one: &'static str,
    many_class: &'static str,
    many: &'static str,
) -> Relation {
    Relation { one_class, one, many_class, many }
}

pub static RELATIONS: [Relation; 18] = [
    relation("VBD", "VM", "VM", "VBDs"),
    relation("VBD", "VDI", "VDI", "VBDs"),
    relation("VIF", "VM", "VM", "VIFs"),
    relation("VIF", "network", "network", "VIFs"),
    relation("PIF", "network", "network", "PIFs"),
    relation("PIF", "host", "host", "PIFs"),
    relation("PBD", "SR", "SR", "PBDs"),
    relation("PBD", "host", "host", "PBDs"),
    relation("VDI", "SR", "SR", "VDIs"),
    relation("VDI", "snapshot_of", "VDI", "snapshots"),
    relation("VM", "snapshot_of", "VM", "snapshots"),
    relation("VM", "parent", "VM", "children"),
    relation("VM", "resident_on", "host", "resident_VMs"),
    relation("VM", "snapshot_schedule", "VMSS", "VMs"),
    relation("VM", "appliance", "VM_appliance", "VMs"),
    relation("VM", "protection_policy", "VMPP", "VMs"),
    relation("console", "VM", "VM", "consoles"),
    relation("task", "subtask_of", "task", "subtasks"),
];

/// The relations whose "one" side is a field of `class`.
pub fn of_one(class: &str) -> impl Iterator<Item = &'static Relation> + use<'_> {
    RELATIONS.iter().filter(move |r| r.one_class == class)
}

/// The relations whose "many" side is a field of `class`.
pub fn of_many(class: &str) -> impl Iterator<Item = &'static Relation> + use<'_> {
    RELATIONS.iter().filter(move |r| r.many_class == class)
}

/// Is this field derived?
pub fn is_derived(class: &str, field: &str) -> bool {
    RELATIONS.iter().any(|r| r.many_class == class && r.many == field)
}

#[cfg(test)]
mod tests {
    use tanada_xapi::classes::class;
    use tanada_xapi::types::Type;

    use super::RELATIONS;

    #[test]
    fn both_sides_are_declared_in_the_class_table() {
        for r in &RELATIONS {
            let one = class(r.one_class).and_then(|c| c.field(r.one)).unwrap_or_else(|| panic!("{r:?}"));
            assert_eq!(one.ty, Type::Ref(r.many_class), "{r:?}");
            let many = class(r.many_class).and_then(|c| c.field(r.many)).unwrap_or_else(|| panic!("{r:?}"));
            assert_eq!(many.ty, Type::Set(Box::new(Type::Ref(r.one_class))), "{r:?}");
        }
    }
}
