//! The node as a client sees it, in this process: modules are named after sections of the specification.

mod frame;
mod login;
mod registration;
mod server;
