//! What an idle daemon costs after much work: memory and wakeups, with and without a subscriber.

use std::time::{Duration, Instant};

use super::Scale;
use super::daemon::{Daemon, request};
use super::stand_in::MACHINE;
use super::stats::{Bar, Table};

/// Connections that give the daemon work.
const CLIENTS: usize = 8;

pub(crate) fn measure(scale: Scale, table: &mut Table) {
    let operations = scale.pick(100_000, 40);
    let daemon = Daemon::with_stand_in(&["exec_per_machine=16"]);
    let fresh = f64::from(daemon.memory_kb("VmRSS")) / 1024.0;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let daemon = &daemon;
            scope.spawn(move || work(daemon, client, operations / CLIENTS));
        }
    });
    let took = began.elapsed().as_secs_f64();
    let after = f64::from(daemon.memory_kb("VmRSS")) / 1024.0;
    let counters = daemon.lines().call("metrics.counters", "{}");
    let recorded = counters["counters"]["records_accepted"].as_u64();
    assert!(recorded >= u64::try_from(operations).ok(), "{counters}");
    // Records are handed over and flushed, and the helper exits after ten idle seconds.
    let until = Instant::now() + Duration::from_secs(scale.pick(60, 0));
    while Instant::now() < until && has_children(daemon.pid()) {
        std::thread::sleep(Duration::from_millis(200));
    }
    std::thread::sleep(Duration::from_secs(scale.pick(2, 0)));
    let before = wakeups(daemon.pid());
    let span = Duration::from_secs(scale.pick(60, 0));
    std::thread::sleep(span);
    let woken = wakeups(daemon.pid()) - before;
    let resident = f64::from(daemon.memory_kb("VmRSS")) / 1024.0;
    let mb = |value: f64| format!("{value:.1} MB");
    table.add(
        "resident after 100,000 operations, MB",
        format!("fresh {}", mb(fresh)),
        format!("at once {}", mb(after)),
        &[resident],
        Bar::AtMost(10.0),
    );
    table.add(
        "wakeups per second, over a minute",
        format!("{operations} operations"),
        format!("in {took:.0} s"),
        &[f64::from(woken) / span.as_secs_f64().max(1.0)],
        Bar::AtMost(0.1),
    );
    with_subscriber(scale, &daemon, table);
}

/// Measures what an idle subscriber costs: polls that find nothing new.
fn with_subscriber(scale: Scale, daemon: &Daemon, table: &mut Table) {
    let mut subscriber = daemon.lines();
    subscriber.call("events.subscribe", "{}");
    // Wait for the first poll, and until the poll interval is at its maximum.
    std::thread::sleep(Duration::from_secs(scale.pick(30, 0)));
    let spawns = |daemon: &Daemon| {
        let counters = daemon.lines().call("metrics.counters", "{}");
        counters["counters"]["spawns"].as_u64().unwrap_or_default()
    };
    let spawned = spawns(daemon);
    let before = wakeups(daemon.pid());
    let span = Duration::from_secs(scale.pick(60, 0));
    std::thread::sleep(span);
    let woken = wakeups(daemon.pid()) - before;
    // Each poll reads the status and the list.
    #[expect(clippy::cast_precision_loss, reason = "few")]
    let polls = (spawns(daemon) - spawned) as f64 / 2.0;
    table.add(
        "wakeups per poll, over a minute",
        format!("{polls} polls"),
        "idle subscriber".into(),
        &[f64::from(woken) / polls.max(1.0)],
        Bar::AtMost(12.0),
    );
}

/// Alternates uncached reads and commands.
fn work(daemon: &Daemon, client: usize, operations: usize) {
    let mut lines = daemon.lines();
    lines.call(
        "daemon.hello",
        &format!("{{\"client\":\"bench-{client}\",\"protocol\":1}}"),
    );
    let run = request(
        "machine.run",
        &format!("{{\"machine\":\"{MACHINE}\",\"command\":[\"true\"]}}"),
    );
    for _ in 0..operations {
        let answer = lines.exchange(&run).expect("an answer");
        assert!(answer.contains("\"exit_code\":0"), "{answer}");
    }
}

/// Returns whether the process has children; false if the system does not report them.
fn has_children(pid: u32) -> bool {
    threads(pid).into_iter().any(|thread| {
        std::fs::read_to_string(thread.join("children")).is_ok_and(|children| !children.trim().is_empty())
    })
}

/// Returns how often the process's threads blocked voluntarily, which is how often they were woken.
fn wakeups(pid: u32) -> u32 {
    threads(pid)
        .into_iter()
        .filter_map(|thread| std::fs::read_to_string(thread.join("status")).ok())
        .filter_map(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            line.trim().parse::<u32>().ok()
        })
        .sum()
}

fn threads(pid: u32) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|thread| thread.path())
        .collect()
}
