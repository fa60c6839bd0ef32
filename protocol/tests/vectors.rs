//! Known answers. SPEC.md prints the same values, so that a second implementation can check itself
//! step by step: whoever changes one of these has changed the specification.

use lockstep_protocol::canonical::to_bytes;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{DisputeId, LeaseEpoch, Millis, ModelId, Nonce, Place, Root, Seed, VerdictKind};
use lockstep_protocol::job::{Job, JobKind, RequestInput, SPEC_VERSION};
use lockstep_protocol::ledger::{Posting, Purpose, batch_digest};
use lockstep_protocol::log::{Blind, Cosignature, Entry, LogHead, Tree, leaf_hash};
use lockstep_protocol::machine::{DrawChain, audit_draw, lockstep_draw};
use lockstep_protocol::messages::{JobResult, PackageRequest, to_frame};
use lockstep_protocol::openings::ChunkRange;
use lockstep_protocol::receipt::{FinishReason, Receipt, Refutation, WorkerReceipt};
use lockstep_protocol::trace::{RowTree, root_of_rows};

fn job() -> Job {
    let nonce = Nonce::from_bytes([2; 32]);
    Job {
        spec_version: SPEC_VERSION,
        model: ModelId::from_bytes([1; 32]),
        kind: JobKind::Embedding,
        tokens: vec![101, 7592, 102],
        request: RequestInput::Text("hello".to_owned()).hash(&nonce),
        seed: Seed::from_bytes([3; 32]),
        nonce,
    }
}

fn result() -> JobResult {
    let job = job();
    let header = job.header();
    let output = vec![1, -1];
    let output_root = root_of_rows(&output, 2);
    let roots = vec![Root::from_bytes([4; 32]), output_root];
    let epoch = LeaseEpoch(7);
    let keys = Keypair::from_seed([5; 32]);
    let receipt = WorkerReceipt {
        spec_version: SPEC_VERSION,
        job: header.id(),
        model: job.model,
        request: job.request,
        token_count: 3,
        token_root: header.token_root,
        epoch,
        finish: FinishReason::Complete,
        output_count: 2,
        output_root,
        logprobs: None,
        layers: 1,
        points: Vec::new(),
        head: header.geometry(1).unwrap().head(header.id(), epoch, &roots).unwrap(),
        roots,
        work_units: 1_000,
        saturations: 0,
        worker: keys.id(),
    };
    JobResult { receipt: receipt.sign(&keys), output }
}

#[test]
fn roots_of_rows() {
    let rows: Vec<i32> = (0..3 * 257).map(|value| value - 300).collect();
    assert_eq!(
        root_of_rows(&rows, 257).to_string(),
        "596e57c0fd8ff28eef4e6ee79d434b3ffb7281ba1029d88f5a90c5d305881e97"
    );
    let mut tree = RowTree::new(257);
    rows.chunks(257).for_each(|row| tree.push_row(row));
    assert_eq!(tree.root(), root_of_rows(&rows, 257));
}

#[test]
fn jobs() {
    let job = job();
    assert_eq!(job.request.to_string(), "b895cef3f2ac018e8bb5502bca892b1efc81be1c59ee63337e37605626478529");
    assert_eq!(job.header().token_root.to_string(), "9e00242e144515b2fd94b18f57e6dc8e71e7960f0ebc3ce3ed8105f05f7ee433");
    assert_eq!(to_bytes(&job.header()).len(), 170);
    assert_eq!(job.id().to_string(), "b4bcff6ed1391524c2c3d963f0d6b041a549afa79c1fd357095f4fb69db43875");
}

#[test]
fn receipts() {
    let signed = result().receipt;
    assert_eq!(
        signed.receipt.output_root.to_string(),
        "7d5e2c8ba59cadc26e770bfaabb175d0725f1b3ac2d5155defecc049dd8fb903"
    );
    assert_eq!(signed.receipt.head.to_string(), "7981a62a59c4e34a6980d7175d14501059796074d775bd187b6d7e948fb856b2");
    assert_eq!(to_bytes(&signed.receipt).len(), 337);
    assert_eq!(signed.receipt.digest().to_string(), "8f79026933f8e99ef469db37da24312b11c499e6da1cb38c95e5bd8d1098163a");
    assert_eq!(signed.receipt.worker.to_string(), "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1");
    assert_eq!(
        signed.signature.to_string(),
        "063d89f03a0355cabc8e802b2529c1c6cea9914f4335a94510fc46d697751816ab34cbf20edbe24a398bba9502abf31f9dda3156c959e75ec2f9acd3277b0309"
    );
}

#[test]
fn statements() {
    let JobResult { receipt, output } = result();
    let keys = Keypair::from_seed([6; 32]);
    let receipt = Receipt::accepted(job(), receipt, output, &keys, Millis(1_700_000_000_000));
    assert!(receipt.check().is_ok());
    let statement = &receipt.statements[0];
    assert_eq!(
        statement.statement.digest().to_string(),
        "731dd3a70a1c716e327578791b855ecf1be732262b90927e0fdb1e4b02264b93"
    );
    assert_eq!(
        statement.signature.to_string(),
        "02ddd0b22d6f35d2e9bd950c5550a7750abf754500877d930abd0eb1bcabe589a9464051901395191cccfff999abac4f38fba33af1498c9b4352d32f37c95108"
    );
}

/// The coordinator finds the run of [`statements`] wrong, by a dispute with the id of 32 bytes 0a.
#[test]
fn refutations() {
    let JobResult { receipt: run, output } = result();
    let keys = Keypair::from_seed([6; 32]);
    let refutation = Refutation {
        worker: run.receipt.worker,
        receipt: run.receipt.digest(),
        place: Place { point: 2, layer: 1 },
        dispute: DisputeId::from_bytes([10; 32]),
        kind: VerdictKind::Proven,
    };
    let accepted = Receipt::accepted(job(), run, output, &keys, Millis(1_700_000_000_000));
    let mut receipt = accepted.clone();
    receipt.add_refutation(&refutation, &keys, Millis(1_700_000_000_000));
    assert!(receipt.check().unwrap().refuted.is_some());
    assert_eq!(
        receipt.statements[1].statement.digest().to_string(),
        "ad8452f70c0fed7eeaab8595cccd8a33fef2c6499896806ccdaa7bd00fb1d128"
    );
    let mut receipt = accepted;
    receipt.add_withdrawal(refutation.receipt, &keys, Millis(1_700_000_000_000));
    assert!(receipt.check().unwrap().withdrawn);
    assert_eq!(
        receipt.statements[1].statement.digest().to_string(),
        "1f67ed6ebe4384abcf26ccaa3bf644ebb4bd20444d3eb68ddf4fb1e38ef1e055"
    );
}

#[test]
fn draws() {
    let head = result().receipt.receipt.head;
    let chain = DrawChain::new(&[8; 32], 0);
    assert_eq!(chain.anchor().to_string(), "35f97b498f3cfc65b381945a89fea43224e49884b72841cbbb8b6a6cc7486bf8");
    let secret = chain.secret(5).unwrap();
    assert_eq!(secret.secret.to_string(), "35f1a6b07535d9ec137436add29c3e867fe62f5b863602389b2be121504c14f8");
    let draw = audit_draw(&secret, &head, &job().nonce);
    assert_eq!(draw.seed.to_string(), "51033cb697c8211d01bee007492f368dbacee52994a69e20474fc809ad9dabfa");
    assert_eq!(
        draw.rank(&Keypair::from_seed([5; 32]).id()).to_string(),
        "32ced9278fa625717db22ddee470872e656cd3307f496703e34bbcff089195e1"
    );
    let draw = lockstep_draw(&secret, job().id(), &job().nonce);
    assert_eq!(draw.seed.to_string(), "0c56439997d26e386e3f9c92ca525d6b7b039cd7806e9537275f25c871f36726");
}

#[test]
fn ledger_batches() {
    let worker = Keypair::from_seed([5; 32]).id();
    let purpose = Purpose::Lease { job: job().id(), epoch: LeaseEpoch(7) };
    let postings = [Posting::Issue { to: worker, amount: 5 }, Posting::Hold { from: worker, purpose, amount: 3 }];
    let bytes: Vec<u8> = postings.iter().flat_map(to_bytes).collect();
    assert_eq!(bytes.len(), 42 + 84);
    assert_eq!(
        batch_digest(0, &postings).to_string(),
        "1550b4ff30c99dd787ee6ae37e720e405e878a84732e638229ef12d3aa7ca5a0"
    );
}

#[test]
fn frames() {
    let request = PackageRequest::GetBlob {
        model: ModelId::from_bytes([1; 32]),
        blob: 5,
        range: ChunkRange { first: 1_024, count: 16 },
    };
    let hex: String = to_frame(&request).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "320000000200010101010101010101010101010101010101010101010101010101010101010105000000000400000000000010000000"
    );
}

/// The log of the job above: taken, assigned, and what came of it. The secret is 32 bytes 09.
#[test]
fn transparency_log() {
    let result = result();
    let (job, receipt) = (job().id(), &result.receipt.receipt);
    let epoch = receipt.epoch;
    let entries = [
        Entry::Submitted { job },
        Entry::Assigned { job, epoch, worker: receipt.worker },
        Entry::Result { job, epoch, receipt: receipt.digest() },
    ];
    let mut tree = Tree::new();
    assert_eq!(tree.root().to_string(), "3d04642c96e1e3840519817a6ee9b2ed91ede30c4f5ca4a34ac8178fcffc3ce4");
    let mut leaves = Vec::new();
    for entry in &entries {
        let leaf = leaf_hash(&Blind::derive(&[9; 32], tree.size()), entry);
        leaves.push(leaf.to_string());
        tree.append(leaf, |_, _| Ok::<_, std::convert::Infallible>(())).unwrap();
    }
    assert_eq!(
        Blind::derive(&[9; 32], 0).to_string(),
        "886d3a8e431a330ad50431ea94ffccea9af28bb03335a0ca3fe64094e1ed3f74"
    );
    assert_eq!(leaves[1], "9189246cab525acb408eed07dee87c387432bd515a3d76ba06627b2dca9a6c58");
    assert_eq!(tree.root().to_string(), "f8471480e188b0716ca44a235d8d0f4d387446f147fb52a8e3b07e2466090597");
    let coordinator = Keypair::from_seed([6; 32]);
    let head = LogHead::of(&tree, coordinator.id(), Millis(1_700_000_000_000)).sign(&coordinator);
    assert_eq!(
        head.signature.to_string(),
        "0e4d38a77ea76ff54354d710ec2fd70516db07c8a1247372011dcabfba333857ff477bf80432520b361d012d6e6ec35b5b6bcde8dbd95e01fccb95744e024b01"
    );
    assert_eq!(
        Cosignature::of(&head, &Keypair::from_seed([5; 32])).signature.to_string(),
        "3377af4d06dc4abe3de98bfd932c77f380ef530dc4821b924ec7ed35bb0f7162d7636af3efcfc19c394fe3cea5e460902a13faf1589e78e323afeed571c7ea04"
    );
}
