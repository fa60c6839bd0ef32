//! Who is in a world.

use crate::adversary::Adversary;
use crate::random::Random;

/// What a party is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows the protocol.
    Honest,
    /// Follows it too, on a machine that spoils one run. When it notices, it takes the run back.
    Faulty,
    /// Does not.
    Cheat(Adversary),
}

impl Role {
    /// Whether it follows the protocol, and its machine works.
    pub fn is_honest(self) -> bool {
        self == Self::Honest
    }
}

/// A party of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// Who runs it, as the coordinator's list has it.
    pub operator: Option<&'static str>,
}

/// So many keys chain sham challenges: those of one after the other last longer than a challenge may wait.
const SHAM_KEYS: usize = 14;
/// Of 1,000 worlds, how many have a worker with a faulty machine, and in how many the coordinator knows operators.
const FAULTY_PER_MILLE: u64 = 150;
const OPERATORS_PER_MILLE: u64 = 300;
/// Who is on the coordinator's list.
const OPERATORS: [&str; 3] = ["Ada", "Blaise", "Charles"];

/// The parties of a world: one or two honest ones, and cheats; these of a kind if that is given.
pub fn draw(random: &mut Random, first: Option<Adversary>) -> Vec<Member> {
    let mut cast = roles(random, first);
    // The order decides nothing but the keys, and with them the draws of auditors.
    for last in (1..cast.len()).rev() {
        cast.swap(last, random.index(last + 1));
    }
    let has_operators = random.per_mille(OPERATORS_PER_MILLE);
    let gang = *random.pick(&OPERATORS);
    let mut operator = |role| match role {
        _ if !has_operators || random.per_mille(100) => None,
        // Whoever works together runs together, mostly.
        Role::Cheat(_) if random.per_mille(500) => Some(gang),
        _ => Some(*random.pick(&OPERATORS)),
    };
    cast.into_iter().map(|role| Member { role, operator: operator(role) }).collect()
}

/// Those of a world in which models are shared: one or two cheats, and so many honest ones that there are always two who can do
/// a job together, though each cheat may spoil the run of an honest one, who does not get the job again.
pub fn draw_crews(random: &mut Random) -> Vec<Member> {
    let cheats = 1 + random.index(2);
    let honest = cheats + 2 + random.index(2);
    let mut roles = vec![Role::Honest; honest];
    roles.extend((0..cheats).map(|_| Role::Cheat(*random.pick(&Adversary::ALL))));
    // The order decides nothing but the keys, and with them who is chosen.
    for last in (1..roles.len()).rev() {
        roles.swap(last, random.index(last + 1));
    }
    roles.into_iter().map(|role| Member { role, operator: None }).collect()
}

fn roles(random: &mut Random, first: Option<Adversary>) -> Vec<Role> {
    let mut cast = vec![Role::Honest];
    if random.per_mille(500) {
        cast.push(Role::Honest);
    }
    if random.per_mille(FAULTY_PER_MILLE) {
        cast.push(Role::Faulty);
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
    cast
}
