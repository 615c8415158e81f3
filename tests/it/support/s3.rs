//! A real S3 server (`s3s` over a folder) on loopback, in a thread of its own.
//!
//! Shared by the tests and by the `s3-server` example. Promises that it listens when `start`
//! returns and that dropping the handle ends it. It is for tests: no TLS, one key.

use std::path::Path;
use std::sync::mpsc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder as ConnectionBuilder;
use s3s::S3;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// A running server; dropping it stops the server.
pub(crate) struct S3Server {
    /// Port on 127.0.0.1.
    pub(crate) port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How to serve a folder whose subfolders are the buckets.
pub(crate) struct S3ServerOptions<'a> {
    /// Holds one folder a bucket.
    pub folder: &'a Path,
    /// Made if absent.
    pub bucket: &'a str,
    /// The one key that is known.
    pub access_key: &'a str,
    /// Its secret.
    pub secret_key: &'a str,
    /// Zero for any free port.
    pub(crate) port: u16,
}

impl S3Server {
    /// Starts to serve; returns once connections are accepted.
    pub(crate) fn start(options: &S3ServerOptions<'_>) -> std::io::Result<S3Server> {
        std::fs::create_dir_all(options.folder.join(options.bucket))?;
        let files =
            s3s_fs::FileSystem::new(options.folder).map_err(|error| std::io::Error::other(format!("{error:?}")))?;
        S3Server::start_over(files, (options.access_key, options.secret_key), options.port)
    }

    /// Starts to serve any storage, to whom has the key.
    pub(crate) fn start_over(storage: impl S3, (key, secret): (&str, &str), port: u16) -> std::io::Result<S3Server> {
        let mut builder = S3ServiceBuilder::new(storage);
        builder.set_auth(SimpleAuth::from_single(key, secret));
        S3Server::serve(builder.build(), port)
    }

    /// Starts to serve what was put together.
    pub(crate) fn serve(service: S3Service, port: u16) -> std::io::Result<S3Server> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || serve(listener, service, stopped, &ready))?;
        is_ready.recv().map_err(|_| std::io::Error::other("the S3 server did not start"))?;
        Ok(S3Server { port, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    listener: std::net::TcpListener,
    service: S3Service,
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<()>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts on any machine that runs tests");
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).expect("the listener is open");
        let _ = ready.send(());
        tokio::select! {
            () = accept(listener, service) => {}
            _ = stopped => {}
        }
    });
    runtime.shutdown_background();
}

async fn accept(listener: TcpListener, service: S3Service) {
    let http = ConnectionBuilder::new(TokioExecutor::new());
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            continue;
        };
        let _ = socket.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(async move {
            let _ = connection.await;
        });
    }
}
