//! The node as a client sees it, in this process: modules are named after sections of the specification.

mod account_data;
mod account_management;
mod creation;
mod devices;
mod discovery;
mod events;
mod filters;
mod frame;
mod login;
mod membership;
mod presence;
mod profiles;
mod push_rules;
mod receipts;
mod redactions;
mod refresh;
mod registration;
mod relations;
mod room;
mod sending;
mod server;
mod shared_secret;
mod state;
mod stream;
mod typing;
mod uia;
