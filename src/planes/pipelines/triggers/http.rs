//! By a request: with a token, or signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;

use super::Trigger;
use crate::planes::pipelines::definition::Fault;

/// Shorter secrets can be guessed.
const MIN_SECRET: usize = 16;
/// How far a signed request's time may be off, in seconds.
const TOLERANCE: u64 = 300;

/// A request to `POST /api/triggers/{id}/fire` fires it: by whoever has the token or the secret that is named here, and
/// by nobody but an operator of the service where neither is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// SHA-256 in hexadecimal of the token that the header `X-Trigger-Token` must carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<String>,
    /// The name of the environment variable with the secret by which requests are signed (Standard Webhooks: the
    /// headers `webhook-id`, `webhook-timestamp` and `webhook-signature`). It begins with `TRIGGER_`; the secret is
    /// `whsec_` and base64, or any other text as it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_variable: Option<String>,
}

/// A request that wants to fire a trigger.
#[derive(Debug, Clone, Copy, Default)]
pub struct Knock<'a> {
    pub token: Option<&'a str>,
    pub id: Option<&'a str>,
    pub timestamp: Option<&'a str>,
    pub signature: Option<&'a str>,
    pub body: &'a [u8],
    /// Unix seconds.
    pub now: i64,
}

impl Trigger for Http {
    fn kind(&self) -> &'static str {
        "http"
    }
    fn check(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self
            .token_sha256
            .as_ref()
            .is_some_and(|hash| hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            faults.push(Fault::at("when.token_sha256", "takes 64 hexadecimal digits"));
        }
        if self.secret_variable.as_ref().is_some_and(|name| !name.starts_with("TRIGGER_")) {
            faults.push(Fault::at("when.secret_variable", "takes the name of a variable that begins with TRIGGER_"));
        }
        faults
    }
    fn has_key(&self) -> bool {
        self.token_sha256.is_some() || self.secret_variable.is_some()
    }
    fn opens(&self, knock: &Knock<'_>) -> Result<(), String> {
        if let Some(expected) = &self.token_sha256 {
            let hash: String =
                Sha256::digest(knock.token.unwrap_or_default()).iter().map(|byte| format!("{byte:02x}")).collect();
            if !bool::from(hash.as_bytes().ct_eq(expected.to_ascii_lowercase().as_bytes())) {
                return Err("the header X-Trigger-Token is missing or wrong".to_owned());
            }
        }
        match &self.secret_variable {
            Some(variable) => signed(variable, knock),
            None => Ok(()),
        }
    }
}

fn signed(variable: &str, knock: &Knock<'_>) -> Result<(), String> {
    let secret = std::env::var(variable).unwrap_or_default();
    if secret.len() < MIN_SECRET {
        return Err(format!("the variable {variable} holds no secret of at least {MIN_SECRET} characters"));
    }
    let key = key_of(&secret).ok_or_else(|| format!("the variable {variable} holds no base64 behind whsec_"))?;
    verify(&key, knock)
}

/// The key behind a secret: by Standard Webhooks in base64 behind `whsec_`; any other text is the key itself.
fn key_of(secret: &str) -> Option<Vec<u8>> {
    match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).ok(),
        None => Some(secret.as_bytes().to_vec()),
    }
}

fn verify(secret: &[u8], knock: &Knock<'_>) -> Result<(), String> {
    let (Some(id), Some(timestamp), Some(signature)) = (knock.id, knock.timestamp, knock.signature) else {
        return Err("the headers webhook-id, webhook-timestamp and webhook-signature are needed".to_owned());
    };
    let sent: i64 = timestamp.parse().map_err(|_| "webhook-timestamp is no number of seconds".to_owned())?;
    if knock.now.abs_diff(sent) > TOLERANCE {
        return Err("webhook-timestamp is too old, or ahead of time".to_owned());
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| "the secret cannot be used".to_owned())?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(knock.body);
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let matches = |given: &str| bool::from(given.as_bytes().ct_eq(expected.as_bytes()));
    if signature.split(' ').any(matches) { Ok(()) } else { Err("webhook-signature does not fit".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_opens() {
        let hash = Sha256::digest("open sesame").iter().map(|byte| format!("{byte:02x}")).collect();
        let http = Http { token_sha256: Some(hash), secret_variable: None };
        assert!(http.check().is_empty());
        assert!(http.opens(&Knock { token: Some("open sesame"), ..Knock::default() }).is_ok());
        for token in [None, Some("open"), Some("")] {
            assert!(http.opens(&Knock { token, ..Knock::default() }).is_err());
        }
    }

    /// The example of the specification.
    #[test]
    fn a_signature_of_standard_webhooks_fits() {
        let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key");
        let knock = Knock {
            token: None,
            id: Some("msg_p5jXN8AQM9LWM0D4loKWxJek"),
            timestamp: Some("1614265330"),
            signature: Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
            body: br#"{"test": 2432232314}"#,
            now: 1_614_265_330,
        };
        assert_eq!(verify(&key, &knock), Ok(()));
        assert_eq!(key_of("whsec_***"), None);
        assert_eq!(key_of("any text"), Some(b"any text".to_vec()));
    }

    #[test]
    fn a_signature_covers_id_time_and_body() {
        let secret = b"a secret of some length";
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key");
        mac.update(b"m1.1000.{}");
        let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        let good = Knock {
            token: None,
            id: Some("m1"),
            timestamp: Some("1000"),
            signature: Some(&signature),
            body: b"{}",
            now: 1_200,
        };
        assert_eq!(verify(secret, &good), Ok(()));
        for bad in [
            Knock { id: Some("m2"), ..good },
            Knock { timestamp: Some("1001"), ..good },
            Knock { body: b"{ }", ..good },
            Knock { now: 1_301, ..good },
            Knock { signature: None, ..good },
            Knock { timestamp: Some("-9223372036854775808"), ..good },
            Knock { timestamp: Some("9223372036854775807"), ..good },
        ] {
            assert!(verify(secret, &bad).is_err(), "{bad:?}");
        }
    }
}
