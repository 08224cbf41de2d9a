//! What only its holder can write: a worker's registration as a JWT (RFC 7519), signed with HS256, short-lived, and
//! taken once. By hand, because the kept crates bring a second cryptography along for algorithms that are refused here.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::Sha256;

use super::secret::SecretKey;
use crate::db::{self, Timestamp, Tx};

/// Seconds that a registration may be valid in all.
const LONGEST_LIFE: i64 = 300;
/// Seconds by which a worker's clock may be wrong.
const LEEWAY: i64 = 30;
/// Characters of `iss` and `jti`.
const LONGEST_NAME: usize = 200;
/// A longer token is none.
const LONGEST: usize = 4096;

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The worker's service.
    pub iss: String,
    /// When it was signed, Unix seconds.
    #[serde(deserialize_with = "whole_seconds")]
    pub iat: i64,
    /// When it is over, Unix seconds: at most five minutes later.
    #[serde(deserialize_with = "whole_seconds")]
    pub exp: i64,
    /// Different in each token.
    pub jti: String,
}

/// A NumericDate may have a fraction (RFC 7519, 2); seconds are exact enough.
fn whole_seconds<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let seconds = number.as_i64().or_else(|| number.as_f64().map(|seconds| seconds.floor() as i64)); // `as` saturates
    seconds.ok_or_else(|| serde::de::Error::custom("no number of seconds"))
}

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    /// Not of the form, of another algorithm, or signed with another key.
    #[error("is not a JWT that is signed by HS256 with the key that service and workers share")]
    Signature,
    /// A claim is missing or out of its bounds; says which.
    #[error("{0}")]
    Claims(&'static str),
    /// It was used before.
    #[error("was used before; sign a new one with another `jti` for each registration")]
    Replayed,
    #[error(transparent)]
    Store(#[from] db::Error),
}

impl SecretKey {
    /// Takes a worker's token, once: a second time, on whichever instance, is refused as long as the token is valid.
    pub async fn admit(&self, tx: &mut Tx, token: &str) -> Result<Registration, BadToken> {
        let now = tx.now().await?;
        let registration = self.check(token, now)?;
        // It is remembered for as long as it could be taken again, the leeway included.
        let until = now.after(std::time::Duration::from_secs((LONGEST_LIFE + 2 * LEEWAY) as u64));
        let fresh = tx
            .query("INSERT INTO used_tokens (iss, jti, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(registration.iss.clone())
            .bind(registration.jti.clone())
            .bind(until)
            .execute()
            .await?;
        if fresh == 0 { Err(BadToken::Replayed) } else { Ok(registration) }
    }

    /// Takes away what need not be remembered any longer.
    pub async fn forget_used(tx: &mut Tx, now: Timestamp) -> db::Result<u64> {
        tx.query("DELETE FROM used_tokens WHERE expires_at < $1").bind(now).execute().await
    }

    /// What a worker answers with for one task run under one lease: it proves who was given the run, and is worth
    /// nothing once the lease has gone.
    pub fn run_token(&self, run: i64, lease: i64) -> String {
        URL_SAFE_NO_PAD.encode(mac(self.bytes(), &run_text(run, lease)).finalize().into_bytes())
    }

    /// Whether `token` is the one of this run and lease; compared in constant time.
    pub fn is_run_token(&self, token: &str, run: i64, lease: i64) -> bool {
        let presented = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        mac(self.bytes(), &run_text(run, lease)).verify_slice(&presented).is_ok()
    }

    /// Whom a worker's token names, if it is signed, whole and not over; it is not used up by this.
    pub fn check(&self, token: &str, now: Timestamp) -> Result<Registration, BadToken> {
        let claims = verify(self.bytes(), token).ok_or(BadToken::Signature)?;
        let registration: Registration =
            serde_json::from_value(claims).map_err(|_| BadToken::Claims("takes the claims iss, iat, exp and jti"))?;
        let now = now.utc().timestamp();
        let name =
            |text: &str| (1..=LONGEST_NAME).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        let faults = [
            (!name(&registration.iss), "iss takes 1 to 200 printable characters"),
            (!name(&registration.jti), "jti takes 1 to 200 printable characters"),
            (registration.iat > now.saturating_add(LEEWAY), "iat lies in the future; is the worker's clock right?"),
            (registration.exp <= now.saturating_sub(LEEWAY), "exp has passed; sign a new token for each registration"),
            (
                !(1..=LONGEST_LIFE).contains(&registration.exp.saturating_sub(registration.iat)),
                "exp lies more than five minutes behind iat, or before it",
            ),
        ];
        match faults.iter().find(|(applies, _)| *applies) {
            Some((_, why)) => Err(BadToken::Claims(why)),
            None => Ok(registration),
        }
    }

    /// A worker's token, as a worker makes it.
    pub fn sign(&self, registration: &Registration) -> String {
        let claims = serde_json::to_vec(registration).unwrap_or_default();
        let [header, claims] =
            [r#"{"alg":"HS256","typ":"JWT"}"#.as_bytes(), &claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let text = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(mac(self.bytes(), &text).finalize().into_bytes());
        format!("{text}.{signature}")
    }
}

/// No JWT's text has a blank, so that none is taken for the other.
fn run_text(run: i64, lease: i64) -> String {
    format!("showrunner task-run {run} lease {lease}")
}

fn mac(key: &[u8], text: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    mac
}

/// The claims of a token that was signed with `key` by HS256 and nothing else.
fn verify(key: &[u8], token: &str) -> Option<Value> {
    if token.len() > LONGEST {
        return None;
    }
    let (text, signature) = token.rsplit_once('.')?;
    let (header, claims) = text.split_once('.')?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    // Compared in constant time, and before anything that the token says is looked at.
    mac(key, text).verify_slice(&decode(signature)?).ok()?;
    let header: Value = serde_json::from_slice(&decode(header)?).ok()?;
    if header["alg"] != "HS256" || header.get("crit").is_some() {
        return None;
    }
    serde_json::from_slice(&decode(claims)?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key() -> SecretKey {
        let text = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";
        SecretKey::parse(&text.into()).expect("taken").expect("a key")
    }

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().expect("a time")
    }

    /// RFC 7515, appendix A.1.
    #[test]
    fn the_documented_example_is_verified() {
        let key = URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .expect("base64");
        let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        assert_eq!(verify(&key, token).expect("verified")["iss"], "joe");
        assert!(verify(&key, &token.replace(".dB", ".dC")).is_none());
    }

    #[test]
    fn only_claims_within_their_bounds_are_taken() {
        let at = now().utc().timestamp();
        let good = Registration { iss: "worker-1".to_owned(), iat: at - 10, exp: at + 60, jti: "a1".to_owned() };
        assert_eq!(key().check(&key().sign(&good), now()).expect("taken"), good);
        for (bad, says) in [
            (Registration { iat: at + 31, exp: at + 90, ..good.clone() }, "future"),
            (Registration { iat: at - 90, exp: at - 30, ..good.clone() }, "passed"),
            (Registration { exp: at + 291, ..good.clone() }, "five minutes"),
            (Registration { exp: i64::MAX, iat: i64::MIN, ..good.clone() }, "five minutes"),
            (Registration { iss: String::new(), ..good.clone() }, "iss"),
            (Registration { jti: "x".repeat(201), ..good.clone() }, "jti"),
        ] {
            let refused = key().check(&key().sign(&bad), now()).expect_err(says).to_string();
            assert!(refused.contains(says), "{says}: {refused}");
        }
    }

    #[test]
    fn a_time_may_have_a_fraction() {
        let claims = json!({ "iss": "w", "iat": 1_700_000_000.75, "exp": 1_700_000_060.25, "jti": "j" });
        let registration: Registration = serde_json::from_value(claims).expect("taken");
        assert_eq!((registration.iat, registration.exp), (1_700_000_000, 1_700_000_060));
        let text = json!({ "iss": "w", "iat": "1700000000", "exp": 1_700_000_060, "jti": "j" });
        assert!(serde_json::from_value::<Registration>(text).is_err());
    }

    #[test]
    fn another_algorithm_is_not_taken_whoever_signed() {
        let claims = URL_SAFE_NO_PAD.encode(r#"{"iss":"w","iat":1,"exp":2,"jti":"j"}"#);
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS384"}"#, r#"{"alg":"HS256","crit":["x"]}"#, "[]", "x"] {
            let text = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(header));
            let signed = URL_SAFE_NO_PAD.encode(mac(key().bytes(), &text).finalize().into_bytes());
            for signature in [signed.as_str(), ""] {
                assert!(
                    matches!(key().check(&format!("{text}.{signature}"), now()), Err(BadToken::Signature)),
                    "{header}"
                );
            }
        }
        for rubbish in ["", ".", "..", "a.b.c", &"x".repeat(5000)] {
            assert!(matches!(key().check(rubbish, now()), Err(BadToken::Signature)));
        }
    }
}
