//! What is of the moment: who is typing, who has read what, who is there.

mod presence;
mod receipts;
mod typing;

pub use self::{
    presence::{Presence, Status, Syncing, Told},
    receipts::{Mark, Receipts},
    typing::Typing,
};
