//! The way to the daemon: which socket, whether to start what should listen there, and who we say that we are.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orbd::client::{CallError, Client, Sent};
use orbd::config::SOCKET_PATH_MAX;
use orbd::rpc::api::{DaemonHello, DaemonInfo, Method, PROTOCOL_VERSION};
use orbd::rpc::errors::ErrorKind;
use orbd::rpc::socket::lock_path;
use orbd::rpc::types::{HelloAnswer, HelloParams, NoParams};
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::args::Global;
use crate::console::Console;
use crate::environment::Environment;
use crate::error::CliError;
use crate::launch;

/// Our name in job lists and records.
pub(crate) const CLIENT_NAME: &str = "orbd-ctl";

/// How long a daemon that took our connection may be silent before we call it mute.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// How long a question on the side may take; what it asks is nice to know, never needed.
pub(crate) const SIDE_QUESTION_MAX: Duration = Duration::from_secs(2);

/// Where the daemon is and how to get there.
pub(crate) struct Link {
    /// Its socket, absolute.
    pub(crate) socket: PathBuf,
    /// Start it when it does not run.
    pub(crate) autostart: bool,
    /// What to start it from.
    pub(crate) environment: Environment,
}

impl Link {
    /// Finds the socket: `--socket`, else `$ORBD_SOCKET`, else `~/.orbd/orbd.sock`.
    pub(crate) fn resolve(global: &Global, environment: Environment) -> Result<Self, CliError> {
        let given = global.socket.clone().or_else(|| environment.socket.clone());
        let socket = match (given, &environment.home) {
            (Some(path), _) => path,
            (None, Some(home)) => home.join(".orbd").join("orbd.sock"),
            (None, None) => {
                return Err(CliError::Usage {
                    message: "HOME is not set, so the daemon's socket cannot be found".into(),
                    hint: "set HOME, ORBD_SOCKET or --socket".into(),
                });
            }
        };
        Ok(Self {
            // The daemon is started in another directory.
            socket: std::path::absolute(&socket).unwrap_or(socket),
            autostart: !global.no_autostart && !environment.autostart_off,
            environment,
        })
    }

    /// Connects to a daemon that runs, without a word.
    pub(crate) fn dial(&self) -> Result<Client, CliError> {
        let length = self.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(CliError::Usage {
                message: format!(
                    "the path of the socket has {length} bytes; the system allows {SOCKET_PATH_MAX}"
                ),
                hint: "give a shorter one with --socket or ORBD_SOCKET".into(),
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

    /// Connects to the daemon, starting it if need be, and says who we are.
    pub(crate) fn connect(&self, console: &mut Console) -> Result<Client, CliError> {
        let mut client = self.reach(console)?;
        match greet(&mut client, &self.socket) {
            // It was on its way out when it took our connection.
            Err(CliError::Lost(_)) => {
                client = self.reach(console)?;
                greet(&mut client, &self.socket)?;
            }
            other => {
                other?;
            }
        }
        Ok(client)
    }

    /// Connects likewise, and asks in the same breath. Only for what changes nothing: it is asked also of a daemon that refuses us.
    pub(crate) fn connect_and_ask<M: Method>(
        &self,
        console: &mut Console,
        params: &M::Params,
    ) -> Result<(Client, Sent<M>), CliError> {
        let mut client = self.reach(console)?;
        match greet_and_ask::<M>(&mut client, &self.socket, CLIENT_NAME, params) {
            // It was on its way out when it took our connection.
            Err(CliError::Lost(_)) => {
                client = self.reach(console)?;
                let (_, sent) = greet_and_ask::<M>(&mut client, &self.socket, CLIENT_NAME, params)?;
                Ok((client, sent))
            }
            other => other.map(|(_, sent)| (client, sent)),
        }
    }

    /// Connects once more for a question on the side, which never waits long and may fail.
    pub(crate) fn side_connection(&self) -> Option<Client> {
        let mut client = self.dial().ok()?;
        client.set_timeout(Some(SIDE_QUESTION_MAX)).ok()?;
        client.hello(CLIENT_NAME).ok()?;
        Some(client)
    }

    /// Says whether a daemon holds the lock beside the socket, also one that takes no connections any more.
    ///
    /// Whoever looks at a free lock holds it for a moment. Shared, so that those who look do not mislead each other; a daemon that
    /// starts in that moment gives up, which is why nobody looks who does not wait for one to go, and why [`launch`] starts
    /// another.
    pub(crate) fn is_held(&self) -> bool {
        let opened = OpenOptions::new()
            .read(true)
            // Neither elsewhere nor for a writer of a pipe is waited: the socket may be in a directory that others write to.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(lock_path(&self.socket));
        opened.is_ok_and(|file| {
            flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }

    fn reach(&self, console: &mut Console) -> Result<Client, CliError> {
        match self.dial() {
            Err(CliError::NotRunning { .. }) if self.autostart && launch::is_wanted() => {
                launch::launch(self, console)
            }
            other => other,
        }
    }
}

/// Says who we are and compares protocols.
pub(crate) fn greet(client: &mut Client, socket: &Path) -> Result<HelloAnswer, CliError> {
    let answer = client
        .start::<DaemonHello>(&hello_of(CLIENT_NAME))
        .and_then(|mut pending| pending.wait(GREETING_MAX));
    greeted(client, socket, answer)
}

/// Says that we are `name` and asks what changes nothing, in one message; its answer is fetched afterwards.
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

fn hello_of(name: &str) -> HelloParams {
    HelloParams {
        client: name.into(),
        protocol: PROTOCOL_VERSION,
    }
}

/// Takes in how we were greeted.
fn greeted(
    client: &mut Client,
    socket: &Path,
    answer: Result<Option<HelloAnswer>, CallError>,
) -> Result<HelloAnswer, CliError> {
    match answer {
        Ok(Some(hello)) if hello.protocol == PROTOCOL_VERSION => Ok(hello),
        Ok(Some(hello)) => Err(mismatch(&hello.version, hello.protocol)),
        Ok(None) => Err(CliError::Mute {
            socket: socket.to_owned(),
        }),
        Err(CallError::Refused(error)) if error.code == ErrorKind::ProtocolMismatch.code() => {
            // `daemon.info` is the same in every protocol so far; without it the daemon's own words have to do.
            match client.call::<DaemonInfo>(&NoParams {}) {
                Ok(info) => Err(mismatch(&info.version, info.protocol)),
                Err(_) => Err(CliError::Protocol {
                    message: format!(
                        "{}; this is orbd-ctl {} with protocol {PROTOCOL_VERSION}",
                        error.message,
                        env!("CARGO_PKG_VERSION")
                    ),
                    hint: RESTART.into(),
                }),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// What mends it when the daemon is the older.
const RESTART: &str = "once both are updated, `orbd-ctl daemon restart` starts the orbd that is installed";

fn mismatch(version: &str, protocol: u32) -> CliError {
    let ours = env!("CARGO_PKG_VERSION");
    CliError::Protocol {
        message: format!(
            "orbd {version} speaks protocol {protocol}, this orbd-ctl {ours} speaks protocol {PROTOCOL_VERSION}"
        ),
        hint: if protocol < PROTOCOL_VERSION {
            RESTART.into()
        } else {
            format!("this orbd-ctl is the older: update it to {version}, or call the one beside that orbd")
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_by_a_daemon_and_not_by_those_who_look() {
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
    fn a_mismatch_names_both_versions_and_what_mends_it_in_both_directions() {
        use crate::fake::Fake;
        use orbd::rpc::errors::ErrorKind as Kind;
        use serde_json::json;

        let check = |answers: fn(&mut crate::fake::Peer, &serde_json::Value), older: &str| {
            let daemon = Fake::greeting(answers);
            let (context, ..) = daemon.context();
            let mut client = context.link.dial().unwrap();
            let error = greet(&mut client, &context.link.socket).unwrap_err();
            let text = error.to_string();
            let ours = format!("this orbd-ctl {} speaks protocol 1", env!("CARGO_PKG_VERSION"));
            assert!(text.contains("orbd 9.9 speaks protocol "), "{text}");
            assert!(text.ends_with(&ours), "{text}");
            assert!(error.hint().unwrap().contains(older), "{:?}", error.hint());
            assert_eq!(error.exit(), 3);
        };
        // One that is content with us, though we are not with it.
        check(
            |peer, request| peer.answer(request, json!({"protocol": 0, "version": "9.9", "instance": "i"})),
            "`orbd-ctl daemon restart`",
        );
        // One that refuses us, and then says who it is.
        check(
            |peer, request| {
                if request["method"] == "daemon.hello" {
                    peer.refuse(request, Kind::ProtocolMismatch.error("no"));
                } else {
                    let info = json!({"protocol": 2, "version": "9.9", "instance": "i", "pid": 1, "uptime_ms": 0,
                        "started_at": "", "socket": "", "orbctl": null, "config_file": null, "state_dir": "",
                        "limits": {}, "strict": false});
                    peer.answer(request, info);
                }
            },
            "this orbd-ctl is the older: update it to 9.9",
        );
    }

    #[test]
    fn the_flag_goes_before_the_variable_before_the_home_directory() {
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
    }
}
