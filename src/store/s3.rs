//! A bucket as an object store: endpoint, addressing, region, keys, time limits.
//!
//! Promises to send nothing while opening, and to use only what every S3-compatible server has: signed PUT, GET,
//! ListObjectsV2, DELETE; no checksum trailers, tags, multipart or bulk delete. It does not create buckets. It does not
//! know providers (`providers`), nor where keys are looked for (`keys`, `ambient`).

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use super::ambient::Ambient;
use super::client::{ClientOptions, Network};
use super::counts::Counters;
use super::error::StoreError;
use super::http::{Connected, Connector};
use super::keys::{KeyPair, Keys, ReadAgain};
use super::limit::{Limit, Limits, Rates};
use super::location::{StoreLocation, authority};
use super::providers;
use super::retry::RetryOptions;
use super::secret::Secret;
use super::sign::Signer;
use super::sse::{Encryption, EncryptionHeaders};

/// How the bucket is named in a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// `virtual` on AWS for names without dots, else `path`.
    #[default]
    Auto,
    /// `https://host/bucket/...`.
    Path,
    /// `https://bucket.host/...`.
    Virtual,
}

impl std::str::FromStr for Addressing {
    type Err = String;

    fn from_str(text: &str) -> Result<Addressing, String> {
        match text {
            "auto" => Ok(Addressing::Auto),
            "path" => Ok(Addressing::Path),
            "virtual" => Ok(Addressing::Virtual),
            _ => Err(format!("addressing {text:?} is not one of: auto, path, virtual")),
        }
    }
}

/// Everything about a bucket that its location does not say.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The key's name.
    pub access_key: Option<String>,
    /// The key's secret.
    pub secret_access_key: Option<Secret>,
    /// Third part of temporary keys.
    pub session_token: Option<Secret>,
    /// Region to sign for; where absent, what the host says, then `region_fallback`, then us-east-1.
    pub region: Option<String>,
    /// Region where neither `region` nor the host says one.
    pub region_fallback: Option<String>,
    /// HTTPS or plain HTTP.
    pub use_tls: bool,
    /// How the bucket is named in a URL.
    pub addressing: Addressing,
    /// Send unsigned requests.
    pub allow_anonymous: bool,
    /// How to read the keys again when the store calls them stale.
    pub read_again: Option<ReadAgain>,
    /// How to look for the machine's own keys; used without keys only.
    pub ambient: Option<Ambient>,
    /// What stands before the bucket in the path of a URL, as of a gateway; without slashes at its ends.
    pub endpoint_path: String,
    /// Class of storage for packs of content. Everything else is in the bucket's own: it is read all the time.
    pub storage_class: Option<String>,
    /// How the server encrypts.
    pub encryption: Encryption,
    /// How connections are secured, and by which way they go.
    pub network: Network,
    /// How long and how often something is asked again.
    pub retry: RetryOptions,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time for one attempt of one request, its body included.
    pub request_timeout: Duration,
    /// Longest silence before and within an answer.
    pub stall_timeout: Duration,
    /// Longest time in which nothing of an upload is taken and no answer to it comes.
    pub upload_stall_timeout: Duration,
    /// How fast content may go, to and from folders as well.
    pub rates: Rates,
}

impl Default for S3Options {
    fn default() -> S3Options {
        S3Options {
            access_key: None,
            secret_access_key: None,
            session_token: None,
            region: None,
            region_fallback: None,
            use_tls: true,
            addressing: Addressing::Auto,
            allow_anonymous: false,
            read_again: None,
            ambient: None,
            endpoint_path: String::new(),
            storage_class: None,
            encryption: Encryption::default(),
            network: Network::default(),
            retry: RetryOptions::default(),
            connect_timeout: Duration::from_secs(10),
            // 16 MiB at 5 kB/s. What stands still is found much sooner; this ends what drips.
            request_timeout: Duration::from_secs(3600),
            // A third of what a mount waits: a dead connection leaves time for two others.
            stall_timeout: Duration::from_secs(20),
            // The kernel holds up to 4 MiB of an upload: at 50 kB/s they take 84 s, in which we see nothing move. Peers that
            // are gone are found by TCP in 30 s.
            upload_stall_timeout: Duration::from_secs(120),
            rates: Rates::default(),
        }
    }
}

/// No object that passes often is longer than a pack.
const OBJECT_BYTES: u64 = 16 << 20;
/// What comes of an answer at once is shorter.
const PART_BYTES: u64 = 1 << 20;
pub(crate) struct Bucket<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
    pub(crate) bucket: &'a str,
    pub(crate) prefix: &'a str,
}

/// A bucket that was opened.
pub(crate) struct Opened {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The same, but that it deletes many objects with one request.
    pub(crate) deleting: Arc<dyn ObjectStore>,
    /// Signs what is sent to it.
    pub(crate) signer: Arc<Signer>,
}

/// Opens a bucket without sending anything.
pub(crate) fn open(
    at: &Bucket<'_>,
    options: &S3Options,
    store: &Arc<str>,
    counters: &Arc<Counters>,
    limits: &Limits,
) -> Result<Opened, StoreError> {
    let failed = |detail: String| StoreError::Misconfigured { store: store.clone(), detail };
    let options = &patient(options, limits);
    let connector = connector(at, options, counters, limits).map_err(failed)?;
    let signer = connector.signer.clone();
    let (endpoint, is_virtual) = endpoint(at, options).map_err(failed)?;
    let prefix = object_store::path::Path::parse(at.prefix).map_err(|error| failed(error.to_string()))?;
    let client = Connected(connector.connect().map_err(failed)?);
    let objects = |in_bulk: bool| -> Result<Arc<dyn ObjectStore>, StoreError> {
        let s3 = AmazonS3Builder::new()
            .with_bucket_name(at.bucket)
            .with_endpoint(&endpoint)
            .with_virtual_hosted_style_request(is_virtual)
            .with_allow_http(!options.use_tls)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_disable_tagging(true)
            .with_disable_bulk_delete(!in_bulk)
            .with_retry(no_retry())
            // Signed below, by `sign`: the keys are none and are not asked for.
            .with_skip_signature(true)
            .with_access_key_id("")
            .with_secret_access_key("")
            .with_http_connector(client.clone())
            .build()
            .map_err(|error| failed(super::answer::chain_text(&error)))?;
        if at.prefix.is_empty() {
            return Ok(Arc::new(s3));
        }
        Ok(Arc::new(PrefixStore::new(s3, prefix.clone())))
    };
    Ok(Opened { objects: objects(false)?, deleting: objects(true)?, signer })
}

/// What passes slowly because it is limited must not be taken for what hangs.
pub(crate) fn patient(options: &S3Options, limits: &Limits) -> S3Options {
    let delay = |limit: &Option<Arc<Limit>>, bytes| limit.as_ref().map_or(Duration::ZERO, |limit| limit.delay(bytes));
    let (up, down) = (delay(&limits.up, OBJECT_BYTES), delay(&limits.down, OBJECT_BYTES));
    S3Options {
        request_timeout: options.request_timeout + up.max(down),
        stall_timeout: options.stall_timeout + delay(&limits.down, PART_BYTES),
        ..options.clone()
    }
}

/// Makes what makes the clients of a bucket; `options` are to be [`patient`].
pub(crate) fn connector(
    at: &Bucket<'_>,
    options: &S3Options,
    counters: &Arc<Counters>,
    limits: &Limits,
) -> Result<Connector, String> {
    let client = client_options(options);
    let encryption = EncryptionHeaders::new(&options.encryption)?;
    if encryption.has_customer_key() && !options.use_tls && !is_loopback(at.host) {
        return Err(
            "sse_customer_key goes along with each request: not over plain HTTP, set use_tls to true".to_owned()
        );
    }
    let signer = Signer::new(keys(at.host, options, &client)?, region_of(at.host, options), encryption);
    let (stall_timeout, upload_stall_timeout) = (options.stall_timeout, options.upload_stall_timeout);
    let (counters, paced) = (counters.clone(), limits.up.clone());
    Ok(Connector { stall_timeout, upload_stall_timeout, counters, paced, client, signer: signer.into() })
}

/// Looks for the machine's own keys, as the first request would; says where they are, or where they are not.
///
/// # Errors
/// A text that says where was looked.
pub async fn ambient_keys_from(location: &StoreLocation, options: &S3Options) -> Result<String, String> {
    let (StoreLocation::S3 { host, .. }, Some(ambient)) = (location, &options.ambient) else {
        return Err("there are no keys".to_owned());
    };
    let found = in_region(ambient, host, options).look(&client_options(options)).await;
    found.map(|keys| keys.from).map_err(|error| error.to_string())
}

/// AWS is asked in the region that was said for that, else in the bucket's.
fn in_region(ambient: &Ambient, host: &str, options: &S3Options) -> Ambient {
    let region = || if providers::is_aws(host) { region_of(host, options) } else { "us-east-1".to_owned() };
    Ambient { region: Some(ambient.region.clone().unwrap_or_else(region)), ..ambient.clone() }
}

fn client_options(options: &S3Options) -> ClientOptions {
    ClientOptions {
        network: options.network.clone(),
        https_only: options.use_tls,
        connect_timeout: options.connect_timeout,
        request_timeout: options.request_timeout,
        stall_timeout: None,
    }
}

/// The URL of the bucket itself.
pub(crate) fn url(at: &Bucket<'_>, options: &S3Options) -> Result<String, String> {
    Ok(match endpoint(at, options)? {
        (endpoint, true) => endpoint,
        (endpoint, false) => format!("{endpoint}/{}", at.bucket),
    })
}

/// Where requests go, and whether that names the bucket already.
pub(crate) fn endpoint(at: &Bucket<'_>, options: &S3Options) -> Result<(String, bool), String> {
    let scheme = if options.use_tls { "https" } else { "http" };
    let is_virtual = match options.addressing {
        Addressing::Path => false,
        Addressing::Virtual => true,
        Addressing::Auto => {
            let wants = providers::of_host(at.host).is_some_and(|(provider, _)| provider.is_virtual);
            // No certificate covers more than one label before the host.
            wants && !at.bucket.contains('.')
        }
    };
    if is_virtual && at.host.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("addressing is virtual, but no bucket can stand before the address {}", at.host));
    }
    let bucket = if is_virtual { format!("{}.", at.bucket) } else { String::new() };
    let path = match options.endpoint_path.as_str() {
        "" => String::new(),
        path => format!("/{path}"),
    };
    Ok((format!("{scheme}://{bucket}{}{path}", authority(at.host, at.port)), is_virtual))
}

fn keys(host: &str, options: &S3Options, client: &ClientOptions) -> Result<Keys, String> {
    if options.allow_anonymous {
        return Ok(Keys::Anonymous);
    }
    match (&options.access_key, &options.secret_access_key, &options.ambient) {
        (Some(access_key), Some(secret), _) => {
            let (access_key, secret_access_key) = (access_key.clone(), secret.clone());
            let pair = KeyPair { access_key, secret_access_key, session_token: options.session_token.clone() };
            Keys::said(&pair, options.read_again.clone())
        }
        (Some(_), None, _) => Err("there is an access_key but no secret_access_key".to_owned()),
        (None, Some(_), _) => Err("there is a secret_access_key but no access_key".to_owned()),
        (None, None, Some(ambient)) => Ok(Keys::found(in_region(ambient, host, options), client.clone())),
        (None, None, None) => Err("there are no keys".to_owned()),
    }
}

pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// `object_store` sends each request once: whether it is sent again is decided above it, in one place.
fn no_retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

/// The region to sign for until the store names another.
pub(crate) fn region_of(host: &str, options: &S3Options) -> String {
    let named = providers::of_host(host).and_then(|(_, region)| region);
    let region = options.region.as_deref().or(named).or(options.region_fallback.as_deref());
    region.unwrap_or("us-east-1").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_region(host: &str, expected: &str) {
        assert_eq!(region_of(host, &S3Options::default()), expected, "{host}");
    }

    #[test]
    fn hosts_that_name_their_region_are_understood() {
        check_region("s3.fr-par.scw.cloud", "fr-par");
        check_region("s3.eu-west-3.amazonaws.com", "eu-west-3");
        check_region("s3.dualstack.eu-west-3.amazonaws.com", "eu-west-3");
        check_region("s3.cn-north-1.amazonaws.com.cn", "cn-north-1");
        check_region("s3.amazonaws.com", "us-east-1");
        check_region("s3.us-east-005.backblazeb2.com", "us-east-005");
        check_region("s3.eu-central-2.wasabisys.com", "eu-central-2");
        check_region("s3.wasabisys.com", "us-east-1");
        check_region("s3.gra.io.cloud.ovh.net", "gra");
        check_region("fsn1.your-objectstorage.com", "fsn1");
        check_region("abc.r2.cloudflarestorage.com", "auto");
        check_region("storage.googleapis.com", "auto");
        check_region("cellar-c2.services.clever-cloud.com", "us-east-1");
        check_region("localhost", "us-east-1");
        let options = S3Options { region: Some("garage".to_owned()), ..S3Options::default() };
        assert_eq!(region_of("s3.fr-par.scw.cloud", &options), "garage");
    }

    #[track_caller]
    fn check_line(line: &str, expected: (&str, &str, &str, &str, &str)) {
        let StoreLocation::S3 { host, port, bucket, prefix } = line.parse().unwrap() else { panic!("{line}") };
        let (at, options) = (Bucket { host: &host, port, bucket: &bucket, prefix: &prefix }, S3Options::default());
        let (endpoint, is_virtual) = endpoint(&at, &options).unwrap();
        let addressing = if is_virtual { "virtual" } else { "path" };
        let found = (endpoint.as_str(), at.bucket, at.prefix, &*region_of(&host, &options), addressing);
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn every_line_of_the_connector_page_says_endpoint_bucket_prefix_region_and_addressing() {
        let aws = ("https://b.s3.eu-west-3.amazonaws.com", "b", "a/k", "eu-west-3", "virtual");
        check_line("s3://s3.eu-west-3.amazonaws.com/b/a/k", aws);
        let dots = ("https://s3.eu-west-3.amazonaws.com", "b.example.org", "", "eu-west-3", "path");
        check_line("s3://s3.eu-west-3.amazonaws.com/b.example.org", dots);
        check_line("s3://s3.amazonaws.com/b", ("https://b.s3.amazonaws.com", "b", "", "us-east-1", "virtual"));
        check_line("s3://localhost:9000/b", ("https://localhost:9000", "b", "", "us-east-1", "path"));
        check_line("s3://[::1]:9000/b/p", ("https://[::1]:9000", "b", "p", "us-east-1", "path"));
        for (host, region) in [
            ("s3.fr-par.scw.cloud", "fr-par"),
            ("s3.us-east-005.backblazeb2.com", "us-east-005"),
            ("cellar-c2.services.clever-cloud.com", "us-east-1"),
            ("storage.googleapis.com", "auto"),
            ("rgw.example.com:7480", "us-east-1"),
            ("s3.scality.example.com", "us-east-1"),
            ("s3.eu-central-2.wasabisys.com", "eu-central-2"),
            ("s3.gra.io.cloud.ovh.net", "gra"),
            ("garage.example.com:3900", "us-east-1"),
            ("abc.r2.cloudflarestorage.com", "auto"),
            ("fsn1.your-objectstorage.com", "fsn1"),
        ] {
            let line = format!("s3://{host}/my-bucket/some/prefix");
            check_line(&line, (&format!("https://{host}"), "my-bucket", "some/prefix", region, "path"));
        }
    }

    #[test]
    fn addressing_and_the_path_of_the_endpoint_are_followed() {
        let at = Bucket { host: "gate.example.com", port: Some(8443), bucket: "b.c", prefix: "" };
        let options = |addressing| S3Options { addressing, endpoint_path: "s3/v1".to_owned(), ..S3Options::default() };
        let path = url(&at, &options(Addressing::Path)).unwrap();
        assert_eq!(path, "https://gate.example.com:8443/s3/v1/b.c");
        let named = url(&at, &options(Addressing::Virtual)).unwrap();
        assert_eq!(named, "https://b.c.gate.example.com:8443/s3/v1");
        let by_address = Bucket { host: "::1", ..at };
        assert!(url(&by_address, &options(Addressing::Virtual)).unwrap_err().contains("address ::1"));
    }

    #[track_caller]
    fn refusal(options: &S3Options) -> String {
        let at = Bucket { host: "localhost", port: Some(9000), bucket: "b", prefix: "" };
        let store = "s3://localhost:9000/b".into();
        let opened = open(&at, options, &store, &Arc::default(), &Limits::default());
        opened.err().unwrap().to_string()
    }

    #[test]
    fn missing_and_half_keys_are_told_before_anything_is_sent() {
        assert!(refusal(&S3Options::default()).contains("there are no keys"));
        let half = S3Options { access_key: Some("K".to_owned()), ..S3Options::default() };
        assert!(refusal(&half).contains("no secret_access_key"));
        let encryption = Encryption {
            customer_key: Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".into()),
            ..Encryption::default()
        };
        let clear = S3Options { use_tls: false, allow_anonymous: true, encryption, ..S3Options::default() };
        let at = Bucket { host: "h.example.com", port: None, bucket: "b", prefix: "" };
        let opened = open(&at, &clear, &"s3://h.example.com/b".into(), &Arc::default(), &Limits::default());
        assert!(opened.err().unwrap().to_string().contains("not over plain HTTP"));
    }
}
