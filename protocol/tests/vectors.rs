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
        layers: 1,
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
    assert_eq!(signed.receipt.head.to_string(), "9671326676a7195261595a144269c34d2a35d181e329ecf281255a1327bd21f3");
    assert_eq!(to_bytes(&signed.receipt).len(), 332);
    assert_eq!(signed.receipt.digest().to_string(), "bc59f01a50e66f71fc7b417c831a7ad80d239b5eda5e259e5f9a6c69d29dffee");
    assert_eq!(signed.receipt.worker.to_string(), "6e7a1cdd29b0b78fd13af4c5598feff4ef2a97166e3ca6f2e4fbfccd80505bf1");
    assert_eq!(
        signed.signature.to_string(),
        "47f47444f611bb4749f679b6d1bb0af5d8f5a4b0056a175309258cd3c9e205018854b5966cced2cb45118d20780ba90d1c8dd7bd8f04682f491a59a6d9281509"
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
        "db628488f15b6dee1c8f356790cb285d954ad4a4a5162531f59e03a785951273"
    );
    assert_eq!(
        statement.signature.to_string(),
        "d74fdbb9d59426ba604f173f3688ea6db43151a821e4e0bc5ecd94dbe0bdf156a36cce7d74a8ae3a39102b8e9cf9e343db895e166ce39a877797dd8b0aa70b04"
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
        "439343ec1e858b7303bed31e6d05007c2762cbc7eb8312bbe1113dfa33301a4e"
    );
    let mut receipt = accepted;
    receipt.add_withdrawal(refutation.receipt, &keys, Millis(1_700_000_000_000));
    assert!(receipt.check().unwrap().withdrawn);
    assert_eq!(
        receipt.statements[1].statement.digest().to_string(),
        "e5675f9fc43d58f4c4831bdd75673096245f737a3678e459eac3e5f0666d728c"
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
    assert_eq!(draw.seed.to_string(), "e2ddadff2244f0ead60aa75c23d511c1e8434080674980d1d1f1cc1cc88ee257");
    assert_eq!(
        draw.rank(&Keypair::from_seed([5; 32]).id()).to_string(),
        "c5f598a5ef76b543c224c765d55463926714422435c8ae5f634ffe85976a207d"
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
    assert_eq!(tree.root().to_string(), "5a6e0afc291238f2291899d3c374d6ccbbee3dcc2fd5732d4905320707081bd2");
    let coordinator = Keypair::from_seed([6; 32]);
    let head = LogHead::of(&tree, coordinator.id(), Millis(1_700_000_000_000)).sign(&coordinator);
    assert_eq!(
        head.signature.to_string(),
        "e704b4e95d730f53c11057ac104b93e058f54fcd32e465721e9016d6b1e2915b32eeafa2489e88544f1fe66d6144f75447b2fe443329c720e43428d28a534d0f"
    );
    assert_eq!(
        Cosignature::of(&head, &Keypair::from_seed([5; 32])).signature.to_string(),
        "790b048b2e1702c9a616cc7b9718840e9d025827a985a4e07c58f845597943f48daa016f310543e1ef68d34233f51a17a12dce0512317c8b6a84a1851a096201"
    );
}
