//! The player: an honest side's next move, from its own run and from what both sides signed.

use thiserror::Error;

use crate::dispute::game::{Game, Illegal};
use crate::dispute::moves::next_history;
use crate::dispute::rules::{self, Refusal};
use crate::dispute::{
    Evidence, EvidenceError, Lowering, Move, MoveBody, Phase, Read, Reason, Side, SignedMove, Tensor, Terms, TermsError,
};
use crate::identity::Keypair;
use crate::ids::{Digest, DisputeId, NodeId};
use crate::openings::ChunkRange;

/// Why a player does not move.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlayerError {
    /// The terms are no dispute.
    #[error("{0}")]
    Terms(#[from] TermsError),
    /// The side is played by another key.
    #[error("the {0} is another key")]
    NotMySide(Side),
    /// A round that is said to be complete has not both sides' moves.
    #[error("the account has half a round")]
    HalfRound,
    /// A move that is said to have been made is not legal, or not signed by its side.
    #[error("the account has a move of the {side} in round {round} that is not legal: {error}")]
    Account {
        /// Whose.
        side: Side,
        /// In which round.
        round: u16,
        /// What is wrong.
        error: Refusal,
    },
    /// A move that is said to have been made loses, so that no more are asked for.
    #[error("the {side} lost in round {round}: it {reason}")]
    Lost {
        /// Whose move.
        side: Side,
        /// In which round.
        round: u16,
        /// Why it loses.
        reason: Reason,
    },
    /// All moves are made.
    #[error("no move is waited for")]
    Over,
    /// This player has signed another move for the round: it does not sign a second.
    #[error("another move for round {0} is signed already")]
    Signed(u16),
    /// The player's run can't be made again.
    #[error("{0}")]
    Evidence(#[from] EvidenceError),
    /// The player's run is not the one that it signed. It should concede.
    #[error("the run that was made again is not the one that was signed: {0}")]
    NotWhatWasSigned(String),
}

/// One side of a dispute before its next move. It takes nothing on trust but the program: where the dispute stands, it
/// recomputes from the moves that both sides signed.
#[derive(Clone, Debug)]
pub struct Player {
    id: DisputeId,
    key: NodeId,
    side: Side,
    game: Game,
    history: Digest,
}

impl Player {
    /// A player after these complete rounds: in each the claimant's move and then the challenger's. `lowering` is that of
    /// the place where the terms begin.
    ///
    /// # Errors
    /// [`PlayerError::Terms`], or what is wrong with the moves.
    pub fn new(terms: &Terms, side: Side, moves: &[SignedMove], lowering: &dyn Lowering) -> Result<Self, PlayerError> {
        let (ground, id) = (terms.check()?, terms.id());
        let history = Digest::from_bytes(*id.as_bytes());
        let mut player = Self { id, key: terms.key(side), side, game: Game::new(ground, lowering), history };
        let (rounds, rest) = moves.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(PlayerError::HalfRound);
        }
        for pair in rounds {
            for (side, signed) in Side::BOTH.into_iter().zip(pair) {
                player.check(side, &terms.key(side), signed, lowering)?;
            }
            let [a, b] = [&pair[0].made, &pair[1].made];
            player.history = next_history(player.history, [a, b]);
            if player.game.phase() == Phase::Open || player.game.play([&a.body, &b.body], lowering).is_some() {
                return Err(PlayerError::Over);
            }
        }
        Ok(player)
    }

    /// The round that is played, counted from 0.
    pub fn round(&self) -> u16 {
        self.game.round()
    }

    /// What is being looked for.
    pub fn phase(&self) -> Phase {
        self.game.phase()
    }

    /// What an honest player says next. It keeps every rule, or nothing is said.
    ///
    /// # Errors
    /// [`PlayerError::Over`], [`PlayerError::Evidence`], [`PlayerError::NotWhatWasSigned`].
    pub fn next(&self, evidence: &mut dyn Evidence, lowering: &dyn Lowering) -> Result<MoveBody, PlayerError> {
        let body = honest_move(&self.game, lowering, evidence)?;
        match self.game.check(self.side, &body, lowering) {
            Ok(_) => Ok(body),
            Err(Illegal::Refused(refusal)) => Err(PlayerError::NotWhatWasSigned(refusal.to_string())),
            Err(Illegal::Lost(reason)) => Err(PlayerError::NotWhatWasSigned(format!("it {reason}"))),
        }
    }

    /// The move that says this.
    pub fn made(&self, body: MoveBody) -> Move {
        Move { dispute: self.id, round: self.round(), previous: self.history, body }
    }

    /// Signs the move that says this. `before` is what these keys have signed in the dispute, which has to be durable: no
    /// second move is signed for one round.
    ///
    /// # Errors
    /// [`PlayerError::NotMySide`], [`PlayerError::Signed`].
    pub fn sign(&self, body: MoveBody, keys: &Keypair, before: &[SignedMove]) -> Result<SignedMove, PlayerError> {
        if self.key != keys.id() {
            return Err(PlayerError::NotMySide(self.side));
        }
        let (made, round) = (self.made(body), self.round());
        match before.iter().find(|signed| (signed.made.dispute, signed.made.round) == (self.id, round)) {
            None => Ok(made.sign(keys)),
            Some(signed) if signed.made == made => Ok(signed.clone()),
            Some(_) => Err(PlayerError::Signed(round)),
        }
    }

    /// A move of a complete round has to be signed and legal.
    fn check(&self, side: Side, key: &NodeId, signed: &SignedMove, lowering: &dyn Lowering) -> Result<(), PlayerError> {
        let (round, found) = (self.round(), signed.made.round);
        let account = |error| PlayerError::Account { side, round, error };
        rules::this_dispute(signed, self.id).map_err(account)?;
        if found != round {
            return Err(account(Refusal::Round { expected: round, found }));
        }
        signed.check(key).map_err(|_| account(Refusal::Signature))?;
        rules::same_history(signed, self.history).map_err(account)?;
        match self.game.check(side, &signed.made.body, lowering) {
            Ok(_) => Ok(()),
            Err(Illegal::Refused(error)) => Err(account(error)),
            Err(Illegal::Lost(reason)) => Err(PlayerError::Lost { side, round, reason }),
        }
    }
}

/// What a player whose evidence is true says next.
pub(super) fn honest_move(
    game: &Game,
    lowering: &dyn Lowering,
    evidence: &mut dyn Evidence,
) -> Result<MoveBody, PlayerError> {
    let (chunk, focus) = (game.chunk(), game.focus());
    Ok(match game.phase() {
        Phase::Row | Phase::Chunk => {
            let log = focus.block.next_log();
            let values = evidence.frontier(chunk, focus.tensor, log as u8, focus.block.children(log))?;
            MoveBody::Descend { values }
        }
        Phase::Ops => {
            let mut values = Vec::new();
            for (step, (log, blocks)) in game.frontiers().into_iter().enumerate() {
                values.extend(evidence.frontier(chunk, Tensor::Step(step as u16), log as u8, 0..blocks)?);
            }
            MoveBody::Ops { values }
        }
        Phase::Reveal => {
            let row = chunk.unwrap_or_default();
            MoveBody::Reveal { chunk: evidence.chunk(row, focus.tensor, focus.block.first())? }
        }
        Phase::Open => MoveBody::Open { openings: openings(game, lowering, evidence)? },
        Phase::Recompute | Phase::Ended => return Err(PlayerError::Over),
    })
}

/// The openings of everything that the disputed element reads.
fn openings(game: &Game, lowering: &dyn Lowering, evidence: &mut dyn Evidence) -> Result<Vec<Vec<u8>>, PlayerError> {
    let chunk = game.chunk().unwrap_or_default();
    if let (Some((rows, _)), true) = (game.ground().prefix, game.prefix(lowering).is_some()) {
        return Ok(vec![evidence.open_prefix(rows, ChunkRange { first: chunk, count: 1 })?]);
    }
    let (mut openings, mut data) = (Vec::new(), Vec::new());
    let mut open = |reads: &[Read], data: &mut Vec<Vec<u8>>| -> Result<(), PlayerError> {
        for read in reads {
            let opening = evidence.open(chunk, read.source, rules::chunks_of(&read.bytes))?;
            let index = data.len();
            let other = |error: Refusal| PlayerError::NotWhatWasSigned(error.to_string());
            let tensor = game.root_of(read.source, lowering).ok_or(Refusal::Source { index }).map_err(other)?;
            data.push(rules::opens(index, &read.bytes, tensor, &opening).map_err(other)?);
            openings.push(opening);
        }
        Ok(())
    };
    open(&game.reads(lowering), &mut data)?;
    let further = game.follow(lowering, &data);
    open(&further, &mut data)?;
    Ok(openings)
}
