//! The node as a client sees it, in this process: modules are named after sections of the specification.

mod account_data;
mod account_management;
mod devices;
mod discovery;
mod filters;
mod frame;
mod login;
mod profiles;
mod push_rules;
mod refresh;
mod registration;
mod server;
mod shared_secret;
mod uia;
