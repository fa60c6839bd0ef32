//! ed25519 identities: keys, domain-separated signatures, and the two DER forms that TLS needs.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use thiserror::Error;

use crate::domain::Domain;
use crate::hex::byte_newtype;
use crate::ids::NodeId;

byte_newtype! {
    /// An ed25519 signature.
    Signature, 64
}

/// `SEQUENCE { INTEGER 0, SEQUENCE { OID 1.3.101.112 }, OCTET STRING { OCTET STRING (32) } }`.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// `SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING (32 bytes, no unused bits) }`.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Bytes of the PKCS#8 form of a secret key.
pub const PKCS8_BYTES: usize = PKCS8_PREFIX.len() + 32;
/// Bytes of the SubjectPublicKeyInfo form of a public key.
pub const SPKI_BYTES: usize = SPKI_PREFIX.len() + 32;

/// Why a key or signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not the SubjectPublicKeyInfo of an ed25519 key.
    #[error("not the SubjectPublicKeyInfo of an ed25519 key")]
    NotEd25519,
    /// The bytes are no point of the curve, or one of its weak points.
    #[error("not a usable ed25519 public key")]
    BadKey,
    /// The signature does not fit key, domain and message.
    #[error("the signature does not fit")]
    BadSignature,
}

/// A secret key with its public key. Its bytes are wiped when it is dropped and never printed.
#[derive(Clone)]
pub struct Keypair {
    key: SigningKey,
}

impl std::fmt::Debug for Keypair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keypair({})", self.id())
    }
}

impl Keypair {
    /// The keypair of a 32-byte seed, which must come from the system's random source.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&seed) }
    }

    /// The public key.
    pub fn id(&self) -> NodeId {
        NodeId::from_bytes(self.key.verifying_key().to_bytes())
    }

    /// Signs the domain's hash of a message.
    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        Signature::from_bytes(self.key.sign(domain.hash(message).as_bytes()).to_bytes())
    }

    /// PKCS#8 version 1 DER of the secret key (RFC 8410).
    pub fn to_pkcs8(&self) -> [u8; PKCS8_BYTES] {
        let mut der = [0; PKCS8_BYTES];
        der[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        der[PKCS8_PREFIX.len()..].copy_from_slice(self.key.as_bytes());
        der
    }
}

impl NodeId {
    /// Checks that a signature over the domain's hash of a message is by this key (strict
    /// verification: canonical encodings, no weak keys).
    ///
    /// # Errors
    /// [`IdentityError::BadKey`], [`IdentityError::BadSignature`].
    pub fn verify(&self, domain: Domain, message: &[u8], signature: &Signature) -> Result<(), IdentityError> {
        let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
        self.verifying_key()?
            .verify_strict(domain.hash(message).as_bytes(), &signature)
            .map_err(|_| IdentityError::BadSignature)
    }

    /// SubjectPublicKeyInfo DER (RFC 8410), as TLS carries a raw public key.
    pub fn to_spki(&self) -> [u8; SPKI_BYTES] {
        let mut der = [0; SPKI_BYTES];
        der[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
        der[SPKI_PREFIX.len()..].copy_from_slice(self.as_bytes());
        der
    }

    /// Reads what [`NodeId::to_spki`] writes, and checks that it is a usable key.
    ///
    /// # Errors
    /// [`IdentityError::NotEd25519`], [`IdentityError::BadKey`].
    pub fn from_spki(der: &[u8]) -> Result<Self, IdentityError> {
        let key = der.strip_prefix(&SPKI_PREFIX).ok_or(IdentityError::NotEd25519)?;
        let key: [u8; 32] = key.try_into().map_err(|_| IdentityError::NotEd25519)?;
        let id = Self::from_bytes(key);
        id.verifying_key()?;
        Ok(id)
    }

    fn verifying_key(&self) -> Result<VerifyingKey, IdentityError> {
        let key = VerifyingKey::from_bytes(self.as_bytes()).map_err(|_| IdentityError::BadKey)?;
        if key.is_weak() { Err(IdentityError::BadKey) } else { Ok(key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc8032_test_1_key() {
        let seed = crate::hex::parse("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        assert_eq!(
            Keypair::from_seed(seed).id().to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
    }

    #[test]
    fn a_signature_fits_only_its_domain_message_and_key() {
        let keys = Keypair::from_seed([7; 32]);
        let signature = keys.sign(Domain::Statement, b"message");
        let verify = |id: NodeId, domain, message: &[u8], signature: &Signature| id.verify(domain, message, signature);
        assert_eq!(verify(keys.id(), Domain::Statement, b"message", &signature), Ok(()));
        for domain in Domain::ALL.into_iter().filter(|domain| *domain != Domain::Statement) {
            assert!(verify(keys.id(), domain, b"message", &signature).is_err());
        }
        assert!(verify(keys.id(), Domain::Statement, b"messagf", &signature).is_err());
        let other = Keypair::from_seed([8; 32]).id();
        assert!(verify(other, Domain::Statement, b"message", &signature).is_err());
        for index in 0..64 {
            let mut bytes = *signature.as_bytes();
            bytes[index] ^= 1;
            let changed = Signature::from_bytes(bytes);
            assert!(verify(keys.id(), Domain::Statement, b"message", &changed).is_err());
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let weak = NodeId::from_bytes(identity_point);
        assert_eq!(NodeId::from_spki(&weak.to_spki()), Err(IdentityError::BadKey));
    }

    #[test]
    fn spki_round_trips_and_every_other_byte_string_is_refused() {
        let id = Keypair::from_seed([9; 32]).id();
        let der = id.to_spki();
        assert_eq!(NodeId::from_spki(&der), Ok(id));
        for index in 0..SPKI_PREFIX.len() {
            let mut changed = der;
            changed[index] ^= 1;
            assert_eq!(NodeId::from_spki(&changed), Err(IdentityError::NotEd25519));
        }
        assert_eq!(NodeId::from_spki(&der[..43]), Err(IdentityError::NotEd25519));
        let longer = [&der[..], &[0]].concat();
        assert_eq!(NodeId::from_spki(&longer), Err(IdentityError::NotEd25519));
    }

    #[test]
    fn domains_have_different_contexts() {
        for a in Domain::ALL {
            for b in Domain::ALL {
                assert_eq!(a == b, a.context() == b.context());
            }
        }
    }
}
