//! The HTTP face of the node: how connections are accepted and bounded.

pub mod body;
mod connection;
pub mod limits;
pub mod peer;
mod respond;
pub mod serve;
mod tls;
