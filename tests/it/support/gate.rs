//! A network that can be switched: a TCP proxy on loopback before a server.
//!
//! Promises that every connection, old and new, follows the mode from the moment it is set. It delays nothing and reads
//! nothing but, while the server is to seem busy, the beginning of requests.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What happens to bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They pass.
    Open,
    /// They stay where they are, and connections stay open: a cable pulled, a server stopped.
    Frozen,
    /// Connections break, old and new.
    Broken,
    /// Every request is answered 503.
    Busy,
}

/// The proxy; it ends when dropped.
pub(crate) struct Gate {
    pub(crate) port: u16,
    mode: watch::Sender<Mode>,
    _runtime: Runtime,
}

impl Gate {
    /// Begins to pass on what comes to a free port.
    pub(crate) fn to(target_port: u16) -> Gate {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, modes) = watch::channel(Mode::Open);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, target_port, modes.clone()));
            }
        });
        Gate { port, mode, _runtime: runtime }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

/// Serves one connection until it ends or has to.
async fn serve(mut client: TcpStream, target_port: u16, mut modes: watch::Receiver<Mode>) {
    let mode = *modes.borrow_and_update();
    match mode {
        Mode::Broken => {}
        Mode::Busy => drop(answer_busy(&mut client).await),
        Mode::Open | Mode::Frozen => {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = pass(from_client, to_server, modes.clone()) => {}
                () = pass(from_server, to_client, modes.clone()) => {}
                _ = modes.wait_for(|mode| matches!(mode, Mode::Broken | Mode::Busy)) => {}
            }
        }
    }
}

/// Passes bytes on while the gate is open.
async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return };
        if modes.wait_for(|mode| *mode == Mode::Open).await.is_err() || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn answer_busy(client: &mut TcpStream) -> std::io::Result<()> {
    let mut head = [0; 16 << 10];
    let _ = client.read(&mut head).await?;
    client.write_all(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
    client.shutdown().await
}
