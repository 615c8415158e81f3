//! Where a store is: a bucket with a prefix behind an S3 endpoint, or a folder.
//!
//! Parsing is pure: no name is looked up, no folder is touched. What is parsed is printed back in
//! one canonical form, without secrets. It does not know credentials, nor `@name`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::providers;

/// The place of a kloset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// `s3://host[:port]/bucket[/prefix]`.
    S3 {
        /// Host name or address of the endpoint; an IPv6 address is kept without its brackets.
        host: String,
        /// Port, where it is not the default of HTTP or HTTPS.
        port: Option<u16>,
        /// Name of the bucket.
        bucket: String,
        /// Folder inside the bucket without slashes at its ends; empty for the whole bucket.
        prefix: String,
    },
    /// A folder of this machine.
    Folder(PathBuf),
}

/// Why a text is no location.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("location {text:?}: {reason}")]
pub struct LocationError {
    /// What was given.
    pub text: String,
    /// What is wrong with it and what to write instead.
    pub reason: String,
}

const FORM: &str = "write s3://ENDPOINT[:PORT]/BUCKET[/PREFIX], file:///FOLDER, or a folder";

impl FromStr for StoreLocation {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<StoreLocation, LocationError> {
        let parsed = if let Some(rest) = text.strip_prefix("s3://") {
            parse_s3(rest)
        } else if let Some(rest) = text.strip_prefix("file://") {
            parse_file(rest)
        } else {
            parse_folder(text)
        };
        parsed.map_err(|reason| LocationError { text: text.to_owned(), reason })
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreLocation::Folder(folder) => write!(out, "{}", folder.display()),
            StoreLocation::S3 { host, port, bucket, prefix } => {
                write!(out, "s3://{}/{bucket}", authority(host, *port))?;
                if prefix.is_empty() { Ok(()) } else { write!(out, "/{prefix}") }
            }
        }
    }
}

impl StoreLocation {
    /// The endpoint as URLs write it; empty for a folder.
    #[must_use]
    pub fn authority(&self) -> String {
        match self {
            StoreLocation::S3 { host, port, .. } => authority(host, *port),
            StoreLocation::Folder(_) => String::new(),
        }
    }

    /// True for a bucket of AWS itself, for which a machine may have keys of its own.
    #[must_use]
    pub fn is_aws(&self) -> bool {
        matches!(self, StoreLocation::S3 { host, .. } if providers::is_aws(host))
    }

    /// Classes of storage that the provider is known to take; `None` where nothing is known.
    #[must_use]
    pub fn storage_classes(&self) -> Option<&'static [&'static str]> {
        match self {
            StoreLocation::S3 { host, .. } => providers::of_host(host).map(|(provider, _)| provider.classes),
            StoreLocation::Folder(_) => None,
        }
    }
}

/// `host[:port]` as URLs write it.
pub(crate) fn authority(host: &str, port: Option<u16>) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

fn parse_s3(rest: &str) -> Result<StoreLocation, String> {
    if rest.contains(['?', '#']) {
        return Err(format!("a location has no ? or #: {FORM}"));
    }
    let (endpoint, path) = rest.split_once('/').unwrap_or((rest, ""));
    if endpoint.contains('@') {
        return Err("keys do not belong into a location: set them with \
            `kloset-mount config repository set NAME access_key ...`"
            .to_owned());
    }
    let (host, port) = parse_endpoint(endpoint)?;
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    if bucket.is_empty() {
        return Err(format!(
            "the bucket is missing: write s3://{endpoint}/BUCKET, or, where {endpoint:?} is the \
             bucket, put its endpoint in front as in s3://s3.eu-west-3.amazonaws.com/{endpoint}"
        ));
    }
    check_bucket(bucket)?;
    let prefix = prefix.trim_end_matches('/');
    check_prefix(prefix)?;
    Ok(StoreLocation::S3 { host, port, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

fn parse_endpoint(endpoint: &str) -> Result<(String, Option<u16>), String> {
    if endpoint.is_empty() {
        return Err(format!("the endpoint is missing: {FORM}"));
    }
    let (host, port) = match endpoint.strip_prefix('[') {
        Some(rest) => {
            let (host, port) =
                rest.split_once(']').ok_or_else(|| "the ] after the IPv6 address is missing".to_owned())?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{host:?} is not an IPv6 address"));
            }
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').unwrap_or("")),
            };
            (host.to_owned(), port)
        }
        None => match endpoint.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address stands in brackets: s3://[::1]:9000/BUCKET".to_owned());
            }
            Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
            None => (endpoint.to_ascii_lowercase(), None),
        },
    };
    check_host(&host)?;
    let port = port.map(parse_port).transpose()?;
    Ok((host, port))
}

fn parse_port(port: &str) -> Result<u16, String> {
    match port.parse::<u16>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("port {port:?} is not a number from 1 to 65535")),
    }
}

fn check_host(host: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    if host.is_empty() || !host.bytes().all(known) {
        return Err(format!("{host:?} is not a host name: {FORM}"));
    }
    Ok(())
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if !bucket.bytes().all(known) || bucket == "." || bucket == ".." {
        return Err(format!("{bucket:?} is not a bucket name: letters, digits, dots, dashes and underscores only"));
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<(), String> {
    if prefix.is_empty() {
        return Ok(());
    }
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    if prefix.split('/').any(bad) || prefix.contains(char::is_control) {
        return Err(format!("the prefix {prefix:?} has an empty, \".\" or \"..\" part"));
    }
    Ok(())
}

fn parse_file(rest: &str) -> Result<StoreLocation, String> {
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err("a file location is absolute and has three slashes: file:///FOLDER".to_owned());
    }
    Ok(StoreLocation::Folder(PathBuf::from(path)))
}

fn parse_folder(text: &str) -> Result<StoreLocation, String> {
    if text.is_empty() {
        return Err(format!("it is empty: {FORM}"));
    }
    if text.starts_with('@') {
        return Err("this is the name of a repository, not a location".to_owned());
    }
    if let Some(rest) = text.strip_prefix("s3:") {
        let rest = rest.trim_start_matches('/');
        return Err(format!("two slashes follow s3: write s3://{rest}"));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let hint = match scheme {
            "http" => format!(": write s3://{rest} and set use_tls to false"),
            "https" => format!(": write s3://{rest}"),
            _ => String::new(),
        };
        return Err(format!("{scheme:?} is not a known kind of store{hint}; {FORM}"));
    }
    Ok(StoreLocation::Folder(PathBuf::from(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(host: &str, port: Option<u16>, bucket: &str, prefix: &str) -> StoreLocation {
        let (host, bucket, prefix) = (host.to_owned(), bucket.to_owned(), prefix.to_owned());
        StoreLocation::S3 { host, port, bucket, prefix }
    }

    #[track_caller]
    fn check(text: &str, expected: StoreLocation, canonical: &str) {
        let parsed: StoreLocation = text.parse().unwrap();
        assert_eq!(parsed, expected);
        assert_eq!(parsed.to_string(), canonical);
        assert_eq!(canonical.parse::<StoreLocation>().unwrap(), expected);
    }

    #[track_caller]
    fn refuse(text: &str, reason: &str) {
        let error = text.parse::<StoreLocation>().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.contains(&format!("{text:?}")), "{error}");
    }

    #[test]
    fn every_provider_line_is_understood() {
        let scaleway = "s3://s3.fr-par.scw.cloud/mysuperbucket";
        check(scaleway, s3("s3.fr-par.scw.cloud", None, "mysuperbucket", ""), scaleway);
        let aws = "s3://s3.eu-west-3.amazonaws.com/b/a/kloset";
        check(aws, s3("s3.eu-west-3.amazonaws.com", None, "b", "a/kloset"), aws);
        let b2 = "s3://s3.us-east-005.backblazeb2.com/b";
        check(b2, s3("s3.us-east-005.backblazeb2.com", None, "b", ""), b2);
        let cellar = "s3://cellar-c2.services.clever-cloud.com/b";
        check(cellar, s3("cellar-c2.services.clever-cloud.com", None, "b", ""), cellar);
        let google = "s3://storage.googleapis.com/b.example.org/x";
        check(google, s3("storage.googleapis.com", None, "b.example.org", "x"), google);
        let ovh = "s3://s3.gra.io.cloud.ovh.net/b";
        check(ovh, s3("s3.gra.io.cloud.ovh.net", None, "b", ""), ovh);
        let minio = "s3://localhost:9000/b";
        check(minio, s3("localhost", Some(9000), "b", ""), minio);
        let garage = "s3://localhost:3900/b/host1";
        check(garage, s3("localhost", Some(3900), "b", "host1"), garage);
        let ceph = "s3://rgw.ceph.internal:7480/Backup_1";
        check(ceph, s3("rgw.ceph.internal", Some(7480), "Backup_1", ""), ceph);
        let wasabi = "s3://s3.eu-central-2.wasabisys.com/b";
        check(wasabi, s3("s3.eu-central-2.wasabisys.com", None, "b", ""), wasabi);
    }

    #[test]
    fn forms_are_made_canonical() {
        check("s3://Host.Example/b/p//", s3("host.example", None, "b", "p"), "s3://host.example/b/p");
        check("s3://[::1]:9000/b", s3("::1", Some(9000), "b", ""), "s3://[::1]:9000/b");
        check("s3://[fe80::1]/b", s3("fe80::1", None, "b", ""), "s3://[fe80::1]/b");
        check("file:///srv/k", StoreLocation::Folder("/srv/k".into()), "/srv/k");
        check("file://localhost/srv/k", StoreLocation::Folder("/srv/k".into()), "/srv/k");
        check("./k", StoreLocation::Folder("./k".into()), "./k");
    }

    #[test]
    fn mistakes_are_named() {
        refuse("s3://s3.fr-par.scw.cloud", "the bucket is missing");
        refuse("s3://mybucket/", "put its endpoint in front");
        refuse("s3:///bucket", "the endpoint is missing");
        refuse("s3://host:port/b", "port \"port\" is not a number");
        refuse("s3://host:0/b", "from 1 to 65535");
        refuse("s3://::1/b", "stands in brackets");
        refuse("s3://[::1/b", "the ] after");
        refuse("s3://[host]/b", "not an IPv6 address");
        refuse("s3://key:secret@host/b", "keys do not belong");
        refuse("s3://host/b?x=1", "no ? or #");
        refuse("s3://host/b c", "not a bucket name");
        refuse("s3://host/b/x/../y", "has an empty");
        refuse("s3:host/b", "write s3://host/b");
        refuse("https://host/b", "write s3://host/b");
        refuse("gs://b", "not a known kind");
        refuse("file://srv/k", "three slashes");
        refuse("@s3", "the name of a repository");
        refuse("", "it is empty");
    }
}
