//! What the config and the environment say about the way to a bucket, its keys apart.
//!
//! Reads the files that are named; promises that a wrong value is told with its file and key. It does not know what a
//! bucket holds.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::store::{Encryption, Network, S3Options, Secret, StoreLocation};

use super::config::RepositoryEntry;
use super::env::Environment;
use super::exit::CliError;
use super::secret::Places;

/// The certificates of all public authorities are 250 KB.
const PEM_BYTES_MAX: u64 = 4 << 20;

/// Fills in what is said about a bucket.
pub(crate) fn follow(places: &Places<'_>, location: &StoreLocation, s3: &mut S3Options) -> Result<(), CliError> {
    let region = places.env.text("AWS_REGION").or_else(|| places.env.text("AWS_DEFAULT_REGION"));
    s3.region_fallback = region.map(str::to_owned);
    s3.network = network(places.entry, places.env)?;
    let Some(entry) = places.entry else { return Ok(()) };
    s3.region = entry.text("region").map(str::to_owned);
    s3.use_tls = entry.flag("use_tls")?.unwrap_or(s3.use_tls);
    s3.allow_anonymous = entry.flag("allow_anonymous")?.unwrap_or(false);
    if let Some(text) = entry.text("addressing") {
        s3.addressing = text.parse().map_err(|error: String| entry.wrong("addressing", &error))?;
    }
    s3.endpoint_path = value(entry, "endpoint_path", endpoint_path)?.unwrap_or_default();
    s3.storage_class = value(entry, "storage_class", storage_class)?;
    if let (Some(class), Some(known)) = (&s3.storage_class, location.storage_classes())
        && !known.contains(&class.as_str())
    {
        tracing::warn!("storage_class {class} is none that this provider is known to have: {}", known.join(", "));
    }
    s3.encryption = Encryption {
        kind: entry.text("sse").map(str::to_owned),
        kms_key_id: entry.text("sse_kms_key_id").map(str::to_owned),
        customer_key: places.own("sse_customer_key")?.map(|found| found.value),
    };
    Ok(())
}

fn network(entry: Option<&RepositoryEntry>, env: &Environment) -> Result<Network, CliError> {
    let ca_file = entry.and_then(|entry| entry.path("ca_file")).or_else(|| env.path("AWS_CA_BUNDLE"));
    let authorities = ca_file.map(|path| pem(&path, "ca_file or AWS_CA_BUNDLE")).transpose()?;
    let mut network = Network { authorities: authorities.map(|pem| pem.bytes().into()), ..Network::default() };
    let Some(entry) = entry else { return Ok(network) };
    network.identity = match (entry.path("client_cert_file"), entry.path("client_key_file")) {
        (None, None) => None,
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (pem(&certificate, "client_cert_file")?, pem(&key, "client_key_file")?);
            Some(Secret::new([certificate.bytes(), b"\n", key.bytes()].concat()))
        }
        (Some(both), None) => Some(pem(&both, "client_cert_file")?),
        (None, Some(_)) => return Err(entry.wrong("client_key_file", "there is no client_cert_file to it")),
    };
    network.verifies = entry.flag("tls_verify")?.unwrap_or(true);
    if !network.verifies {
        let name = &entry.name;
        tracing::warn!(
            "tls_verify of {name:?} is false: anybody on the way can pretend to be the store and read its keys"
        );
    }
    network.proxy = value(entry, "proxy", proxy)?.map(|url| if url == "none" { "".into() } else { url.into() });
    Ok(network)
}

fn value(
    entry: &RepositoryEntry,
    key: &str,
    check: fn(&str) -> Result<String, String>,
) -> Result<Option<String>, CliError> {
    entry.text(key).map(|text| check(text).map_err(|what| entry.wrong(key, &what))).transpose()
}

/// A path without slashes at its ends.
pub(crate) fn endpoint_path(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_~".contains(&byte);
    let bad = |part: &str| matches!(part, "" | "." | "..");
    match path.is_empty() || (path.bytes().all(known) && !path.split('/').any(bad)) {
        true => Ok(path.to_owned()),
        false => Err("it is no path as in /s3 or /gateway/v1".to_owned()),
    }
}

/// A class as in `STANDARD_IA`.
pub(crate) fn storage_class(text: &str) -> Result<String, String> {
    let known = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    match text.bytes().all(known) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no class as in STANDARD_IA")),
    }
}

/// The URL of a proxy, or `none`.
pub(crate) fn proxy(text: &str) -> Result<String, String> {
    let is_url = text.starts_with("http://") || text.starts_with("https://");
    // Not the text itself: there may be a password in it.
    if is_url || text == "none" {
        Ok(text.to_owned())
    } else {
        Err("it is neither http://HOST:PORT nor none".to_owned())
    }
}

fn pem(path: &Path, key: &str) -> Result<Secret, CliError> {
    let failed = |error: std::io::Error| CliError::usage(format!("{key}: reading {path:?}: {error}"));
    let mut content = Vec::new();
    File::open(path).map_err(failed)?.take(PEM_BYTES_MAX + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(CliError::usage(format!("{key}: {path:?} is longer than 4 MiB: this is no certificate")));
    }
    Ok(Secret::new(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_and_passwords_not_shown() {
        assert_eq!(endpoint_path("/s3/v1/").as_deref(), Ok("s3/v1"));
        assert_eq!(endpoint_path("/").as_deref(), Ok(""));
        for wrong in ["/a/../b", "a//b", "a?b", "a b"] {
            assert!(endpoint_path(wrong).is_err(), "{wrong}");
        }
        assert!(storage_class("STANDARD_IA").is_ok() && storage_class("standard ia").is_err());
        assert!(proxy("http://u:p@h:3128").is_ok() && proxy("none").is_ok());
        assert!(!proxy("socks5://u:HIDDEN@h").unwrap_err().contains("HIDDEN"));
    }
}
