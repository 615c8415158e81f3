//! The contract of `Store` on a real S3 server over HTTP, and what it says when things are wrong.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use kloset_mount::store::{Outage, RetryOptions, S3Options, Store, StoreError, StoreLocation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::s3::{S3Server, S3ServerOptions};

struct Served {
    server: S3Server,
    folder: tempfile::TempDir,
}

fn serve() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let options =
        S3ServerOptions { folder: folder.path(), bucket: "bucket", access_key: "K", secret_key: "S", port: 0 };
    let server = S3Server::start(&options).unwrap();
    Served { server, folder }
}

fn options() -> S3Options {
    S3Options {
        access_key: Some("K".to_owned()),
        secret_access_key: Some("S".into()),
        use_tls: false,
        retry: times(1),
        ..S3Options::default()
    }
}

fn times(times_max: u32) -> RetryOptions {
    RetryOptions { times_max, ..RetryOptions::default() }
}

fn open(port: u16, path: &str, options: &S3Options) -> Store {
    let location: StoreLocation = format!("s3://127.0.0.1:{port}/{path}").parse().unwrap();
    Store::open(&location, options).unwrap()
}

#[tokio::test]
async fn a_bucket_keeps_the_contract() {
    let served = serve();
    let store = open(served.server.port, "bucket/deep/prefix", &options());
    let content = Bytes::from_static(b"0123456789");
    store.put_new("packs/a/1", content.clone()).await.unwrap();
    store.put_new("packs/a/1", content).await.unwrap();
    let error = store.put_new("packs/a/1", Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert!(served.folder.path().join("bucket/deep/prefix/packs/a/1").exists());

    assert_eq!(store.get("packs/a/1", 10).await.unwrap(), "0123456789");
    let error = store.get("packs/a/1", 9).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert!(store.get("packs/a/2", 9).await.unwrap_err().is_not_found());

    assert_eq!(store.get_range("packs/a/1", 2..5).await.unwrap(), "234");
    assert_eq!(store.get_range("packs/a/1", 8..100).await.unwrap(), "89");
    for start in [10, 11] {
        let error = store.get_range("packs/a/1", start..start + 5).await.unwrap_err();
        assert!(matches!(error, StoreError::OutOfRange { bytes: 10, .. }), "{error}");
    }

    let list = store.list("packs").await.unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].name.as_str(), list[0].bytes), ("packs/a/1", 10));
    assert_eq!(store.list("absent").await.unwrap(), []);

    store.delete("packs/a/1").await.unwrap();
    store.delete("packs/a/1").await.unwrap();
    assert_eq!(store.list("").await.unwrap(), []);
    assert!(store.counts().http_requests >= 12);
}

#[tokio::test]
async fn listings_go_past_a_thousand_keys() {
    const OBJECTS: usize = 1_003;
    let served = serve();
    let store = open(served.server.port, "bucket", &options());
    let put = |n: usize| {
        let store = store.clone();
        async move { store.put_new(&format!("packs/{n:05}"), Bytes::from_static(b"x")).await }
    };
    let puts = futures::stream::iter(0..OBJECTS).map(put).buffer_unordered(16);
    puts.try_collect::<Vec<()>>().await.unwrap();
    let list = store.list("packs").await.unwrap();
    assert_eq!(list.len(), OBJECTS);
    assert!(list.is_sorted_by(|a, b| a.name < b.name));
    assert_eq!(list[1_002].name, "packs/01002");
}

#[tokio::test]
async fn wrong_keys_are_denied() {
    let served = serve();
    let unknown = S3Options { access_key: Some("X".to_owned()), ..options() };
    let wrong = S3Options { secret_access_key: Some("X".into()), ..options() };
    for options in [unknown, wrong] {
        let store = open(served.server.port, "bucket", &options);
        let error = store.list("").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
        assert!(!error.to_string().contains("<Error>"), "{error}");
        let error = store.get("kloset.json", 100).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_missing_bucket_is_named() {
    let served = serve();
    let store = open(served.server.port, "absent", &options());
    let error = store.list("packs").await.unwrap_err();
    assert!(matches!(error, StoreError::NoSuchBucket { .. }), "{error}");
    assert!(error.to_string().contains("/absent"), "{error}");
}

#[tokio::test]
async fn a_closed_port_fails_soon_though_retries_are_generous() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let options = S3Options { retry: times(10), ..options() };
    let start = Instant::now();
    let error = open(port, "bucket", &options).list("").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(matches!(error, StoreError::Unreachable { why: Outage::Refused, .. }), "{error}");
}

#[tokio::test]
async fn tls_to_a_plain_port_says_what_to_set() {
    let served = serve();
    let options = S3Options { use_tls: true, retry: times(10), ..options() };
    let start = Instant::now();
    let error = open(served.server.port, "bucket", &options).list("").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(matches!(error, StoreError::Unreachable { why: Outage::TlsToPlain, .. }), "{error}");
    assert!(error.to_string().contains("use_tls false"), "{error}");
}

#[tokio::test]
async fn plain_to_a_tls_port_says_what_to_set() {
    const ALERT: &[u8] = &[0x15, 3, 1, 0, 2, 2, 22]; // what TLS servers answer to plain HTTP
    let port = answer_with(ALERT).await;
    let error = open(port, "bucket", &options()).list("").await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { why: Outage::PlainToTls, .. }), "{error}");
    assert!(error.to_string().contains("use_tls true"), "{error}");
}

#[tokio::test]
async fn another_region_is_named() {
    let port = answer_with(b"HTTP/1.1 301 Moved\r\nx-amz-bucket-region: eu-west-3\r\ncontent-length: 0\r\n\r\n").await;
    let error = open(port, "bucket", &options()).get("x", 10).await.unwrap_err();
    assert!(error.to_string().contains("region eu-west-3"), "{error}");
    assert!(matches!(error, StoreError::WrongRegion { region: Some(_), .. }), "{error}");
}

#[tokio::test]
async fn a_store_that_does_not_know_the_condition_is_not_asked_for_minutes() {
    let port = answer_with(b"HTTP/1.1 501 Not Implemented\r\ncontent-length: 0\r\n\r\n").await;
    let options = S3Options { retry: times(10), ..options() };
    let start = Instant::now();
    let error = open(port, "bucket", &options).put_new("x", Bytes::new()).await;
    assert!(error.is_err());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn requests_that_are_sent_again_are_counted() {
    let port = answer_with(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n").await;
    let store = open(port, "bucket", &S3Options { retry: times(2), ..options() });
    assert!(store.get("x", 10).await.is_err());
    let counts = store.counts();
    assert_eq!((counts.http_requests, counts.http_retries, counts.slow_downs), (3, 2, 3));
    let port = answer_with(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
    let store = open(port, "bucket", &options());
    assert!(store.get("x", 10).await.is_err());
    assert_eq!((store.counts().http_requests, store.counts().http_retries), (1, 0));
}

/// Answers every request on a port with the same bytes.
async fn answer_with(answer: &'static [u8]) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer).await;
            let _ = socket.shutdown().await;
        }
    });
    port
}
