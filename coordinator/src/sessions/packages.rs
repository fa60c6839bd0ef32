//! Package streams: manifests, and blobs in openings that are checked one by one.

use std::sync::Arc;

use lockstep_link::{Frames, LinkError, send};
use lockstep_protocol::limits::MAX_PACKAGE_STREAMS;
use lockstep_protocol::messages::{PackageReply, PackageRequest};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::session::{End, Session};
use crate::models::Models;

/// Accepts package streams, at most [`MAX_PACKAGE_STREAMS`] at a time; more wait, unread.
pub(super) async fn accept(session: &Arc<Session>, connection: &Connection) -> End {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi(), if streams.len() < MAX_PACKAGE_STREAMS as usize => match stream {
                Ok((down, up)) => {
                    streams.spawn(serve(Arc::clone(session), down, up));
                }
                Err(_) => return End::Gone,
            },
            Some(ended) = streams.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(end)) => return end,
                Err(error) => {
                    tracing::error!(%error, "a package stream's task failed");
                    return End::Killed;
                }
            },
        }
    }
}

/// One request, one reply, until the worker has enough. The next request is read only once the reply is on its way, so
/// a worker can't have more made than it takes.
async fn serve(session: Arc<Session>, mut down: SendStream, up: RecvStream) -> Result<(), End> {
    let mut requests = Frames::<PackageRequest>::new(up);
    loop {
        let request = match requests.next().await {
            Ok(Some(request)) => request,
            Ok(None) | Err(LinkError::Read(_)) => break,
            Err(error) => return Err(error.into()),
        };
        let models = Arc::clone(&session.sessions.models);
        let turn = Arc::clone(&session.sessions.openings).acquire_owned().await.map_err(|_| End::Shutdown)?;
        let reply = tokio::task::spawn_blocking(move || {
            let reply = reply(&models, request);
            drop(turn);
            reply
        });
        let reply = reply.await.map_err(|_| End::Killed)?;
        if send(&mut down, &reply).await.is_err() {
            break;
        }
    }
    // A stream that broke can't be finished, and need not be.
    let _ = down.finish();
    Ok(())
}

fn reply(models: &Models, request: PackageRequest) -> PackageReply {
    match request {
        PackageRequest::GetManifest { model } => match models.of_job(&model) {
            Some(model) => PackageReply::Manifest { bytes: model.package().manifest_bytes().to_vec() },
            None => PackageReply::NotFound,
        },
        PackageRequest::GetBlob { model, blob, range } => {
            let opening = models.of_job(&model).and_then(|model| model.open_blob(blob, range));
            opening.map_or(PackageReply::NotFound, |bytes| PackageReply::Opening { bytes })
        }
    }
}
