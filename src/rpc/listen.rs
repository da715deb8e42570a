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

use super::budget::TotalBudget;
use super::connection::{Connection, ConnectionEnd, ConnectionId, too_many_connections};
use super::connection_limit::{ConnectionLimit, ConnectionPermit, LimitReached};
use super::http::{self, Http};
use super::lines;
use super::machine_list_cache::Published;
use super::request::{Bounds, Service, error_json};
use super::server::{Server, methods};
use crate::clock::Moment;
use crate::metrics::Counter;

/// How long to wait after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections have to end after a stop, once no more requests are taken.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The same before an upgrade: longer, so that a slow client has its answers. New connections wait meanwhile.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that is closed for another one may take to be gone.
const MAKE_ROOM: Duration = Duration::from_secs(1);
/// How long a connection is idle before it is closed for another one, where `connection_idle_max` does not protect it: in the
/// reserve, without any request, or of a process that has more than [`PROTECTED_PER_PROCESS`].
const UNPROTECTED_IDLE: Duration = Duration::from_secs(1);
const PROTECTED_PER_PROCESS: usize = 16;
/// How long a client that is refused has to show its framing.
const REFUSAL_PEEK: Duration = Duration::from_millis(100);

/// How connections are served.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Connections at once.
    pub connections_max: usize,
    /// Connections of one process at once.
    pub connections_max_per_process: usize,
    /// When they are all taken, one that was idle for so long is closed for a new one.
    pub connection_idle_max: Duration,
    /// Bounds of each.
    pub bounds: Bounds,
}

/// Serves the listener until `stop` or until the dispatcher begins an upgrade; returns when the last connection is closed, or soon after.
///
/// `settings` may change meanwhile, all but the bounds. After a stop, `answered` says that every job has ended: until then connections stay,
/// because their calls still wait for answers. Before an upgrade no job runs. Connections that were not accepted then wait in the listener,
/// which is returned for the next instance.
pub async fn serve(
    listener: UnixListener,
    server: Arc<Server>,
    mut settings: watch::Receiver<Settings>,
    stop: CancellationToken,
    answered: CancellationToken,
) -> Option<UnixListener> {
    let Settings {
        connections_max,
        connections_max_per_process,
        bounds,
        ..
    } = *settings.borrow_and_update();
    let service = Arc::new(Service {
        methods: methods(server.clone()),
        fast: Box::new(Published(server.clone())),
        bounds,
    });
    let http = Http {
        server: server.clone(),
        service: service.clone(),
    };
    let upgrading = server.dispatcher.upgrading().clone();
    let host = Arc::new(Host {
        server,
        service,
        http,
        limit: ConnectionLimit::new(connections_max, connections_max_per_process),
        budget: TotalBudget::new(bounds.bytes_max.max(bounds.one_frame())),
        settings: settings.clone(),
        open: Mutex::default(),
        next_id: AtomicU64::new(1),
        uid: rustix::process::getuid().as_raw(),
        end: ConnectionEnd {
            stop: answered.clone(),
            upgrading: upgrading.clone(),
        },
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = upgrading.cancelled() => break,
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            Ok(()) = settings.changed() => {
                let settings = settings.borrow_and_update();
                host.limit.set(settings.connections_max, settings.connections_max_per_process);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    host.server.binary_watcher.check();
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
    let is_upgrading = upgrading.is_cancelled();
    // Unless the next instance accepts them, new connections are refused from here on.
    let listener = is_upgrading.then_some(listener);
    let timeout = if is_upgrading {
        UPGRADE_TIMEOUT
    } else {
        answered.cancelled().await;
        SHUTDOWN_TIMEOUT
    };
    let closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(timeout, closed).await.is_err() {
        tracing::debug!("connections were closed before they ended");
    }
    listener
}

/// What every connection needs.
struct Host {
    server: Arc<Server>,
    service: Arc<Service>,
    http: Http,
    limit: ConnectionLimit,
    budget: TotalBudget,
    settings: watch::Receiver<Settings>,
    /// Every connection that has a place. Held for a look and never across an await.
    open: Mutex<HashMap<ConnectionId, Arc<Connection>>>,
    next_id: AtomicU64,
    uid: u32,
    end: ConnectionEnd,
}

impl Host {
    /// Serves one connection until it is closed, and tells the dispatcher when it is.
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
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let permit = match self.permit(pid).await {
            Ok(permit) => Arc::new(permit),
            Err(limit) => {
                refuse(stream, limit).await;
                return;
            }
        };
        self.server.metrics.count(Counter::Connections);
        let id = ConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let bounds = self.service.bounds;
        let bytes_max = bounds.connection_bytes_max.max(bounds.one_frame());
        let connection = Arc::new(Connection::new(
            id,
            pid,
            peer.uid(),
            Arc::downgrade(&permit),
            self.budget.connection(bytes_max),
        ));
        self.open().insert(id, connection.clone());
        tokio::select! {
            () = self.serve(stream, connection.clone()) => {}
            // It was idle, so nothing is cut off.
            () = connection.gone().cancelled() => {}
        }
        self.open().remove(&id);
        drop(permit);
        // In this order: what a handler hands in from now on is refused, and what it handed in before is found.
        connection.gone().cancel();
        self.server.dispatcher.on_disconnect(id.0).await;
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets a permit for a connection of this process; an idle connection may be closed for it. When there is no room, it is one of
    /// the reserve.
    async fn permit(&self, process: Option<u32>) -> Result<ConnectionPermit, LimitReached> {
        let reached = match self.limit.try_acquire(process) {
            Ok(permit) => return Ok(permit),
            Err(reached) => reached,
        };
        let scope = match reached {
            LimitReached::Process(_) => Scope::Process(process),
            LimitReached::Total(_) => Scope::Ordinary,
        };
        if let Some(permit) = self.make_room(process, scope).await {
            return Ok(permit);
        }
        if let LimitReached::Process(_) = reached {
            return Err(reached);
        }
        match self.limit.try_acquire_reserved(process) {
            Ok(permit) => Ok(permit),
            Err(_) => self.make_room(process, Scope::Reserve).await.ok_or(reached),
        }
    }

    /// Closes the connection that has been idle for longest, and returns its permit. Called only when a limit is reached, so that
    /// idle connections cost no timer, and none is closed while there is room.
    async fn make_room(&self, process: Option<u32>, scope: Scope) -> Option<ConnectionPermit> {
        // These would lose more than a connection. Whoever joins them after this is no longer idle for long enough.
        let holding = self.server.dispatcher.holding_connections().await?;
        let now = Moment::now().instant;
        let idle_max = self.settings.borrow().connection_idle_max;
        let closed = {
            let open = self.open();
            let mut by_process: HashMap<Option<u32>, usize> = HashMap::new();
            for connection in open.values() {
                *by_process.entry(connection.pid()).or_default() += 1;
            }
            let least = |connection: &Connection| {
                let is_protected = connection.has_sent_request()
                    && !connection.is_reserved()
                    && by_process[&connection.pid()] <= PROTECTED_PER_PROCESS;
                if is_protected {
                    idle_max
                } else {
                    idle_max.min(UNPROTECTED_IDLE)
                }
            };
            let mut idle: Vec<_> = open
                .values()
                .filter(|connection| scope.has(connection) && !holding.contains(&connection.id().0))
                .filter_map(|connection| Some((connection.idle_since()?, connection)))
                .collect();
            idle.sort_unstable_by_key(|(since, _)| *since);
            // Another newcomer may have closed one meanwhile, or its client may use it again.
            idle.into_iter()
                .map(|(_, connection)| connection)
                .find(|connection| connection.close_if_idle(now, least(connection)))
                .cloned()
        }?;
        tracing::info!(
            client = %closed.name(),
            pid = closed.pid(),
            "closed an idle connection to make room for a new one"
        );
        let is_reserved = matches!(scope, Scope::Reserve);
        let permit = self.limit.acquire(process, is_reserved);
        tokio::time::timeout(MAKE_ROOM, permit).await.ok()
    }

    /// Serves a connection in the framing that its first bytes ask for.
    async fn serve(&self, stream: UnixStream, connection: Arc<Connection>) {
        let timeout = self.service.bounds.request_timeout;
        let first = tokio::select! {
            biased;
            first = peek(&stream) => first,
            () = self.end.stop.cancelled() => return,
            // It sent nothing, so it loses nothing. The next instance is the one to tell it.
            () = self.end.upgrading.cancelled() => Ok(Some(Framing::Lines)),
            () = tokio::time::sleep(timeout) => {
                tracing::debug!(pid = connection.pid(), "closed a connection that sent nothing");
                return;
            }
        };
        match first {
            Ok(Some(Framing::Http)) => self.http.serve(stream, connection, &self.end).await,
            Ok(Some(Framing::Lines)) => {
                lines::serve(stream, self.service.clone(), connection, &self.end).await;
            }
            Ok(Some(Framing::Unknown)) => refuse_framing(stream).await,
            Ok(None) | Err(_) => {}
        }
    }
}

/// Which connections may be closed for a new one.
#[derive(Debug, Clone, Copy)]
enum Scope {
    /// Those that may call everything.
    Ordinary,
    /// Those that may call `daemon.*` only.
    Reserve,
    /// Those of one process.
    Process(Option<u32>),
}

impl Scope {
    fn has(self, connection: &Connection) -> bool {
        match self {
            Self::Ordinary => !connection.is_reserved(),
            Self::Reserve => connection.is_reserved(),
            Self::Process(process) => connection.pid() == process,
        }
    }
}

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Lines,
    Http,
    /// It begins like HTTP and is not, as the `Content-Length:` of the Language Server Protocol.
    Unknown,
}

impl Framing {
    /// Tells it by the first bytes, of which there is one at least.
    fn of(first: &[u8]) -> Self {
        let word = first.split(|byte| *byte == b' ').next().unwrap_or_default();
        match word.first() {
            Some(byte) if !byte.is_ascii_uppercase() => Self::Lines,
            Some(_) if word.iter().all(u8::is_ascii_uppercase) => Self::Http,
            Some(_) => Self::Unknown,
            // It begins with a blank.
            None => Self::Lines,
        }
    }
}

/// Looks at the first bytes without taking them.
async fn peek(stream: &UnixStream) -> io::Result<Option<Framing>> {
    loop {
        stream.readable().await?;
        let mut first = [0; 8];
        let looked = stream.try_io(tokio::io::Interest::READABLE, || {
            rustix::net::recv(stream, &mut first, rustix::net::RecvFlags::PEEK).map_err(Into::into)
        });
        match looked {
            Ok((0, _)) => return Ok(None),
            Ok((count, _)) => return Ok(Some(Framing::of(&first[..count]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Tells a client that what it speaks is not spoken here.
async fn refuse_framing(mut stream: UnixStream) {
    let text = format!("{}\n", http::SPOKEN);
    let answer = http::whole("400 Bad Request", "text/plain; charset=utf-8", &text);
    // A client that has closed meanwhile reads nothing.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Tells a client that there are too many connections.
async fn refuse(mut stream: UnixStream, reached: LimitReached) {
    let error = too_many_connections(match reached {
        LimitReached::Total(max) => format!("{max} connections are open (connections_max); close some"),
        LimitReached::Process(max) => {
            format!("this process has {max} connections open (connections_max_per_process); close some")
        }
    });
    let answer = format!("{}\n", error_json(&jsonrpsee::types::Id::Null, error).get());
    // A client that sends nothing gets what most read.
    let framing = tokio::time::timeout(REFUSAL_PEEK, peek(&stream)).await;
    let answer = match framing {
        Ok(Ok(Some(Framing::Http))) => http::whole("503 Service Unavailable", "application/json", &answer),
        _ => answer,
    };
    // A client that has closed meanwhile reads nothing.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
