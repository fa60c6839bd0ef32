//! The known answers of generations are what their one command gives, on the oracle and on the fast backend.

#[path = "../examples/regenerate_generations/case.rs"]
mod case;

use std::path::Path;

use lockstep_kernels::backend::Backend;
use lockstep_kernels::cpu::Cpu;
use lockstep_kernels::reference::Reference;
use lockstep_protocol::receipt::Receipt;

const HINT: &str = "if this is meant: scripts/regenerate-vectors, and SPEC.md 19";

#[test]
fn oracle_and_fast_backend_give_the_stored_receipts_and_the_specification_has_their_digests() {
    let folder = tempfile::tempdir().expect("a folder");
    let package = case::package(folder.path());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let spec = std::fs::read_to_string(root.join("../SPEC.md")).expect("the specification");
    let cpu = Cpu::new(None, 2).expect("a processor");
    for name in case::NAMES {
        let stored = std::fs::read_to_string(root.join(format!("vectors/{name}.json"))).expect("a known answer");
        for backend in [&Reference as &dyn Backend, &cpu] {
            let receipt = case::receipt(&package, name, backend);
            assert_eq!(receipt.to_json(), stored.trim(), "{name} on {}; {HINT}", backend.name());
        }
        let receipt = Receipt::from_json(stored.trim()).expect("a receipt");
        receipt.check().expect("a receipt that checks");
        let signed = &receipt.worker.receipt;
        let mut known = vec![signed.job.to_string(), signed.output_root.to_string(), signed.head.to_string()];
        known.push(signed.digest().to_string());
        known.extend(signed.logprobs.map(|root| root.to_string()));
        known.push(signed.model.to_string());
        for value in known {
            assert!(spec.contains(&value), "SPEC.md 19 lacks {value} of {name}; {HINT}");
        }
    }
    let words = case::NAMES.map(|name| case::receipt(&package, name, &cpu).words());
    assert!(words[0].len() == 12 && words[1].len() > 4 && words[0][..4] != words[1][..4], "{words:?}");
}
