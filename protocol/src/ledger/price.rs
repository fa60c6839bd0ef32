//! What work costs, and what a lie must cost.

use crate::limits::MACS_PER_CREDIT;

/// The price of work, in credits: one for each started [`MACS_PER_CREDIT`] multiply-accumulates.
pub fn price_of_work(work_units: u64) -> u64 {
    work_units.div_ceil(MACS_PER_CREDIT)
}

/// The least that a lie has to cost its author so that nobody gains by it: `ceil(gain * (1 - p) / p)` credits.
///
/// `gain` is what it brings where it is not found out, in credits; p = `per_mille` / 1,000 is the probability that it
/// is. A liar wins `gain` with probability 1 - p and loses this with probability p, which is no gain on average. It is
/// the least bond for a run, and the least price of a retraction: a cheat that takes back what is about to be found
/// out gains nothing either. Above what fits, and for p = 0, where no price is enough, it is `u64::MAX`.
pub fn deterrent(gain: u64, per_mille: u16) -> u64 {
    let caught = u128::from(per_mille.min(1_000));
    let price = (u128::from(gain) * (1_000 - caught)).checked_add(caught.saturating_sub(1));
    let price = price.and_then(|sum| sum.checked_div(caught));
    price.and_then(|price| u64::try_from(price).ok()).unwrap_or(u64::MAX)
}
