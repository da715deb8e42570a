//! Event subscriptions: real daemons, real changes, and connections that break or fall behind.

use orbd_proto::methods::{
    CacheInvalidate, MachineCreate, MachineDelete, MachineList, MachineRename, MachineStop,
};
use serde_json::{Value, json};

use crate::support::{Wire, World, eventually};

/// A connection with one subscription.
struct Watcher {
    wire: Wire,
    subscription: Value,
}

impl Watcher {
    fn new(world: &World, params: &Value) -> Self {
        let mut wire = world.wire();
        let answer = wire.call(1, "events.subscribe", params);
        assert!(answer["result"].is_u64(), "{answer}");
        Self {
            wire,
            subscription: answer["result"].clone(),
        }
    }

    /// Reads the next event.
    fn next(&mut self) -> Value {
        let message = self.wire.receive().expect("an event");
        assert_eq!(message["method"], "events.event", "{message}");
        assert_eq!(message["params"]["subscription"], self.subscription);
        message["params"]["result"].clone()
    }

    /// Reads until the machines are known. The first poll may finish before the state is sent, and is then part of it.
    /// Returns the event that has the machines, and the machines.
    fn until_machines_are_known(&mut self) -> (Value, Value) {
        let state = self.next();
        assert_eq!(state["type"], "state", "{state}");
        if state["machine_list"].is_null() {
            let known = self.until("machines_known");
            let machines = known["machines"].clone();
            (known, machines)
        } else {
            let machines = state["machine_list"]["machines"].clone();
            (state, machines)
        }
    }

    /// Reads until an event of this type; skips all before it.
    fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next();
            if event["type"] == kind {
                return event;
            }
        }
    }
}

/// Invalidates the cache `times` times. Each is one event.
fn invalidate(world: &World, times: usize) {
    let mut caller = world.client();
    for _ in 0..times {
        caller.ok::<CacheInvalidate>(json!({}));
    }
}

fn number(event: &Value) -> u64 {
    event["sequence"].as_u64().expect("a number")
}

#[test]
fn subscriber_gets_the_state_and_then_the_events_of_a_change() {
    // So long that no poll runs during this test.
    let world = World::new()
        .set("watch_interval", "1h")
        .machines(&["a"])
        .started();
    let mut caller = world.client();
    let mut watcher = Watcher::new(&world, &json!({}));
    let (known, machines) = watcher.until_machines_are_known();
    assert_eq!(machines[0]["name"], "a");
    assert_eq!(known["unhealthy"], Value::Null);

    caller.ok::<MachineCreate>(json!({"name": "b", "distro": "ubuntu"}));
    let mut last = number(&known);
    let mut kinds = Vec::new();
    loop {
        let event = watcher.next();
        assert_eq!(number(&event), last + 1);
        assert_eq!(event["instance"], known["instance"]);
        last += 1;
        kinds.push(event["type"].as_str().expect("a word").to_owned());
        if event["type"] == "machine_appeared" {
            assert_eq!(
                (&event["machine"]["name"], &event["machine"]["state"]),
                (&json!("b"), &json!("running"))
            );
            break;
        }
    }
    let about_jobs: Vec<&str> = kinds
        .iter()
        .map(String::as_str)
        .filter(|kind| kind.starts_with("job"))
        .collect();
    assert_eq!(about_jobs, ["job_queued", "job_started", "job_ended"]);

    caller.ok::<MachineStop>(json!({"machine": "a"}));
    let changed = watcher.until("machine_changed");
    assert_eq!(
        (&changed["machine"]["name"], &changed["machine"]["state"]),
        (&json!("a"), &json!("stopped"))
    );
    caller.ok::<MachineRename>(json!({"machine": "b", "new_name": "c"}));
    let renamed = watcher.until("machine_changed");
    assert_eq!(
        (&renamed["machine"]["name"], &renamed["renamed_from"]),
        (&json!("c"), &json!("b"))
    );
    caller.ok::<MachineDelete>(json!({"machine": "c"}));
    assert_eq!(watcher.until("machine_gone")["machine"]["name"], "c");

    // A new subscriber gets the rest in the state.
    let state = Watcher::new(&world, &json!({"kinds": ["orbctl_unhealthy"]})).next();
    assert_eq!(
        state["machine_list"]["machines"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(
        (&state["machine_list"]["stale"], &state["orbstack"]),
        (&json!(false), &json!("running"))
    );
}

#[test]
fn polls_detect_changes_made_outside_the_daemon() {
    let world = World::new()
        .set("watch_interval", "100ms")
        .machines(&["a"])
        .started();
    let mut watcher = Watcher::new(
        &world,
        &json!({"kinds": ["machine_appeared", "machine_changed", "machine_gone"]}),
    );
    watcher.until("state");
    let outside = |words: &[&str]| assert!(world.sim(words).status.success());
    // The first poll makes the machines known; from then on each difference is an event.
    eventually("the first poll", || {
        (world.ledger().spawns("list") > 0).then_some(())
    });
    outside(&["create", "ubuntu", "b"]);
    outside(&["stop", "a"]);
    let mut told = [watcher.next(), watcher.next()];
    told.sort_by_key(|event| event["type"].as_str().map(str::to_owned));
    if told[0]["type"] == "machine_appeared" {
        assert_eq!(told[0]["machine"]["name"], "b");
        assert_eq!(
            (&told[1]["type"], &told[1]["machine"]["state"]),
            (&json!("machine_changed"), &json!("stopped"))
        );
    } else {
        panic!("{told:?}");
    }
    outside(&["delete", "-f", "b"]);
    assert_eq!(watcher.until("machine_gone")["machine"]["name"], "b");
    let ledger = world.ledger();
    assert!(
        ledger.spawns("status") >= ledger.spawns("list"),
        "each poll begins with the status"
    );
}

#[test]
fn polls_never_start_a_stopped_orbstack() {
    let world = World::new().set("watch_interval", "100ms").machines(&["a"]);
    assert!(world.sim(&["stop"]).status.success());
    let world = world.started();
    let mut watcher = Watcher::new(&world, &json!({}));
    let status = watcher.until("orbstack_changed");
    assert_eq!(status["status"], "stopped");
    eventually("more polls", || {
        (world.ledger().spawns("status") >= 4).then_some(())
    });
    let commands: Vec<String> = world
        .ledger()
        .invocations
        .iter()
        .map(|one| one.command.clone())
        .collect();
    assert!(commands.iter().all(|command| command == "status"), "{commands:?}");
    assert_eq!(
        world.sim(&["status"]).status.code(),
        Some(1),
        "OrbStack is still stopped"
    );
}

#[test]
fn subscription_to_job_events_starts_no_polls() {
    let world = World::new()
        .set("watch_interval", "100ms")
        .machines(&["a"])
        .started();
    let mut watcher = Watcher::new(&world, &json!({"kinds": ["job_ended"]}));
    watcher.until("state");
    for code in [0, 7] {
        world
            .client()
            .run("a", &["sh", "-c", &format!("sleep 0.3; exit {code}")]);
        let ended = watcher.next();
        assert_eq!(
            (&ended["type"], &ended["outcome"]["exit_code"]),
            (&json!("job_ended"), &json!(code))
        );
        assert_eq!(
            (&ended["job"]["operation"], &ended["job"]["machine"]),
            (&json!("run"), &json!("a"))
        );
    }
    assert_eq!(world.ledger().spawns("status") + world.ledger().spawns("list"), 0);
}

#[test]
fn returning_subscriber_gets_each_missed_event_once() {
    let world = World::with_machines(&["a"]);
    let kinds = json!(["cache_invalidated"]);
    let mut watcher = Watcher::new(&world, &json!({"kinds": kinds}));
    let state = watcher.next();
    invalidate(&world, 3);
    let mut last = number(&state);
    for _ in 0..2 {
        last = number(&watcher.next());
    }
    // It disconnects before it has read the third event.
    drop(watcher);
    invalidate(&world, 2);
    let mut watcher = Watcher::new(
        &world,
        &json!({"kinds": kinds, "since": last, "instance": state["instance"]}),
    );
    for _ in 0..3 {
        let event = watcher.next();
        assert_eq!(
            (&event["type"], number(&event)),
            (&json!("cache_invalidated"), last + 1)
        );
        last += 1;
    }
    // There is nothing more to read, so the next event is new.
    invalidate(&world, 1);
    assert_eq!(number(&watcher.next()), last + 1);
}

#[test]
fn returning_too_late_or_to_another_instance_gives_a_gap_and_the_state() {
    let mut world = World::with_machines(&["a"]);
    world.client().ok::<MachineList>(json!({}));
    let kinds = json!(["cache_invalidated"]);
    let state = Watcher::new(&world, &json!({"kinds": kinds})).next();
    invalidate(&world, 1100);
    let newest = number(&state) + 1100;
    let check = |world: &World, since: u64, instance: Option<&Value>, reason: &str, newest: u64| {
        let mut params = json!({"kinds": kinds, "since": since});
        if let Some(instance) = instance {
            params["instance"] = instance.clone();
        }
        let mut watcher = Watcher::new(world, &params);
        let gap = watcher.next();
        assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!(reason)));
        let state = watcher.next();
        assert_eq!((&state["type"], number(&state)), (&json!("state"), newest));
        invalidate(world, 1);
        assert_eq!(
            number(&watcher.next()),
            newest + 1,
            "events continue after the state"
        );
    };
    check(&world, number(&state), None, "not_kept", newest);
    check(
        &world,
        newest + 1,
        Some(&json!("another-life")),
        "other_instance",
        newest + 1,
    );
    check(&world, newest + 1_000_000, None, "other_instance", newest + 2);
    world.terminate();
    world.ended();
    world.start();
    check(&world, 1, Some(&state["instance"]), "other_instance", 0);
}

#[test]
fn slow_subscriber_delays_no_other_and_gets_a_gap() {
    const EVENTS: usize = 8_000;
    let world = World::with_machines(&["a"]);
    let kinds = json!(["cache_invalidated"]);
    let mut slow = Watcher::new(&world, &json!({"kinds": kinds}));
    let mut quick = Watcher::new(&world, &json!({"kinds": kinds}));
    let first = number(&quick.next());
    let work = world.background(|caller| {
        for _ in 0..EVENTS {
            caller.ok::<CacheInvalidate>(json!({}));
        }
    });
    let newest = first + EVENTS as u64;
    let mut last = first;
    while last < newest {
        let event = quick.next();
        // Even the fast reader may get a gap on a busy machine, but never an event twice.
        assert!(
            number(&event) > last || event["type"] == "state" || event["type"] == "gap",
            "{event}"
        );
        last = number(&event);
    }
    work.join().expect("all were taken");
    let mut last = number(&slow.next());
    let mut gaps = 0;
    while last < newest {
        let event = slow.next();
        if event["type"] == "gap" {
            gaps += 1;
            assert_eq!(event["reason"], "not_kept");
            let state = slow.next();
            assert_eq!(state["type"], "state");
            assert!(number(&state) > last);
            last = number(&state);
        } else {
            assert_eq!(number(&event), last + 1);
            last += 1;
        }
    }
    assert!(gaps >= 1, "more events than are kept for a subscriber");
}

#[test]
fn a_thousand_subscribers_all_get_one_change() {
    const CONNECTIONS: usize = 250;
    const EACH: usize = 4;
    let world = World::new()
        .set("connections_max_per_process", "300")
        .machines(&["a"])
        .started();
    let params = json!({"kinds": ["cache_invalidated"]});
    let mut wires: Vec<Wire> = (0..CONNECTIONS).map(|_| world.wire()).collect();
    for wire in &mut wires {
        for id in 0..EACH {
            wire.request(id as u64, "events.subscribe", &params);
        }
        let mut states = 0;
        while states < EACH {
            let message = wire.receive().expect("answers and states");
            states += usize::from(message["params"]["result"]["type"] == "state");
        }
    }
    invalidate(&world, 1);
    let mut told = std::collections::BTreeSet::new();
    let mut subscriptions = std::collections::BTreeSet::new();
    for (at, wire) in wires.iter_mut().enumerate() {
        for _ in 0..EACH {
            let message = wire.receive().expect("the event");
            let event = &message["params"]["result"];
            assert_eq!(event["type"], "cache_invalidated");
            told.insert(number(event));
            subscriptions.insert((at, message["params"]["subscription"].as_u64()));
        }
    }
    assert_eq!(
        (told.len(), subscriptions.len()),
        (1, CONNECTIONS * EACH),
        "each subscription gets the event once"
    );
}

#[test]
fn a_subscription_can_be_ended_as_soon_as_its_id_is_known() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    for _ in 0..200 {
        let answer = wire.call(1, "events.subscribe", &json!({"kinds": ["cache_invalidated"]}));
        let id = answer["result"].clone();
        let ended = wire.call(2, "events.unsubscribe", &json!([id]));
        assert_eq!(ended["result"], true);
        let again = wire.exchange(
            &json!({"jsonrpc": "2.0", "id": 3, "method": "events.unsubscribe", "params": [id]}).to_string(),
        );
        assert_eq!(
            (&again["id"], &again["result"]),
            (&json!(3), &json!(false)),
            "no notification follows the end"
        );
    }
    // The ended subscriptions hold no permits: the connection still accepts calls.
    invalidate(&world, 1);
    let answer = wire.call(4, "daemon.info", &json!({}));
    assert!(answer["result"]["instance"].is_string());
}

/// A subscriber keeps the probes going: it gets the recovery although no client sends a request, and then what it
/// missed.
#[test]
fn subscriber_gets_outage_recovery_and_changes_made_meanwhile() {
    let world = World::new()
        .set("query_timeout", "1s")
        .set("grace", "200ms")
        .script("")
        .machines(&["a"])
        .started();
    let mut watcher = Watcher::new(&world, &json!({}));
    watcher.until_machines_are_known();
    world.rescript("[[trouble]]\nkind = \"panic\"");
    world.client().ok::<MachineList>(json!({"max_age_ms": 0}));
    let unhealthy = watcher.until("orbctl_unhealthy");
    let reason = unhealthy["reason"].as_str().expect("a reason");
    assert!(reason.contains("panic"), "{reason}");
    let state = Watcher::new(&world, &json!({"kinds": ["orbctl_unhealthy"]})).next();
    assert_eq!(state["unhealthy"]["reason"], unhealthy["reason"]);

    assert!(
        world.sim(&["stop", "a"]).status.success(),
        "changed outside the daemon"
    );
    world.rescript("");
    watcher.until("orbctl_recovered");
    let changed = watcher.until("machine_changed");
    assert_eq!(changed["machine"]["state"], "stopped");
    let state = Watcher::new(&world, &json!({"kinds": ["orbctl_recovered"]})).next();
    assert_eq!(state["unhealthy"], Value::Null);
}
