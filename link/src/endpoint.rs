//! Endpoints and their transport limits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::limits::{
    CONNECTION_WINDOW_BYTES, HEARTBEAT_MS, MAX_INCOMING_BYTES, MAX_STREAMS, SILENCE_MS, STREAM_WINDOW_BYTES,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use socket2::SockRef;

use crate::{LinkError, tls};

/// What the socket of all workers may hold that was not read yet. Systems give less where they have a limit
/// (`net.core.rmem_max` on Linux): ten thousand workers send some thousand packets a second, each of which counts for
/// several hundred bytes.
const SERVER_BUFFER_BYTES: usize = 8 << 20;

/// TLS wants a name; both sides are known by key, so it means nothing.
const SERVER_NAME: &str = "lockstep";

/// How long a client's connection may be silent before the transport sends something by itself.
const KEEP_ALIVE_MS: u64 = SILENCE_MS / 3;
const _: () = assert!(HEARTBEAT_MS < KEEP_ALIVE_MS);

/// Why a side closes a connection: the code that goes with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// All is done.
    Done = 0,
    /// The other side broke the protocol.
    Protocol = 1,
    /// The other side is turned away.
    Refused = 2,
    /// This side goes down and comes back.
    Shutdown = 3,
}

/// Closes a connection with a code and a reason for people.
pub fn close(connection: &Connection, code: Close, reason: &str) {
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}

/// An endpoint that takes connections from whoever holds a key. It opens no streams, and lets each client open at most
/// [`MAX_STREAMS`] of each kind at a time.
///
/// Must be called inside a tokio runtime. Port 0 takes a free one.
///
/// # Errors
/// [`LinkError::Bind`], [`LinkError::Tls`].
pub fn server(bind: SocketAddr, keys: &Keypair) -> Result<Endpoint, LinkError> {
    let config = server_config(keys)?;
    let bound = UdpSocket::bind(bind).and_then(|socket| {
        // A system may give less, or nothing more than usual: then packets are lost while the machine is busy, and sent again.
        let _ = SockRef::from(&socket).set_recv_buffer_size(SERVER_BUFFER_BYTES);
        Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
    });
    bound.map_err(|source| LinkError::Bind { address: bind, source })
}

fn server_config(keys: &Keypair) -> Result<ServerConfig, LinkError> {
    let crypto = QuicServerConfig::try_from(tls::server_config(keys)?).map_err(|e| LinkError::Tls(e.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(MAX_STREAMS)));
    config.incoming_buffer_size(MAX_INCOMING_BYTES);
    Ok(config)
}

/// Connects to one coordinator, whose key it knows.
#[derive(Debug)]
pub struct Client {
    keys: Keypair,
    coordinator: NodeId,
    endpoint: Option<Endpoint>,
}

impl Client {
    /// A client with this key, for the coordinator with that key.
    pub fn new(keys: &Keypair, coordinator: NodeId) -> Self {
        Self { keys: keys.clone(), coordinator, endpoint: None }
    }

    /// Connects. The socket is kept for the next time as long as the address family stays the same.
    ///
    /// The server checks this side's key only after this returns: a server that refuses it closes the connection.
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::WrongKey`] where somebody else answers, [`LinkError::NoKey`] where the answer has no key,
    /// [`LinkError::Connection`] where nobody answers or the handshake fails, [`LinkError::Bind`], [`LinkError::Tls`].
    pub async fn connect(&mut self, address: SocketAddr) -> Result<Connection, LinkError> {
        let found = Arc::new(OnceLock::new());
        let config = client_config(tls::client_config(&self.keys, self.coordinator, Arc::clone(&found))?)?;
        let connecting = self.endpoint(address)?.connect_with(config, address, SERVER_NAME)?;
        connecting.await.map_err(|error| match found.get() {
            Some(&found) if found != self.coordinator => LinkError::WrongKey { expected: self.coordinator, found },
            None if is_handshake_failure(&error) => LinkError::NoKey,
            _ => LinkError::Connection(error),
        })
    }

    /// Takes a socket for connections to such an address, if there is none yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Bind`].
    pub fn bind(&mut self, target: SocketAddr) -> Result<(), LinkError> {
        self.endpoint(target).map(drop)
    }

    /// A client with another key, on the socket of this one where that has one.
    #[must_use]
    pub fn beside(&self, keys: &Keypair) -> Self {
        Self { keys: keys.clone(), coordinator: self.coordinator, endpoint: self.endpoint.clone() }
    }

    /// Waits until closed connections have said good-bye.
    pub async fn wait_idle(&self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.wait_idle().await;
        }
    }

    fn endpoint(&mut self, target: SocketAddr) -> Result<&Endpoint, LinkError> {
        let same_family = |e: &Endpoint| e.local_addr().is_ok_and(|local| local.is_ipv6() == target.is_ipv6());
        let endpoint = match self.endpoint.take().filter(same_family) {
            Some(endpoint) => endpoint,
            None => {
                let ip = if target.is_ipv6() {
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                } else {
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
                };
                let address = SocketAddr::new(ip, 0);
                Endpoint::client(address).map_err(|source| LinkError::Bind { address, source })?
            }
        };
        Ok(self.endpoint.insert(endpoint))
    }
}

/// Whether the other side showed something in the handshake that is no raw ed25519 key.
fn is_handshake_failure(error: &ConnectionError) -> bool {
    /// TLS alerts that say so: bad_certificate, unsupported_certificate, unsupported_extension.
    const ALERTS: [u8; 3] = [42, 43, 110];
    let local = match error {
        ConnectionError::TransportError(error) => error.code,
        _ => return false,
    };
    ALERTS.into_iter().any(|alert| local == quinn::TransportErrorCode::crypto(alert))
}

pub(crate) fn client_config(tls: rustls::ClientConfig) -> Result<ClientConfig, LinkError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|e| LinkError::Tls(e.to_string()))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    let mut transport = transport(0);
    // A worker's heartbeats come more often: while it sends them, nothing else has to.
    transport.keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// `peer_streams`: how many streams of each kind the other side may have open.
fn transport(peer_streams: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(peer_streams.into())
        .max_concurrent_uni_streams(peer_streams.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(CONNECTION_WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(SILENCE_MS as u32))));
    config
}

/// Whose key the other side proved in the handshake.
///
/// # Errors
/// [`LinkError::NoKey`]; never for connections of this crate's endpoints.
pub fn peer_id(connection: &Connection) -> Result<NodeId, LinkError> {
    let identity = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    match identity.as_deref().map(Vec::as_slice) {
        Some([raw_key]) => tls::node_of(raw_key).ok_or(LinkError::NoKey),
        _ => Err(LinkError::NoKey),
    }
}
