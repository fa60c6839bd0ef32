//! Who is in a world, and what each claims to have computed.

use std::sync::Arc;

use lockstep_model::rerun::Rerun;
use lockstep_protocol::ids::Root;

use crate::adversary::{Adversary, Change, Lie};
use crate::random::Random;
use crate::runs::{Basis, Case};

/// What a party is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows the protocol.
    Honest,
    /// Does not.
    Cheat(Adversary),
}

impl Role {
    /// Whether it follows the protocol.
    pub fn is_honest(self) -> bool {
        self == Self::Honest
    }
}

/// So many keys chain sham challenges: those of one after the other last longer than a challenge may wait.
const SHAM_KEYS: usize = 14;

/// The parties of a world: one or two honest ones, and cheats; these of a kind if that is given.
pub fn draw(random: &mut Random, first: Option<Adversary>) -> Vec<Role> {
    let mut cast = vec![Role::Honest];
    if random.per_mille(500) {
        cast.push(Role::Honest);
    }
    let first = first.unwrap_or(*random.pick(&Adversary::ALL));
    let count = match first {
        Adversary::Flood if random.per_mille(100) => 10,
        Adversary::Flood => 3 + random.index(3),
        // Whoever colludes, copies or whitewashes needs somebody to do it with.
        Adversary::Colluder | Adversary::Copier | Adversary::Whitewasher => 2,
        Adversary::ShamChain => SHAM_KEYS,
        _ => 1,
    };
    cast.extend(std::iter::repeat_n(Role::Cheat(first), count));
    if matches!(first, Adversary::Twin) || random.per_mille(400) {
        cast.push(Role::Cheat(*random.pick(&Adversary::ALL)));
    }
    // The order decides nothing but the keys, and with them the draws of auditors.
    for last in (1..cast.len()).rev() {
        cast.swap(last, random.index(last + 1));
    }
    cast
}

/// What a party claims about a job.
#[derive(Clone, Debug)]
pub struct Performance {
    /// Roots and output.
    pub run: Arc<Rerun>,
    /// Where they come from.
    pub basis: Basis,
}

/// What a party of this role claims about a job over this case. `shared` is the stream of the gang: all of one world's
/// colluders draw the same lie from it; `own` is the party's.
pub fn perform(role: Role, case: &'static Case, shared: &mut Random, own: &mut Random) -> Performance {
    let honest = || Performance { run: Arc::clone(case.honest()), basis: Basis::Honest };
    let lied = |(lie, run): (Lie, Rerun)| Performance { run: Arc::new(run), basis: Basis::Lies(vec![lie]) };
    let Role::Cheat(adversary) = role else {
        return honest();
    };
    let anything = |random: &mut Random| lied(case.lied_visibly(random, |random| case.draw_lie(random)));
    match adversary {
        Adversary::Twin => honest(),
        Adversary::OutputCheat => {
            let layers = &case.package().program().layers;
            let (layer, op) = (layers.len() - 1, layers[layers.len() - 1].ops.len() - 1);
            lied(case.lied_visibly(own, |random| case.lie_about(layer, op, random)))
        }
        Adversary::OutOfRange => lied(case.lied_visibly(own, |random| out_of_range(case, random))),
        Adversary::Padding => {
            let (layer, row) = (1 + own.index(case.layers().into()) as u16, own.index(case.tokens.len()));
            let byte = 1 + own.index(255) as u8;
            match case.padded(layer, row, byte) {
                Some(run) => Performance { run: Arc::new(run), basis: Basis::Padding { layer, row, byte } },
                None => anything(own),
            }
        }
        Adversary::OtherModel => Performance { run: Arc::new(case.of_other_model()), basis: Basis::OtherModel },
        Adversary::OtherTokens => other_tokens(case, own),
        Adversary::LazyAuditor => made_up(case, own),
        Adversary::Colluder => anything(shared),
        // One of them has what the other copies.
        Adversary::Copier => {
            let claim = anything(shared);
            let basis = if own.per_mille(500) { claim.basis } else { Basis::Nothing };
            Performance { basis, ..claim }
        }
        _ => anything(own),
    }
}

/// A value that the op can't give, or nearly never: codes beyond 32,639, the ends of `i32`, exponents out of range.
fn out_of_range(case: &Case, random: &mut Random) -> Lie {
    let mut lie = case.draw_lie(random);
    let extremes = [i32::MIN, i32::MAX, i32::from(i16::MIN), i32::from(i16::MAX), 32_640, -32_640, 63, -64];
    lie.change = Change::Set(*random.pick(&extremes));
    lie
}

/// One token is another.
fn other_tokens(case: &Case, random: &mut Random) -> Performance {
    let mut tokens = case.tokens.clone();
    let vocabulary = case.package().program().vocab_size;
    let at = random.index(tokens.len());
    tokens[at] = (tokens[at] + 1 + random.index(vocabulary as usize - 1) as u32) % vocabulary;
    Performance { run: Arc::new(case.of_tokens(&tokens)), basis: Basis::OtherTokens(tokens) }
}

/// Roots of nothing, but for the output's, which anybody checks.
fn made_up(case: &Case, random: &mut Random) -> Performance {
    let mut run = Rerun::clone(case.honest());
    let last = run.roots.len() - 1;
    run.roots[..last].iter_mut().for_each(|root| *root = Root::from_bytes(random.bytes32()));
    Performance { run: Arc::new(run), basis: Basis::Nothing }
}
