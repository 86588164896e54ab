//! The node as a client sees it, in this process: modules are named after sections of the specification.

// Futures of whole use cases on several nodes lie deep in each other.
#![recursion_limit = "256"]

mod access;
mod account_data;
mod account_management;
mod backfill;
mod coming_and_going;
mod concurrency;
mod creation;
mod devices;
mod discovery;
mod events;
mod filtering;
mod filters;
mod frame;
mod keys;
mod lazy_loading;
mod login;
mod membership;
mod neighbour;
mod offices;
mod outbox;
mod presence;
mod profiles;
mod push_rules;
mod receipts;
mod redactions;
mod refresh;
mod registration;
mod relations;
mod remote_profiles;
mod request_authentication;
mod room;
mod sending;
mod server;
mod shared_secret;
mod state;
mod strange_ids;
mod stream;
mod syncing;
mod typing;
mod uia;
mod unread;
