use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::{LeaseEpoch, ModelId};
use lockstep_protocol::messages::{FrameError, Message, PackageReply, PackageRequest, ToWorker};
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::time::timeout;

use super::*;

fn keys(seed: u8) -> Keypair {
    Keypair::from_seed([seed; 32])
}

fn serve() -> (Endpoint, SocketAddr) {
    let endpoint = server(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &keys(1)).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// A server, and a client connected to it, both ends.
async fn pair() -> (Endpoint, Connection, Connection) {
    let (endpoint, address) = serve();
    let mut client = Client::new(&keys(2), keys(1).id());
    let (here, there) = tokio::join!(client.connect(address), async { endpoint.accept().await.unwrap().await });
    (endpoint, here.unwrap(), there.unwrap())
}

/// Connects with a handshake of its own, and says how the connection ends on both sides.
async fn refused(tls: rustls::ClientConfig) -> (ConnectionError, ConnectionError) {
    let (endpoint, address) = serve();
    let accepting = tokio::spawn(async move { endpoint.accept().await.unwrap().await.unwrap_err() });
    let client = Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let config = endpoint::client_config(tls).unwrap();
    let here = match client.connect_with(config, address, "lockstep").unwrap().await {
        Ok(connection) => timeout(Duration::from_secs(20), connection.closed()).await.unwrap(),
        Err(error) => error,
    };
    (here, accepting.await.unwrap())
}

fn tls_of(keys: &Keypair, server: &Keypair) -> rustls::ClientConfig {
    tls::client_config(keys, server.id(), Arc::new(OnceLock::new())).unwrap()
}

#[tokio::test]
async fn both_sides_learn_the_other_key() {
    let (_endpoint, here, there) = pair().await;
    assert_eq!(peer_id(&here).unwrap(), keys(1).id());
    assert_eq!(peer_id(&there).unwrap(), keys(2).id());
}

#[tokio::test]
async fn messages_go_round() {
    let (_endpoint, here, there) = pair().await;
    let model = ModelId::from_bytes([7; 32]);
    let answer = tokio::spawn(async move {
        let (mut up, down) = there.accept_bi().await.unwrap();
        let mut requests = Frames::<PackageRequest>::new(down);
        while let Some(request) = requests.next().await.unwrap() {
            assert_eq!(request, PackageRequest::GetManifest { model });
            send(&mut up, &PackageReply::Manifest { bytes: vec![5; 3 << 20] }).await.unwrap();
        }
        up.finish().unwrap();
        there.closed().await
    });
    let (mut up, down) = here.open_bi().await.unwrap();
    let mut replies = Frames::<PackageReply>::new(down);
    for _ in 0..3 {
        send(&mut up, &PackageRequest::GetManifest { model }).await.unwrap();
        assert_eq!(replies.next().await.unwrap(), Some(PackageReply::Manifest { bytes: vec![5; 3 << 20] }));
    }
    up.finish().unwrap();
    assert_eq!(replies.next().await.unwrap(), None);
    close(&here, Close::Done, "bye");
    match answer.await.unwrap() {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!((close.error_code.into_inner(), &close.reason[..]), (Close::Done as u64, &b"bye"[..]));
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn another_server_key_is_refused_and_both_keys_are_named() {
    let (endpoint, address) = serve();
    let accepting = tokio::spawn(async move { endpoint.accept().await.unwrap().await.map(|_| ()) });
    let error = Client::new(&keys(2), keys(3).id()).connect(address).await.unwrap_err();
    assert!(
        matches!(error, LinkError::WrongKey { expected, found } if expected == keys(3).id() && found == keys(1).id())
    );
    let text = error.to_string();
    assert!(text.contains(&keys(1).id().to_string()) && text.contains(&keys(3).id().to_string()));
    assert!(accepting.await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_without_a_key_is_refused() {
    let mut tls = tls_of(&keys(2), &keys(1));
    tls.client_auth_cert_resolver = Arc::new(NoKey);
    let (here, there) = refused(tls).await;
    assert!(matches!(here, ConnectionError::ConnectionClosed(_)), "{here}");
    assert!(matches!(there, ConnectionError::TransportError(_)), "{there}");
}

#[derive(Debug)]
struct NoKey;

impl rustls::client::ResolvesClientCert for NoKey {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_client_that_shows_a_key_it_does_not_hold_is_refused() {
    let mut tls = tls_of(&keys(2), &keys(1));
    let provider = rustls::crypto::ring::default_provider();
    let own = rustls::pki_types::PrivatePkcs8KeyDer::from(keys(2).to_pkcs8().to_vec());
    let private = provider.key_provider.load_private_key(own.into()).unwrap();
    let claimed = rustls::pki_types::CertificateDer::from(keys(4).id().to_spki().to_vec());
    let forged = Arc::new(rustls::sign::CertifiedKey::new(vec![claimed], private));
    tls.client_auth_cert_resolver = Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(forged));
    let (_, there) = refused(tls).await;
    assert!(matches!(there, ConnectionError::TransportError(_)), "{there}");
}

#[tokio::test]
async fn another_protocol_or_none_is_refused() {
    for alpn in [vec![], vec![b"h3".to_vec()], vec![b"lockstep/2".to_vec()]] {
        let mut tls = tls_of(&keys(2), &keys(1));
        tls.alpn_protocols = alpn;
        let (here, there) = refused(tls).await;
        assert!(!matches!(here, ConnectionError::TimedOut), "{here}");
        assert!(matches!(there, ConnectionError::TransportError(_)), "{there}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_stream_with_an_error() {
    let (_endpoint, here, there) = pair().await;
    let mut too_long = Vec::from(u32::MAX.to_le_bytes());
    too_long.extend([0; 100]);
    let truncated = lockstep_protocol::messages::to_frame(&ToWorker::Shutdown).unwrap()[..5].to_vec();
    let no_message = [4_u32.to_le_bytes(), [9; 4]].concat();
    for bytes in [too_long, truncated, no_message] {
        let mut up = here.open_uni().await.unwrap();
        up.write_all(&bytes).await.unwrap();
        up.finish().unwrap();
        let mut frames = Frames::<ToWorker>::new(there.accept_uni().await.unwrap());
        let error = frames.next().await.unwrap_err();
        assert!(matches!(error, LinkError::Frame(_)), "{error}");
        // And it stays broken.
        assert!(frames.next().await.is_err());
    }
}

#[tokio::test]
async fn a_message_beyond_its_cap_is_not_sent() {
    let (_endpoint, here, _there) = pair().await;
    let mut up = here.open_uni().await.unwrap();
    let long = PackageReply::Manifest { bytes: vec![0; PackageReply::FRAME_CAP] };
    let error = send(&mut up, &long).await.unwrap_err();
    assert!(matches!(error, LinkError::Frame(FrameError::TooLong { .. })), "{error}");
    let epoch = LeaseEpoch(1);
    let job = lockstep_protocol::ids::JobId::from_bytes([1; 32]);
    send(&mut up, &ToWorker::Cancel { job, epoch }).await.unwrap();
}

#[tokio::test]
async fn a_server_can_open_no_stream_towards_a_client() {
    let (_endpoint, _here, there) = pair().await;
    assert!(timeout(Duration::from_millis(200), there.open_uni()).await.is_err());
    assert!(timeout(Duration::from_millis(200), there.open_bi()).await.is_err());
}

#[test]
fn a_key_is_drawn_once_kept_private_and_never_guessed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    let first = keyfile::load_or_create(&path).unwrap();
    assert_eq!(keyfile::load_or_create(&path).unwrap().id(), first.id());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let set = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        set(0o644);
        assert!(keyfile::load_or_create(&path).unwrap_err().to_string().contains("chmod 600"));
        set(0o600);
    }
    std::fs::write(&path, "00ff").unwrap();
    assert!(keyfile::load_or_create(&path).unwrap_err().to_string().contains("is no key"));
}
