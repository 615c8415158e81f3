//! The keys that a machine has for AWS: profiles, SSO, `credential_process`, web identity, containers, instances.
//!
//! Asks one place after the other, as all programs of AWS do, by the crate `aws-config`, over our HTTP client. Promises
//! that nothing is asked before keys are needed, that a machine which has none is told so within seconds, place by place,
//! and that no message tells a secret. `aws-config` itself reads the environment and the files of AWS; we do not.

use std::time::Duration;

use aws_config::Region;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};

use super::answer::chain_text;
use super::aws_http::AwsHttp;
use super::client::ClientOptions;
use super::keys::{KeyPair, KeysError};

/// An instance answers from beside us or not at all.
const INSTANCE_WAIT: Duration = Duration::from_secs(1);
/// For one question to a service of AWS, repeated ones included.
const SERVICE_WAIT: Duration = Duration::from_secs(20);
/// All of what is told about one place.
const DETAIL_CHARS_MAX: usize = 200;

/// How to look for the machine's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ambient {
    /// The only profile to use; without, it is `AWS_PROFILE`, else `default`, and the other places follow.
    pub profile: Option<String>,
    /// The name of the profile that is used without.
    pub profile_default: Option<String>,
    /// The region in which AWS is asked for temporary keys.
    pub region: Option<String>,
    /// Whether this may be an instance with keys of its own.
    pub asks_instance: bool,
    /// Where was looked before, for who finds nothing.
    pub looked_before: Vec<String>,
}

/// What was found.
pub(crate) struct AmbientKeys {
    /// The keys.
    pub(crate) pair: KeyPair,
    /// When they run out.
    pub(crate) ends_unix_ms: Option<i64>,
    /// As in `profile "backup" of the AWS files`.
    pub(crate) from: String,
}

/// What the metadata service of an instance is called.
const INSTANCE: &str = "instance metadata";

impl Ambient {
    /// Looks in all places until there are keys.
    pub(crate) async fn look(&self, client: &ClientOptions) -> Result<AmbientKeys, KeysError> {
        let mut looked = self.looked_before.clone();
        for (place, provider) in self.places(client).map_err(KeysError)? {
            match provider.provide_credentials().await {
                Ok(found) => {
                    let pair = KeyPair {
                        access_key: found.access_key_id().to_owned(),
                        secret_access_key: found.secret_access_key().into(),
                        session_token: found.session_token().map(Into::into),
                    };
                    return Ok(AmbientKeys { pair, ends_unix_ms: found.expiry().and_then(unix_ms), from: place });
                }
                // The last place: who does not answer there is not there, whatever the crate calls it.
                Err(none) if place == INSTANCE || matches!(none, CredentialsError::CredentialsNotLoaded(_)) => {
                    looked.push(format!("{place} ({})", brief(&none)));
                }
                Err(error) => return Err(KeysError(format!("there are no keys from {place}: {}", brief(&error)))),
            }
        }
        if self.profile.is_none() && !self.asks_instance {
            looked.push(format!("not asked: {INSTANCE}"));
        }
        Err(KeysError(format!(
            "there are no keys: `kloset-mount config repository set NAME access_key KEY` and `... secret_access_key -`, \
             or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket set allow_anonymous to true. Looked in: {}",
            looked.join("; ")
        )))
    }

    /// The places, in the order in which all programs of AWS ask them.
    fn places(&self, client: &ClientOptions) -> Result<Vec<(String, SharedCredentialsProvider)>, String> {
        let conf = self.config(client)?;
        let mut profile = ProfileFileCredentialsProvider::builder().configure(&conf);
        if let Some(name) = &self.profile {
            profile = profile.profile_name(name.clone());
        }
        let name = self.profile.as_deref().or(self.profile_default.as_deref()).unwrap_or("default");
        let mut places = vec![(format!("profile {name:?} of the AWS files"), shared(profile.build()))];
        if self.profile.is_some() {
            return Ok(places);
        }
        let web = WebIdentityTokenCredentialsProvider::builder().configure(&conf).build();
        places.push(("web identity, AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(), shared(web)));
        let container = EcsCredentialsProvider::builder().configure(&conf).build();
        places.push(("container, AWS_CONTAINER_CREDENTIALS_...".to_owned(), shared(container)));
        if self.asks_instance {
            let asked = imds::Client::builder()
                .configure(&conf)
                .max_attempts(1)
                .connect_timeout(INSTANCE_WAIT)
                .read_timeout(INSTANCE_WAIT)
                .operation_timeout(INSTANCE_WAIT)
                .operation_attempt_timeout(INSTANCE_WAIT);
            let instance = ImdsCredentialsProvider::builder().configure(&conf).imds_client(asked.build());
            places.push((INSTANCE.to_owned(), shared(instance.build())));
        }
        Ok(places)
    }

    fn config(&self, client: &ClientOptions) -> Result<ProviderConfig, String> {
        let times = TimeoutConfig::builder().operation_timeout(SERVICE_WAIT).build();
        Ok(ProviderConfig::without_region()
            .with_region(self.region.clone().map(Region::new))
            .with_http_client(AwsHttp::new(client)?)
            .with_retry_config(RetryConfig::standard().with_max_attempts(3))
            .with_timeout_config(times))
    }
}

fn shared(provider: impl ProvideCredentials + 'static) -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(provider)
}

fn unix_ms(time: std::time::SystemTime) -> Option<i64> {
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// What an error and those below it say, on one line and not at length.
fn brief(error: &(dyn std::error::Error + 'static)) -> String {
    let text = chain_text(error).replace('\n', " ");
    let text = text.strip_prefix("the credential provider was not enabled: ").unwrap_or(&text);
    text.chars().take(DETAIL_CHARS_MAX).collect()
}
