//! Accepting connections: who may come in, how many, and which framing the first byte asks for.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::budget::TotalBudget;
use super::connection::{Connection, ConnectionId, too_many_connections};
use super::connection_limit::{ConnectionLimit, ConnectionPermit, LimitReached};
use super::http::{self, Http};
use super::lines;
use super::request::{Bounds, Service, error_json};
use super::served::Published;
use super::server::{Server, methods};
use crate::clock::Moment;
use crate::metrics::Counter;

/// How long to wait after an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections have to end after a stop, once no more requests are taken.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long it is waited for connections to come to rest.
const REST_MAX: Duration = Duration::from_millis(200);
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

/// What happens to the door.
#[derive(Debug)]
pub enum Door {
    /// It is held: connections wait to be accepted, and those that are come to rest. Answered when all have, or after a moment: some
    /// never do, as those with a subscription.
    Hold(oneshot::Sender<()>),
    /// It is open again, and all goes on as if nothing had been.
    Open,
}

/// A connection at rest, with the name that its client gave itself.
pub type AtRest = (UnixStream, Arc<str>);

/// What was held when serving ended, for whoever serves on.
#[derive(Debug, Default)]
pub struct Held {
    /// The listener.
    pub listener: Option<UnixListener>,
    /// Connections.
    pub connections: Vec<AtRest>,
}

/// Serves the listener until `stop`, beginning with connections that an earlier life accepted; returns when the last connection is
/// gone or at rest, or soon after.
///
/// `settings` may change meanwhile, all but the bounds. `answered` says that every job has ended: until then connections stay, because
/// their calls still wait for answers.
pub async fn serve(
    listener: UnixListener,
    accepted_before: Vec<AtRest>,
    server: Arc<Server>,
    mut settings: watch::Receiver<Settings>,
    mut door: mpsc::Receiver<Door>,
    stop: CancellationToken,
    answered: CancellationToken,
) -> Held {
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
    let (rest, rests) = watch::channel(false);
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
        stop: answered.clone(),
        rests,
    });
    let mut doorway = Doorway {
        host: host.clone(),
        connections: JoinSet::new(),
        at_rest: Vec::new(),
        rest,
        is_held: false,
        asked: None,
    };
    for (stream, name) in accepted_before {
        doorway.admit(stream, Some(name));
    }
    loop {
        let patience = doorway.patience();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = doorway.connections.join_next() => doorway.ended(ended.ok().flatten()),
            Ok(()) = settings.changed() => {
                let settings = settings.borrow_and_update();
                host.limit.set(settings.connections_max, settings.connections_max_per_process);
            }
            Some(change) = door.recv() => match change {
                Door::Hold(told) => doorway.hold(told),
                Door::Open => doorway.open(),
            },
            () = sleep_until(patience), if patience.is_some() => doorway.tell(),
            accepted = listener.accept(), if !doorway.is_held => match accepted {
                Ok((stream, _)) => {
                    host.server.glance.look();
                    doorway.admit(stream, None);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Unless they are held, new connections are refused from here on. Calls under way get their answers.
    let listener = doorway.is_held.then_some(listener);
    answered.cancelled().await;
    if tokio::time::timeout(FAREWELL, doorway.gone()).await.is_err() {
        tracing::debug!("connections were closed before they ended");
    }
    let at_rest = doorway.at_rest.into_iter();
    Held {
        listener,
        connections: at_rest
            .map(|resting| (resting.stream, resting.connection.name()))
            .collect(),
    }
}

/// Where connections come in, are served, and rest.
struct Doorway {
    host: Arc<Host>,
    connections: JoinSet<Option<Resting>>,
    at_rest: Vec<Resting>,
    /// Tells connections whether to come to rest.
    rest: watch::Sender<bool>,
    is_held: bool,
    /// Who is to be told that all are at rest, and until when that is waited for.
    asked: Option<(oneshot::Sender<()>, Instant)>,
}

impl Doorway {
    fn admit(&mut self, stream: UnixStream, name: Option<Arc<str>>) {
        let host = self.host.clone();
        self.connections
            .spawn(async move { host.welcome(stream, name).await });
    }

    /// Serves a connection that came to rest further.
    fn resume(&mut self, resting: Resting) {
        let host = self.host.clone();
        self.connections.spawn(async move {
            host.attend(resting.stream, resting.connection, resting.permit)
                .await
        });
    }

    fn hold(&mut self, told: oneshot::Sender<()>) {
        self.is_held = true;
        self.rest.send_replace(true);
        self.asked = Some((told, Moment::now().instant + REST_MAX));
        self.tell_if_all_rest();
    }

    fn open(&mut self) {
        self.is_held = false;
        self.rest.send_replace(false);
        self.asked = None;
        for resting in std::mem::take(&mut self.at_rest) {
            self.resume(resting);
        }
    }

    /// A connection is gone, or at rest.
    fn ended(&mut self, resting: Option<Resting>) {
        match resting {
            Some(resting) if self.is_held => self.at_rest.push(resting),
            // The door was opened again before it got here.
            Some(resting) => self.resume(resting),
            None => {}
        }
        self.tell_if_all_rest();
    }

    fn tell_if_all_rest(&mut self) {
        if self.connections.is_empty() {
            self.tell();
        }
    }

    /// Tells whoever asked that those who come to rest have.
    fn tell(&mut self) {
        if let Some((told, _)) = self.asked.take() {
            // Whoever asked may have gone meanwhile.
            let _ = told.send(());
        }
    }

    fn patience(&self) -> Option<Instant> {
        self.asked.as_ref().map(|(_, until)| *until)
    }

    /// Waits until connections are gone or at rest. While the door is held, those on which nothing is under way and that cannot rest
    /// are not waited for: somebody else takes over.
    async fn gone(&mut self) {
        while !(self.is_held && self.host.is_idle())
            && let Some(ended) = self.connections.join_next().await
        {
            self.at_rest.extend(ended.ok().flatten());
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A connection at rest, which nobody serves. To everybody else it is as if somebody did.
struct Resting {
    stream: UnixStream,
    connection: Arc<Connection>,
    permit: Arc<ConnectionPermit>,
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
    stop: CancellationToken,
    /// Whether connections are to come to rest.
    rests: watch::Receiver<bool>,
}

impl Host {
    /// Serves one connection, whose client may have named itself before, until it is gone or at rest.
    async fn welcome(&self, stream: UnixStream, name: Option<Arc<str>>) -> Option<Resting> {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a peer could not be identified");
                return None;
            }
        };
        // The folder's mode keeps others out; this holds even if somebody loosens it.
        if peer.uid() != self.uid && peer.uid() != 0 {
            tracing::warn!(uid = peer.uid(), "a connection of another user was refused");
            return None;
        }
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let permit = match self.permit(pid).await {
            Ok(permit) => Arc::new(permit),
            Err(limit) => {
                refuse(stream, limit).await;
                return None;
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
        if let Some(name) = name {
            connection.set_name(&name);
        }
        self.open().insert(id, connection.clone());
        self.attend(stream, connection, permit).await
    }

    /// Serves one connection, and tells the dispatcher when it is gone.
    async fn attend(
        &self,
        stream: UnixStream,
        connection: Arc<Connection>,
        permit: Arc<ConnectionPermit>,
    ) -> Option<Resting> {
        let id = connection.id();
        tokio::select! {
            stream = self.serve(stream, connection.clone()) => {
                if let Some(stream) = stream {
                    return Some(Resting { stream, connection, permit });
                }
            }
            // It was idle, so nothing is cut off.
            () = connection.gone().cancelled() => {}
        }
        self.open().remove(&id);
        drop(permit);
        // In this order: what a handler hands in from now on is refused, and what it handed in before is found.
        connection.gone().cancel();
        self.server.dispatcher.connection_gone(id.0).await;
        None
    }

    fn open(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether nothing is under way on any connection.
    fn is_idle(&self) -> bool {
        self.open()
            .values()
            .all(|connection| connection.idle_since().is_some())
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

    /// Serves a connection until it is gone; gives the stream back when it is at rest.
    async fn serve(&self, stream: UnixStream, connection: Arc<Connection>) -> Option<UnixStream> {
        let mut rests = self.rests.clone();
        let timeout = self.service.bounds.request_timeout;
        let first = tokio::select! {
            first = peek(&stream) => first,
            () = self.stop.cancelled() => return None,
            () = tokio::time::sleep(timeout) => {
                tracing::debug!(pid = connection.pid(), "closed a connection that sent nothing");
                return None;
            }
            // Nothing has been taken from it.
            Ok(_) = rests.wait_for(|rests| *rests) => return Some(stream),
        };
        match first {
            Ok(Some(Framing::Http)) => {
                self.http.serve(stream, connection, &self.stop).await;
                None
            }
            Ok(Some(Framing::Lines)) => {
                let (service, stop) = (self.service.clone(), self.stop.clone());
                lines::serve(stream, service, connection, stop, self.rests.clone()).await
            }
            Ok(Some(Framing::Unknown)) => {
                refuse_framing(stream).await;
                None
            }
            Ok(None) | Err(_) => None,
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
