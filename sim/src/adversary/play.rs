//! How cheats play a dispute: from the move that follows from their evidence to what they send instead, and when.

use lockstep_protocol::dispute::{Move, MoveBody, Side, SignedMove};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::limits::{GRACE_MS, MOVE_MIN_MS};

use super::{Adversary, bend, spoil};
use crate::random::Random;

/// Something that is sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// After so long, in milliseconds.
    pub delay_ms: u64,
    /// The move.
    pub signed: SignedMove,
}

/// What a cheat knows when it has to move.
pub struct Turn<'a> {
    /// Its key.
    pub keys: &'a Keypair,
    /// Which side it plays.
    pub side: Side,
    /// Its move, but for what it says.
    pub blank: Move,
    /// What its evidence says; nothing where its own roots do not follow from that.
    pub next: Option<MoveBody>,
    /// What its clock started with.
    pub budget_ms: u64,
    /// What it has spent of it.
    pub spent_ms: u64,
    /// Moves that it signed before, in this dispute and others, and those of its opponent here.
    pub old: &'a [SignedMove],
    /// Whether its opponent is of its own gang.
    pub among_friends: bool,
}

/// The rounds in which a sham challenger moves, before it is silent.
const SHAM_ROUNDS: u16 = 3;
/// A little before a clock runs out.
const LAST_TICK_MS: u64 = 1_200;

impl Adversary {
    /// What this cheat sends when it has to move. The same draws give the same moves.
    pub fn play(self, turn: &Turn<'_>, random: &mut Random) -> Vec<Sent> {
        let now = |signed: SignedMove| Sent { delay_ms: 0, signed };
        let with = |body: MoveBody| Move { body, ..turn.blank.clone() }.sign(turn.keys);
        let Some(next) = &turn.next else {
            // Whoever has nothing to say is silent, or says anything.
            let noise = MoveBody::Descend { values: vec![random.bytes32(); 2] };
            return if random.per_mille(500) { Vec::new() } else { vec![now(with(noise))] };
        };
        let honest = with(next.clone());
        match self {
            Self::Withholder if u64::from(turn.blank.round) >= random.within(0..=4) => Vec::new(),
            Self::Staller => vec![Sent { delay_ms: last_moment(turn, random), signed: honest }],
            Self::Equivocator => vec![now(with(bend(next, random))), now(honest)],
            Self::Replayer => turn.old.iter().cloned().map(now).chain([now(honest)]).collect(),
            Self::Forger if matches!(next, MoveBody::Open { .. }) => vec![now(with(bend(next, random)))],
            Self::Garbler => {
                let spoiled = (0..random.within(1..=12)).map(|_| now(with(spoil(next, random))));
                let mut sent: Vec<_> = spoiled.collect();
                if random.per_mille(500) {
                    sent.push(now(honest));
                }
                sent
            }
            Self::Conceder | Self::Pretender => vec![now(with(MoveBody::Concede))],
            Self::Whitewasher if turn.among_friends => vec![now(with(MoveBody::Concede))],
            Self::ShamChain if turn.among_friends && turn.side == Side::Claimant => vec![now(honest)],
            // Silence costs the key least.
            Self::ShamChain if turn.among_friends && turn.blank.round >= SHAM_ROUNDS => Vec::new(),
            Self::ShamChain => vec![Sent { delay_ms: last_moment(turn, random), signed: honest }],
            Self::Twin | Self::Copier | Self::LazyAuditor => match random.index(4) {
                0 => Vec::new(),
                1 => vec![now(with(bend(next, random)))],
                2 => vec![now(with(spoil(next, random)))],
                _ => vec![now(honest)],
            },
            _ => vec![now(honest)],
        }
    }
}

/// When a clock has all but run out, or the time of grace after it.
fn last_moment(turn: &Turn<'_>, random: &mut Random) -> u64 {
    let allowed = turn.budget_ms.saturating_sub(turn.spent_ms).max(MOVE_MIN_MS);
    let grace = if random.per_mille(300) { GRACE_MS } else { 0 };
    (allowed + grace).saturating_sub(LAST_TICK_MS)
}
