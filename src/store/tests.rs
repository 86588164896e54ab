//! Properties of the store.
