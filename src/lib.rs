//! Kontor: a compact federated Matrix homeserver.

pub mod protocol;
pub mod store;
