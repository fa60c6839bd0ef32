//! Workers that break every rule lose their own connection and nothing else.

use lockstep_link::{Close, send};
use lockstep_protocol::ids::{JobId, LeaseEpoch, Place, Root};
use lockstep_protocol::messages::{FailureCode, JobMessage, ToCoordinator};
use quinn::ConnectionError;

use super::worker::{Worker, hello};
use super::{PATIENCE, World, ask, embed, world};

async fn join(world: &World, number: u8) -> Worker {
    let mut worker = Worker::connect(number, world.handle.node_id(), world.handle.quic_addr(), &world.package).await;
    worker.welcome().await;
    worker
}

async fn is_thrown_out(worker: &Worker, what: &str) {
    let closed = tokio::time::timeout(PATIENCE, worker.connection.closed()).await;
    match closed.unwrap_or_else(|_| panic!("{what} is tolerated")) {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), Close::Protocol as u64, "{what}: {close:?}");
        }
        other => panic!("{what}: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_floods_and_lies_cost_the_connection_and_no_job() {
    let world = world(|_| {}).await;

    let worker = join(&world, 10).await;
    worker.up.lock().await.write_all(&[0xff; 64]).await.unwrap();
    is_thrown_out(&worker, "an oversize frame").await;

    let worker = join(&world, 11).await;
    worker.up.lock().await.write_all(&[2, 0, 0, 0, 0xee, 0xee]).await.unwrap();
    is_thrown_out(&worker, "a message that does not exist").await;

    let worker = join(&world, 12).await;
    let again = ToCoordinator::Hello(hello(&worker.model));
    worker.tell(&again).await;
    is_thrown_out(&worker, "a second hello").await;

    let worker = join(&world, 13).await;
    for sequence in 0..5_000 {
        if send(&mut *worker.up.lock().await, &ToCoordinator::Heartbeat { sequence, in_flight: 0 }).await.is_err() {
            break;
        }
    }
    is_thrown_out(&worker, "a flood of heartbeats").await;

    let worker = join(&world, 14).await;
    for number in 0..1_000_u32 {
        let Ok(mut stream) = worker.connection.open_uni().await else { break };
        let begin = JobMessage::Begin { job: JobId::from_bytes([7; 32]), epoch: LeaseEpoch(number.into()) };
        let _ = send(&mut stream, &begin).await;
    }
    is_thrown_out(&worker, "a flood of streams for jobs that it does not have").await;

    let worker = join(&world, 15).await;
    let mut stream = worker.connection.open_uni().await.unwrap();
    let early = JobMessage::Layer { place: Place { point: 0, layer: 1 }, root: Root::from_bytes([0; 32]) };
    send(&mut stream, &early).await.unwrap();
    is_thrown_out(&worker, "a job stream without a beginning").await;

    tokio::spawn(join(&world, 1).await.serve(None));
    assert_eq!(embed(world.handle.http_addr(), &ask("w1")).await.0, 200);
    world.handle.shutdown().await.unwrap();
}

/// Each has a job and misuses its assignment; an honest worker finishes the job all the same.
#[tokio::test(flavor = "multi_thread")]
async fn misused_assignments_go_to_others() {
    let world = world(|_| {}).await;
    let http = world.handle.http_addr();
    let asked = tokio::spawn(async move { embed(http, &ask("w1 w2 w3")).await });

    let mut worker = join(&world, 20).await;
    let (job, epoch) = worker.assignment().await;
    let mut stream = worker.connection.open_uni().await.unwrap();
    send(&mut stream, &JobMessage::Begin { job: job.id(), epoch }).await.unwrap();
    let wrong = JobMessage::Layer { place: Place { point: 0, layer: 1 }, root: Root::from_bytes([0; 32]) };
    send(&mut stream, &wrong).await.unwrap();
    is_thrown_out(&worker, "a root at a place that the job does not have").await;

    let mut worker = join(&world, 21).await;
    let (job, epoch) = worker.assignment().await;
    let begin = JobMessage::Begin { job: job.id(), epoch };
    let (mut one, mut two) = (worker.connection.open_uni().await.unwrap(), worker.connection.open_uni().await.unwrap());
    send(&mut one, &begin).await.unwrap();
    send(&mut two, &begin).await.unwrap();
    is_thrown_out(&worker, "two streams for one assignment").await;

    let mut worker = join(&world, 22).await;
    let (job, epoch) = worker.assignment().await;
    let mut result = worker.run(&job, epoch, None);
    result.output[0] ^= 1;
    worker.stream(&job, epoch, result).await;
    is_thrown_out(&worker, "an output that is not the one it signed").await;

    // Another worker's result, under its own lease.
    let mut worker = join(&world, 23).await;
    let (job, epoch) = worker.assignment().await;
    let mut thief = worker.run(&job, epoch, None);
    thief.receipt.receipt.worker = super::worker::keys(1).id();
    worker.stream(&job, epoch, thief).await;
    is_thrown_out(&worker, "a result in somebody else's name").await;

    // Giving back is no offence, but such a worker does not get the same job again while others are there.
    let mut worker = join(&world, 24).await;
    let (job, epoch) = worker.assignment().await;
    tokio::spawn(join(&world, 1).await.serve(None));
    let failed = ToCoordinator::Failed { job: job.id(), epoch, code: FailureCode::Backend, reason: "x".to_owned() };
    worker.tell(&failed).await;

    let (status, answer) = asked.await.unwrap();
    assert_eq!(status, 200, "{answer}");
    let signer = &answer["lockstep"]["receipts"][0]["worker"]["receipt"]["worker"];
    assert_eq!(signer, &serde_json::json!(super::worker::keys(1).id()));
    world.handle.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_are_dropped() {
    let world = world(|_| {}).await;
    let mut client = lockstep_link::Client::new(&super::worker::keys(30), world.handle.node_id());
    let silent = client.connect(world.handle.quic_addr()).await.unwrap();
    tokio::time::timeout(PATIENCE, silent.closed()).await.expect("it is closed");
    world.handle.shutdown().await.unwrap();
}
