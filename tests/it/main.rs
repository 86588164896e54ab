//! The node as a client sees it, in this process: modules are named after sections of the specification.

mod access;
mod account_data;
mod account_management;
mod devices;
mod discovery;
mod events;
mod filters;
mod frame;
mod login;
mod presence;
mod profiles;
mod push_rules;
mod receipts;
mod refresh;
mod registration;
mod relations;
mod room;
mod server;
mod shared_secret;
mod state;
mod typing;
mod uia;
