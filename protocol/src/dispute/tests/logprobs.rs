//! Disputes about log-probabilities, where all roots are the same.

use super::*;
use crate::generation::Generation;
use crate::ids::NodeId;
use crate::job::JobKind;
use crate::logprobs::ShownRow;
use crate::testing::{LAYERS, generated_with, generation, roots_of_words};

const WORDS: [u32; 3] = [5, 6, 1 << 24 | 7];
/// The disputed point, counted from 0.
const INDEX: usize = 1;
/// Values of a row: the drawn token's, and those of one likely token.
const WIDTH: usize = 3;

fn asked() -> Generation {
    Generation { logprobs: 2, ..Generation::greedy(4) }
}

fn text() -> Job {
    Job { model: blake3::hash(MANIFEST).into(), kind: JobKind::Generation(Box::new(asked())), ..generation(7, 4) }
}

/// The toy as the row of a point's log-probabilities; its words are those up to the point, its own among them.
fn toy() -> Toy {
    Toy::with_words(1, WIDTH as u64, &text().tokens, &WORDS[..=INDEX])
}

/// The values of all rows, of which the disputed one is a run's.
fn values(run: &Run) -> Vec<i32> {
    let row = run.output.as_chunks().0.iter().map(|value| i32::from_le_bytes(*value)).take(WIDTH);
    let others = |point: i32| (0..WIDTH as i32).map(move |at| -10 * point - at);
    others(1).chain(row).chain(others(3)).collect()
}

/// The roots of both, on which they agree: those of the layer that the row is made from are the toy's.
fn roots(run: &Run) -> Vec<Root> {
    let mut roots = roots_of_words(text().id(), &WORDS);
    let per_point = usize::from(LAYERS) + 1;
    roots[INDEX * per_point + per_point - 2] = blake3::hash(&run.input).into();
    roots
}

fn signed(side: Side, run: &Run) -> (Signed, Vec<Root>, Vec<i32>) {
    let (keys, epoch, values) = (key_of(side), LeaseEpoch(side.index() as u64 + 1), values(run));
    let result = generated_with(&keys, &text(), epoch, (&WORDS, &values), roots(run));
    (Signed::Receipt(result.receipt), roots(run), values)
}

fn terms_of(runs: [&Run; 2]) -> Result<Terms, TermsError> {
    let claims = Side::BOTH.map(|side| signed(side, runs[side.index()]));
    let held = claims.each_ref().map(|(signed, roots, logprobs)| Held { signed, roots, words: &WORDS, logprobs });
    Terms::of_runs(coordinator().id(), text().header(), LAYERS, held, [BUDGET; 2])
}

#[test]
fn runs_with_the_same_roots_are_disputed_about_the_first_row_of_log_probabilities_that_differs() {
    let honest = Run::honest(&toy());
    assert_eq!(terms_of([&honest, &honest]), Err(TermsError::NoDifference));
    let liar = honest.clone().lie(at(&toy(), 0, 2), 1);
    let terms = terms_of([&liar, &honest]).unwrap();
    let ground = terms.check().unwrap();
    assert_eq!((ground.place, ground.index), (Place { point: 4, layer: LAYERS + 2 }, INDEX));
    assert_eq!((ground.roots, ground.input), ([liar.root(), honest.root()], Some(blake3::hash(&honest.input).into())));
    assert_eq!((&ground.words[..], ground.prefix, &terms.before[..]), (&WORDS[..=INDEX], None, &[][..]));
    assert_eq!(Side::BOTH.map(|side| terms.key(side)), Side::BOTH.map(|side| key_of(side).id()));
    let signed = terms.signed(Side::Claimant, &ground);
    assert_eq!((signed.len(), signed.last()), (usize::from(LAYERS) + 2, Some(&liar.root())));
    assert_eq!(crate::canonical::from_bytes::<Terms>(&to_bytes(&terms)), Ok(terms));
}

#[test]
fn a_lie_about_a_log_probability_is_proven() {
    for (side, losers) in [(Side::Claimant, CLAIMANT), (Side::Challenger, CHALLENGER)] {
        for column in 0..WIDTH as u64 {
            let honest = Run::honest(&toy());
            let mut runs = [honest.clone(), honest];
            runs[side.index()] = runs[side.index()].clone().lie(at(&toy(), 0, column), 1);
            let [a, b] = &runs;
            let mut game = Match::with(terms_of([a, b]).unwrap(), toy(), runs);
            let verdict = game.verdict();
            assert_eq!((verdict.losers, verdict.kind, verdict.element), (losers, VerdictKind::Proven, Some(column)));
            assert_eq!((verdict.place, verdict.step), (Place { point: 4, layer: LAYERS + 2 }, Some(3)));
            game.check_judge(verdict);
        }
    }
}

#[test]
fn a_lie_about_how_a_word_enters_its_log_probability_is_proven_by_opening_the_word() {
    // Column 1 reads the second of two words, which is the point's own.
    let toy = Toy { tokens: Vec::new(), ..toy() };
    let honest = Run::honest(&toy);
    let liar = honest.clone().lie(at(&toy, 0, 1), 1).lie_in(2, 4, 1);
    let mut game = Match::with(terms_of([&liar, &honest]).unwrap(), toy, [liar, honest]);
    let verdict = game.verdict();
    assert_eq!((verdict.losers, verdict.step, verdict.element), (CLAIMANT, Some(2), Some(1)));
    game.check_judge(verdict);
}

#[test]
fn log_probabilities_are_disputed_only_as_both_have_signed_and_shown_them() {
    let honest = Run::honest(&toy());
    let right = terms_of([&honest.clone().lie(at(&toy(), 0, 2), 1), &honest]).unwrap();
    let show = |side: Side, index: usize| {
        let (_, _, values) = signed(side, &honest);
        ShownRow::of(&values, &asked(), index)
    };
    let refused = |change: &dyn Fn(&mut Terms)| {
        let mut terms = right.clone();
        change(&mut terms);
        terms.check().unwrap_err()
    };
    assert_eq!(refused(&|terms| terms.challenger.logprobs = None), TermsError::Logprobs(Side::Challenger));
    assert_eq!(refused(&|terms| terms.claimant.logprobs = None), TermsError::Logprobs(Side::Claimant));
    let nothing = |terms: &mut Terms| (terms.claimant.logprobs, terms.challenger.logprobs) = (None, None);
    assert_eq!(refused(&nothing), TermsError::NoDifference);
    // The values of somebody else, and of another point.
    let other = |terms: &mut Terms| terms.claimant.logprobs = show(Side::Claimant, INDEX);
    assert_eq!(refused(&other), TermsError::Logprobs(Side::Claimant));
    let elsewhere = |terms: &mut Terms| terms.challenger.logprobs = show(Side::Challenger, INDEX + 1);
    assert_eq!(refused(&elsewhere), TermsError::Logprobs(Side::Challenger));
    let forged = |terms: &mut Terms| terms.claimant.logprobs.as_mut().unwrap().opening[3] ^= 1;
    assert_eq!(refused(&forged), TermsError::Logprobs(Side::Claimant));
    assert_eq!(refused(&|terms| terms.before = vec![other_root()]), TermsError::Before);
    assert_eq!(refused(&|terms| terms.claimant.at = vec![]), TermsError::At(Side::Claimant));
    // Both show a point at which they say the same.
    let same = |terms: &mut Terms| {
        for side in Side::BOTH {
            let (_, _, values) = signed(side, &honest);
            let claim = if side == Side::Claimant { &mut terms.claimant } else { &mut terms.challenger };
            *claim = Claim { logprobs: ShownRow::of(&values, &asked(), 0), ..claim.clone() };
        }
        terms.claimant.signed = signed(Side::Claimant, &honest).0;
    };
    assert_eq!(refused(&same), TermsError::NoDifference);
}

#[test]
fn log_probabilities_are_not_shown_where_roots_differ_or_a_run_was_stopped() {
    let honest = Run::honest(&toy());
    let (claimant, mut wrong, values) = signed(Side::Claimant, &honest);
    wrong[0] = other_root();
    let keys = key_of(Side::Challenger);
    let other = generated_with(&keys, &text(), LeaseEpoch(2), (&WORDS, &values), wrong.clone());
    let (right, other) = (roots(&honest), Signed::Receipt(other.receipt));
    let held = |signed, roots| Held { signed, roots, words: &WORDS, logprobs: &values };
    let runs = [held(&claimant, &right), held(&other, &wrong)];
    let terms = Terms::of_runs(coordinator().id(), text().header(), LAYERS, runs, [BUDGET; 2]).unwrap();
    assert_eq!(terms.check().unwrap().place, Place { point: 3, layer: 1 });
    let mut shown = terms;
    shown.challenger.logprobs = ShownRow::of(&values, &asked(), 0);
    assert_eq!(shown.check(), Err(TermsError::Logprobs(Side::Challenger)));
    let id: NodeId = keys.id();
    let geometry = text().header().geometry(LAYERS).unwrap();
    let partial = Partial::of_roots(text().id(), &geometry, LeaseEpoch(2), &right[..2], &[], id).unwrap();
    let partial = Claim { logprobs: ShownRow::of(&values, &asked(), 0), ..partial.sign(&keys).into() };
    assert_eq!(partial.check(&text().header(), LAYERS), Err(ClaimError::Logprobs));
}
