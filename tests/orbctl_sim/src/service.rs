//! The service behind the client.
//!
//! The real `orbctl` only asks OrbStack's background service for a change and waits; killing it does not undo the work.
//! Here each change is executed by a worker of its own: a detached process that leaves the client's session before the
//! client continues, so no signal to the client or to its process group reaches it.
//!
//! ```text
//! client ──stdin: the order, JSON──▶ worker (sim-service)
//!        ◀──"taken"─────────────────  left the session; from here the work will be done
//!        ◀──the reply, JSON─────────  unless the client is gone
//! ```

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::Sim;
use crate::answers::StopReturns;
use crate::commands::change::{self, Task};
use crate::ledger::Ledger;
use crate::refusal::{Outcome, Refusal};
use crate::reply::Reply;
use crate::script::{Kind, Trouble};
use crate::settings::Settings;
use crate::state::Store;
use crate::trouble;

/// Hidden command that starts a worker.
pub(crate) const WORD: &str = "sim-service";

/// Input of a worker.
#[derive(Serialize, Deserialize)]
struct Order {
    /// Id of the invocation in the ledger.
    invocation: String,
    task: Task,
}

/// Hands over a change and waits for its reply, or dies as scripted.
pub(crate) fn hand_over(sim: &Sim<'_>, task: Task, troubles: &[Trouble]) -> Outcome<Reply> {
    let inventory = sim.store.read()?;
    let stops_known = match &task {
        Task::Stop { machines } => machines.iter().all(|name| inventory.find(name).is_some()),
        _ => false,
    };
    let order = Order {
        invocation: sim.ledger.id().to_owned(),
        task,
    };
    let order = serde_json::to_vec(&order).map_err(|error| Refusal::Whole(error.to_string()))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(sim.store.home().join("service.log"))?;
    let mut worker = Command::new(std::env::current_exe()?)
        .arg(WORD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    if let Some(mut stdin) = worker.stdin.take() {
        stdin.write_all(&order)?;
    }
    let Some(stdout) = worker.stdout.take() else {
        return Err(Refusal::Whole("the service has no voice".to_owned()));
    };
    let mut stdout = BufReader::new(stdout);
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    if let Some(trouble) = troubles.iter().find(|t| t.kind == Kind::MadeThoughClientDied) {
        trouble::die(trouble.ending);
    }
    if sim.settings.answers.everywhere().stop_returns == StopReturns::Early && stops_known {
        return Ok(Reply::silent());
    }
    line.clear();
    stdout.read_line(&mut line)?;
    // The worker ends right after its reply; waiting for it leaves no zombie if the client continues.
    let _ = worker.wait();
    serde_json::from_str(&line).map_err(|_| {
        Refusal::Whole("the service went away; see service.log in the state directory".to_owned())
    })
}

/// Hands over a change that another command needs first; a refusal of the change refuses that command.
pub(crate) fn demand(sim: &Sim<'_>, task: Task) -> Outcome<()> {
    let reply = hand_over(sim, task, &[])?;
    if reply.exit == 0 {
        Ok(())
    } else {
        Err(Refusal::ServiceText(reply.stderr))
    }
}

/// Runs as a worker.
pub(crate) fn work() -> Outcome<Reply> {
    let mut order = Vec::new();
    std::io::stdin().read_to_end(&mut order)?;
    let order: Order = serde_json::from_slice(&order).map_err(|error| Refusal::Whole(error.to_string()))?;
    rustix::process::setsid()?;
    say("taken");
    let settings = Settings::from_environment()?;
    let store = Store::open(&settings.home)?;
    let ledger = Ledger::join(&settings.ledger, order.invocation)?;
    let sim = Sim {
        settings,
        store,
        ledger: &ledger,
    };
    let answers = sim.settings.answers.everywhere();
    let done = change::carry_out(&sim, &order.task);
    let reply = Reply::from(done.map_err(|refusal| refusal.of(order.task.name(), answers)));
    let reply = serde_json::to_string(&reply).map_err(|error| Refusal::Whole(error.to_string()))?;
    say(&reply);
    Ok(Reply::silent())
}

/// Writes to the client, which may be dead: the work does not depend on it.
fn say(line: &str) {
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{line}");
    let _ = stdout.flush();
}
