//! Resident channels: commands that share one `orbctl run`, on the stand-in.
#![expect(clippy::disallowed_methods, reason = "a test kills an orbctl with `kill`")]

use std::fs;

use orbd_proto::methods::{
    CacheInvalidate, DaemonInfo, DaemonReload, MachineList, MachineRename, MachineRestart, MachineRun,
    MachineStop, MetricsCounters, MetricsHistory, QueuePause,
};
use orbd_proto::types::{Channel, JobStateWord};
use serde_json::{Value, json};

use crate::dropin::Way;
use crate::support::{Caller, World, eventually, is_alive, outcome_of, stdout_of};

/// The daemon knows from a read that `orbctl` takes long.
fn world(machines: &[&str]) -> World {
    let world = slow().machines(machines).started();
    world.client().ok::<MachineList>(json!({}));
    world
}

/// Every `orbctl` takes long.
fn slow() -> World {
    World::new().channels().latency("list=25,run=25")
}

/// Runs a command and announces more, so that it opens a channel.
fn run(caller: &mut Caller, machine: &str, script: &str) -> String {
    let params = json!({"machine": machine, "command": ["sh", "-c", script], "channel": "open"});
    stdout_of(&caller.ok::<MachineRun>(params))
}

/// Returns the channels, without their age.
fn channels(caller: &mut Caller) -> Vec<Channel> {
    let mut channels = caller.ok::<DaemonInfo>(json!({})).channels;
    for channel in &mut channels {
        channel.age_ms = None;
    }
    channels
}

/// Returns how many `orbctl run` have started, and how many of them run.
fn runs(world: &World) -> (usize, usize) {
    let ledger = world.ledger();
    let running = ledger.of("run").iter().filter(|run| run.end.is_none()).count();
    (ledger.spawns("run"), running)
}

#[track_caller]
fn until_closed(world: &World) {
    eventually("every channel is closed", || (runs(world).1 == 0).then_some(()));
}

#[test]
fn commands_of_a_machine_share_one_orbctl_run() {
    let world = world(&["a", "b"]);
    let mut caller = world.client();
    for number in 0..5 {
        for machine in ["a", "b"] {
            assert_eq!(
                run(&mut caller, machine, &format!("echo {number}")),
                format!("{number}\n")
            );
        }
    }
    assert_eq!(world.ledger().spawns("run"), 2);
    let off = json!({"machine": "a", "command": ["echo", "alone"], "channel": "off"});
    assert_eq!(stdout_of(&caller.ok::<MachineRun>(off)), "alone\n");
    assert_eq!(world.ledger().spawns("run"), 3);
}

#[test]
fn a_channel_ends_before_a_change_of_its_machine_begins() {
    let world = world(&["a", "b"]);
    let mut caller = world.client();
    for machine in ["a", "b"] {
        run(&mut caller, machine, "true");
    }
    caller.ok::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(run(&mut caller, "a", "echo again"), "again\n");
    assert_eq!(run(&mut caller, "b", "echo still"), "still\n");
    let ledger = world.ledger();
    ledger.assert_no_overlap();
    assert_eq!(
        ledger.spawns("run"),
        3,
        "only the channel of the changed machine was closed"
    );
}

#[test]
fn a_change_through_the_drop_in_finds_no_channel() {
    let world = world(&["a"]);
    let mut caller = world.client();
    run(&mut caller, "a", "true");
    let stopped = Way::DropIn.command(&world, &["orbctl", "stop", "a"]).output();
    assert!(stopped.expect("it starts").status.success());
    world.ledger().assert_no_overlap();
}

#[test]
fn a_stop_leaves_no_process_of_a_channel() {
    let mut world = world(&["a"]);
    let mut caller = world.client();
    run(&mut caller, "a", "true");
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    let ledger = world.ledger();
    assert!(
        ledger.of("run").iter().all(|run| run.end.is_some()),
        "{:?}",
        ledger.of("run")
    );
}

#[test]
fn after_a_crash_changes_wait_for_the_end_of_idle_and_busy_channels() {
    for script in ["true", "echo begun; exec sleep 1000"] {
        let mut world = world(&["a"]);
        let mut caller = world.client();
        run(&mut caller, "a", "true");
        if script != "true" {
            let params = json!({"machine": "a", "command": ["sh", "-c", script], "detach": true});
            let id = caller.ok::<MachineRun>(params).job_id;
            caller.until_running(id);
            eventually("it writes", || (caller.job(id).output_bytes > 0).then_some(()));
        }
        world.kill();
        world.start();
        world.client().ok::<MachineStop>(json!({"machine": "a"}));
        let ledger = world.ledger();
        ledger.assert_no_overlap();
        assert!(ledger.of("run").iter().all(|run| run.end.is_some()), "{script}");
    }
}

#[test]
fn after_a_crash_a_command_that_ignores_sigterm_is_killed() {
    let mut world = world(&["a"]);
    let mut caller = world.client();
    run(&mut caller, "a", "true");
    let script = "echo $$ >pid; trap '' TERM; while :; do sleep 0.05; done";
    caller.run_detached("a", &["sh", "-c", script]);
    let machine = fs::read_dir(world.path("sim/machines"))
        .expect("a folder")
        .flatten()
        .next();
    let file = machine.expect("one").path().join("home/pid");
    let pid = eventually("it runs", || fs::read_to_string(&file).ok()?.trim().parse().ok());
    world.kill();
    world.start();
    eventually("it is killed", || (!is_alive(pid)).then_some(()));
}

#[test]
fn a_machine_that_was_replaced_before_the_first_list_gets_its_own_channel() {
    let world = slow().machines(&["a"]).started();
    let mut caller = world.client();
    // Without a list, the second command opens the channel.
    let mut place = || {
        let answer = caller.ok::<MachineRun>(json!({"machine": "a", "command": ["pwd"]}));
        stdout_of(&answer)
    };
    let first = place();
    assert_eq!(place(), first);
    world.sim(&["rename", "a", "old"]);
    world.sim(&["create", "ubuntu", "a"]);
    world.client().ok::<MachineList>(json!({"max_age_ms": 0}));
    assert_ne!(place(), first);
}

#[test]
fn jobs_records_counters_and_the_daemon_say_which_commands_a_channel_served() {
    let world = world(&["a"]);
    let mut caller = world.client();
    let mut ran = |params: Value| {
        let id = caller.ok::<MachineRun>(params).job_id;
        (id, caller.job(id).in_channel)
    };
    let served = ran(json!({"machine": "a", "command": ["true"], "channel": "open"}));
    let alone = ran(json!({"machine": "a", "command": ["true"], "channel": "off"}));
    let again = ran(json!({"machine": "a", "command": ["true"]}));
    assert_eq!([served.1, alone.1, again.1], [true, false, true]);
    let idle = Channel {
        machine: "a".into(),
        user: None,
        state: "idle".into(),
        age_ms: None,
        commands: Some(2),
        problem: None,
    };
    assert_eq!(channels(&mut caller), [idle]);
    let records = eventually("the records are stored", || {
        let records = caller.ok::<MetricsHistory>(json!({})).records;
        let of_run: Vec<_> = records.into_iter().filter(|one| one.operation == "run").collect();
        (of_run.len() == 3).then_some(of_run)
    });
    for record in records {
        assert_eq!(record.in_channel, record.job_id != alone.0);
    }
    let counters = caller.ok::<MetricsCounters>(json!({})).counters;
    assert_eq!(
        (counters["channels_opened"], counters["channel_commands"]),
        (1, 1)
    );
}

#[test]
fn configuration_turns_channels_off_for_all_machines_or_for_some() {
    let world = slow().machines(&["a", "b"]);
    let file = world.path("config.toml");
    let configure = |text: &str| fs::write(&file, text).expect("written");
    configure("");
    let world = world
        .variable("ORBD_CONFIG", &file.display().to_string())
        .started();
    let mut caller = world.client();
    caller.ok::<MachineList>(json!({}));
    let reload = |text: &str| {
        configure(text);
        world.client().ok::<DaemonReload>(json!({}));
        let before = world.ledger().spawns("run");
        let mut caller = world.client();
        for machine in ["a", "b", "a", "b"] {
            run(&mut caller, machine, "true");
        }
        world.ledger().spawns("run") - before
    };
    assert_eq!(reload("grace = \"2s\"\n"), 2, "a channel each");
    assert_eq!(
        reload("exec_channel_except = [\"b\"]\n"),
        2,
        "only b runs one for each command"
    );
    assert_eq!(reload("exec_channel = \"off\"\n"), 4);
    let off = caller.ok::<DaemonInfo>(json!({})).channels_off.expect("off");
    assert_eq!(
        (off.cause.as_str(), off.message.as_str()),
        ("configured", "`exec_channel` is \"off\"")
    );
    until_closed(&world);
}

#[test]
fn strict_mode_opens_no_channel() {
    let world = slow().set("strict", "true").machines(&["a"]).started();
    let mut caller = world.client();
    caller.ok::<MachineList>(json!({}));
    for _ in 0..3 {
        run(&mut caller, "a", "true");
    }
    assert_eq!(world.ledger().spawns("run"), 3);
    let off = caller.ok::<DaemonInfo>(json!({})).channels_off.expect("off");
    assert_eq!(off.message, "`strict` is set");
}

/// Does something that closes a channel.
type Close<'a> = Box<dyn Fn(&mut Caller) + 'a>;

#[test]
fn whatever_makes_a_channel_doubtful_closes_it() {
    let world = world(&["a"]);
    let mut caller = world.client();
    let file = world.path("file").display().to_string();
    fs::write(&file, "text").expect("written");
    let closing: [(&str, Close<'_>); 3] = [
        (
            "an invalidation",
            Box::new(|caller| {
                caller.ok::<CacheInvalidate>(json!({}));
            }),
        ),
        (
            "a push",
            Box::new(|_| {
                let pushed = Way::DropIn
                    .command(&world, &["orbctl", "push", "-m", "a", &file])
                    .output();
                assert!(pushed.expect("it starts").status.success());
            }),
        ),
        (
            "a machine that was stopped and deleted by another program",
            Box::new(|caller| {
                world.sim(&["delete", "-f", "a"]);
                caller.ok::<MachineList>(json!({"max_age_ms": 0}));
                world.sim(&["create", "ubuntu", "a"]);
            }),
        ),
    ];
    for (what, close) in closing {
        run(&mut caller, "a", "true");
        assert_eq!(runs(&world).1, 1, "{what}");
        close(&mut caller);
        until_closed(&world);
    }
    run(&mut caller, "a", "true");
    caller.ok::<QueuePause>(json!({"machine": "a"}));
    until_closed(&world);
}

#[test]
fn without_a_client_an_idle_channel_closes() {
    let world = world(&["a"]);
    run(&mut world.client(), "a", "true");
    until_closed(&world);
}

#[test]
fn a_new_machine_of_the_old_name_gets_its_own_channel() {
    let world = world(&["a", "b"]);
    let mut caller = world.client();
    let place = run(&mut caller, "b", "pwd");
    run(&mut caller, "a", "true");
    caller.ok::<MachineStop>(json!({"machine": "a"}));
    caller.ok::<MachineRename>(json!({"machine": "a", "new_name": "old"}));
    caller.ok::<MachineRename>(json!({"machine": "b", "new_name": "a"}));
    assert_eq!(
        run(&mut caller, "a", "pwd").trim().rsplit('/').next(),
        place.trim().rsplit('/').next()
    );
}

#[test]
fn users_of_a_machine_have_a_channel_in_turn() {
    let world = world(&["a"]);
    let mut caller = world.client();
    let own = caller.machines().remove(0).config.default_username;
    let named = own.as_deref().filter(|name| !name.is_empty());
    assert!(
        named.is_some(),
        "the machine's own user, who is another key if named"
    );
    for user in [None, named, None, named] {
        let params = json!({"machine": "a", "user": user, "command": ["true"], "channel": "open"});
        caller.ok::<MachineRun>(params);
        let channels = channels(&mut caller);
        let open: Vec<_> = channels.iter().map(|channel| channel.user.as_deref()).collect();
        assert_eq!(open, [user], "{channels:?}");
    }
}

#[test]
fn cancelled_and_late_commands_end_and_the_channel_serves_on() {
    let world = world(&["a"]);
    let mut caller = world.client();
    run(&mut caller, "a", "true");
    let late = json!({"machine": "a", "command": ["sleep", "1000"], "run_timeout_ms": 100});
    assert_eq!(caller.refused::<MachineRun>(late).kind, "deadline_exceeded");
    let id = caller.run_detached("a", &["sh", "-c", "echo begun; exec sleep 1000"]);
    eventually("it writes", || (caller.job(id).output_bytes > 0).then_some(()));
    caller.cancel(id);
    let job = caller.end_of(id);
    assert_eq!(outcome_of(&job), ("cancelled", "job_cancelled"));
    assert_eq!(run(&mut caller, "a", "echo on"), "on\n");
    assert_eq!(world.ledger().spawns("run"), 1);
}

#[test]
fn the_client_of_a_command_whose_channel_broke_learns_that_it_may_have_run() {
    let world = world(&["a"]);
    let mut caller = world.client();
    run(&mut caller, "a", "true");
    let id = caller.run_detached("a", &["sh", "-c", "echo begun; exec sleep 1000"]);
    eventually("it writes", || (caller.job(id).output_bytes > 0).then_some(()));
    let ledger = world.ledger();
    let orbctl = ledger.of("run")[0].pid;
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &orbctl.to_string()])
        .status();
    assert!(killed.expect("a program").success());
    let job = caller.end_of(id);
    let error = job.outcome.and_then(|outcome| outcome.error).expect("it failed");
    assert_eq!(error.data.expect("data").kind, "job_interrupted");
    assert_eq!(run(&mut caller, "a", "echo next"), "next\n");
    assert_eq!(
        caller.ok::<MetricsCounters>(json!({})).counters["channels_unknown"],
        1
    );
}

#[test]
fn a_change_of_the_configuration_does_not_wait_for_a_busy_channel() {
    let world = world(&["a"]);
    let mut caller = world.client();
    run(&mut caller, "a", "true");
    let id = caller.run_detached("a", &["sh", "-c", "echo begun; exec sleep 1000"]);
    eventually("it writes", || (caller.job(id).output_bytes > 0).then_some(()));
    let set = Way::DropIn
        .command(&world, &["orbctl", "config", "set", "memory_mib", "4096"])
        .output();
    assert!(set.expect("it starts").status.success());
    assert_eq!(caller.job(id).state, JobStateWord::Running);
    caller.cancel(id);
    until_closed(&world);
}
