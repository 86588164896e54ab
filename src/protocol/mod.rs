//! Pure Matrix rules: plain values in, plain values out. No I/O, no clock, no randomness, no `async`.

pub mod event;
pub mod format;
pub mod ids;
pub mod integrity;
pub mod version;
