//! How work is cut into dispatches: plain data, the same on every device that has the same limits.

use std::ops::Range;

use lockstep_kernels::reference::attention::BLOCK;

/// Workgroups along one axis of a dispatch, at most: what every adapter has.
const MAX_GROUPS: u32 = 65_535;

/// Multiply-accumulates of one dispatch, about: a fraction of a second on a slow device, so that no driver takes it for hung.
pub(crate) const DISPATCH_WORK: u64 = 1 << 35;

/// Rows whose start is a multiple of 256 bytes, whatever whole number of words a row has: where a binding may begin.
pub(crate) const ALIGNED_ROWS: usize = 64;

/// Threads of a workgroup of all ops that count threads.
pub(crate) const THREADS: u64 = 128;

/// A grid of that many workgroups, along x and then along y.
pub(crate) fn grid(groups: u64) -> [u32; 3] {
    let x = groups.clamp(1, MAX_GROUPS.into());
    [x as u32, groups.div_ceil(x).max(1) as u32, 1]
}

/// A grid with a thread for each element.
pub(crate) fn per_element(elements: u64) -> [u32; 3] {
    grid(elements.div_ceil(THREADS))
}

/// Cuts rows so that a piece of the widest binding is at most `binding` bytes and a piece takes no longer than it should.
/// `row_bytes` is that of the widest binding, `row_work` the multiply-accumulates of a row.
pub(crate) fn rows(rows: usize, row_bytes: usize, row_work: u64, binding: u64) -> Vec<Range<usize>> {
    let by_bytes = usize::try_from(binding / row_bytes.max(1) as u64).unwrap_or(usize::MAX);
    let by_work = usize::try_from(DISPATCH_WORK / row_work.max(1)).unwrap_or(usize::MAX);
    let most = by_bytes.min(by_work);
    if most >= rows {
        return std::iter::once(0..rows).collect();
    }
    let step = (most / ALIGNED_ROWS).max(1) * ALIGNED_ROWS;
    (0..rows).step_by(step).map(|first| first..rows.min(first + step)).collect()
}

/// Where a binding may begin that has a row in it, at or before that row.
pub(crate) const fn aligned(row: usize) -> usize {
    row / ALIGNED_ROWS * ALIGNED_ROWS
}

/// Of `rows` rows those to bind for a softmax block that begins at `row`. There are few different ranges, and each has all of
/// every block that begins where it is given.
pub(crate) fn window(row: usize, rows: usize, row_bytes: usize, binding: u64) -> Range<usize> {
    let most = usize::try_from(binding / row_bytes.max(1) as u64).unwrap_or(usize::MAX);
    if most >= rows {
        return 0..rows;
    }
    let stride = aligned(most.saturating_sub(BLOCK)).max(ALIGNED_ROWS);
    let first = row / stride * stride;
    first..rows.min(first + stride + BLOCK)
}

/// Cuts items, each of which reads some rows of an input, into pieces of consecutive items. A piece comes with the rows to
/// bind: from an aligned one on, and so few that both they and as many output rows as there are items are at most `binding`
/// bytes, as long as no item alone reads more.
pub(crate) fn items(spans: &[Range<usize>], row_bytes: usize, binding: u64) -> Vec<(Range<usize>, Range<usize>)> {
    let most = usize::try_from(binding / row_bytes.max(1) as u64).unwrap_or(usize::MAX);
    let mut pieces: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for (item, span) in spans.iter().enumerate() {
        match pieces.last_mut() {
            Some((items, rows))
                if span.start >= rows.start
                    && span.end - rows.start <= most
                    && item + 1 - aligned(items.start) <= most =>
            {
                items.end = item + 1;
                rows.end = rows.end.max(span.end);
            }
            _ => pieces.push((item..item + 1, aligned(span.start)..span.end)),
        }
    }
    pieces
}

/// Cuts the rows of an attention: into pieces of consecutive rows whose partial sums are at most `bytes` together, whose
/// queries and outputs, of `row_bytes`, can be bound, and which take no longer than they should. `visible` is how many
/// positions each row sees. Each piece comes with the number of blocks that are set aside for each of its rows.
pub(crate) fn attention(
    visible: &[usize],
    (heads, dim): (usize, usize),
    bytes: u64,
    row_bytes: usize,
    binding: u64,
) -> Vec<(Range<usize>, usize)> {
    let slot = (heads * (2 + 2 * dim) * 4) as u64;
    let work = (heads * 256 * dim * 2) as u64;
    let mut pieces = Vec::new();
    let (mut first, mut most) = (0, 0);
    for (row, seen) in visible.iter().enumerate() {
        let blocks = seen.div_ceil(256).max(most);
        let count = (row + 1 - first) as u64 * blocks as u64;
        let bound = (row + 1 - aligned(first)) as u64 * row_bytes as u64;
        let full = count * slot > bytes
            || count * work > DISPATCH_WORK
            || row - first >= MAX_GROUPS as usize
            || bound > binding;
        if full && row > first {
            pieces.push((first..row, most));
            (first, most) = (row, seen.div_ceil(256));
        } else {
            most = blocks;
        }
    }
    if first < visible.len() {
        pieces.push((first..visible.len(), most));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_have_room_for_everything() {
        for groups in [0, 1, 65_535, 65_536, 131_071, 1 << 24] {
            let [x, y, z] = grid(groups);
            assert!(x <= MAX_GROUPS && y <= MAX_GROUPS && z == 1);
            assert!(u64::from(x) * u64::from(y) >= groups);
            assert!(u64::from(x) * u64::from(y) < groups + u64::from(x).max(2), "{groups}: too many");
        }
    }

    #[test]
    fn pieces_of_rows_cover_them_once_and_fit() {
        for (count, bytes, work, binding) in [
            (1, 4, 1, 1 << 27),
            (1_000, 4_096, 1, 1 << 20),
            (300, 1_048_576, 1 << 30, 1 << 27),
            (65, 4, 1 << 29, 1 << 27),
        ] {
            let pieces = rows(count, bytes, work, binding);
            let mut next = 0;
            for piece in &pieces {
                assert_eq!(piece.start, next);
                assert!(piece.start % ALIGNED_ROWS == 0 && !piece.is_empty());
                assert!(piece.len() as u64 * bytes as u64 <= binding);
                assert!(pieces.len() == 1 || piece.len() <= ALIGNED_ROWS || piece.len() as u64 * work <= DISPATCH_WORK);
                next = piece.end;
            }
            assert_eq!(next, count);
        }
        assert_eq!(rows(1_000, 4_096, 1, 1 << 20).len(), 4);
    }

    #[test]
    fn pieces_of_attention_cover_its_rows_once_and_fit() {
        let causal: Vec<usize> = (1..5_000).collect();
        for (visible, heads, dim, bytes, binding) in [
            (causal.clone(), 2, 64, 1 << 20, 1 << 27),
            (causal.clone(), 32, 128, 1 << 26, 1 << 27),
            (causal, 2, 64, 1 << 20, 1 << 18),
            (vec![131_072; 3], 32, 128, 1 << 26, 1 << 27),
            (vec![1; 70_000], 1, 1, 1 << 27, 1 << 18),
        ] {
            let row_bytes = 4 * heads * dim;
            let pieces = attention(&visible, (heads, dim), bytes, row_bytes, binding);
            let mut next = 0;
            for (piece, blocks) in &pieces {
                assert_eq!(piece.start, next);
                assert!(visible[piece.clone()].iter().all(|seen| seen.div_ceil(256) <= *blocks));
                let slots = piece.len() * blocks * heads;
                assert!(piece.len() == 1 || (slots * (2 + 2 * dim) * 4) as u64 <= bytes);
                assert!(piece.len() <= MAX_GROUPS as usize);
                assert!(((piece.end - aligned(piece.start)) * row_bytes) as u64 <= binding);
                next = piece.end;
            }
            assert_eq!(next, visible.len());
        }
    }

    #[test]
    fn every_block_lies_in_its_window() {
        for (rows, row_bytes, binding) in [(5_000, 512, 1 << 18), (5_000, 512, 1 << 27), (2_000, 800, 1 << 18)] {
            let mut windows = std::collections::BTreeSet::new();
            for row in 0..rows {
                let window = window(row, rows, row_bytes, binding);
                assert!(window.start.is_multiple_of(ALIGNED_ROWS));
                assert!(window.start <= row && window.end >= rows.min(row + BLOCK), "{row}: {window:?}");
                assert!((window.len() * row_bytes) as u64 <= binding);
                windows.insert(window.start);
            }
            // Each begins as far after the one before as a binding has room beside a block.
            let room = aligned((binding as usize / row_bytes).saturating_sub(BLOCK)).max(ALIGNED_ROWS);
            assert!(windows.len() <= rows.div_ceil(room), "{}", windows.len());
        }
    }

    #[test]
    fn pieces_of_items_cover_them_once_and_fit() {
        let grows = |next: &mut usize, i: usize| {
            let first = *next;
            *next += 1 + i % 40;
            Some(first..*next)
        };
        let sequences: Vec<Range<usize>> = (0..300).scan(0, grows).collect();
        let points: Vec<Range<usize>> = (0..2_000).map(|i| 3 * i..3 * i + 1).collect();
        for spans in [sequences, points] {
            for binding in [1 << 18, 1 << 27] {
                let pieces = items(&spans, 1_024, binding);
                let mut next = 0;
                for (items, rows) in &pieces {
                    assert_eq!(items.start, next);
                    assert!(rows.start.is_multiple_of(ALIGNED_ROWS));
                    assert!(spans[items.clone()].iter().all(|s| s.start >= rows.start && s.end <= rows.end));
                    assert!(rows.len() * 1_024 <= binding as usize);
                    assert!((items.end - aligned(items.start)) * 1_024 <= binding as usize);
                    next = items.end;
                }
                assert_eq!(next, spans.len());
                assert!(pieces.len() > 1 || binding > 1 << 18);
            }
        }
    }
}
