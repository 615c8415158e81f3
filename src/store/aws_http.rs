//! Lets `aws-config` send over the HTTP client that we have, so that there is one TLS stack and one set of authorities.
//!
//! What goes to this machine or its next neighbours by plain HTTP (instances, containers) goes past any proxy. A store's
//! own settings (a client certificate, certificates that are not looked at) do not count here: this is not the store.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::BytesMut;

use super::client::{ClientOptions, Network};
use super::secret::Secret;

/// Keys and what belongs to them are a few kilobytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// For one attempt of one request, where nothing shorter is said.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// The clients for services of AWS, by HTTPS and by plain HTTP.
#[derive(Clone, Debug)]
pub(crate) struct AwsHttp {
    secured: reqwest::Client,
    near: reqwest::Client,
    wait: Duration,
}

impl AwsHttp {
    /// Makes clients with the authorities and the proxy of a store.
    pub(crate) fn new(store: &ClientOptions) -> Result<AwsHttp, String> {
        let network = Network { identity: None, verifies: true, ..store.network.clone() };
        let past = Network { proxy: Some(Secret::from("")), ..network.clone() };
        let options = |network, https_only| ClientOptions {
            network,
            https_only,
            connect_timeout: REQUEST_WAIT,
            request_timeout: REQUEST_WAIT,
            stall_timeout: None,
        };
        let (secured, near) = (options(network, true).client()?, options(past, false).client()?);
        Ok(AwsHttp { secured, near, wait: REQUEST_WAIT })
    }

    async fn send(self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let user = |error: String| ConnectorError::user(error.into());
        let url: reqwest::Url = request.uri().parse().map_err(|_| user("the address is no URL".to_owned()))?;
        let method = request.method().parse().map_err(|_| user("the method is none".to_owned()))?;
        let client = if url.scheme() == "https" { &self.secured } else { &self.near };
        let mut sent = client.request(method, url).timeout(self.wait);
        for (name, value) in request.headers().iter() {
            sent = sent.header(name, value);
        }
        let body = request.body().bytes().ok_or_else(|| user("the body is no bytes".to_owned()))?;
        let mut answer = sent.body(body.to_vec()).send().await.map_err(judge)?;
        let mut content = BytesMut::new();
        while let Some(part) = answer.chunk().await.map_err(judge)? {
            if content.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(ConnectorError::other("the answer is too long".into(), None));
            }
            content.extend_from_slice(&part);
        }
        let status = answer.status().as_u16().try_into().map_err(|_| user("the status is none".to_owned()))?;
        let mut told = HttpResponse::new(status, SdkBody::from(content.freeze()));
        for (name, value) in answer.headers() {
            if let Ok(value) = value.to_str() {
                let _ = told.headers_mut().try_append(name.as_str().to_owned(), value.to_owned());
            }
        }
        Ok(told)
    }
}

fn judge(error: reqwest::Error) -> ConnectorError {
    let is_timeout = error.is_timeout();
    let error = error.without_url().into();
    if is_timeout { ConnectorError::timeout(error) } else { ConnectorError::io(error) }
}

impl HttpConnector for AwsHttp {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        HttpConnectorFuture::new(self.clone().send(request))
    }
}

impl HttpClient for AwsHttp {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let wait = settings.read_timeout().or(settings.connect_timeout()).unwrap_or(self.wait);
        SharedHttpConnector::new(AwsHttp { wait: wait.min(self.wait), ..self.clone() })
    }
}
