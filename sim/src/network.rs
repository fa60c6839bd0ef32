//! What happens to a message on its way: lost, late, out of order, twice, or held up while a party is cut off.
//!
//! Faults are bounded, or no protocol with clocks could keep the honest from losing by silence: an honest party is cut
//! off or down for at most [`LONGEST_OUTAGE_MS`] at a time, and after each such time it is left alone for as long.

use std::collections::BTreeMap;

use lockstep_protocol::ids::Millis;
use serde::Serialize;

use crate::random::Random;

/// Longest time for which a party is down or cut off.
pub const LONGEST_OUTAGE_MS: u64 = 4_000;

/// Faults by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Messages that did not arrive.
    pub dropped: u64,
    /// Messages that arrived twice.
    pub duplicated: u64,
    /// Messages that arrived before one that was sent earlier.
    pub reordered: u64,
    /// Messages that took more than a second.
    pub delayed: u64,
    /// Sessions that broke.
    pub sessions_broken: u64,
    /// Times that a party was cut off from the coordinator.
    pub partitions: u64,
    /// Times that a party lost all that it had not stored.
    pub party_crashes: u64,
    /// Times that the coordinator did: before a commit, between a commit and what follows from it, and in the middle of
    /// that.
    pub coordinator_crashes: [u64; 3],
}

impl Faults {
    /// Adds those of another world.
    pub fn add(&mut self, other: &Self) {
        self.dropped += other.dropped;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.delayed += other.delayed;
        self.sessions_broken += other.sessions_broken;
        self.partitions += other.partitions;
        self.party_crashes += other.party_crashes;
        for (sum, count) in self.coordinator_crashes.iter_mut().zip(other.coordinator_crashes) {
            *sum += count;
        }
    }
}

/// How often what goes wrong, in thousandths.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Of messages that are lost.
    pub drop: u64,
    /// Of messages that come twice.
    pub duplicate: u64,
    /// Of messages that take long.
    pub delay: u64,
    /// Of a party's steps after which it is cut off for a while.
    pub partition: u64,
    /// Of a party's steps after which it crashes.
    pub party_crash: u64,
    /// Of the coordinator's steps in which it crashes.
    pub coordinator_crash: u64,
}

impl Weather {
    /// A third of all worlds is calm, a third rough, a third stormy.
    pub fn draw(random: &mut Random) -> Self {
        match random.index(3) {
            0 => Self { drop: 0, duplicate: 0, delay: 0, partition: 0, party_crash: 0, coordinator_crash: 0 },
            1 => Self { drop: 20, duplicate: 20, delay: 50, partition: 5, party_crash: 5, coordinator_crash: 5 },
            _ => Self { drop: 150, duplicate: 150, delay: 200, partition: 20, party_crash: 20, coordinator_crash: 20 },
        }
    }
}

/// The way between the coordinator and its parties.
pub struct Network {
    random: Random,
    weather: Weather,
    /// Until when a party is cut off.
    cut: BTreeMap<usize, Millis>,
    /// Until when nothing new happens to a party.
    spared: BTreeMap<usize, Millis>,
    /// When the latest message of each way arrives, to count what overtakes it.
    latest: BTreeMap<(usize, bool), Millis>,
    /// What went wrong so far.
    pub faults: Faults,
}

impl Network {
    /// A network of a world.
    pub fn new(seed: u64, weather: Weather) -> Self {
        let random = Random::new("network", seed);
        Self {
            random,
            weather,
            cut: BTreeMap::new(),
            spared: BTreeMap::new(),
            latest: BTreeMap::new(),
            faults: Faults::default(),
        }
    }

    /// When a message of this moment arrives: never, once, or twice. `up` is from the party to the coordinator.
    pub fn arrivals(&mut self, now: Millis, party: usize, up: bool) -> Vec<Millis> {
        let cut = self.cut.get(&party).is_some_and(|until| *until > now);
        if cut || self.random.per_mille(self.weather.drop) {
            self.faults.dropped += 1;
            return Vec::new();
        }
        let copies = if self.random.per_mille(self.weather.duplicate) { 2 } else { 1 };
        self.faults.duplicated += copies - 1;
        (0..copies).map(|_| self.arrival(now, party, up)).collect()
    }

    fn arrival(&mut self, now: Millis, party: usize, up: bool) -> Millis {
        let late = self.random.per_mille(self.weather.delay);
        self.faults.delayed += u64::from(late);
        let at = now.plus(if late { self.random.within(1_000..=3_000) } else { self.random.within(1..=80) });
        let latest = self.latest.entry((party, up)).or_default();
        self.faults.reordered += u64::from(at < *latest);
        *latest = at.max(*latest);
        at
    }

    /// When something on a stream of a party's session arrives, either way. Streams lose and repeat nothing: they come
    /// late, or break with their session (none).
    pub fn stream(&mut self, now: Millis, party: usize) -> Option<Millis> {
        // A session outlives a short cut, and is less often lost than a message that goes alone.
        if self.random.per_mille(self.weather.drop / 5) {
            self.faults.sessions_broken += 1;
            return None;
        }
        let cut = self.cut.get(&party).copied().unwrap_or_default();
        Some(now.max(cut).plus(self.random.within(1..=80)))
    }

    /// Whether a party may fail now: those who just did are left alone for a while.
    pub fn may_fail(&self, party: usize, now: Millis) -> bool {
        self.spared.get(&party).is_none_or(|until| *until <= now)
    }

    /// Leaves a party alone that was down until then.
    pub fn spare(&mut self, party: usize, until: Millis) {
        self.spared.insert(party, until.plus(LONGEST_OUTAGE_MS));
    }

    /// Cuts a party off.
    pub fn cut(&mut self, party: usize, until: Millis) {
        self.faults.partitions += 1;
        self.cut.insert(party, until);
        self.spare(party, until);
    }
}
