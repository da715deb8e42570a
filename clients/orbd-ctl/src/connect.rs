//! Connects to the daemon, and starts it if necessary.

use orbd_client::{Client, Sent};
use orbd_proto::methods::Method;

use crate::console::Console;
use crate::error::CliError;
use crate::launch;
use crate::link::{CLIENT_NAME, Link, SwitchWait, greet, greet_and_ask};

/// Connects to the daemon, starting it if necessary, and greets it.
pub(crate) fn connect(link: &Link, console: &mut Console) -> Result<Client, CliError> {
    reach_and_greet(link, console, |client| greet(client, &link.socket)).map(|(client, _)| client)
}

/// Connects, and sends the greeting and a call in one message. For read-only calls only: the call is executed even if the daemon
/// rejects the greeting.
pub(crate) fn connect_and_ask<M: Method>(
    link: &Link,
    console: &mut Console,
    params: &M::Params,
) -> Result<(Client, Sent<M>), CliError> {
    let greet_and_ask = |client: &mut Client| greet_and_ask::<M>(client, &link.socket, CLIENT_NAME, params);
    reach_and_greet(link, console, greet_and_ask).map(|(client, (_, sent))| (client, sent))
}

/// Connects and greets, again if the daemon was just shutting down or is about to execute its new program.
fn reach_and_greet<T>(
    link: &Link,
    console: &mut Console,
    mut greet: impl FnMut(&mut Client) -> Result<T, CliError>,
) -> Result<(Client, T), CliError> {
    let mut switch = SwitchWait::default();
    let mut was_lost = false;
    loop {
        let mut client = reach(link, console)?;
        match greet(&mut client) {
            Ok(greeted) => return Ok((client, greeted)),
            // The daemon accepted the connection while it was shutting down.
            Err(CliError::Lost(_)) if !was_lost => was_lost = true,
            Err(error) if switch.is_worth_another_try(&error) => {}
            Err(error) => return Err(error),
        }
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
