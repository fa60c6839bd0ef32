use serde_json::Value;

use super::*;
use crate::ids::LeaseEpoch;
use crate::testing::{OUTPUT, job, keys, right_roots, root, run, run_with};

/// A receipt with an audit that matched, one that did not and was refuted, and one that did not and was taken back.
fn full_receipt() -> Receipt {
    let job = job(1);
    let coordinator = keys(100);
    let first = run(&keys(1), &job, LeaseEpoch(1));
    let mut receipt =
        Receipt::accepted(job.clone(), first.receipt, first.output, &coordinator, Millis(1_700_000_000_000));
    let audit = run(&keys(2), &job, LeaseEpoch(2));
    receipt.add_audit(audit.receipt, &coordinator, Millis(1_700_000_000_500));
    let mut roots = right_roots(job.id());
    roots[1] = root(0xee);
    let wrong = run_with(&keys(3), &job, LeaseEpoch(3), roots);
    let refutation = Refutation {
        worker: keys(3).id(),
        receipt: wrong.receipt.receipt.digest(),
        place: job.header().geometry(3).unwrap().place(1).unwrap(),
        dispute: DisputeId::from_bytes([0xd1; 32]),
        kind: VerdictKind::Proven,
    };
    receipt.add_audit(wrong.receipt, &coordinator, Millis(1_700_000_000_600));
    receipt.add_refutation(&refutation, &coordinator, Millis(1_700_000_000_700));
    let mut faulty = right_roots(job.id());
    faulty[0] = root(0xdd);
    let faulty = run_with(&keys(4), &job, LeaseEpoch(4), faulty).receipt;
    let digest = faulty.receipt.digest();
    receipt.add_audit(faulty, &coordinator, Millis(1_700_000_000_800));
    receipt.add_withdrawal(digest, &coordinator, Millis(1_700_000_000_900));
    receipt
}

fn read_and_check(text: &str) -> Result<Standing, ReceiptError> {
    Receipt::from_json(text)?.check()
}

/// Every leaf of a JSON value, as a path of keys and indices.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| leaves(value, &format!("{path}/{key}"), found));
        }
        Value::Array(items) => {
            let indexed = items.iter().enumerate();
            indexed.for_each(|(at, value)| leaves(value, &format!("{path}/{at}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn a_receipt_survives_json_and_checks() {
    let receipt = full_receipt();
    let again = Receipt::from_json(&receipt.to_json()).unwrap();
    assert_eq!(again, receipt);
    let standing = again.check().unwrap();
    assert_eq!(standing, Standing { matched: 1, mismatched: 2, refuted: None, withdrawn: false });
}

#[test]
fn every_change_of_every_leaf_is_refused() {
    let text = full_receipt().to_json();
    let whole: Value = serde_json::from_str(&text).unwrap();
    let mut paths = Vec::new();
    leaves(&whole, "", &mut paths);
    assert!(paths.len() > 90, "{}", paths.len());
    for path in &paths {
        for changed_leaf in changes(whole.pointer(path).unwrap()) {
            let mut changed = whole.clone();
            *changed.pointer_mut(path).unwrap() = changed_leaf.clone();
            let result = read_and_check(&changed.to_string());
            assert!(result.is_err(), "{path} as {changed_leaf} passes");
            assert!(!result.unwrap_err().to_string().is_empty());
        }
    }
}

/// Other values in the place of a leaf: each character changed, other numbers, other types.
fn changes(leaf: &Value) -> Vec<Value> {
    let mut out = vec![Value::Null, Value::Array(vec![]), Value::Object(serde_json::Map::new())];
    match leaf {
        Value::String(text) => {
            for at in 0..text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
                out.push(Value::String(String::from_utf8(bytes).unwrap()));
            }
            out.push(Value::String(text.to_uppercase()).clone());
            out.push(Value::String(format!("{text}0")));
            out.push(Value::String(text[1..].to_owned()));
        }
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            out.extend([number + 1, number - 1, number ^ 256, -number - 1].map(Value::from));
            out.push(Value::from(number as f64));
            out.push(Value::String(number.to_string()));
        }
        Value::Bool(value) => out.push(Value::Bool(!value)),
        Value::Null => out.push(Value::String("1".repeat(64))),
        other => panic!("a receipt has no leaf like {other}"),
    }
    out.retain(|value| value != leaf);
    out
}

#[test]
fn values_of_one_kind_swapped_are_refused() {
    let text = full_receipt().to_json();
    let whole: Value = serde_json::from_str(&text).unwrap();
    let mut paths = Vec::new();
    leaves(&whole, "", &mut paths);
    let texts: Vec<_> = paths.iter().filter(|path| whole.pointer(path).unwrap().is_string()).collect();
    for (index, a) in texts.iter().enumerate() {
        for b in &texts[index + 1..] {
            let (left, right) = (whole.pointer(a).unwrap(), whole.pointer(b).unwrap());
            if left == right {
                continue;
            }
            let mut changed = whole.clone();
            *changed.pointer_mut(a).unwrap() = right.clone();
            assert!(read_and_check(&changed.to_string()).is_err(), "{a} from {b}");
            *changed.pointer_mut(b).unwrap() = left.clone();
            assert!(read_and_check(&changed.to_string()).is_err(), "{a} with {b}");
        }
    }
}

#[test]
fn parts_can_not_be_taken_out_doubled_or_reordered() {
    let receipt = full_receipt();
    for index in 0..receipt.statements.len() - 1 {
        let mut changed = receipt.clone();
        changed.statements.remove(index);
        assert!(changed.check().is_err(), "without statement {index}");
        let mut changed = receipt.clone();
        changed.statements.swap(index, index + 1);
        assert!(changed.check().is_err(), "statement {index} swapped");
    }
    let mut changed = receipt.clone();
    changed.statements.push(receipt.statements[3].clone());
    assert!(changed.check().is_err());
    for index in 0..3 {
        let mut changed = receipt.clone();
        changed.audits.remove(index);
        assert!(changed.check().is_err(), "without audit {index}");
    }
    let mut changed = receipt.clone();
    changed.audits.swap(0, 1);
    assert!(changed.check().is_err());
    let mut changed = receipt;
    changed.statements.clear();
    assert!(changed.check().is_err());
}

#[test]
fn another_spelling_of_the_same_receipt_is_refused() {
    let text = full_receipt().to_json();
    let epoch = "\"epoch\":1,";
    assert!(text.contains(epoch));
    for other in ["\"epoch\":1.0,", "\"epoch\":1e0,", "\"epoch\":1,\"epoch\":1,", "\"epoch\":1,\"x\":0,"] {
        assert!(Receipt::from_json(&text.replacen(epoch, other, 1)).is_err(), "{other}");
    }
    let accepted = "{\"accepted\":{}}";
    assert!(text.contains(accepted));
    for other in ["\"accepted\"", "{\"accepted\":[]}", "{\"accepted\":null}", "{\"accepted\":{\"x\":1}}"] {
        assert!(Receipt::from_json(&text.replacen(accepted, other, 1)).is_err(), "{other}");
    }
    // A struct written as an array of its fields.
    let value: Value = serde_json::from_str(&text).unwrap();
    let mut changed = value.clone();
    let statement = value.pointer("/statements/0").unwrap();
    let fields = vec![statement["statement"].clone(), statement["signature"].clone()];
    *changed.pointer_mut("/statements/0").unwrap() = Value::Array(fields);
    assert!(read_and_check(&changed.to_string()).is_err());
    assert!(Receipt::from_json(&format!("{text} x")).is_err());
    // Whitespace and the order of keys carry no meaning.
    let spaced = serde_json::to_string_pretty(&value).unwrap();
    assert!(read_and_check(&spaced).is_ok());
}

#[test]
fn a_run_signed_consistently_but_impossible_is_named() {
    let job = job(1);
    let header = job.header();
    let good = run(&keys(1), &job, LeaseEpoch(1)).receipt.receipt;
    let check = |change: &dyn Fn(&mut WorkerReceipt)| {
        let mut receipt = good.clone();
        change(&mut receipt);
        receipt.sign(&keys(1)).check(&header, Some(&OUTPUT))
    };
    assert_eq!(check(&|_| {}), Ok(()));
    let not_this = |field| Err(ReceiptError::NotThisJob { field });
    assert_eq!(check(&|r| r.job = super::super::ids::JobId::from_bytes([0; 32])), not_this("job id"));
    assert_eq!(check(&|r| r.token_count += 1), not_this("token count"));
    assert_eq!(check(&|r| r.layers = 4), Err(ReceiptError::RootCount { expected: 5, found: 4 }));
    assert_eq!(check(&|r| r.roots[0] = root(9)), Err(ReceiptError::ChainHead));
    assert_eq!(check(&|r| r.output_count = 3), Err(ReceiptError::OutputCount { expected: 3, found: 4 }));
    assert!(matches!(check(&|r| r.layers = 0), Err(ReceiptError::Job(_))));
    assert_eq!(check(&|r| r.epoch = LeaseEpoch(0)), Err(ReceiptError::EpochZero));
    let foreign = good.clone().sign(&keys(2)).check(&header, Some(&OUTPUT));
    assert!(matches!(foreign, Err(ReceiptError::WorkerSignature { .. })));
    let other_output = good.sign(&keys(1)).check(&header, Some(&[1, 2, 3, 4]));
    assert_eq!(other_output, Err(ReceiptError::OutputRoot));
}

#[test]
fn an_answer_that_was_refuted_or_taken_back_says_so() {
    let job = job(1);
    let first = run(&keys(1), &job, LeaseEpoch(1));
    let digest = first.receipt.receipt.digest();
    let refutation = Refutation {
        worker: keys(1).id(),
        receipt: digest,
        place: job.header().geometry(3).unwrap().place(0).unwrap(),
        dispute: DisputeId::from_bytes([1; 32]),
        kind: VerdictKind::Timeout,
    };
    let accepted = Receipt::accepted(job, first.receipt, first.output, &keys(100), Millis(1));
    let mut refuted = accepted.clone();
    refuted.add_refutation(&refutation, &keys(100), Millis(0));
    assert_eq!(refuted.check().unwrap().refuted, Some(refutation.place));
    let mut withdrawn = accepted.clone();
    withdrawn.add_withdrawal(digest, &keys(100), Millis(2));
    assert!(withdrawn.check().unwrap().withdrawn);
    let is_false = |receipt: &Receipt| matches!(receipt.check(), Err(ReceiptError::StatementFalse { .. }));
    // A run falls once, and it is a run of this job, at one of its places.
    withdrawn.add_refutation(&refutation, &keys(100), Millis(3));
    assert!(is_false(&withdrawn));
    let mut other = accepted.clone();
    other.add_withdrawal(Digest::from_bytes([1; 32]), &keys(100), Millis(2));
    assert!(is_false(&other));
    for place in [Place { point: 2, layer: 1 }, Place { point: 3, layer: 0 }, Place { point: 3, layer: 5 }] {
        let mut other = accepted.clone();
        other.add_refutation(&Refutation { place, ..refutation }, &keys(100), Millis(2));
        assert!(is_false(&other), "{place}");
    }
}

#[test]
fn runs_that_differ_in_work_or_saturations_are_not_the_same() {
    let run = run(&keys(1), &job(1), LeaseEpoch(1)).receipt.receipt;
    assert!(same_result(&run, &run.clone()));
    assert!(!same_result(&run, &WorkerReceipt { work_units: run.work_units + 1, ..run.clone() }));
    assert!(!same_result(&run, &WorkerReceipt { saturations: run.saturations + 1, ..run.clone() }));
}

#[test]
fn a_signed_audit_without_an_output_is_refused() {
    let mut receipt = run(&keys(1), &job(1), LeaseEpoch(1)).receipt.receipt;
    receipt.output_count = 0;
    let refused = receipt.sign(&keys(1)).check(&job(1).header(), None);
    assert_eq!(refused, Err(ReceiptError::OutputRange { found: 0 }));
}
