//! A server that looks at each request, answers some itself, and hands the others on to a real one.
//!
//! For what the real test server has not: regions it insists on, keys that run out, TLS, a proxy, services of AWS. One
//! request a connection.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// The head of a request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query, as they were sent.
    pub(crate) target: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Asked {
    /// A header, empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The region that it was signed for.
    pub(crate) fn region(&self) -> &str {
        self.header("authorization").split('/').nth(2).unwrap_or("")
    }

    fn parse(head: &str) -> Asked {
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or("").split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Asked { method, target, headers: lines.filter_map(header).collect() }
    }
}

/// Makes an answer of a status and a body.
pub(crate) fn answer(status: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()))
}

/// Makes a refusal in the words of S3.
pub(crate) fn refusal(status: &str, code: &str, more: &str) -> Option<String> {
    answer(status, &format!("<Error><Code>{code}</Code><Message>no</Message>{more}</Error>"))
}

/// A listing of nothing.
pub(crate) fn empty_listing() -> Option<String> {
    answer("200 OK", "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
}

/// A certificate or key of the tests.
pub(crate) fn pem(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

type Answers = dyn Fn(&Asked) -> Option<String> + Send + Sync;

/// A running server; dropping it stops the server.
pub(crate) struct Guard {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// Answers as `answers` does; what it has no answer to goes to the server on port `real`.
    pub(crate) fn before(real: u16, answers: impl Fn(&Asked) -> Option<String> + Send + Sync + 'static) -> Guard {
        Guard::start(real, None, Arc::new(answers))
    }

    /// Speaks TLS, to who shows a certificate of the tests' authority only.
    pub(crate) fn secured(real: u16) -> Guard {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder(roots.into()).allow_unauthenticated().build().unwrap();
        let chain = vec![CertificateDer::from_pem_file(pem("server.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(pem("server.key")).unwrap();
        let config = ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key);
        Guard::start(real, Some(config.unwrap().into()), Arc::new(|_: &Asked| None))
    }

    fn start(real: u16, tls: Option<Arc<ServerConfig>>, answers: Arc<Answers>) -> Guard {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, stops) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, ends) = (asked.clone(), stops.clone());
        let thread = std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                let (answers, seen, tls) = (answers.clone(), seen.clone(), tls.clone());
                std::thread::spawn(move || serve(socket, real, tls, &*answers, &seen));
            }
        });
        Guard { port, asked, stops, thread: Some(thread) }
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: TcpStream, real: u16, tls: Option<Arc<ServerConfig>>, answers: &Answers, seen: &Mutex<Vec<Asked>>) {
    let _ = socket.set_read_timeout(Some(Duration::from_secs(30)));
    // A client that goes away is none of our business.
    let _ = match tls {
        None => exchange(socket, None, real, answers, seen),
        Some(config) => {
            let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
            while stream.conn.is_handshaking() {
                if stream.conn.complete_io(&mut stream.sock).is_err() {
                    return;
                }
            }
            let is_known = stream.conn.peer_certificates().is_some();
            exchange(stream, Some(is_known), real, answers, seen)
        }
    };
}

/// Passes one request on, or answers it.
fn exchange(
    mut client: impl Read + Write,
    is_known: Option<bool>,
    real: u16,
    answers: &Answers,
    seen: &Mutex<Vec<Asked>>,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let asked = Asked::parse(&head);
    let mut body = vec![0; asked.header("content-length").parse().unwrap_or(0)];
    client.read_exact(&mut body)?;
    seen.lock().unwrap().push(asked.clone());
    let own = if is_known == Some(false) { refusal("403 Forbidden", "NoCertificate", "") } else { answers(&asked) };
    if let Some(own) = own {
        client.write_all(own.as_bytes())?;
        return client.flush();
    }
    let mut upstream = TcpStream::connect(("127.0.0.1", real))?;
    upstream.write_all(head.trim_end_matches("\r\n").as_bytes())?;
    upstream.write_all(b"\r\nconnection: close\r\n\r\n")?;
    upstream.write_all(&body)?;
    io::copy(&mut upstream, &mut client)?;
    client.flush()
}
