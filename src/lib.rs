//! Kontor: a compact federated Matrix homeserver.

pub mod app;
pub mod certificates;
pub mod cli;
pub mod clock;
pub mod coding;
pub mod config;
pub mod control;
pub mod error;
pub mod http;
pub mod protocol;
pub mod remote;
pub mod service;
pub mod store;
pub mod telemetry;
