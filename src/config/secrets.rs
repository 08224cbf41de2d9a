//! What of the settings nobody is shown: keys, passwords, and what in an address may be one.

use secrecy::SecretString;
use serde::Serializer;

/// Whether the key shared with workers is one; no key is one too. The error says how to make one.
pub fn check_secret_key(key: &str) -> Result<(), String> {
    let digits = key.bytes().all(|byte| byte.is_ascii_hexdigit());
    let distinct: std::collections::BTreeSet<u8> = key.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    // 64 random digits hold fewer than 8 different ones less than once in 10^15.
    if key.is_empty() || digits && key.len() == 64 && distinct.len() >= 8 {
        return Ok(());
    }
    let fault = if digits && key.len() == 64 { "can be guessed" } else { "is not 64 hexadecimal digits (32 bytes)" };
    Err(format!("{fault}; `openssl rand -hex 32` makes one, and the workers need the same"))
}

pub(super) fn redacted<S: Serializer>(_: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("[hidden]")
}

/// Shows a receiver's URL with its password and its parameters' values hidden: any of them may be a token.
pub(super) fn without_secrets<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let (place, parameters) = url.split_once('?').map_or((url, ""), |(place, rest)| (place, rest));
    let shown = parameters.split('&').filter(|parameter| !parameter.is_empty()).map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if value == "{key}" { parameter.to_owned() } else { format!("{name}=[hidden]") }
    });
    let shown = shown.collect::<Vec<_>>().join("&");
    let question = if shown.is_empty() { "" } else { "?" };
    serializer.serialize_str(&format!("{}{question}{shown}", hide_password(place)))
}

/// Shows a database URL with its password hidden.
pub(super) fn without_password<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hide_password(url))
}

/// `postgres://user:secret@host/db` as `postgres://user:[hidden]@host/db`, and the same for a parameter `password`.
pub fn hide_password(url: &str) -> String {
    let (place, parameters) = url.split_once('?').map_or((url, None), |(place, rest)| (place, Some(rest)));
    let credentials = place.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?)));
    let place = match credentials.and_then(|(scheme, (login, host))| Some((scheme, login.split_once(':')?.0, host))) {
        Some((scheme, user, host)) => format!("{scheme}://{user}:[hidden]@{host}"),
        None => place.to_owned(),
    };
    let Some(parameters) = parameters else { return place };
    let shown = parameters.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.to_ascii_lowercase().contains("password") => format!("{name}=[hidden]"),
        _ => parameter.to_owned(),
    });
    format!("{place}?{}", shown.collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::hide_password;

    #[test]
    fn no_password_of_a_database_url_is_shown() {
        for (url, shown) in [
            ("postgres://ann:s:e@c@host/db", "postgres://ann:[hidden]@host/db"),
            ("postgres://ann@host/db?password=s&sslmode=off", "postgres://ann@host/db?password=[hidden]&sslmode=off"),
            ("postgres://host/db", "postgres://host/db"),
            ("sqlite::memory:", "sqlite::memory:"),
        ] {
            assert_eq!(hide_password(url), shown);
        }
    }
}
