use std::collections::BTreeSet;

use lockstep_protocol::generation::{ends_run, word_finish};
use lockstep_protocol::ids::Place;

use super::*;
use crate::random::Random;

fn rows(case: &Case, layer: u16, column: usize, from: usize) -> Rows {
    Rows { layer, row: case.tokens().len() - 1, column, from, value: 1 }
}

#[test]
fn most_lies_show_and_a_changed_row_changes_roots_of_its_layer_only() {
    let mut random = Random::new("lies", 1);
    for case in cases().iter().filter(|case| case.tokens().len() < 64) {
        let (_, lied) = case.lied_visibly(&mut random, |random| case.draw_lie(random));
        assert_ne!(lied.roots, case.honest().roots);
        assert_ne!(case.of_other_model().roots, case.honest().roots);
        let (layer, per_point) = (1, usize::from(case.layers()) + 1);
        let points = case.honest().roots.len() / per_point;
        for (column, from) in [(case.columns(1), 0), (0, points - 1)] {
            let (rows, changed) = case.with_rows(rows(case, layer, column, from));
            assert_eq!(changed.output, case.honest().output);
            let differ: Vec<_> =
                (0..changed.roots.len()).filter(|at| changed.roots[*at] != case.honest().roots[*at]).collect();
            assert_eq!(differ, (from..points).map(|point| point * per_point).collect::<Vec<_>>());
            let place = Place { point: case.geometry().point(points - 1).unwrap(), layer };
            let trace = case.trace(&Basis::Rows(rows), &case.words(), place);
            assert_eq!(trace.roots(), &changed.roots[(points - 1) * per_point..][..1]);
        }
    }
}

#[test]
fn generations_end_in_every_way_and_a_hint_changes_nothing() {
    let mut finishes = BTreeSet::new();
    for case in cases().iter().filter(|case| case.is_generation()) {
        let words = case.words();
        finishes.extend(words.last().and_then(|word| word_finish(*word)));
        assert!(words.last().is_some_and(|word| ends_run(*word)));
        for hint in [words.clone(), words.iter().map(|word| word ^ 1).collect(), vec![7; 30]] {
            assert_eq!(case.of_hint(&hint), *case.honest(), "{hint:?}");
        }
    }
    assert_eq!(finishes.len(), 3, "{finishes:?}");
}
