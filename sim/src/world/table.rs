//! A party at the table: its disputes, with the real player inside.
//!
//! What was signed is kept durably before it is sent, and decides for good what is said in a round. The traces, and
//! what is still to be sent, are gone after a crash and come again with the next question.

use std::collections::BTreeMap;
use std::sync::Arc;

use lockstep_protocol::dispute::{
    DisputeId, Evidence, Lowering, Move, MoveBody, Player, PlayerError, SignedEntry, SignedMove, What, history,
};
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::Millis;
use lockstep_protocol::messages::Ask;

use super::cast::Role;
use super::{Broken, Held};
use crate::adversary::{Adversary, Sent, Turn};
use crate::random::Random;

/// A cheat that is not heard says it so many times; the honest go on until they are.
const CHEAT_TRIES: u32 = 3;
/// So many old moves are sent again.
const MOST_REPLAYED: usize = 12;
/// Whoever hears nothing of a dispute for so long stops talking.
const GIVE_UP_MS: u64 = 10 * 60 * 1_000;
/// Between two attempts to be heard.
pub const RETRY_MS: u64 = 1_500;

/// Something to be sent until it is acknowledged.
struct Pending {
    due: Millis,
    tries: u32,
    signed: Arc<SignedMove>,
}

/// The moves of one round of one dispute.
struct Round {
    round: u16,
    until: Millis,
    pending: Vec<Pending>,
}

/// All disputes of a party.
#[derive(Default)]
pub struct Table {
    /// Durable: what was signed for each round.
    vault: BTreeMap<(DisputeId, u16), Vec<SignedMove>>,
    /// Durable, for cheats: the time that they have spent.
    spent: BTreeMap<DisputeId, u64>,
    traces: BTreeMap<DisputeId, Box<dyn Evidence>>,
    rounds: BTreeMap<DisputeId, Round>,
}

/// Who sits at the table when a question comes.
pub struct Seat<'a> {
    /// Its key.
    pub keys: &'a Keypair,
    /// What it is.
    pub role: Role,
    /// Its chance.
    pub random: &'a mut Random,
    /// Whether the opponent is of its gang.
    pub among_friends: bool,
}

impl Table {
    /// Takes a question: signs what is to be said, and plans when to say it. `trace` makes the evidence where it is not
    /// at hand.
    ///
    /// # Errors
    /// Somebody honest has no move.
    pub fn asked(
        &mut self,
        now: Millis,
        ask: &Ask,
        seat: Seat<'_>,
        lowering: &dyn Lowering,
        trace: impl FnOnce() -> Box<dyn Evidence>,
    ) -> Held {
        let (id, round) = (ask.terms.id(), (ask.moves.len() / 2) as u16);
        if self.rounds.get(&id).is_some_and(|current| current.round >= round) {
            return Ok(());
        }
        let sent = match self.vault.get(&(id, round)) {
            Some(signed) => signed.iter().map(|signed| Sent { delay_ms: 0, signed: signed.clone() }).collect(),
            None => {
                let thinks = seat.random.within(1..=2_000);
                let evidence = self.traces.entry(id).or_insert_with(trace);
                let player = Player::new(&ask.terms, ask.side, &ask.moves, lowering);
                let said = player.and_then(|player| {
                    // Whoever sees that its run is wrong says so.
                    let concedes = seat.role == Role::Faulty;
                    let body = if concedes { MoveBody::Concede } else { player.next(&mut **evidence, lowering)? };
                    Ok((body, player))
                });
                let mut sent = match (seat.role, said) {
                    (Role::Honest | Role::Faulty, said) => {
                        vec![Sent { delay_ms: 0, signed: self.honest(id, said, seat.keys)? }]
                    }
                    (Role::Cheat(adversary), said) => self.cheat(adversary, ask, seat, said.ok().map(|(body, _)| body)),
                };
                sent.iter_mut().for_each(|sent| sent.delay_ms = sent.delay_ms.max(thinks));
                self.vault.insert((id, round), sent.iter().map(|sent| sent.signed.clone()).collect());
                sent
            }
        };
        let plan = |sent: Sent| Pending { due: now.plus(sent.delay_ms), tries: 0, signed: Arc::new(sent.signed) };
        let pending: Vec<_> = sent.into_iter().map(plan).collect();
        let last = pending.iter().map(|pending| pending.due).max().unwrap_or(now);
        self.rounds.insert(id, Round { round, until: last.plus(GIVE_UP_MS), pending });
        Ok(())
    }

    fn honest(
        &self,
        id: DisputeId,
        said: Result<(MoveBody, Player), PlayerError>,
        keys: &Keypair,
    ) -> Result<SignedMove, Broken> {
        let before: Vec<_> =
            self.vault.range((id, 0)..=(id, u16::MAX)).flat_map(|(_, signed)| signed).cloned().collect();
        let signed = said.and_then(|(body, player)| player.sign(body, keys, &before));
        signed.map_err(|error| Broken::new(format!("somebody honest has no move: {error}")))
    }

    fn cheat(&mut self, adversary: Adversary, ask: &Ask, seat: Seat<'_>, next: Option<MoveBody>) -> Vec<Sent> {
        let (id, rounds) = (ask.terms.id(), ask.moves.as_chunks::<2>().0);
        let previous = history(id, rounds.iter().map(|[a, b]| [&a.made, &b.made]));
        let own = self.vault.values().flatten();
        let old: Vec<_> = own.chain(&ask.moves).take(MOST_REPLAYED).cloned().collect();
        let spent_ms = self.spent.get(&id).copied().unwrap_or_default();
        let turn = Turn {
            keys: seat.keys,
            side: ask.side,
            blank: Move { dispute: id, round: rounds.len() as u16, previous, body: MoveBody::Concede },
            next,
            budget_ms: ask.terms.budgets_ms[ask.side.index()],
            spent_ms,
            old: &old,
            among_friends: seat.among_friends,
        };
        let sent = adversary.play(&turn, seat.random);
        let spends = sent.iter().map(|sent| sent.delay_ms).max().unwrap_or_default();
        self.spent.insert(id, spent_ms.saturating_add(spends));
        sent
    }

    /// What is to be sent now, and when to look again.
    pub fn due(&mut self, now: Millis, role: Role) -> (Vec<Arc<SignedMove>>, Option<Millis>) {
        let most = if matches!(role, Role::Cheat(_)) { CHEAT_TRIES } else { u32::MAX };
        self.rounds.retain(|_, round| round.until > now);
        let (mut sent, mut next): (Vec<_>, Option<Millis>) = (Vec::new(), None);
        for pending in self.rounds.values_mut().flat_map(|round| &mut round.pending) {
            if pending.tries >= most {
                continue;
            }
            if pending.due <= now {
                sent.push(Arc::clone(&pending.signed));
                pending.due = now.plus(RETRY_MS);
                pending.tries += 1;
            }
            next = Some(next.map_or(pending.due, |next| next.min(pending.due)));
        }
        (sent, next)
    }

    /// The coordinator has kept a move: the round needs no more of this party.
    pub fn acknowledged(&mut self, signed: &SignedEntry) {
        if let What::Moved { signed: kept, .. } = &signed.entry.what
            && let Some(round) = self.rounds.get_mut(&signed.entry.dispute)
        {
            round.pending.retain(|pending| *pending.signed != *kept);
        }
    }

    /// A dispute is over.
    pub fn judged(&mut self, dispute: DisputeId) {
        self.rounds.remove(&dispute);
        self.traces.remove(&dispute);
    }

    /// Loses all that is not kept durably.
    pub fn crash(&mut self) {
        self.traces.clear();
        self.rounds.clear();
    }
}
