//! Walks the whole store for broken invariants. Used by `kontor check` and by the crash tests.

/// One broken invariant, as a line for people.
pub type Complaint = String;
