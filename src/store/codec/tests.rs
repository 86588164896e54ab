//! Laws of keys.
