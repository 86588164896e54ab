//! The node as a client sees it, in this process: modules are named after sections of the specification.

mod events;
mod frame;
mod login;
mod registration;
mod relations;
mod room;
mod server;
mod state;
