//! The rows at the points of a pass (SPEC 5.16): a copy, which has nothing to speed up.

pub(super) use crate::reference::gather::gather;
