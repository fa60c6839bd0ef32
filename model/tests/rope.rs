//! Rotary tables against 80 decimal digits (`scripts/rope_reference.py`).

use std::num::NonZeroUsize;

use lockstep_model::checkpoint::{AttentionFactor, RopeConfig, RopeScaling};
use lockstep_model::rope::{attention_factor, table};
use serde_json::Value;

/// The yardstick has 60 fractional bits.
const UNIT: f64 = 1.0 / (1_u64 << 60) as f64;

fn scaling(s: &Value) -> RopeScaling {
    let f = |name: &str| s[name].as_f64().unwrap();
    let original = || s["original"].as_u64().unwrap() as u32;
    match s["type"].as_str().unwrap() {
        "none" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: f("factor") },
        "llama3" => RopeScaling::Llama3 { factor: f("factor"), low: f("low"), high: f("high"), original: original() },
        _ => RopeScaling::Yarn {
            factor: f("factor"),
            beta_fast: f("beta_fast"),
            beta_slow: f("beta_slow"),
            original: original(),
            truncate: s["truncate"].as_bool().unwrap(),
            attention: match s["mscale"].as_f64() {
                Some(a) => AttentionFactor::Ratio(a, f("mscale_all_dim")),
                None => AttentionFactor::FromFactor,
            },
        },
    }
}

/// The stated bound: half a unit of 2^-30 for the rounding, and 2^-55 for everything before it.
#[test]
fn tables_are_within_their_bound_up_to_position_131071() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("rope.json")).unwrap();
    let threads = NonZeroUsize::new(2).unwrap();
    let mut worst = 0_i128;
    for case in &cases {
        let dim = case["head_dim"].as_u64().unwrap() as usize;
        let config = RopeConfig { theta: case["theta"].as_f64().unwrap(), scaling: scaling(&case["scaling"]) };
        let table = table(&config, dim as u32, 131_072, threads).unwrap();
        for entry in case["entries"].as_array().unwrap() {
            let at = |i: usize| entry[i].as_i64().unwrap();
            let element = at(0) as usize * dim + 2 * at(1) as usize;
            for (found, exact) in table[element..element + 2].iter().zip([at(2), at(3)]) {
                worst = worst.max(((i128::from(*found) << 30) - i128::from(exact)).abs());
            }
        }
        let (found, exact) = (attention_factor(&config), case["attention_factor"].as_f64().unwrap());
        assert!((found - exact).abs() <= exact * f64::EPSILON, "{found} and {exact}");
    }
    assert!(worst <= (1 << 29) + (1 << 5), "{:e}", worst as f64 * UNIT);
    assert!(worst > 1 << 28, "the yardstick reaches where rounding shows");
}

#[test]
fn threads_and_length_leave_no_mark() {
    let config = RopeConfig { theta: 10_000.0, scaling: RopeScaling::None };
    let one = table(&config, 24, 1_000, NonZeroUsize::MIN).unwrap();
    let three = table(&config, 24, 777, NonZeroUsize::new(3).unwrap()).unwrap();
    assert_eq!(one[..777 * 24], three);
    assert_eq!(one[..4], [1 << 30, 0, 1 << 30, 0], "position 0 does not turn");
}
