//! The HTTP clients themselves: whom they trust, what they show, which proxy they go by.
//!
//! One place for all that talk to a store. Promises that an endpoint's redirection is never followed (it would be told
//! keys that are for another), that addresses are taken in turn, and that no error tells a secret. Proxies of the
//! environment (`HTTPS_PROXY`, `NO_PROXY`, ...) count unless one is named. It does not know what is sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::secret::Secret;

/// How connections are secured, and by which way they go.
#[derive(Clone, Debug)]
pub struct Network {
    /// Certificates of authorities that are trusted besides the machine's, as PEM.
    pub authorities: Option<Arc<[u8]>>,
    /// A client certificate and its key, as PEM.
    pub identity: Option<Secret>,
    /// Whether a certificate is looked at at all.
    pub verifies: bool,
    /// URL of a proxy, which may hold a password; empty for none at all.
    pub proxy: Option<Secret>,
}

impl Default for Network {
    fn default() -> Network {
        Network { authorities: None, identity: None, verifies: true, proxy: None }
    }
}

/// What one client is like.
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    pub(crate) network: Network,
    pub(crate) https_only: bool,
    pub(crate) connect_timeout: Duration,
    /// For all of a request.
    pub(crate) request_timeout: Duration,
    /// For each silence within an answer.
    pub(crate) stall_timeout: Option<Duration>,
}

/// Connections kept open longer than this are closed by most servers first.
const POOL_IDLE: Duration = Duration::from_secs(50);

impl ClientOptions {
    /// Makes a client.
    pub(crate) fn client(&self) -> Result<reqwest::Client, String> {
        let network = &self.network;
        let mut builder = reqwest::Client::builder()
            .http1_only() // HTTP/2 puts all requests into one connection, which is slower
            .https_only(self.https_only)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.connect_timeout)
            .timeout(self.request_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tls_danger_accept_invalid_certs(!network.verifies)
            .dns_resolver(Arc::new(InTurn::default()))
            .user_agent(concat!("kloset-mount/", env!("CARGO_PKG_VERSION")));
        if let Some(timeout) = self.stall_timeout {
            builder = builder.read_timeout(timeout);
        }
        if let Some(pem) = &network.authorities {
            let wrong = |_| "ca_file or AWS_CA_BUNDLE holds no certificates in PEM".to_owned();
            let authorities = reqwest::Certificate::from_pem_bundle(pem).map_err(wrong)?;
            if authorities.is_empty() {
                return Err("ca_file or AWS_CA_BUNDLE holds no certificates in PEM".to_owned());
            }
            builder = builder.tls_certs_merge(authorities);
        }
        if let Some(pem) = &network.identity {
            let wrong = |_| "client_cert_file and client_key_file hold no certificate with its key in PEM".to_owned();
            builder = builder.identity(reqwest::Identity::from_pem(pem.bytes()).map_err(wrong)?);
        }
        match &network.proxy {
            None => {}
            Some(proxy) if proxy.is_empty() => builder = builder.no_proxy(),
            Some(proxy) => builder = builder.proxy(parse_proxy(proxy)?),
        }
        builder.build().map_err(|error| super::answer::chain_text(&error))
    }
}

fn parse_proxy(url: &Secret) -> Result<reqwest::Proxy, String> {
    let wrong = "proxy is no URL of a proxy: write http://HOST:PORT, or none";
    let text = url.text().filter(|text| text.starts_with("http://") || text.starts_with("https://"));
    reqwest::Proxy::all(text.ok_or(wrong)?).map_err(|_| wrong.to_owned())
}

/// Resolves names as the system does; of several addresses each is the first in its turn, so that load is spread.
#[derive(Debug, Default)]
struct InTurn(Arc<AtomicUsize>);

impl Resolve for InTurn {
    fn resolve(&self, name: Name) -> Resolving {
        let turn = self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if let Some(addresses) = below_localhost(name.as_str()) {
                return Ok(Box::new(addresses.into_iter()) as Addrs);
            }
            let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let turn = turn % addresses.len().max(1);
            addresses.rotate_left(turn);
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// `bucket.localhost` is this machine (RFC 6761), which not every system's resolver knows.
fn below_localhost(name: &str) -> Option<[SocketAddr; 2]> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    name.ends_with(".localhost").then(|| loopback.map(|address| SocketAddr::new(address, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refusal(network: Network) -> String {
        let timeout = Duration::from_secs(1);
        let (connect_timeout, request_timeout, stall_timeout) = (timeout, timeout, None);
        let options = ClientOptions { network, https_only: false, connect_timeout, request_timeout, stall_timeout };
        options.client().unwrap_err()
    }

    #[test]
    fn what_cannot_be_used_is_named_and_not_shown() {
        let pem: Arc<[u8]> = b"no PEM".as_slice().into();
        assert!(refusal(Network { authorities: Some(pem), ..Network::default() }).contains("ca_file"));
        let identity = Some(Secret::from("HIDDEN"));
        assert!(refusal(Network { identity, ..Network::default() }).contains("client_cert_file"));
        let told = refusal(Network { proxy: Some("socks5://u:HIDDEN@h".into()), ..Network::default() });
        assert!(told.contains("http://HOST:PORT") && !told.contains("HIDDEN"), "{told}");
    }

    #[test]
    fn names_below_localhost_are_this_machine() {
        assert!(below_localhost("bucket.localhost").is_some());
        assert!(below_localhost("localhost.example.com").is_none());
    }
}
