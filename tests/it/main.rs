//! The node as a client sees it, in this process: modules are named after sections of the specification.

// Futures of whole use cases on several nodes lie deep in each other.
#![recursion_limit = "256"]

mod access;
mod account_data;
mod account_management;
mod aliases;
mod backfill;
mod coming_and_going;
mod concurrency;
mod creation;
mod devices;
mod directory;
mod discovery;
mod elsewhere;
mod events;
mod filtering;
mod filters;
mod frame;
mod handshakes;
mod joining;
mod keys;
mod knocking_and_inviting;
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
mod serving;
mod several;
mod shared_secret;
mod short_lived;
mod state;
mod strange_ids;
mod stream;
mod syncing;
mod transactions;
mod two_nodes;
mod typing;
mod uia;
mod unread;
