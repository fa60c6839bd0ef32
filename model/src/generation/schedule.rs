//! Which sequences get how many positions in the next pass. Plain data, so that it can be tested without a model.

/// What the schedule needs to know of a running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Positions whose token is known and that are not computed yet, at least 1.
    pub left: usize,
    /// The number of the last pass that the sequence was in; 0 before the first one.
    pub last_pass: u64,
}

impl Slot {
    /// A sequence that generates has one position to go; one that reads its prompt or checks a draft has more.
    const fn is_decoding(self) -> bool {
        self.left == 1
    }
}

/// Positions of each slot in the next pass, at most `budget` in all; `slots` are in order of admission.
///
/// Sequences that generate come first, each with its one position: a new prompt does not halt them. Where even they do
/// not all fit, those that waited longest go. What is left goes to prompts in order of admission.
pub(super) fn next_pass(slots: &[Slot], budget: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&index| match slots[index] {
        slot if slot.is_decoding() => (false, slot.last_pass),
        _ => (true, 0),
    });
    let mut counts = vec![0; slots.len()];
    let mut free = budget;
    for index in order {
        counts[index] = slots[index].left.min(free);
        free -= counts[index];
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(left: usize, last_pass: u64) -> Slot {
        Slot { left, last_pass }
    }

    #[test]
    fn who_generates_goes_before_prompts() {
        assert_eq!(next_pass(&[slot(900, 0), slot(1, 3), slot(400, 0), slot(1, 3)], 512), [510, 1, 0, 1]);
        assert_eq!(next_pass(&[slot(100, 0), slot(1, 3), slot(700, 0)], 512), [100, 1, 411]);
    }

    #[test]
    fn who_waited_longest_goes_first_where_not_all_fit() {
        assert_eq!(next_pass(&[slot(1, 7), slot(1, 6), slot(1, 5)], 2), [0, 1, 1]);
    }

    proptest! {
        /// Every sequence is done after as many passes as the work needs, whatever the budget.
        #[test]
        fn nobody_starves(lefts in prop::collection::vec((1_usize..600, 0_usize..40), 1..8), budget in 1_usize..300) {
            let mut tasks: Vec<(usize, usize, u64)> = lefts.iter().map(|(prompt, words)| (*prompt, *words, 0)).collect();
            let work: usize = tasks.iter().map(|(prompt, words, _)| prompt + words).sum();
            let mut pass = 0;
            while !tasks.is_empty() {
                pass += 1;
                prop_assert!(pass <= work as u64, "a pass does something");
                let slots: Vec<Slot> = tasks.iter().map(|(left, _, last)| slot(*left, *last)).collect();
                let counts = next_pass(&slots, budget);
                let sum: usize = counts.iter().sum();
                prop_assert!((1..=budget).contains(&sum));
                for (task, count) in tasks.iter_mut().zip(&counts).filter(|(_, count)| **count > 0) {
                    task.0 -= count;
                    task.2 = pass;
                    if task.0 == 0 && task.1 > 0 {
                        (task.0, task.1) = (1, task.1 - 1);
                    }
                }
                tasks.retain(|task| task.0 > 0);
            }
        }
    }
}
