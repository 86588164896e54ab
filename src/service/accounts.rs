//! Who people are and what is theirs.
