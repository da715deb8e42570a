//! Accepts connections: checks the peer's user, enforces the connection limits, and selects the framing by the first bytes.

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
use super::context::Server;
use super::http::{self, Http};
use super::machine_list_cache::Published;
use super::request::{Bounds, Service, error_json};
use super::{handlers, json_lines};
use crate::clock::Moment;
use crate::metrics::Counter;

/// Delay after an accept failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that connections have to end after a stop, once they accept no more requests.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The same before an upgrade. It is longer so that slow clients get their answers; new connections wait meanwhile.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time until an idle connection that was closed has released its permit.
const MAKE_ROOM: Duration = Duration::from_secs(1);
/// Idle time after which a connection may be closed to make room for another, if `connection_idle_max` does not protect it: it is in the
/// reserve, never sent a request, or belongs to a process with more than [`PROTECTED_PER_PROCESS`] connections.
const UNPROTECTED_IDLE: Duration = Duration::from_secs(1);
const PROTECTED_PER_PROCESS: usize = 16;
/// Time that a refused client has to send the first bytes, which show its framing.
const REFUSAL_PEEK: Duration = Duration::from_millis(100);

/// Settings of the listener.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Maximum number of open connections.
    pub connections_max: usize,
    /// Maximum number of open connections per process.
    pub connections_max_per_process: usize,
    /// At the limit, a connection that has been idle for this long is closed to make room for a new one.
    pub connection_idle_max: Duration,
    /// Limits of each connection.
    pub bounds: Bounds,
}

/// Serves the listener until `stop`, or until the dispatcher begins an upgrade. Returns when the last connection is closed, or after a
/// timeout.
///
/// `settings` may change meanwhile, except for the bounds. After a stop, connections stay open until `answered` reports that all jobs have
/// ended, because their calls still wait for answers. Before an upgrade no job runs. Connections that were not accepted then wait in the
/// listener, which is returned for the next instance.
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
        methods: handlers::methods(server.clone()),
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
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    let is_upgrading = upgrading.is_cancelled();
    // For a stop, dropping the listener refuses new connections. For an upgrade, the next instance accepts them.
    let listener = is_upgrading.then_some(listener);
    let timeout = if is_upgrading {
        UPGRADE_TIMEOUT
    } else {
        answered.cancelled().await;
        SHUTDOWN_TIMEOUT
    };
    let closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(timeout, closed).await.is_err() {
        tracing::debug!("closed connections that did not end in time");
    }
    listener
}

/// State shared by all connections.
struct Host {
    server: Arc<Server>,
    service: Arc<Service>,
    http: Http,
    limit: ConnectionLimit,
    budget: TotalBudget,
    settings: watch::Receiver<Settings>,
    /// All open connections with a permit. The lock is never held across an await.
    open: Mutex<HashMap<ConnectionId, Arc<Connection>>>,
    next_id: AtomicU64,
    uid: u32,
    end: ConnectionEnd,
}

impl Host {
    /// Serves one connection until it is closed, then notifies the dispatcher.
    async fn welcome(&self, stream: UnixStream) {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "cannot identify the peer of a connection");
                return;
            }
        };
        // The folder's mode already excludes other users; this check holds even if someone changes the mode.
        if peer.uid() != self.uid && peer.uid() != 0 {
            tracing::warn!(uid = peer.uid(), "refused a connection of another user");
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
        self.register(id, connection.clone());
        tokio::select! {
            () = self.serve(stream, connection.clone()) => {}
            // The connection was idle, so no call is interrupted.
            () = connection.gone().cancelled() => {}
        }
        self.unregister(id);
        drop(permit);
        // The order matters: after the token is cancelled, new submissions of this connection are refused, and earlier ones are found.
        connection.gone().cancel();
        self.server.dispatcher.on_disconnect(id.0).await;
    }

    fn register(&self, id: ConnectionId, connection: Arc<Connection>) {
        let mut open = self.open();
        open.insert(id, connection);
        self.server.open_connections.store(open.len(), Ordering::Relaxed);
    }

    fn unregister(&self, id: ConnectionId) {
        let mut open = self.open();
        open.remove(&id);
        self.server.open_connections.store(open.len(), Ordering::Relaxed);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acquires a permit for a connection of this process. At the limit an idle connection may be closed for it; if there is none, the
    /// permit comes from the reserve.
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

    /// Closes the connection that has been idle longest and acquires its permit. Called only at a limit, so idle connections need no timer
    /// and none is closed without need.
    async fn make_room(&self, process: Option<u32>, scope: Scope) -> Option<ConnectionPermit> {
        // These connections own jobs or leases, so they are not closed. A connection that gets its first job after this query is safe too:
        // its request was recent, so it has not been idle for long enough.
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
            // Another new connection may have closed it meanwhile, or its client may be using it again.
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

    /// Serves a connection in the framing that its first bytes select.
    async fn serve(&self, stream: UnixStream, connection: Arc<Connection>) {
        let timeout = self.service.bounds.request_timeout;
        let first = tokio::select! {
            biased;
            first = peek(&stream) => first,
            () = self.end.stop.cancelled() => return,
            // The client has sent nothing, so it loses nothing. It gets `daemon.closing` and reconnects to the next instance.
            () = self.end.upgrading.cancelled() => Ok(Some(Framing::Lines)),
            () = tokio::time::sleep(timeout) => {
                tracing::debug!(pid = connection.pid(), "closed a connection that sent nothing");
                return;
            }
        };
        match first {
            Ok(Some(Framing::Http)) => self.http.serve(stream, connection, &self.end).await,
            Ok(Some(Framing::Lines)) => {
                json_lines::serve(stream, self.service.clone(), connection, &self.end).await;
            }
            Ok(Some(Framing::Unknown)) => refuse_framing(stream).await,
            Ok(None) | Err(_) => {}
        }
    }
}

/// The connections that may be closed for a new one.
#[derive(Debug, Clone, Copy)]
enum Scope {
    /// Those that may call every method.
    Ordinary,
    /// Those in the reserve, which may call `daemon.*` only.
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

/// The framing that a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Lines,
    Http,
    /// Begins like HTTP but is not, such as the `Content-Length:` of the Language Server Protocol.
    Unknown,
}

impl Framing {
    /// Returns the framing for the first bytes; there is at least one.
    fn of(first: &[u8]) -> Self {
        let word = first.split(|byte| *byte == b' ').next().unwrap_or_default();
        match word.first() {
            Some(byte) if !byte.is_ascii_uppercase() => Self::Lines,
            Some(_) if word.iter().all(u8::is_ascii_uppercase) => Self::Http,
            Some(_) => Self::Unknown,
            // The first byte is a space.
            None => Self::Lines,
        }
    }
}

/// Reads the first bytes without consuming them. Returns `None` if the client has closed.
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

/// Refuses a client whose framing is not supported.
async fn refuse_framing(mut stream: UnixStream) {
    let text = format!("{}\n", http::SPOKEN);
    let answer = http::whole("400 Bad Request", "text/plain; charset=utf-8", &text);
    // The client may have closed meanwhile.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Refuses a client because a connection limit is reached.
async fn refuse(mut stream: UnixStream, reached: LimitReached) {
    let error = too_many_connections(match reached {
        LimitReached::Total(max) => format!("{max} connections are open (connections_max); close some"),
        LimitReached::Process(max) => {
            format!("this process has {max} connections open (connections_max_per_process); close some")
        }
    });
    let answer = format!("{}\n", error_json(&jsonrpsee::types::Id::Null, error).get());
    // A client that sends nothing gets a JSON line.
    let framing = tokio::time::timeout(REFUSAL_PEEK, peek(&stream)).await;
    let answer = match framing {
        Ok(Ok(Some(Framing::Http))) => http::whole("503 Service Unavailable", "application/json", &answer),
        _ => answer,
    };
    // The client may have closed meanwhile.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
