//! What cheats do to moves: bent ones keep their shape and say something else, spoiled ones break the rules.

use lockstep_protocol::dispute::MoveBody;
use lockstep_protocol::limits::CHUNK_BYTES;

use crate::random::Random;

/// A move of the same kind and shape that says something else. A concession has nothing to bend.
pub fn bend(body: &MoveBody, random: &mut Random) -> MoveBody {
    let mut bent = body.clone();
    match &mut bent {
        MoveBody::Descend { values } | MoveBody::Ops { values } => {
            if !values.is_empty() {
                let value = random.index(values.len());
                values[value][random.index(32)] ^= 1 << random.index(8);
            }
        }
        MoveBody::Reveal { chunk } => flip(chunk, random),
        MoveBody::Open { openings } => {
            if !openings.is_empty() {
                let opening = random.index(openings.len());
                flip(&mut openings[opening], random);
            }
        }
        MoveBody::Concede => {}
    }
    bent
}

/// A move that no game allows, or not here: too few values or too many, a chunk that is too short or too long, another kind.
pub fn spoil(body: &MoveBody, random: &mut Random) -> MoveBody {
    let mut spoiled = body.clone();
    match (&mut spoiled, random.index(3)) {
        (MoveBody::Descend { values } | MoveBody::Ops { values }, 0) => values.truncate(values.len() / 2),
        (MoveBody::Descend { values } | MoveBody::Ops { values }, 1) => values.push([7; 32]),
        (MoveBody::Reveal { chunk }, 0) => chunk.truncate(chunk.len() / 2),
        (MoveBody::Reveal { chunk }, 1) => *chunk = vec![0; CHUNK_BYTES],
        (MoveBody::Open { openings }, 0) => openings.clear(),
        (MoveBody::Open { openings }, 1) => openings.push(vec![1; 64]),
        (MoveBody::Reveal { .. }, _) => spoiled = MoveBody::Descend { values: vec![[1; 32]; 2] },
        (_, _) => spoiled = MoveBody::Reveal { chunk: vec![3; CHUNK_BYTES] },
    }
    spoiled
}

fn flip(bytes: &mut [u8], random: &mut Random) {
    if !bytes.is_empty() {
        let at = random.index(bytes.len());
        bytes[at] ^= 1 << random.index(8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bent_and_spoiled_moves_differ_from_the_honest_one() {
        let honest = [
            MoveBody::Descend { values: vec![[1; 32]; 4] },
            MoveBody::Ops { values: vec![[2; 32]; 9] },
            MoveBody::Reveal { chunk: vec![5; CHUNK_BYTES] },
            MoveBody::Open { openings: vec![vec![1; 100], vec![2; 10]] },
        ];
        let mut random = Random::new("moves", 1);
        for body in &honest {
            for _ in 0..50 {
                let bent = bend(body, &mut random);
                assert_ne!(bent, *body);
                assert_eq!(bent.name(), body.name());
                assert_ne!(spoil(body, &mut random), *body);
            }
        }
    }
}
