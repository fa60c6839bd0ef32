//! Workers for tests: they speak the real protocol over the real link, honestly or not.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use lockstep_kernels::reference::Reference;
use lockstep_link::{Client, Frames, send};
use lockstep_model::rerun::rerun;
use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, NodeId, Root};
use lockstep_protocol::job::Job;
use lockstep_protocol::messages::{Hello, JobMessage, JobResult, PROTOCOL_VERSION, ToCoordinator, ToWorker, Welcome};
use lockstep_protocol::receipt::{Run, WorkerReceipt};
use quinn::{Connection, SendStream};

use crate::models::Model;
use crate::testing::LAYERS;

pub fn keys(number: u8) -> Keypair {
    Keypair::from_seed([number; 32])
}

pub fn hello(model: &Model) -> Hello {
    Hello {
        protocol: PROTOCOL_VERSION,
        software: "test".to_owned(),
        backend: "reference".to_owned(),
        threads: 1,
        memory_bytes: 1 << 30,
        macs_per_second: 1_000_000_000,
        max_in_flight: 4,
        models: vec![model.id()],
    }
}

/// A connected worker.
pub struct Worker {
    pub keys: Keypair,
    pub model: Arc<Model>,
    pub connection: Connection,
    pub up: SendStream,
    pub down: Frames<ToWorker>,
    _client: Client,
}

impl Worker {
    /// Connects and says hello; what comes back is the caller's to read.
    pub async fn connect(number: u8, coordinator: NodeId, address: SocketAddr, package: &Path) -> Self {
        let keys = keys(number);
        let model = Arc::new(Model::open(package).unwrap());
        let mut client = Client::new(&keys, coordinator);
        let connection = client.connect(address).await.unwrap();
        let (mut up, down) = connection.open_bi().await.unwrap();
        send(&mut up, &ToCoordinator::Hello(hello(&model))).await.unwrap();
        Self { keys, model, connection, up, down: Frames::new(down), _client: client }
    }

    pub async fn next(&mut self) -> ToWorker {
        let next = tokio::time::timeout(super::PATIENCE, self.down.next());
        next.await.expect("a message in time").expect("a message").expect("no end")
    }

    pub async fn welcome(&mut self) -> Welcome {
        match self.next().await {
            ToWorker::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// The next assignment; what else comes is passed over.
    pub async fn assignment(&mut self) -> (Job, LeaseEpoch) {
        loop {
            if let ToWorker::Assign { epoch, job } = self.next().await {
                return (job, epoch);
            }
        }
    }

    /// Runs a job; with `lie`, claims another root at that place of the stream, and signs it.
    pub fn run(&self, job: &Job, epoch: LeaseEpoch, lie: Option<usize>) -> JobResult {
        let (mut roots, output) = truth(&self.model, job);
        if let Some(index) = lie {
            roots[index] = Root::from_bytes([0x66; 32]);
        }
        let run = Run {
            epoch,
            layers: LAYERS,
            roots,
            output_count: output.len() as u32,
            work_units: self.model.package().program().macs(job.tokens.len() as u64),
            saturations: 0,
        };
        let receipt = WorkerReceipt::of_run(&job.header(), run, self.keys.id()).unwrap();
        JobResult { receipt: receipt.sign(&self.keys), output }
    }

    /// Streams a result as the protocol has it.
    pub async fn stream(&self, job: &Job, epoch: LeaseEpoch, result: JobResult) {
        let mut stream = self.connection.open_uni().await.unwrap();
        let geometry = job.header().geometry(LAYERS).unwrap();
        send(&mut stream, &JobMessage::Begin { job: job.id(), epoch }).await.unwrap();
        for (place, root) in geometry.places().zip(result.receipt.receipt.roots.clone()) {
            send(&mut stream, &JobMessage::Layer { place, root }).await.unwrap();
        }
        send(&mut stream, &JobMessage::Result(result)).await.unwrap();
        stream.finish().unwrap();
        // Held until it has arrived: a dropped stream is finished all the same, but a dropped connection is not.
        let _ = stream.stopped().await;
    }

    /// Takes assignments until the connection ends.
    pub async fn serve(mut self, lie: Option<usize>) {
        while let Ok(Some(message)) = self.down.next().await {
            if let ToWorker::Assign { epoch, job } = message {
                let result = self.run(&job, epoch, lie);
                self.stream(&job, epoch, result).await;
            }
        }
    }
}

/// The right roots and output of a job.
pub fn truth(model: &Model, job: &Job) -> (Vec<Root>, Vec<i32>) {
    let right = rerun(model.package(), &Reference, &job.tokens).unwrap();
    (right.roots, right.output)
}
