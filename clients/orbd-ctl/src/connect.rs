//! Connects to the daemon, and starts it if necessary.

use orbd_client::{Client, Sent};
use orbd_proto::methods::Method;

use crate::console::Console;
use crate::error::CliError;
use crate::launch;
use crate::link::{CLIENT_NAME, Link, greet, greet_and_ask};

/// Connects to the daemon, starting it if necessary, and greets it.
pub(crate) fn connect(link: &Link, console: &mut Console) -> Result<Client, CliError> {
    let mut client = reach(link, console)?;
    match greet(&mut client, &link.socket) {
        // The daemon accepted the connection while it was shutting down.
        Err(CliError::Lost(_)) => {
            client = reach(link, console)?;
            greet(&mut client, &link.socket)?;
        }
        other => {
            other?;
        }
    }
    Ok(client)
}

/// Connects, and sends the greeting and a call in one message. For read-only calls only: the call is executed even if the daemon
/// rejects the greeting.
pub(crate) fn connect_and_ask<M: Method>(
    link: &Link,
    console: &mut Console,
    params: &M::Params,
) -> Result<(Client, Sent<M>), CliError> {
    let mut client = reach(link, console)?;
    match greet_and_ask::<M>(&mut client, &link.socket, CLIENT_NAME, params) {
        // The daemon accepted the connection while it was shutting down.
        Err(CliError::Lost(_)) => {
            client = reach(link, console)?;
            let (_, sent) = greet_and_ask::<M>(&mut client, &link.socket, CLIENT_NAME, params)?;
            Ok((client, sent))
        }
        other => other.map(|(_, sent)| (client, sent)),
    }
}

fn reach(link: &Link, console: &mut Console) -> Result<Client, CliError> {
    match link.dial() {
        Err(CliError::NotRunning { .. }) if link.autostart && launch::is_wanted() => {
            launch::launch(link, console)
        }
        other => other,
    }
}
