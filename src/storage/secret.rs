//! The key that is shared with workers.

use secrecy::zeroize::Zeroize;
use secrecy::{ExposeSecret, SecretBox, SecretString};

use crate::config;

/// 32 bytes, never shown. Credentials for workers are encrypted with it, and workers sign their registration with it.
#[derive(Clone)]
pub struct SecretKey(std::sync::Arc<SecretBox<[u8; 32]>>);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey([hidden])")
    }
}

impl SecretKey {
    /// Reads `secret_key` of the configuration: none where it is not set; the error says how to make one.
    pub fn parse(text: &SecretString) -> Result<Option<Self>, String> {
        let digits = text.expose_secret();
        config::check_secret_key(digits)?;
        if digits.is_empty() {
            return Ok(None);
        }
        let mut bytes = [0_u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or_default() as u8;
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        let key = Self(std::sync::Arc::new(SecretBox::new(Box::new(bytes))));
        bytes.zeroize();
        Ok(Some(key))
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_keys_are_refused_with_how_to_make_a_good_one() {
        for weak in ["abc", &"0".repeat(64), &"0123456789abcdef".repeat(3), &"x".repeat(64), &"deadbeef".repeat(8)] {
            let said = SecretKey::parse(&weak.into()).expect_err(weak);
            assert!(said.contains("openssl rand -hex 32"), "{said}");
            assert!(!said.contains(weak), "{said}");
        }
        let good = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
        let key = SecretKey::parse(&good.into()).expect("taken").expect("a key");
        assert_eq!((key.bytes()[1], key.bytes()[16]), (0x11, 0xff));
        assert_eq!(format!("{key:?}"), "SecretKey([hidden])");
        assert!(SecretKey::parse(&SecretString::default()).expect("none is fine").is_none());
    }
}
