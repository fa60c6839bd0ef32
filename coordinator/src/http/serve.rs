//! Connections: bounded in number and for each address, patient with nobody who sends no head or reads no answer, ended gracefully.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lockstep_protocol::limits::{
    HTTP_ACCEPT_PAUSE_MS, HTTP_GRACE_MS, HTTP_HEAD_MS, HTTP_WRITE_MS, MAX_HTTP_CONNECTIONS,
    MAX_HTTP_CONNECTIONS_PER_ADDRESS,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::rate::ClientAddress;

/// How many connections there are from each address.
#[derive(Debug, Default)]
struct Addresses(Mutex<BTreeMap<IpAddr, usize>>);

/// One connection from an address, for as long as this lives.
#[derive(Debug)]
struct Entered {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    /// One more from an address; `None` where that would be too many.
    fn enter(addresses: &Arc<Self>, address: IpAddr) -> Option<Entered> {
        let mut counts = addresses.counts();
        let count = counts.entry(address).or_default();
        if *count >= MAX_HTTP_CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Entered { addresses: Arc::clone(addresses), address })
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts();
        if let Entry::Occupied(mut count) = counts.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Serves until `stop` turns true, then lets requests end.
pub async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(MAX_HTTP_CONNECTIONS));
    let (addresses, mut connections) = (Arc::new(Addresses::default()), JoinSet::new());
    loop {
        // A place before the connection: those without one wait in the system's queue.
        let accept = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = stopped(&mut stop) => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            (permit, accepted) = accept => match accepted {
                Ok((stream, address)) => {
                    // From an address with too many, it is closed at once.
                    let Some(entered) = Addresses::enter(&addresses, address.ip()) else { continue };
                    let router = router.clone().layer(Extension(ClientAddress(address.ip())));
                    let stop = stop.clone();
                    connections.spawn(async move {
                        connection(stream, router, stop, Duration::from_millis(HTTP_WRITE_MS)).await;
                        drop((permit, entered));
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(HTTP_ACCEPT_PAUSE_MS)).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_millis(HTTP_GRACE_MS), all).await.is_err() {
        tracing::warn!("requests were cut off; their jobs are kept");
    }
}

/// `unread` is how long the client may leave what was written unread.
async fn connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>, unread: Duration) {
    // Small answers go out at once.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(unread));
    let service = TowerToHyperService::new(router);
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_millis(HTTP_HEAD_MS))
            .serve_connection(TokioIo::new(Box::pin(stream)), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an HTTP connection broke");
    }
}

/// Waits for the order to stop; a coordinator that is gone gives it too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// More than the sockets of both sides hold.
    const ANSWER_BYTES: usize = 64 << 20;

    #[test]
    fn one_address_does_not_take_every_place() {
        let addresses = Arc::new(Addresses::default());
        let [one, other] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let mut entered: Vec<_> =
            (0..2 * MAX_HTTP_CONNECTIONS_PER_ADDRESS).filter_map(|_| Addresses::enter(&addresses, one)).collect();
        assert!(entered.len() == MAX_HTTP_CONNECTIONS_PER_ADDRESS && entered.len() < MAX_HTTP_CONNECTIONS);
        let another = Addresses::enter(&addresses, other);
        assert!(another.is_some());
        entered.pop();
        assert!(Addresses::enter(&addresses, one).is_some());
        drop((entered, another));
        assert!(addresses.counts().is_empty());
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("a request");
        let (stream, _) = listener.accept().await.expect("the client");
        let router = Router::new().route("/", get(|| async { vec![0_u8; ANSWER_BYTES] }));
        let (_stop, stopped) = watch::channel(false);
        let served = connection(stream, router, stopped, Duration::from_millis(100));
        let ended = tokio::time::timeout(Duration::from_secs(60), served).await;
        assert!(ended.is_ok(), "the connection is still open");
        drop(client);
    }
}
