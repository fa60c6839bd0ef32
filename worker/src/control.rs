//! The control stream of a connection: hello at its start, then what the session says, and heartbeats in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lockstep_link::{Frames, LinkError, send};
use lockstep_protocol::limits::SILENCE_MS;
use lockstep_protocol::messages::{Hello, ToCoordinator, ToWorker, Welcome};
use quinn::{Connection, SendStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

/// Opens the control stream and says hello. Returns both directions and the answer.
pub(crate) async fn greet(
    connection: &Connection,
    hello: &Hello,
) -> Result<(SendStream, Frames<ToWorker>, ToWorker), LinkError> {
    let (mut control, down) = connection.open_bi().await?;
    let mut inbox = Frames::new(down);
    send(&mut control, &ToCoordinator::Hello(hello.clone())).await?;
    match inbox.next().await? {
        Some(answer) => Ok((control, inbox, answer)),
        None => Err(LinkError::Connection(connection.closed().await)),
    }
}

/// Writes the control stream: what the session says, and a heartbeat in between.
pub(crate) async fn write_control(
    mut control: SendStream,
    mut letters: mpsc::Receiver<ToCoordinator>,
    heartbeat: Duration,
    in_flight: Arc<AtomicU32>,
) {
    let mut beat = interval(heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            letter = letters.recv() => match letter {
                Some(message) => message,
                None => return,
            },
            _ = beat.tick() => {
                sequence += 1;
                ToCoordinator::Heartbeat { sequence: sequence - 1, in_flight: in_flight.load(Ordering::Relaxed) }
            }
        };
        if send(&mut control, &message).await.is_err() {
            // The connection is at its end, and the inbox says why.
            return;
        }
    }
}

/// As the coordinator wishes, but neither in a hurry nor so slow that it takes the worker for dead.
pub(crate) fn heartbeat_of(welcome: &Welcome) -> Duration {
    Duration::from_millis(welcome.heartbeat_ms.clamp(100, SILENCE_MS / 3))
}
