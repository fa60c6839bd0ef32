//! The portable file.

use super::*;
use crate::limits::MAX_DISPUTE_FILE_BYTES;

fn played() -> (Match, DisputeFile) {
    let toy = Toy::new(2, 300, &the_job().tokens);
    let honest = Run::honest(&toy);
    let mut game = Match::new(honest.clone().lie(at(&toy, 1, 100), 4), honest);
    game.verdict();
    let file = DisputeFile { manifest: MANIFEST.to_vec(), entries: game.referee.entries().to_vec() };
    (game, file)
}

fn check(bytes: &[u8], toy: &Toy) -> Result<Verdict, FileError> {
    DisputeFile::from_bytes(bytes)?.judge(toy, &mut Toy::evaluate)
}

#[test]
fn a_file_is_read_back_and_judged_the_same() {
    let (game, file) = played();
    let bytes = file.to_bytes();
    assert_eq!(&bytes[..16], DISPUTE_MAGIC);
    assert_eq!(DisputeFile::from_bytes(&bytes), Ok(file));
    assert_eq!(check(&bytes, &game.toy).ok(), game.referee.verdict());
}

#[test]
fn every_changed_byte_of_a_file_is_noticed() {
    let (game, file) = played();
    let bytes = file.to_bytes();
    // All of the head and of the first entries, and some of each further one.
    let step = |at: usize| if at < 3_000 { 1 } else { 23 };
    let mut at = 0;
    while at < bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(check(&changed, &game.toy).is_err(), "byte {at}");
        at += step(at);
    }
    assert!(check(&bytes[..bytes.len() - 1], &game.toy).is_err());
    assert!(check(&[&bytes[..], &[0]].concat(), &game.toy).is_err());
}

#[test]
fn an_error_names_the_part_that_is_wrong() {
    let (game, file) = played();
    let told = |file: &DisputeFile| check(&file.to_bytes(), &game.toy).unwrap_err().to_string();
    let mut changed = file.clone();
    let moved = |file: &mut DisputeFile, index: usize, change: &dyn Fn(&mut SignedMove)| {
        let What::Moved { signed, .. } = &mut file.entries[index].entry.what else { panic!("a move") };
        change(signed);
    };
    moved(&mut changed, 4, &|signed| signed.signature = crate::identity::Signature::from_bytes([7; 64]));
    assert_eq!(told(&changed), "entry 4: the move of the challenger in round 1: the signature does not verify");
    let mut changed = file.clone();
    changed.entries[3].signature = crate::identity::Signature::from_bytes([7; 64]);
    assert!(told(&changed).starts_with("entry 3: the signature of the coordinator does not verify"));
    let mut changed = file.clone();
    changed.entries.remove(2);
    assert_eq!(told(&changed), "entry 2: its index is 3");
    let mut changed = file.clone();
    changed.manifest.push(b'!');
    assert!(told(&changed).starts_with("the manifest: its hash is "));
    let mut changed = file.clone();
    let What::Opened(terms) = &mut changed.entries[0].entry.what else { panic!("the terms") };
    terms.layers += 1;
    assert!(told(&changed).starts_with("entry 0: the terms: the claim of the claimant: "));
    let bytes = file.to_bytes();
    let short = check(&bytes[..bytes.len() - 1], &game.toy).unwrap_err().to_string();
    assert!(short.starts_with(&format!("entry {}: the bytes end early", file.entries.len() - 1)), "{short}");
}

#[test]
fn other_files_are_refused_by_name() {
    let (game, file) = played();
    let mut bytes = file.to_bytes();
    bytes[16] = 9;
    assert_eq!(check(&bytes, &game.toy), Err(FileError::Version { found: 9 }));
    assert_eq!(check(b"LOCKSTEP", &game.toy), Err(FileError::Magic));
    let huge = vec![0; MAX_DISPUTE_FILE_BYTES + 1];
    assert_eq!(check(&huge, &game.toy), Err(FileError::TooLong { found: huge.len() }));
}
