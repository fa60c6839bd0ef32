use std::fmt::Debug;

use super::*;
use crate::canonical::{Canonical, DecodeError, from_bytes, to_bytes};
use crate::commitment::RunCommitment;
use crate::dispute::{Partial, SignedPartial};
use crate::ids::{Digest, JobId, LeaseEpoch, Millis, ModelId, Place, Salt};
use crate::limits::{MAX_HELD_MODELS, MAX_NAME_BYTES, MAX_POINTS, MAX_POSITIONS};
use crate::log::{Cosignature, LogHead, SignedHead};
use crate::openings::ChunkRange;
use crate::testing::{job, keys, root, run};

fn hello() -> Hello {
    Hello {
        offer: Some(Offer { model_bytes: 12 << 30, port: 7_430 }),
        protocol: PROTOCOL_VERSION,
        software: "0.1.0".to_owned(),
        backend: "cpu".to_owned(),
        threads: 2,
        memory_bytes: 24 << 30,
        macs_per_second: 1 << 40,
        max_in_flight: 2,
        models: vec![ModelId::from_bytes([1; 32]), ModelId::from_bytes([2; 32])],
    }
}

fn log_head() -> SignedHead {
    let root = Digest::from_bytes([7; 32]);
    LogHead { log: keys(1).id(), size: 9, root, time: Millis(5) }.sign(&keys(1))
}

fn up() -> Vec<ToCoordinator> {
    vec![
        ToCoordinator::Hello(hello()),
        ToCoordinator::Heartbeat { sequence: 7, in_flight: 1 },
        ToCoordinator::HaveModel { model: ModelId::from_bytes([3; 32]) },
        ToCoordinator::Failed {
            job: job(1).id(),
            epoch: LeaseEpoch(4),
            code: FailureCode::Backend,
            reason: "the device was lost".to_owned(),
        },
        ToCoordinator::Draining,
        ToCoordinator::Retract { job: job(1).id(), epoch: LeaseEpoch(4) },
        ToCoordinator::Cosigned(Cosignature::of(&log_head(), &keys(3))),
    ]
}

fn down() -> Vec<ToWorker> {
    let (job_id, epoch) = (job(1).id(), LeaseEpoch(4));
    vec![
        ToWorker::Welcome(Welcome {
            protocol: PROTOCOL_VERSION,
            software: "0.1.0".to_owned(),
            heartbeat_ms: 2_000,
            models: vec![ModelId::from_bytes([1; 32])],
        }),
        ToWorker::Refused { code: RefusalCode::Quarantined, reason: "wrong results".to_owned() },
        ToWorker::Assign { epoch, job: job(1), hint: vec![7, 1 << 24 | 2] },
        ToWorker::Accepted { job: job_id, epoch },
        ToWorker::Cancel { job: job_id, epoch },
        ToWorker::Shutdown,
        ToWorker::Reveal { job: job_id, epoch },
        ToWorker::Halt { job: job_id, epoch, place: Place { point: 3, layer: 2 } },
        ToWorker::Cosign { head: log_head(), from: 3, path: vec![Digest::from_bytes([1; 32]); 2] },
    ]
}

fn partial() -> SignedPartial {
    let (job, epoch, keys) = (job(1).header(), LeaseEpoch(4), keys(1));
    let geometry = job.geometry(crate::testing::LAYERS).unwrap();
    Partial::of_roots(job.id(), &geometry, epoch, &[root(1), root(2)], &[], keys.id()).unwrap().sign(&keys)
}

fn stream() -> Vec<JobMessage> {
    vec![
        JobMessage::Begin { job: job(1).id(), epoch: LeaseEpoch(4) },
        JobMessage::Layer { place: Place { point: 3, layer: 1 }, root: root(1) },
        JobMessage::Token { word: 1 << 24 | 9, logprobs: vec![-5, 9, -1] },
        JobMessage::Commit { commitment: RunCommitment::from_bytes([9; 32]) },
        JobMessage::Partial(partial()),
        JobMessage::Result { result: Box::new(run(&keys(1), &job(1), LeaseEpoch(4))), salt: Salt::from_bytes([8; 32]) },
    ]
}

fn requests() -> Vec<PackageRequest> {
    let model = ModelId::from_bytes([1; 32]);
    vec![
        PackageRequest::GetManifest { model },
        PackageRequest::GetBlob { model, blob: 5, range: ChunkRange { first: 1_024, count: 16 } },
    ]
}

fn replies() -> Vec<PackageReply> {
    vec![
        PackageReply::Manifest { bytes: vec![1, 2, 3] },
        PackageReply::Opening { bytes: vec![9; 70] },
        PackageReply::NotFound,
    ]
}

/// Round trip, every truncation, every trailing byte, every flipped bit.
fn is_strict<T: Canonical + Debug + PartialEq>(values: &[T]) {
    for value in values {
        let bytes = to_bytes(value);
        assert!(bytes.len() >= T::MIN_BYTES, "{value:?} is shorter than its minimum");
        assert_eq!(from_bytes::<T>(&bytes).as_ref(), Ok(value));
        for len in 0..bytes.len() {
            assert!(from_bytes::<T>(&bytes[..len]).is_err(), "{value:?} cut at {len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(from_bytes::<T>(&longer), Err(DecodeError::TrailingBytes { left: 1 }));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = from_bytes::<T>(&changed) {
                assert_ne!(&other, value, "bit {bit} carries no meaning");
            }
        }
    }
}

#[test]
fn every_message_has_one_encoding() {
    is_strict(&up());
    is_strict(&down());
    is_strict(&stream());
    is_strict(&requests());
    is_strict(&replies());
}

fn frames<M: Message>(messages: &[M]) -> Vec<u8> {
    messages.iter().flat_map(|message| to_frame(message).unwrap()).collect()
}

#[test]
fn frames_come_out_however_the_bytes_come_in() {
    let messages = stream();
    let bytes = frames(&messages);
    for step in [1, 2, 3, 7, 64, 1_000, bytes.len()] {
        let mut decoder = FrameDecoder::<JobMessage>::new();
        let mut found = Vec::new();
        for part in bytes.chunks(step) {
            decoder.feed(part);
            while let Some(message) = decoder.next().unwrap() {
                found.push(message);
            }
        }
        assert_eq!(found, messages);
        assert_eq!(decoder.finish(), Ok(()));
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_length_alone() {
    let mut decoder = FrameDecoder::<PackageRequest>::new();
    let len = PackageRequest::FRAME_CAP + 1;
    decoder.feed(&(len as u32).to_le_bytes());
    let error = FrameError::TooLong { len, cap: PackageRequest::FRAME_CAP };
    assert_eq!(decoder.next(), Err(error.clone()));
    // And stays refused.
    decoder.feed(&frames(&requests()));
    assert_eq!(decoder.next(), Err(error.clone()));
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_truncated() {
    let bytes = frames(&requests());
    for len in 0..bytes.len() {
        let mut decoder = FrameDecoder::<PackageRequest>::new();
        decoder.feed(&bytes[..len]);
        let mut taken = 0;
        while let Some(message) = decoder.next().unwrap() {
            taken += to_frame(&message).unwrap().len();
        }
        let left = len - taken;
        let expected = if left == 0 { Ok(()) } else { Err(FrameError::Truncated { got: left }) };
        assert_eq!(decoder.finish(), expected);
    }
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_allocated() {
    // Tokens of a job: after tag, epoch, version, model and kind.
    let assign = ToWorker::Assign { epoch: LeaseEpoch(1), job: job(1), hint: Vec::new() };
    let mut bytes = to_bytes(&assign);
    let at = 2 + 8 + 4 + 32 + 2;
    assert_eq!(bytes[at..at + 4], 4_u32.to_le_bytes());
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let over = from_bytes::<ToWorker>(&bytes);
    assert!(matches!(over, Err(DecodeError::OverCap { what: "job tokens", .. })));
    bytes[at..at + 4].copy_from_slice(&(MAX_POSITIONS as u32).to_le_bytes());
    let short = from_bytes::<ToWorker>(&bytes);
    assert!(matches!(short, Err(DecodeError::UnexpectedEnd { .. })));
}

#[test]
fn the_largest_values_fit_their_frames_and_larger_ones_are_refused() {
    let mut job = job(1);
    job.tokens = vec![7; MAX_POSITIONS];
    let assign = ToWorker::Assign { epoch: LeaseEpoch(1), job: job.clone(), hint: vec![7; MAX_POINTS] };
    assert!(to_frame(&assign).is_ok());
    job.tokens.push(7);
    let assign = ToWorker::Assign { epoch: LeaseEpoch(1), job, hint: Vec::new() };
    assert!(from_bytes::<ToWorker>(&to_bytes(&assign)).is_err());

    let mut hello = hello();
    hello.software = "v".repeat(MAX_NAME_BYTES);
    hello.models = vec![ModelId::from_bytes([1; 32]); MAX_HELD_MODELS];
    assert!(to_frame(&ToCoordinator::Hello(hello.clone())).is_ok());
    hello.software.push('v');
    assert!(from_bytes::<Hello>(&to_bytes(&hello)).is_err());
}

#[test]
fn a_job_without_tokens_does_not_decode() {
    let mut empty = job(1);
    empty.tokens.clear();
    let refused = from_bytes::<crate::job::Job>(&to_bytes(&empty));
    assert_eq!(refused, Err(DecodeError::InvalidValue { what: "job tokens" }));
}

#[test]
fn ids_are_read_strictly() {
    let id: JobId = job(1).id();
    let text = id.to_string();
    assert_eq!(text.parse(), Ok(id));
    assert!(text.to_uppercase().parse::<JobId>().is_err());
    assert!(text[1..].parse::<JobId>().is_err());
    assert!(format!("{text}00").parse::<JobId>().is_err());
    assert!(text.replacen(&text[5..6], "g", 1).parse::<JobId>().is_err());
    assert!(format!(" {}", &text[1..]).parse::<JobId>().is_err());
}
