//! TLS 1.3 with raw ed25519 public keys on both sides.

use std::sync::{Arc, OnceLock};

use lockstep_protocol::identity::Keypair;
use lockstep_protocol::ids::NodeId;
use lockstep_protocol::messages::ALPN;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};

use crate::LinkError;

/// The handshake of a server that requires a key of every client.
pub fn server_config(keys: &Keypair) -> Result<ServerConfig, LinkError> {
    let provider = Arc::new(ring::default_provider());
    let own = certified(keys, &provider)?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(set_up)?
        .with_client_cert_verifier(Arc::new(AnyClientKey { signatures: Signatures(provider) }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The handshake of a client that takes one server key only, and says in `found` which key it met.
pub fn client_config(keys: &Keypair, server: NodeId, found: Arc<OnceLock<NodeId>>) -> Result<ClientConfig, LinkError> {
    let provider = Arc::new(ring::default_provider());
    let own = certified(keys, &provider)?;
    let verifier = PinnedServerKey { expected: server, found, signatures: Signatures(Arc::clone(&provider)) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(set_up)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(own)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The key that a raw public key from the handshake stands for.
pub fn node_of(raw_key: &CertificateDer<'_>) -> Option<NodeId> {
    NodeId::from_spki(raw_key).ok()
}

fn certified(keys: &Keypair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, LinkError> {
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(keys.to_pkcs8().to_vec()));
    let private = provider.key_provider.load_private_key(private).map_err(set_up)?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(keys.id().to_spki().to_vec())], private)))
}

fn set_up(error: Error) -> LinkError {
    LinkError::Tls(error.to_string())
}

/// Reads the one raw key that a peer shows.
fn shown(end_entity: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<NodeId, Error> {
    match node_of(end_entity) {
        Some(node) if rest.is_empty() => Ok(node),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

/// Checks that the peer holds the key that it shows.
#[derive(Debug)]
struct Signatures(Arc<CryptoProvider>);

impl Signatures {
    fn check(
        &self,
        message: &[u8],
        raw_key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(raw_key.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.0.signature_verification_algorithms)
    }
}

/// TLS 1.2 is never negotiated.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerIncompatible::Tls13RequiredForQuic.into())
}

/// What a client asks of a server: to hold the pinned key.
#[derive(Debug)]
struct PinnedServerKey {
    expected: NodeId,
    found: Arc<OnceLock<NodeId>>,
    signatures: Signatures,
}

impl ServerCertVerifier for PinnedServerKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let node = shown(end_entity, intermediates)?;
        // One handshake shows one key; a repetition has nothing to add.
        let _ = self.found.set(node);
        if node == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _raw_key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        raw_key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.check(message, raw_key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// What a server asks of a client: to hold any key. Who may join is decided above.
#[derive(Debug)]
struct AnyClientKey {
    signatures: Signatures,
}

impl ClientCertVerifier for AnyClientKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        shown(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _raw_key: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        raw_key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.check(message, raw_key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
