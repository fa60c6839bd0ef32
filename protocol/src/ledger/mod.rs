//! The ledger: who has how many credits, and what is held back of them for what (SPEC.md 26).
//!
//! A ledger is the fold of its [`Posting`]s: nothing else changes it. Credits are integers and every sum is checked. At
//! any time what all accounts have, free and held, is what was issued less what was burned. A posting that would
//! overdraw an account or overflow a sum is refused and changes nothing.
//!
//! | file | what it owns |
//! |---|---|
//! | `posting.rs` | postings and what credits are held for, with their stored form |
//! | `price.rs` | what work costs, what a lie must cost |
//! | `export.rs` | the file by which others follow the ledger |

mod export;
mod posting;
mod price;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::export::{AccountLine, Export, ExportError, HeldLine, HistoryLine, LEDGER_FORMAT};
pub use self::posting::{Award, Posting, Purpose, batch_digest};
pub use self::price::{deterrent, price_of_work};
use crate::ids::NodeId;

/// Why a posting is refused. The ledger is as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// An account has less than is to be held.
    #[error("{node} has {free} free credits; {needed} are to be held")]
    Overdrawn {
        /// Whose account.
        node: NodeId,
        /// What it has.
        free: u64,
        /// What the posting asks for.
        needed: u64,
    },
    /// Nothing is held of an account for the purpose.
    #[error("nothing is held of {node} for {purpose}")]
    NotHeld {
        /// Whose account.
        node: NodeId,
        /// For what.
        purpose: Purpose,
    },
    /// More is awarded than is forfeited.
    #[error("{held} credits of {node} are forfeited, and more are awarded")]
    AwardsExceed {
        /// Whose credits.
        node: NodeId,
        /// How many they are.
        held: u64,
    },
    /// More awards than one posting may have.
    #[error("{found} awards in one posting; at most {} are allowed", crate::limits::MAX_AWARDS)]
    TooManyAwards {
        /// How many there are.
        found: usize,
    },
    /// A sum does not fit 64 bits.
    #[error("the ledger can't count so many credits")]
    Overflow,
}

/// What one node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    free: u64,
    held: BTreeMap<Purpose, u64>,
}

impl Account {
    /// Credits that nothing is held back of.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Credits that are held, by purpose, in the order of purposes.
    pub fn held(&self) -> impl Iterator<Item = (&Purpose, u64)> {
        self.held.iter().map(|(purpose, amount)| (purpose, *amount))
    }
}

/// Sums over a whole ledger, in credits. `free + held == issued - burned`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// All that was ever issued.
    pub issued: u64,
    /// All that was ever burned.
    pub burned: u64,
    /// What the accounts have free.
    pub free: u64,
    /// What is held of them.
    pub held: u64,
}

/// All accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    accounts: BTreeMap<NodeId, Account>,
    totals: Totals,
    postings: u64,
}

impl Ledger {
    /// The ledger that these postings make, from nothing.
    ///
    /// # Errors
    /// That of the first posting that is refused: the postings are no ledger.
    pub fn fold<'a>(postings: impl IntoIterator<Item = &'a Posting>) -> Result<Self, LedgerError> {
        let mut ledger = Self::default();
        for posting in postings {
            ledger.post(posting)?;
        }
        Ok(ledger)
    }

    /// Makes a posting: all of it, or nothing.
    ///
    /// # Errors
    /// [`LedgerError`]; then nothing has changed.
    pub fn post(&mut self, posting: &Posting) -> Result<(), LedgerError> {
        let count = self.postings.checked_add(1).ok_or(LedgerError::Overflow)?;
        match posting {
            Posting::Issue { to, amount } | Posting::Pay { to, amount, .. } => self.issue(*to, *amount)?,
            Posting::Hold { from, purpose, amount } => self.hold(*from, *purpose, *amount)?,
            Posting::Release { node, purpose } => self.release(*node, *purpose)?,
            Posting::Forfeit { node, purpose, awards } => self.forfeit(*node, *purpose, awards)?,
        }
        self.postings = count;
        Ok(())
    }

    /// The sums over all accounts.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many postings made the ledger: the index of the next one.
    pub fn postings(&self) -> u64 {
        self.postings
    }

    /// A node's account, where it ever had one.
    pub fn account(&self, node: &NodeId) -> Option<&Account> {
        self.accounts.get(node)
    }

    /// All accounts, in the order of their keys.
    pub fn accounts(&self) -> impl Iterator<Item = (&NodeId, &Account)> {
        self.accounts.iter()
    }

    /// How many accounts there are.
    pub fn account_count(&self) -> usize {
        self.accounts.len()
    }

    /// A node's free credits.
    pub fn free(&self, node: &NodeId) -> u64 {
        self.account(node).map_or(0, Account::free)
    }

    /// What is held of a node for a purpose; `None` where nothing is.
    pub fn held(&self, node: &NodeId, purpose: &Purpose) -> Option<u64> {
        self.account(node).and_then(|account| account.held.get(purpose).copied())
    }

    /// New credits. No account and no sum but `issued` can overflow where that does not.
    fn issue(&mut self, to: NodeId, amount: u64) -> Result<(), LedgerError> {
        self.totals.issued = self.totals.issued.checked_add(amount).ok_or(LedgerError::Overflow)?;
        self.give(to, amount);
        Ok(())
    }

    fn hold(&mut self, from: NodeId, purpose: Purpose, amount: u64) -> Result<(), LedgerError> {
        let free = self.free(&from);
        let left = free.checked_sub(amount).ok_or(LedgerError::Overdrawn { node: from, free, needed: amount })?;
        let account = self.accounts.entry(from).or_default();
        account.free = left;
        *account.held.entry(purpose).or_default() += amount;
        self.totals.free -= amount;
        self.totals.held += amount;
        Ok(())
    }

    fn release(&mut self, node: NodeId, purpose: Purpose) -> Result<(), LedgerError> {
        let amount = self.take_held(node, purpose)?;
        self.give(node, amount);
        Ok(())
    }

    fn forfeit(&mut self, node: NodeId, purpose: Purpose, awards: &[Award]) -> Result<(), LedgerError> {
        if awards.len() > crate::limits::MAX_AWARDS {
            return Err(LedgerError::TooManyAwards { found: awards.len() });
        }
        let held = self.held(&node, &purpose).ok_or(LedgerError::NotHeld { node, purpose })?;
        let awarded = awards.iter().try_fold(0_u64, |sum, award| sum.checked_add(award.amount));
        let burned = awarded.and_then(|awarded| held.checked_sub(awarded));
        let burned = burned.ok_or(LedgerError::AwardsExceed { node, held })?;
        self.take_held(node, purpose)?;
        awards.iter().for_each(|award| self.give(award.to, award.amount));
        // Nobody burns what was not issued.
        self.totals.burned += burned;
        Ok(())
    }

    /// Takes all that is held for a purpose out of an account. The caller gives or burns it.
    fn take_held(&mut self, node: NodeId, purpose: Purpose) -> Result<u64, LedgerError> {
        let held = self.accounts.get_mut(&node).and_then(|account| account.held.remove(&purpose));
        let amount = held.ok_or(LedgerError::NotHeld { node, purpose })?;
        self.totals.held -= amount;
        Ok(amount)
    }

    /// Adds to an account what was just issued, or was taken out of the held credits.
    fn give(&mut self, to: NodeId, amount: u64) {
        self.accounts.entry(to).or_default().free += amount;
        self.totals.free += amount;
    }
}
