//! What only its holder can read: a worker's credentials for one run, as a JWE in compact form (RFC 7516) with the
//! algorithms `dir` and `A256GCM`. No kept crate speaks it without OpenSSL; the form is five parts of base64url.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::secret::SecretKey;
use super::stores::Stores;
use crate::db::Timestamp;

/// Bytes of the authentication tag.
const TAG: usize = 16;

/// A run's step is over by then, or is given a new one.
const LONGEST_LIFE: Duration = Duration::from_secs(3600);

/// A longer token is none of ours.
const LONGEST: usize = 256 * 1024;

const HEADER: &str = r#"{"alg":"dir","enc":"A256GCM","typ":"JWT"}"#;

/// What a worker is let into, and for which piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// e.g. the id of a task run.
    pub run: String,
    /// The lease under which the worker holds it; an answer under another one is refused.
    pub lease: i64,
    /// Ids of the back ends, each one that is configured.
    pub backends: Vec<String>,
    /// At most an hour.
    pub life: Duration,
}

/// What a grant's token says, once it is opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// `showrunner`
    pub iss: String,
    /// `worker`
    pub aud: String,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    pub run: String,
    pub lease: i64,
    /// By id: provider, endpoint, bucket, region and credentials, as the configuration writes them.
    pub backends: Value,
}

impl SecretKey {
    /// The token that lets a worker into the back ends of `grant`; its credentials are readable with this key only.
    /// The error names a back end that there is not.
    pub fn seal(&self, grant: &Grant, stores: &Stores, now: Timestamp) -> Result<String, super::Error> {
        let mut backends = serde_json::Map::new();
        for id in &grant.backends {
            backends.insert(id.clone(), stores.get(Some(id))?.for_workers());
        }
        let iat = now.utc().timestamp();
        let claims = json!({
            "iss": "showrunner",
            "aud": "worker",
            "iat": iat,
            "exp": iat + grant.life.min(LONGEST_LIFE).as_secs() as i64,
            "run": grant.run,
            "lease": grant.lease,
            "backends": backends,
        });
        // Not by the door that other chance comes in by: what is drawn there can be drawn again, a nonce must not.
        let mut nonce = [0_u8; 12];
        SystemRandom::new().fill(&mut nonce).map_err(|_| super::Error::NoChance)?;
        encrypt(self.bytes(), nonce, HEADER, claims.to_string().into_bytes()).ok_or(super::Error::NoChance)
    }

    /// Reads a token of [`SecretKey::seal`], as a worker does; none where it is another's, was changed, or is over.
    pub fn open(&self, token: &str, now: Timestamp) -> Option<Opened> {
        let opened: Opened = serde_json::from_slice(&decrypt(self.bytes(), token)?).ok()?;
        let in_time = opened.exp > now.utc().timestamp();
        (in_time && opened.iss == "showrunner" && opened.aud == "worker").then_some(opened)
    }
}

fn encrypt(key: &[u8; 32], nonce: [u8; 12], header: &str, mut text: Vec<u8>) -> Option<String> {
    let header = URL_SAFE_NO_PAD.encode(header);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let aad = Aad::from(header.as_bytes());
    let tag = cipher.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text).ok()?;
    let [nonce, text, tag] = [&nonce[..], &text, tag.as_ref()].map(|part| URL_SAFE_NO_PAD.encode(part));
    // The second part is the encrypted key; with `dir` it is empty.
    Some(format!("{header}..{nonce}.{text}.{tag}"))
}

fn decrypt(key: &[u8; 32], token: &str) -> Option<Vec<u8>> {
    if token.len() > LONGEST {
        return None;
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, "", nonce, text, tag] = parts[..] else { return None };
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let fields: Value = serde_json::from_slice(&decode(header)?).ok()?;
    if fields["alg"] != "dir"
        || fields["enc"] != "A256GCM"
        || fields.get("crit").is_some()
        || fields.get("zip").is_some()
    {
        return None;
    }
    let (mut sealed, tag) = (decode(text)?, decode(tag).filter(|tag| tag.len() == TAG)?);
    sealed.extend(tag);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let nonce = Nonce::assume_unique_for_key(decode(nonce)?.try_into().ok()?);
    let length = cipher.open_in_place(nonce, Aad::from(header.as_bytes()), &mut sealed).ok()?.len();
    sealed.truncate(length);
    Some(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7516, appendix A.1: the content encryption key, the nonce, the header and the text, and what comes of them.
    /// There the key is wrapped and stands in the second part, which here is empty.
    #[test]
    fn the_documented_example_comes_out_bit_for_bit() {
        let key: [u8; 32] = [
            177, 161, 244, 128, 84, 143, 225, 115, 63, 180, 3, 255, 107, 154, 212, 246, 138, 7, 110, 91, 112, 46, 34,
            105, 47, 130, 203, 46, 122, 234, 64, 252,
        ];
        let nonce = [227, 197, 117, 252, 2, 219, 233, 68, 180, 225, 77, 219];
        let text = b"The true sign of intelligence is not knowledge but imagination.".to_vec();
        let token = encrypt(&key, nonce, r#"{"alg":"RSA-OAEP","enc":"A256GCM"}"#, text).expect("a token");
        assert_eq!(
            token,
            "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ..48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX_EFShS8iB7j6jiSdiwkIr3ajwQzaBtQD_A.XFBoMYUZodetZdvTiFvSkQ"
        );
    }

    #[test]
    fn a_changed_token_opens_for_nobody() {
        let key = [7_u8; 32];
        let token = encrypt(&key, [1; 12], HEADER, b"{\"a\":1}".to_vec()).expect("a token");
        assert_eq!(decrypt(&key, &token).expect("ours"), b"{\"a\":1}");
        assert!(decrypt(&[8; 32], &token).is_none());
        for at in (0..token.len()).filter(|at| token.as_bytes()[*at] != b'.') {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(decrypt(&key, std::str::from_utf8(&changed).expect("text")).is_none(), "at {at}");
        }
        let parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","enc":"A256GCM"}"#);
        for made_up in [
            String::new(),
            "....".to_owned(),
            parts[..4].join("."),
            format!("{token}.x"),
            [&[none.as_str()], &parts[1..]].concat().join("."),
            [&[parts[0], "AAAA"], &parts[2..]].concat().join("."),
            // A shortened tag would be easier to guess.
            [&parts[..4], &[&parts[4][..16]]].concat().join("."),
        ] {
            assert!(decrypt(&key, &made_up).is_none(), "{made_up}");
        }
    }
}
