//! The daemon's socket: finds it, connects to a running daemon, and greets it. [`crate::connect`] also starts the daemon.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orbd_client::{CallError, Client, Sent};
use orbd_host::config::SOCKET_PATH_MAX;
use orbd_host::config::lock_path;
use orbd_host::sys;
use orbd_proto::errors::ErrorKind;
use orbd_proto::methods::{DaemonHello, DaemonInfo, MachineList, Method, PROTOCOL_MIN, PROTOCOL_VERSION};
use orbd_proto::protocol::ProtocolRange;
use orbd_proto::types::{DaemonInfoAnswer, HelloAnswer, HelloParams, NoParams, ReadParams};
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::args::Global;
use crate::console::now;
use crate::environment::Environment;
use crate::error::CliError;

/// The client name that orbd shows in job lists and records.
pub(crate) const CLIENT_NAME: &str = "orbd-ctl";

/// Maximum time for the daemon to answer the greeting.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// How long a client without a common protocol waits for a daemon that is about to execute its new program.
const SWITCH_MAX: Duration = Duration::from_secs(2);

/// Pause between two greetings during that wait.
const SWITCH_PAUSE: Duration = Duration::from_millis(50);

/// Timeout of calls over a side connection, whose answers are optional.
pub(crate) const SIDE_QUESTION_MAX: Duration = Duration::from_secs(2);

/// The daemon's socket, and how to start the daemon.
#[derive(Clone)]
pub(crate) struct Link {
    /// Absolute path of the socket.
    pub(crate) socket: PathBuf,
    /// Start the daemon if it is not running.
    pub(crate) autostart: bool,
    /// The environment of this client.
    pub(crate) environment: Environment,
}

impl Link {
    /// Resolves the socket: `--socket`, `$ORBD_SOCKET`, or `~/.orbd/orbd.sock`, in this order.
    pub(crate) fn resolve(global: &Global, environment: Environment) -> Result<Self, CliError> {
        if let (None, Some(path)) = (&global.socket, &environment.socket)
            && !path.is_absolute()
        {
            return Err(CliError::Usage {
                message: format!("ORBD_SOCKET must be an absolute path, but is {}", path.display()),
                hint: "a relative path would name another daemon in each folder: set the whole path, or unset ORBD_SOCKET"
                    .into(),
            });
        }
        let given = global.socket.clone().or_else(|| environment.socket.clone());
        let socket = match (given, &environment.home) {
            (Some(path), _) => path,
            (None, Some(home)) => home.join(".orbd").join("orbd.sock"),
            (None, None) => {
                return Err(CliError::Usage {
                    message: "HOME is not set, so the path of the daemon's socket is unknown".into(),
                    hint: "set HOME, ORBD_SOCKET or --socket".into(),
                });
            }
        };
        Ok(Self {
            // Made absolute because the daemon is started in another directory.
            socket: std::path::absolute(&socket).unwrap_or(socket),
            autostart: !global.no_autostart && !environment.autostart_off,
            environment,
        })
    }

    /// Connects to a running daemon, without a greeting.
    pub(crate) fn dial(&self) -> Result<Client, CliError> {
        let length = self.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(CliError::Usage {
                message: format!(
                    "the path of the socket has {length} bytes; the system allows {SOCKET_PATH_MAX}"
                ),
                hint: "set a shorter path with --socket or ORBD_SOCKET".into(),
            });
        }
        Client::connect(&self.socket).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => CliError::NotRunning {
                socket: self.socket.clone(),
            },
            _ => CliError::Unreachable {
                socket: self.socket.clone(),
                source,
            },
        })
    }

    /// Opens a second connection for optional calls with a short timeout. `None` if that fails.
    pub(crate) fn side_connection(&self) -> Option<Client> {
        let mut client = self.dial().ok()?;
        client.set_timeout(Some(SIDE_QUESTION_MAX)).ok()?;
        client.hello(CLIENT_NAME).ok()?;
        Some(client)
    }

    /// Returns the names of all machines for a message; empty if they cannot be read at once.
    pub(crate) fn machine_names(&self) -> Vec<String> {
        let answer = self
            .side_connection()
            .and_then(|mut client| client.call::<MachineList>(&ReadParams::default()).ok());
        let machines = answer.map(|answer| answer.machines).unwrap_or_default();
        machines.into_iter().map(|machine| machine.name).collect()
    }

    /// Returns whether a daemon holds the socket's lock. True also for a daemon that is shutting down and accepts no connections.
    ///
    /// Checking a free lock holds it for a moment. The check takes a shared lock, so concurrent checks do not disturb each other, but a
    /// daemon that starts at that moment exits. Therefore only clients that wait for a daemon to exit check the lock, and [`crate::launch`]
    /// starts the daemon again.
    pub(crate) fn is_held(&self) -> bool {
        let opened = OpenOptions::new()
            .read(true)
            // Other users may be able to write to the socket's directory: do not follow a link, and do not block on a pipe.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(lock_path(&self.socket));
        opened.is_ok_and(|file| {
            flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }
}

/// The wait for a daemon that is about to execute its new program. The first call after an upgrade makes the daemon notice its new
/// program, and would fail if the client is upgraded too and speaks only the new protocol.
#[derive(Default)]
pub(crate) struct SwitchWait {
    since: Option<Instant>,
}

impl SwitchWait {
    /// Returns whether to connect and greet again after this error. Pauses for a moment before that.
    pub(crate) fn is_worth_another_try(&mut self, error: &CliError) -> bool {
        let is_switching = match error {
            CliError::Protocol { is_switching, .. } => *is_switching,
            // While it switches, the daemon closes connections.
            CliError::Lost(_) => self.since.is_some(),
            _ => false,
        };
        let is_early = now() - *self.since.get_or_insert_with(now) < SWITCH_MAX;
        let again = is_switching && is_early;
        if again {
            std::thread::sleep(SWITCH_PAUSE);
        }
        again
    }
}

/// Sends the greeting and agrees on a protocol version.
pub(crate) fn greet(client: &mut Client, socket: &Path) -> Result<HelloAnswer, CliError> {
    let answer = client
        .start::<DaemonHello>(&hello_of(CLIENT_NAME))
        .and_then(|mut pending| pending.wait(GREETING_MAX));
    greeted(client, socket, answer)
}

/// Sends a greeting as client `name` and a read-only call in one message. The caller fetches the answer to the call.
pub(crate) fn greet_and_ask<M: Method>(
    client: &mut Client,
    socket: &Path,
    name: &str,
    params: &M::Params,
) -> Result<(HelloAnswer, Sent<M>), CliError> {
    let (hello, sent) = client.send_both::<DaemonHello, M>(&hello_of(name), params)?;
    let answer = client.fetch(&hello, GREETING_MAX);
    Ok((greeted(client, socket, answer)?, sent))
}

pub(crate) fn hello_of(name: &str) -> HelloParams {
    HelloParams {
        client: name.into(),
        protocol: PROTOCOL_VERSION,
        protocol_min: Some(PROTOCOL_MIN),
    }
}

/// Returns the error for a daemon that does not answer.
pub(crate) fn mute(client: &Client, socket: &Path) -> CliError {
    CliError::Mute {
        socket: socket.to_owned(),
        pid: sys::listener_of(client),
    }
}

/// Evaluates the answer to the greeting.
fn greeted(
    client: &mut Client,
    socket: &Path,
    answer: Result<Option<HelloAnswer>, CallError>,
) -> Result<HelloAnswer, CliError> {
    match answer {
        Ok(Some(hello)) if ProtocolRange::OURS.contains(hello.protocol) => Ok(hello),
        Ok(Some(_)) => Err(client
            .call::<DaemonInfo>(&NoParams {})
            .map_or_else(Into::into, |info| mismatch(&info))),
        Ok(None) => Err(mute(client, socket)),
        Err(CallError::Refused(error)) if error.code == ErrorKind::ProtocolMismatch.code() => {
            // `daemon.info` is the same in all protocol versions so far. If the call fails, the daemon's error message is used.
            match client.call::<DaemonInfo>(&NoParams {}) {
                Ok(info) => Err(mismatch(&info)),
                Err(_) => Err(CliError::Protocol {
                    message: format!(
                        "{}; this orbd-ctl {} speaks {}",
                        error.message,
                        env!("CARGO_PKG_VERSION"),
                        ProtocolRange::OURS
                    ),
                    hint: UPGRADE_OLDER.into(),
                    is_switching: false,
                }),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Hint if it is unknown which side is older.
const UPGRADE_OLDER: &str = "upgrade the older of the two; `orbd-ctl doctor` names the command";

/// Returns the protocol versions that a daemon speaks.
pub(crate) fn protocols_of(info: &DaemonInfoAnswer) -> Option<ProtocolRange> {
    ProtocolRange::announced(Some(info.protocol_min), info.protocol)
}

/// Returns the error for a daemon without a common protocol.
pub(crate) fn mismatch(info: &DaemonInfoAnswer) -> CliError {
    let (theirs, ours) = (protocols_of(info), ProtocolRange::OURS);
    let version = &info.version;
    let speaks = theirs.map_or_else(|| "an unknown protocol".into(), |theirs| theirs.to_string());
    let is_switching = info
        .upgrade
        .as_ref()
        .is_some_and(|upgrade| matches!(upgrade.state.as_str(), "checking" | "pending"));
    CliError::Protocol {
        message: format!(
            "orbd {version} speaks {speaks}, this orbd-ctl {} speaks {ours}",
            env!("CARGO_PKG_VERSION")
        ),
        is_switching,
        hint: match theirs {
            _ if is_switching => {
                "a new orbd is installed and starts when orbd is idle; `orbd-ctl daemon restart` does not wait".into()
            }
            Some(theirs) if theirs.is_older_than(ours) => {
                "orbd is older: upgrade it; `orbd-ctl doctor` names the command".into()
            }
            Some(_) => format!("this orbd-ctl is older: upgrade it to {version}"),
            None => UPGRADE_OLDER.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exclusive_lock_counts_as_held() {
        let directory = tempfile::tempdir().unwrap();
        let link = Link {
            socket: directory.path().join("orbd.sock"),
            autostart: false,
            environment: Environment::default(),
        };
        assert!(!link.is_held(), "there is no lock yet");
        let lock = std::fs::File::create(lock_path(&link.socket)).unwrap();
        assert!(!link.is_held());
        flock(&lock, FlockOperation::NonBlockingLockShared).unwrap();
        assert!(!link.is_held());
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(link.is_held());
        drop(lock);
        assert!(!link.is_held());
    }

    #[test]
    fn a_protocol_mismatch_names_both_ranges_and_the_fix() {
        use crate::fake::Fake;
        use orbd_proto::errors::ErrorKind as Kind;
        use serde_json::json;

        let check = |min: u32, max: u32, speaks: &str, older: &str| {
            let daemon = Fake::greeting(move |peer, request| {
                if request["method"] == "daemon.hello" {
                    assert_eq!(
                        request["params"],
                        json!({"client": "orbd-ctl", "protocol": 1, "protocol_min": 1})
                    );
                    peer.refuse(request, Kind::ProtocolMismatch.error("no"));
                } else {
                    let info = json!({"protocol": max, "protocol_min": min, "version": "9.9", "instance": "i", "pid": 1,
                        "uptime_ms": 0, "started_at": "", "program": null, "socket": "", "orbctl": null, "config_file": null,
                        "state_dir": "", "limits": {}, "strict": false});
                    peer.answer(request, info);
                }
            });
            let (context, ..) = daemon.context();
            let mut client = context.link.dial().unwrap();
            let error = greet(&mut client, &context.link.socket).unwrap_err();
            let text = error.to_string();
            let ours = format!("this orbd-ctl {} speaks protocol 1", env!("CARGO_PKG_VERSION"));
            assert!(text.starts_with(&format!("orbd 9.9 speaks {speaks}, ")), "{text}");
            assert!(text.ends_with(&ours), "{text}");
            assert!(error.hint().unwrap().contains(older), "{:?}", error.hint());
            assert_eq!(error.exit(), 3);
        };
        check(0, 0, "protocol 0", "orbd is older: upgrade it; `orbd-ctl doctor`");
        check(
            2,
            4,
            "protocols 2 to 4",
            "this orbd-ctl is older: upgrade it to 9.9",
        );
    }

    #[test]
    fn first_call_after_an_upgrade_waits_for_the_new_program() {
        use crate::fake::Fake;
        use orbd_proto::errors::ErrorKind as Kind;
        use serde_json::json;
        use std::sync::atomic::{AtomicU32, Ordering};

        let check = |state: &'static str, refusals: u32| {
            let greetings = AtomicU32::new(0);
            let daemon = Fake::greeting(move |peer, request| {
                if request["method"] == "daemon.info" {
                    let info = json!({"protocol": 0, "protocol_min": 0, "version": "0.0.1", "instance": "i", "pid": 1,
                        "uptime_ms": 0, "started_at": "", "program": "/p", "socket": "", "orbctl": null, "config_file": null,
                        "state_dir": "", "limits": {}, "strict": false, "upgrade": {"state": state, "noticed_at": ""}});
                    peer.answer(request, info);
                } else if greetings.fetch_add(1, Ordering::Relaxed) < refusals {
                    peer.refuse(request, Kind::ProtocolMismatch.error("no"));
                } else {
                    peer.answer(
                        request,
                        json!({"protocol": 1, "version": "0.1.0", "instance": "j"}),
                    );
                }
            });
            let (mut context, ..) = daemon.context();
            context.connect().map(drop)
        };
        check("checking", 2).unwrap();
        check("pending", 2).unwrap();
        let refused = check("refused", 2).unwrap_err();
        assert!(refused.hint().unwrap().contains("orbd is older"), "{refused}");
        let late = check("pending", u32::MAX).unwrap_err();
        assert!(
            late.hint().unwrap().contains("starts when orbd is idle"),
            "{late}"
        );
    }

    #[test]
    fn socket_flag_overrides_variable_overrides_home() {
        let check =
            |flag: Option<&str>, variable: Option<&str>, home: Option<&str>, expected: Option<&str>| {
                let global = Global {
                    socket: flag.map(Into::into),
                    ..Global::default()
                };
                let environment = Environment {
                    socket: variable.map(Into::into),
                    home: home.map(Into::into),
                    ..Environment::default()
                };
                let link = Link::resolve(&global, environment).ok();
                assert_eq!(link.map(|link| link.socket), expected.map(PathBuf::from));
            };
        check(Some("/f"), Some("/v"), Some("/h"), Some("/f"));
        check(None, Some("/v"), Some("/h"), Some("/v"));
        check(None, None, Some("/h"), Some("/h/.orbd/orbd.sock"));
        check(None, None, None, None);
        // Another daemon in each folder; a flag, which is for one call, may be relative.
        check(None, Some("v"), Some("/h"), None);
        check(Some("/f"), Some("v"), Some("/h"), Some("/f"));
        let here = std::path::absolute("f").expect("a folder");
        check(Some("f"), None, Some("/h"), here.to_str());
    }
}
