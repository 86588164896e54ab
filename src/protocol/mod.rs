//! Pure Matrix rules: plain values in, plain values out. No I/O, no clock, no randomness, no `async`.

pub mod acl;
pub mod auth;
pub mod backoff;
pub mod cross_signing;
pub mod device_keys;
pub mod event;
pub mod filter;
pub mod format;
pub mod glob;
pub mod graph;
pub mod ids;
pub mod ingest;
pub mod integrity;
pub mod membership;
pub mod pairing;
pub mod path;
pub mod policy;
pub mod push;
pub mod resolve;
pub mod server_keys;
pub mod summary;
pub mod template;
pub mod token;
pub mod version;
pub mod visibility;
pub mod xmatrix;
