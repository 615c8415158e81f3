//! A bucket as an object store: endpoint, addressing, region, keys, time limits.
//!
//! Promises to send nothing while opening, to read nothing from the environment (the caller hands
//! in values), and to use only what every S3-compatible server has: signed PUT, GET, ListObjectsV2,
//! DELETE; no checksum trailers, tags, multipart or bulk delete. It does not create buckets.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::counts::Counters;
use super::error::StoreError;
use super::http::Connector;
use super::limit::{Limit, Limits, Rates};
use super::location::authority;
use super::paced::PacedOptions;
use super::retry::RetryOptions;
use super::secret::Secret;

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
    /// `AWS_*` variables that say where a machine's own credentials come from (web identity,
    /// container); used without keys only. See [`AMBIENT_VARIABLES`].
    pub ambient: Vec<(String, String)>,
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
            ambient: Vec::new(),
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

/// The variables that may be in [`S3Options::ambient`].
pub const AMBIENT_VARIABLES: [&str; 8] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// No object that passes often is longer than a pack.
const OBJECT_BYTES: u64 = 16 << 20;
/// What comes of an answer at once is shorter.
const PART_BYTES: u64 = 1 << 20;
/// Connections kept open longer than this are closed by most servers first.
const POOL_IDLE: Duration = Duration::from_secs(50);

pub(crate) struct Bucket<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
    pub(crate) bucket: &'a str,
    pub(crate) prefix: &'a str,
}

/// Opens a bucket without sending anything.
pub(crate) fn open(
    at: &Bucket<'_>,
    options: &S3Options,
    store: &Arc<str>,
    counters: &Arc<Counters>,
    limits: &Limits,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let s3 = open_bucket(at, &patient(options, limits), store, counters, limits)?;
    if at.prefix.is_empty() {
        return Ok(Arc::new(s3));
    }
    let failed = |error: object_store::path::Error| StoreError::Misconfigured {
        store: store.clone(),
        detail: error.to_string(),
    };
    let prefix = object_store::path::Path::parse(at.prefix).map_err(failed)?;
    Ok(Arc::new(PrefixStore::new(s3, prefix)))
}

/// Opens all of a bucket, whatever the prefix; `options` are to be [`patient`].
pub(crate) fn open_bucket(
    at: &Bucket<'_>,
    options: &S3Options,
    store: &Arc<str>,
    counters: &Arc<Counters>,
    limits: &Limits,
) -> Result<AmazonS3, StoreError> {
    let failed = |detail: String| StoreError::Misconfigured { store: store.clone(), detail };
    let builder = AmazonS3Builder::new()
        .with_bucket_name(at.bucket)
        .with_region(region_of(at.host, options))
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_tagging(true)
        .with_disable_bulk_delete(true)
        .with_retry(no_retry())
        .with_client_options(client(options))
        .with_http_connector(connector(options, counters, limits));
    let (endpoint, is_virtual) = endpoint(at, options);
    let builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(is_virtual);
    let builder = with_credentials(builder, at.host, options).map_err(failed)?;
    builder.build().map_err(|error| failed(error.to_string()))
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

pub(crate) fn connector(options: &S3Options, counters: &Arc<Counters>, limits: &Limits) -> Connector {
    let paced = PacedOptions {
        use_tls: options.use_tls,
        connect_timeout: options.connect_timeout,
        request_timeout: options.request_timeout,
        stall_timeout: options.upload_stall_timeout,
        pool_idle: POOL_IDLE,
    };
    let uploads = (paced, limits.up.clone());
    Connector { stall_timeout: options.stall_timeout, counters: counters.clone(), uploads }
}

/// The URL of the bucket itself.
pub(crate) fn url(at: &Bucket<'_>, options: &S3Options) -> String {
    match endpoint(at, options) {
        (endpoint, true) => endpoint,
        (endpoint, false) => format!("{endpoint}/{}", at.bucket),
    }
}

/// Where requests go, and whether that names the bucket already.
fn endpoint(at: &Bucket<'_>, options: &S3Options) -> (String, bool) {
    let scheme = if options.use_tls { "https" } else { "http" };
    let is_virtual = match options.addressing {
        Addressing::Path => false,
        Addressing::Virtual => true,
        Addressing::Auto => is_aws(at.host) && !at.bucket.contains('.'),
    };
    let authority = authority(at.host, at.port);
    let endpoint = match is_virtual {
        true => format!("{scheme}://{}.{authority}", at.bucket),
        false => format!("{scheme}://{authority}"),
    };
    (endpoint, is_virtual)
}

fn with_credentials(builder: AmazonS3Builder, host: &str, options: &S3Options) -> Result<AmazonS3Builder, String> {
    if options.allow_anonymous {
        return Ok(builder.with_skip_signature(true));
    }
    match (&options.access_key, &options.secret_access_key) {
        (Some(key), Some(secret)) => {
            let builder = builder.with_access_key_id(key).with_secret_access_key(text(secret, "secret_access_key")?);
            Ok(match &options.session_token {
                Some(token) => builder.with_token(text(token, "session_token")?),
                None => builder,
            })
        }
        (Some(_), None) => Err("there is an access_key but no secret_access_key".to_owned()),
        (None, Some(_)) => Err("there is a secret_access_key but no access_key".to_owned()),
        (None, None) if options.ambient.is_empty() && !is_aws(host) => {
            Err("there are no keys: `kloset-mount config repository set NAME access_key KEY` and \
             `... secret_access_key -`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public \
             bucket set allow_anonymous to true"
                .to_owned())
        }
        (None, None) => Ok(with_ambient(builder, options)),
    }
}

fn with_ambient(mut builder: AmazonS3Builder, options: &S3Options) -> AmazonS3Builder {
    for (name, value) in &options.ambient {
        let known = AMBIENT_VARIABLES.contains(&name.as_str());
        let key = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>();
        if let (true, Ok(key)) = (known, key) {
            builder = builder.with_config(key, value);
        }
    }
    builder
}

fn text(secret: &Secret, what: &str) -> Result<String, String> {
    let text = secret.text().ok_or_else(|| format!("the {what} is not text"))?;
    Ok(text.to_owned())
}

/// `object_store` sends each request once: whether it is sent again is decided above it, in one place.
fn no_retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO }
}

pub(crate) fn client(options: &S3Options) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(!options.use_tls)
        .with_connect_timeout(options.connect_timeout)
        .with_timeout(options.request_timeout)
        .with_pool_idle_timeout(POOL_IDLE)
}

fn is_aws(host: &str) -> bool {
    host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
}

/// Hosts that name their region: what stands before and after it.
const REGION_IN_HOST: [(&str, &str); 17] = [
    ("s3.dualstack.", ".amazonaws.com"),
    ("s3.", ".amazonaws.com.cn"),
    ("s3.", ".amazonaws.com"),
    ("s3-", ".amazonaws.com"),
    ("s3.", ".scw.cloud"),
    ("s3.", ".backblazeb2.com"),
    ("s3.", ".wasabisys.com"),
    ("s3.", ".io.cloud.ovh.net"),
    ("s3.", ".io.cloud.ovh.us"),
    ("s3.", ".perf.cloud.ovh.net"),
    ("s3.", ".cloud.ovh.net"),
    ("", ".digitaloceanspaces.com"),
    ("", ".your-objectstorage.com"),
    ("", ".linodeobjects.com"),
    ("sos-", ".exo.io"),
    ("s3.", ".storage.cloud.it"),
    ("oos.", ".outscale.com"),
];

/// The region to sign for.
pub(crate) fn region_of(host: &str, options: &S3Options) -> String {
    let named = || {
        REGION_IN_HOST
            .iter()
            .filter_map(|(before, after)| host.strip_prefix(before)?.strip_suffix(after))
            .find(|region| !region.is_empty() && !region.contains('.'))
    };
    if let Some(region) = &options.region {
        return region.clone();
    }
    if host.ends_with(".r2.cloudflarestorage.com") || host == "storage.googleapis.com" {
        return "auto".to_owned();
    }
    let fallback = options.region_fallback.as_deref();
    named().or(fallback).unwrap_or("us-east-1").to_owned()
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
    fn refusal(options: &S3Options) -> String {
        let at = Bucket { host: "localhost", port: Some(9000), bucket: "b", prefix: "" };
        let store = "s3://localhost:9000/b".into();
        open(&at, options, &store, &Arc::default(), &Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn missing_and_half_keys_are_told_before_anything_is_sent() {
        assert!(refusal(&S3Options::default()).contains("there are no keys"));
        let half = S3Options { access_key: Some("K".to_owned()), ..S3Options::default() };
        assert!(refusal(&half).contains("no secret_access_key"));
    }
}
