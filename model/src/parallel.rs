//! Threads over independent pieces: who computes a piece never shows in the result.

use std::num::NonZeroUsize;

/// Calls `f(index, piece)` for each piece of `out`, `len` elements each, on up to `threads` threads.
pub fn for_each_piece<T: Send>(out: &mut [T], len: usize, threads: NonZeroUsize, f: impl Fn(usize, &mut [T]) + Sync) {
    let pieces = out.len() / len.max(1);
    let share = pieces.div_ceil(threads.get()).max(1);
    std::thread::scope(|scope| {
        for (t, part) in out.chunks_mut(share * len.max(1)).enumerate() {
            let f = &f;
            let mut work = move || part.chunks_mut(len).enumerate().for_each(|(i, piece)| f(t * share + i, piece));
            if pieces <= share { work() } else { drop(scope.spawn(work)) }
        }
    });
}

/// Calls `f(index)` for `0..count` on up to `threads` threads and returns the results in order.
pub fn map<T: Send>(count: usize, threads: NonZeroUsize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut out: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for_each_piece(&mut out, 1, threads, |i, slot| slot[0] = Some(f(i)));
    out.into_iter().map(|slot| slot.expect("every piece is visited")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_visited_once() {
        for threads in 1..5 {
            for pieces in 0..9 {
                let mut out = vec![0; pieces * 3];
                for_each_piece(&mut out, 3, NonZeroUsize::new(threads).unwrap(), |i, piece| {
                    piece.iter_mut().for_each(|x| *x += i + 1);
                });
                assert_eq!(out, (0..pieces * 3).map(|i| i / 3 + 1).collect::<Vec<_>>());
            }
        }
    }
}
