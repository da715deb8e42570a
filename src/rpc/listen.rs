//! Accepting connections: who may come in, how many, and which framing the first byte asks for.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, ConnectionId};
use super::errors::ErrorKind;
use super::http::Http;
use super::lines::{self, Bounds, Service};
use super::places::{Place, Places};
use super::served::Published;
use super::server::{Server, methods};
use crate::clock::Moment;
use crate::metrics::Counter;

/// How long to wait after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections have to end after a stop, once no more requests are taken.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a connection that is closed for another one may take to be gone.
const MAKE_ROOM: Duration = Duration::from_secs(1);

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Connections at once.
    pub connections_max: usize,
    /// When they are all taken, one that was idle for so long is closed for a new one.
    pub connection_idle_max: Duration,
    /// Bounds of each.
    pub bounds: Bounds,
}

/// Serves the listener until `stop`; returns when the last connection is gone, or soon after.
///
/// `settings` may change meanwhile, all but the bounds. `answered` says that every job has ended: until then connections stay, because their calls still wait for answers.
pub async fn serve(
    listener: UnixListener,
    server: Arc<Server>,
    mut settings: watch::Receiver<Settings>,
    stop: CancellationToken,
    answered: CancellationToken,
) {
    let Settings {
        mut connections_max,
        bounds,
        ..
    } = *settings.borrow_and_update();
    let methods = methods(server.clone());
    let (http, sessions) = Http::new(server.clone(), methods.clone(), bounds);
    let lines = Arc::new(Service {
        methods,
        fast: Box::new(Published(server.clone())),
        bounds,
    });
    let host = Arc::new(Host {
        server,
        lines,
        http,
        bounds,
        places: Places::new(connections_max),
        settings: settings.clone(),
        open: Mutex::default(),
        next_id: AtomicU64::new(1),
        uid: rustix::process::getuid().as_raw(),
        stop: answered.clone(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            Ok(()) = settings.changed() => {
                let wanted = settings.borrow_and_update().connections_max;
                host.places.resize(connections_max, wanted);
                connections_max = wanted;
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let host = host.clone();
                    connections.spawn(async move { host.welcome(stream).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // New connections are refused from here on, and calls under way get their answers.
    drop(listener);
    answered.cancelled().await;
    // A session that is gone already cannot be stopped twice.
    let _ = sessions.stop();
    let gone = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, gone).await.is_err() {
        tracing::debug!("connections were closed before they ended");
    }
}

/// What every connection needs.
struct Host {
    server: Arc<Server>,
    lines: Arc<Service>,
    http: Http,
    bounds: Bounds,
    places: Places,
    settings: watch::Receiver<Settings>,
    /// Every connection that has a place. Held for a look and never across an await.
    open: Mutex<HashMap<ConnectionId, Arc<Connection>>>,
    next_id: AtomicU64,
    uid: u32,
    stop: CancellationToken,
}

impl Host {
    /// Serves one connection, and tells the dispatcher when it is gone.
    async fn welcome(&self, stream: UnixStream) {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a peer could not be identified");
                return;
            }
        };
        // The folder's mode keeps others out; this holds even if somebody loosens it.
        if peer.uid() != self.uid && peer.uid() != 0 {
            tracing::warn!(uid = peer.uid(), "a connection of another user was refused");
            return;
        }
        let place = match self.places.take_now() {
            Some(place) => place,
            None => match self.make_room().await {
                Some(place) => place,
                None => return refuse(stream).await,
            },
        };
        self.server.metrics.count(Counter::Connections);
        let id = ConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let connection = Arc::new(Connection::new(id, pid, peer.uid()));
        self.open().insert(id, connection.clone());
        tokio::select! {
            () = self.serve(stream, connection.clone()) => {}
            // It was idle, so nothing is cut off.
            () = connection.gone().cancelled() => {}
        }
        self.open().remove(&id);
        drop(place);
        // In this order: what a handler hands in from now on is refused, and what it handed in before is found.
        connection.gone().cancel();
        self.server.dispatcher.connection_gone(id.0).await;
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle for longest, and returns its place. Asked only when all places are taken, so
    /// that idle connections cost no timer, and nobody loses one that is in nobody's way.
    async fn make_room(&self) -> Option<Place> {
        // These would lose more than a connection. Whoever joins them after this is no longer idle for long enough.
        let holding = self.server.dispatcher.holding_connections().await?;
        let now = Moment::now().instant;
        let idle_max = self.settings.borrow().connection_idle_max;
        let closed = {
            let open = self.open();
            let mut idle: Vec<_> = open
                .values()
                .filter(|connection| !holding.contains(&connection.id().0))
                .filter_map(|connection| Some((connection.idle_since()?, connection)))
                .collect();
            idle.sort_unstable_by_key(|(since, _)| *since);
            // Another newcomer may have closed one meanwhile, or its client may use it again.
            idle.into_iter()
                .map(|(_, connection)| connection)
                .find(|connection| connection.close_if_idle(now, idle_max))
                .cloned()
        }?;
        tracing::info!(
            client = %closed.name(),
            pid = closed.pid(),
            "closed an idle connection to make room for a new one"
        );
        tokio::time::timeout(MAKE_ROOM, self.places.take()).await.ok()?
    }

    async fn serve(&self, stream: UnixStream, connection: Arc<Connection>) {
        let first = tokio::select! {
            first = peek(&stream) => first,
            () = self.stop.cancelled() => return,
        };
        match first {
            Ok(Some(byte)) if byte.is_ascii_uppercase() => {
                self.http.serve(stream, connection, self.bounds).await;
            }
            Ok(Some(_)) => lines::serve(stream, self.lines.clone(), connection, self.stop.clone()).await,
            Ok(None) | Err(_) => {}
        }
    }
}

/// Looks at the first byte without taking it.
async fn peek(stream: &UnixStream) -> io::Result<Option<u8>> {
    loop {
        stream.readable().await?;
        let mut first = [0];
        let looked = stream.try_io(tokio::io::Interest::READABLE, || {
            rustix::net::recv(stream, &mut first, rustix::net::RecvFlags::PEEK).map_err(Into::into)
        });
        match looked {
            Ok((0, _)) => return Ok(None),
            Ok(_) => return Ok(Some(first[0])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Tells a client that there are too many, in the framing that most use.
async fn refuse(mut stream: UnixStream) {
    let mut data = ErrorKind::QueueFull.data();
    data.retry_after_ms = Some(1000);
    let error = ErrorKind::QueueFull.with("too many connections; close some, or raise connections_max", data);
    let answer = lines::error_json(&jsonrpsee::types::Id::Null, error);
    // Whoever does not take it has hung up already.
    let _ = stream.write_all(format!("{}\n", answer.get()).as_bytes()).await;
    let _ = stream.shutdown().await;
}
