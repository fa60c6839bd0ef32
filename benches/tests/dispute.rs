//! The engine behind `lockstep bench dispute`: what it reports is what happened. Never how fast.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lockstep_benches::dispute::{Workload, measure, rates};
use lockstep_kernels::program::OP_NAMES;
use lockstep_kernels::reference::Reference;
use lockstep_protocol::dispute::VerdictKind;
use lockstep_sim::adversary::LyingBackend;
use lockstep_sim::models;

#[test]
fn a_liar_about_any_op_loses_at_that_very_op() {
    let mut ops = BTreeSet::new();
    for package in models::all().iter().chain([models::decoder()]) {
        let positions = package.program().max_positions.min(70) as usize;
        let workload = Workload::new(package, positions).unwrap();
        let liar = |lie| Arc::new(LyingBackend::new("liar".into(), Reference, &[lie])) as Arc<_>;
        let mut taken = 0;
        let mut take = |_: &_| {
            taken += 1;
            Ok(())
        };
        let disputes = measure(&workload, &Reference, &liar, &mut take).unwrap();
        assert_eq!((disputes.len(), taken), (workload.disputes(), workload.disputes()));
        let refereed = rates(package, &disputes, 2, Duration::ZERO, 3).unwrap();
        assert_eq!((refereed.disputes, refereed.per_second.0.len()), (6, 3), "one on each thread: {refereed:?}");
        assert!(refereed.per_second.median() > 0.0, "{refereed:?}");
        for dispute in disputes {
            assert!(dispute.claimant_loses && dispute.kind == VerdictKind::Proven, "{dispute:?}");
            assert!(dispute.ended().starts_with(&format!("{}.", dispute.op)), "{dispute:?}");
            assert!((2..=6).contains(&dispute.rounds) && dispute.referee_bytes <= 128 << 10, "{dispute:?}");
            ops.insert(dispute.op);
        }
    }
    // What follows from the logits beside the words is no op, and disputed like one.
    assert_eq!(ops, OP_NAMES.into_iter().chain(["logprobs"]).collect());
}

#[test]
fn more_positions_than_the_model_has_are_refused() {
    let package = &models::all()[0];
    let most = package.program().max_positions as usize;
    assert!(Workload::new(package, most).is_ok());
    for positions in [0, most + 1] {
        assert!(Workload::new(package, positions).is_err_and(|error| error.to_string().contains("positions")));
    }
}
