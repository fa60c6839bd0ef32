//! Cosigned heads: workers are asked now and then to vouch that the log's newest head continues the last one that they
//! saw. So a coordinator that shows two histories needs workers that sign both.

use std::sync::Arc;
use std::time::Duration;

use lockstep_protocol::limits::{COSIGN_MS, COSIGN_SPREAD_MS};
use lockstep_protocol::log::Cosignature;

use super::session::{End, Session};
use crate::engine::{Down, Peer};
use crate::store::{Commit, Store, StoreError, Write};

/// Asks the worker about each new head, at most every [`COSIGN_MS`], and less often where there are many workers: a
/// coordinator that shows two histories needs some of them, whichever they are. Never ends by itself but with the
/// coordinator.
pub(super) async fn ask(session: &Session, peer: &Arc<Peer>) -> End {
    let mut asked = None;
    loop {
        let workers = session.sessions.connected() as u64;
        tokio::time::sleep(Duration::from_millis(COSIGN_MS.max(workers * COSIGN_SPREAD_MS))).await;
        let size = session.sessions.store.head_size();
        if asked.replace(size) == Some(size) {
            continue;
        }
        let node = session.node;
        let question = read(session, move |store| store.next_cosign(&node)).await;
        match question {
            Ok(Some(question)) => {
                asked = Some(question.head.head.size);
                peer.send(Down::Cosign(Box::new(question)));
            }
            Ok(None) => {}
            Err(Some(error)) => {
                asked = None;
                tracing::warn!(%error, "heads of the log can't be read to be cosigned");
            }
            Err(None) => return End::Shutdown,
        }
    }
}

/// Keeps a worker's cosignature, of whichever of the log's heads it is.
pub(super) async fn take(session: &Session, cosignature: Cosignature) -> Result<(), End> {
    if cosignature.worker != session.node {
        return Err(End::Protocol("it cosigns in another worker's name".to_owned()));
    }
    let head = read(session, move |store| store.head_of_digest(&cosignature.head)).await;
    let head = match head {
        Ok(Some(head)) => head,
        // The store was set back to before that head: what the worker has is evidence, not something to keep here.
        Ok(None) => {
            tracing::warn!(node = %session.node, head = %cosignature.head, "a worker cosigned a head that is not in the store");
            return Ok(());
        }
        Err(Some(_)) => return Ok(()),
        Err(None) => return Err(End::Shutdown),
    };
    cosignature.check(&head).map_err(|error| End::Protocol(error.to_string()))?;
    let write = Write::Cosigned { size: head.head.size, cosignature };
    let commit = Commit { writes: vec![write], then: Box::new(|| {}) };
    match read(session, move |store| store.submit(commit)).await {
        Ok(()) | Err(Some(_)) => Ok(()),
        Err(None) => Err(End::Shutdown),
    }
}

/// Does something with the store on a thread for such work, a bounded number at a time. `Err(None)` where the
/// coordinator goes down.
async fn read<T: Send + 'static>(
    session: &Session,
    question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Option<StoreError>> {
    let turn = Arc::clone(&session.sessions.openings).acquire_owned().await.map_err(|_| None)?;
    let store = Arc::clone(&session.sessions.store);
    let answer = tokio::task::spawn_blocking(move || {
        let answer = question(&store);
        drop(turn);
        answer
    });
    answer.await.map_err(|_| None)?.map_err(Some)
}
