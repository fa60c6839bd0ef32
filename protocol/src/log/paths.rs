//! Inclusion and consistency paths. Their shape follows from the sizes alone, so a path of another length is refused.

use super::tree::{Subtree, empty_root, node_hash, split};
use crate::ids::Digest;

/// The hash over `count` leaves from `first`, a subtree of some tree's shape, from the full subtrees in it.
fn range_hash<E>(first: u64, count: u64, node: &mut impl FnMut(Subtree) -> Result<Digest, E>) -> Result<Digest, E> {
    if count.is_power_of_two() {
        let level = count.trailing_zeros();
        return node(Subtree { level: level as u8, index: first >> level });
    }
    let left = split(count);
    Ok(node_hash(&range_hash(first, left, node)?, &range_hash(first + left, count - left, node)?))
}

/// The path of the leaf at `index` in the tree of the first `size` leaves, from the leaf's sibling up. `node` gives the
/// hashes of full subtrees within these leaves; about `log2(size)` of them are asked for.
///
/// # Errors
/// What `node` says.
///
/// # Panics
/// If `index` is not below `size`.
pub fn inclusion_path<E>(
    index: u64,
    size: u64,
    mut node: impl FnMut(Subtree) -> Result<Digest, E>,
) -> Result<Vec<Digest>, E> {
    assert!(index < size, "leaf {index} of {size}");
    let (mut first, mut count) = (0, size);
    let mut path = Vec::new();
    while count > 1 {
        let left = split(count);
        if index - first < left {
            path.push(range_hash(first + left, count - left, &mut node)?);
            count = left;
        } else {
            path.push(range_hash(first, left, &mut node)?);
            first += left;
            count -= left;
        }
    }
    path.reverse();
    Ok(path)
}

/// Whether `path` leads from `leaf` at `index` to the root of a tree of `size` leaves.
pub fn check_inclusion(index: u64, size: u64, leaf: &Digest, path: &[Digest], root: &Digest) -> bool {
    index < size && climb(index, size, leaf, path).is_some_and(|found| found == *root)
}

fn climb(index: u64, size: u64, leaf: &Digest, path: &[Digest]) -> Option<Digest> {
    if size == 1 {
        return path.is_empty().then_some(*leaf);
    }
    let (sibling, below) = path.split_last()?;
    let left = split(size);
    Some(if index < left {
        node_hash(&climb(index, left, leaf, below)?, sibling)
    } else {
        node_hash(sibling, &climb(index - left, size - left, leaf, below)?)
    })
}

/// The path that shows that the tree of the first `new` leaves continues that of the first `old`: empty where they are
/// equal or `old` is 0. `node` as in [`inclusion_path`].
///
/// # Errors
/// What `node` says.
///
/// # Panics
/// If `old` is above `new`.
pub fn consistency_path<E>(
    old: u64,
    new: u64,
    mut node: impl FnMut(Subtree) -> Result<Digest, E>,
) -> Result<Vec<Digest>, E> {
    assert!(old <= new, "{old} leaves of {new}");
    let mut path = Vec::new();
    if old == 0 {
        return Ok(path);
    }
    // The old tree's end lies in the subtree of `count` leaves from `first`.
    let (mut first, mut count) = (0, new);
    while first + count != old {
        let left = split(count);
        if old - first <= left {
            path.push(range_hash(first + left, count - left, &mut node)?);
            count = left;
        } else {
            path.push(range_hash(first, left, &mut node)?);
            first += left;
            count -= left;
        }
    }
    if first > 0 {
        path.push(range_hash(first, count, &mut node)?);
    }
    path.reverse();
    Ok(path)
}

/// Whether `path` shows that the tree of `new` leaves with `new_root` continues that of `old` leaves with `old_root`.
pub fn check_consistency(old: u64, old_root: &Digest, new: u64, new_root: &Digest, path: &[Digest]) -> bool {
    if old == 0 {
        return path.is_empty() && *old_root == empty_root();
    }
    old <= new && climb_both(old, new, Some(old_root), path) == Some((*old_root, *new_root))
}

/// The old and the new hash of a subtree of `new` leaves whose first `old` the old tree had. `whole` is the old root
/// while this subtree starts where the tree starts, so that its old hash need not be sent.
fn climb_both(old: u64, new: u64, whole: Option<&Digest>, path: &[Digest]) -> Option<(Digest, Digest)> {
    if old == new {
        return match (whole, path) {
            (Some(root), []) => Some((*root, *root)),
            (None, [hash]) => Some((*hash, *hash)),
            _ => None,
        };
    }
    let (sibling, below) = path.split_last()?;
    let left = split(new);
    if old <= left {
        let (before, after) = climb_both(old, left, whole, below)?;
        Some((before, node_hash(&after, sibling)))
    } else {
        let (before, after) = climb_both(old - left, new - left, None, below)?;
        Some((node_hash(sibling, &before), node_hash(sibling, &after)))
    }
}
