//! Which of a program's layers go to which device.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::program::Program;
use crate::slice::footprint;

/// The number of who gets them, and consecutive layers.
pub(super) type Share = (usize, RangeInclusive<usize>);

/// What a way to deal costs: less is better, and what stands first counts first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    /// Bytes on devices of whose memory nobody knows, where there are others.
    beyond: u64,
    /// Devices in use, of those whose memory is known: rows cross between them by way of the host.
    used: usize,
    /// How full the fullest device is, in units of 2^-32; one of unknown memory has room for the whole program here.
    fullest: u128,
}

/// Deals a validated program out, in consecutive layers and in the order of the devices, of which `rooms` has the bytes
/// that each can give to parameters. None where it does not fit.
pub(super) fn deal(program: &Program, rooms: &[Option<u64>]) -> Option<Vec<Share>> {
    deal_sizes(&sizes(program), rooms)
}

/// Bytes of the parameters of layers `start..end`, at `[start][end]`; what several of them read counts once.
pub(super) fn sizes(program: &Program) -> Vec<Vec<u64>> {
    let footprint = footprint(program);
    let from = |start: usize| {
        let (mut seen, mut sum) = (BTreeSet::new(), 0_u64);
        let mut sizes = vec![0; footprint.len() + 1];
        for (end, params) in (start + 1..).zip(&footprint[start..]) {
            let new = params.iter().filter(|(id, _)| seen.insert(*id)).map(|(_, bytes)| *bytes);
            sum = new.fold(sum, u64::saturating_add);
            sizes[end] = sum;
        }
        sizes
    };
    (0..footprint.len()).map(from).collect()
}

/// The cheapest way, found device by device: the best for some first layers is part of the best for more of them.
fn deal_sizes(sizes: &[Vec<u64>], rooms: &[Option<u64>]) -> Option<Vec<Share>> {
    let count = sizes.len();
    let (whole, is_any_known) = (sizes[0][count], rooms.iter().any(Option::is_some));
    let with = |before: Cost, bytes: u64, room: Option<u64>| {
        let (beyond, used) = match room {
            Some(room) if bytes > room => return None,
            Some(_) => (0, 1),
            None => (if is_any_known { bytes } else { 0 }, 0),
        };
        let share = (u128::from(bytes) << 32) / u128::from(room.unwrap_or(whole).max(1));
        let (beyond, fullest) = (before.beyond.saturating_add(beyond), before.fullest.max(share));
        Some(Cost { beyond, used: before.used + used, fullest })
    };
    // The cost of the first so many layers on the devices so far, and for each device where its own begin.
    let mut reached: Vec<Option<Cost>> = vec![None; count + 1];
    reached[0] = Some(Cost::default());
    let mut starts = Vec::with_capacity(rooms.len());
    for room in rooms {
        // Where nothing is better it gets none.
        let (mut next, mut begin) = (reached.clone(), (0..=count).collect::<Vec<_>>());
        // The embedding and the layer after it go together.
        for end in 2..=count {
            for start in (0..end).filter(|start| *start != 1) {
                let cost = reached[start].and_then(|before| with(before, sizes[start][end], *room));
                if let Some(cost) = cost
                    && next[end].is_none_or(|best| cost < best)
                {
                    (next[end], begin[end]) = (Some(cost), start);
                }
            }
        }
        starts.push(begin);
        reached = next;
    }
    reached[count]?;
    let (mut shares, mut end) = (Vec::new(), count);
    for (device, begin) in starts.iter().enumerate().rev() {
        if begin[end] < end {
            shares.push((device, begin[end]..=end - 1));
        }
        end = begin[end];
    }
    shares.reverse();
    Some(shares)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conformance::{DecoderShape, decoder};

    /// Of layers that share nothing.
    fn apart(layers: &[u64]) -> Vec<Vec<u64>> {
        let from = |start: usize| (0..=layers.len()).map(|end| layers[start.min(end)..end].iter().sum()).collect();
        (0..layers.len()).map(from).collect()
    }

    const LAYERS: [u64; 6] = [40, 10, 10, 10, 10, 20];

    fn dealt(rooms: &[Option<u64>]) -> Option<Vec<Share>> {
        deal_sizes(&apart(&LAYERS), rooms)
    }

    #[test]
    fn what_fits_one_device_is_not_split() {
        assert_eq!(dealt(&[Some(100), Some(100)]), Some(vec![(0, 0..=5)]));
        // The one that it fills least.
        assert_eq!(dealt(&[Some(100), Some(200), Some(150)]), Some(vec![(1, 0..=5)]));
        assert_eq!(dealt(&[None, Some(100)]), Some(vec![(1, 0..=5)]));
    }

    #[test]
    fn what_fits_none_is_dealt_in_proportion_to_as_few_as_it_takes() {
        assert_eq!(dealt(&[Some(90), Some(90)]), Some(vec![(0, 0..=1), (1, 2..=5)]));
        assert_eq!(dealt(&[Some(80), Some(40)]), Some(vec![(0, 0..=3), (1, 4..=5)]));
        assert_eq!(dealt(&[Some(80), Some(20)]), Some(vec![(0, 0..=4), (1, 5..=5)]));
        assert_eq!(dealt(&[Some(30), Some(80), Some(80)]), Some(vec![(1, 0..=1), (2, 2..=5)]));
    }

    #[test]
    fn a_device_of_unknown_memory_gets_only_what_fits_nowhere_else() {
        assert_eq!(dealt(&[Some(70), None]), Some(vec![(0, 0..=3), (1, 4..=5)]));
        assert_eq!(dealt(&[None, Some(45)]), Some(vec![(0, 0..=2), (1, 3..=5)]));
        assert_eq!(dealt(&[Some(9), None]), Some(vec![(1, 0..=5)]));
    }

    #[test]
    fn devices_of_which_no_memory_is_known_share_alike() {
        assert_eq!(dealt(&[None]), Some(vec![(0, 0..=5)]));
        assert_eq!(dealt(&[None, None]), Some(vec![(0, 0..=1), (1, 2..=5)]));
        let thirds = deal_sizes(&apart(&[10; 6]), &[None; 3]);
        assert_eq!(thirds, Some(vec![(0, 0..=1), (1, 2..=3), (2, 4..=5)]));
    }

    #[test]
    fn what_does_not_fit_is_not_dealt() {
        assert_eq!(dealt(&[]), None);
        assert_eq!(dealt(&[Some(49), Some(49), Some(49)]), None, "the first two layers go together");
        assert_eq!(dealt(&[Some(50), Some(49)]), None);
        assert_eq!(dealt(&[Some(0), Some(0)]), None);
    }

    #[test]
    fn what_several_layers_read_counts_once() {
        let case = decoder(DecoderShape::SMALL, &[1]);
        let sizes = sizes(&case.program);
        let all: u64 = case.program.params.iter().filter_map(|param| param.bytes()).sum();
        assert_eq!(sizes[0][4], all);
        // Both layers read the table of angles.
        assert!(sizes[1][2] + sizes[2][3] > sizes[1][3]);
    }

    proptest! {
        /// Against every way that there is.
        #[test]
        fn no_way_is_cheaper(
            layers in prop::collection::vec(0_u64..50, 2..7),
            rooms in prop::collection::vec(prop::option::of(0_u64..120), 1..4),
        ) {
            let sizes = apart(&layers);
            let known = rooms.iter().any(Option::is_some);
            let cost = |shares: &[Share]| {
                let mut cost = Cost::default();
                for (device, range) in shares {
                    let bytes: u64 = layers[range.clone()].iter().sum();
                    let room = rooms[*device];
                    if room.is_some_and(|room| bytes > room) {
                        return None;
                    }
                    cost.used += usize::from(room.is_some());
                    cost.beyond += if known && room.is_none() { bytes } else { 0 };
                    let of = room.unwrap_or(sizes[0][layers.len()]).max(1);
                    cost.fullest = cost.fullest.max((u128::from(bytes) << 32) / u128::from(of));
                }
                Some(cost)
            };
            let mut best = None;
            each_way(&mut vec![], 0, layers.len(), 0, rooms.len(), &mut |shares| {
                best = best.into_iter().chain(cost(shares)).min();
            });
            let dealt = deal_sizes(&sizes, &rooms);
            prop_assert_eq!(dealt.as_ref().and_then(|shares| cost(shares)), best);
            if let Some(shares) = dealt {
                let all: Vec<usize> = shares.iter().flat_map(|(_, range)| range.clone()).collect();
                prop_assert!(all.into_iter().eq(0..layers.len()), "every layer once, in order");
                prop_assert!(shares.windows(2).all(|pair| pair[0].0 < pair[1].0));
            }
        }
    }

    /// Every way to deal layers `from..count` to devices from `device` on.
    fn each_way(
        shares: &mut Vec<Share>,
        from: usize,
        count: usize,
        device: usize,
        devices: usize,
        visit: &mut dyn FnMut(&[Share]),
    ) {
        if from == count {
            return visit(shares);
        }
        if device == devices {
            return;
        }
        each_way(shares, from, count, device + 1, devices, visit);
        for end in (from + 1..=count).filter(|end| *end != 1) {
            shares.push((device, from..=end - 1));
            each_way(shares, end, count, device + 1, devices, visit);
            shares.pop();
        }
    }
}
