//! The first position of each sequence (SPEC 5.11): a copy, which has nothing to speed up.

pub(super) use crate::reference::first_pool::first_pool;
