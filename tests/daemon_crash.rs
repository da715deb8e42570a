//! Crashes of the daemon. Its children survive: the next instance must neither run anything concurrently with them nor
//! lose an acknowledged detached change.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

use orbd_proto::methods::{JobGet, MachineCreate, MachineRestart, MachineStart, MachineStop};
use orbd_proto::types::JobStateWord;
use serde_json::json;

use crate::ctl_suite::ctl;
use crate::dropin::Way;
use crate::support::{Caller, World, eventually, outcome_of};

#[test]
fn change_that_outlived_the_daemon_holds_its_lane_until_it_ends() {
    let mut world = World::new()
        .latency("restart=900")
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let attached = world.background(|caller| {
        caller
            .try_call::<MachineRestart>(json!({"machine": "a"}))
            .is_err()
    });
    let id = caller.find("restart", "a", JobStateWord::Running).job_id;
    eventually("it is there", || {
        (world.ledger().spawns("restart") == 1).then_some(())
    });
    world.kill();
    assert!(attached.join().expect("no panic"), "the connection is lost");
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.job(id).state, JobStateWord::Running);
    let next = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let waits_for = caller.job(next).waiting_for.expect("it waits");
    assert_eq!(waits_for.job_id(), Some(id));
    assert_eq!(
        caller.run("b", &["true"]).exit_code,
        Some(0),
        "other machines are not affected"
    );
    assert_eq!(outcome_of(&caller.end_of(next)), ("succeeded", ""));
    assert_eq!(outcome_of(&caller.end_of(id)), ("unknown", "outcome_unknown"));
    let ledger = world.ledger();
    ledger.assert_no_overlap();
    assert_eq!(ledger.order_on("a"), ["restart", "restart"]);
}

/// Starts a daemon whose `orbctl create` writes to both streams, as the real one does, until a file `go` exists. Then
/// it writes some more and makes the machine. It leaves the files `begun` and `made`. Other verbs are the stand-in's.
fn talkative() -> World {
    let world = World::new();
    let program = world.path("orbctl");
    let text = format!(
        "#!/bin/sh\n\
         progress() {{ echo \"creating\"; echo \"still creating\" >&2; sleep 0.1; }}\n\
         if [ \"$1\" = create ]; then\n\
         : > '{folder}/begun'\n\
         while [ ! -e '{folder}/go' ]; do progress; done\n\
         for more in 1 2 3; do progress; done\n\
         '{sim}' \"$@\" && : > '{folder}/made'\n\
         exit\n\
         fi\n\
         exec '{sim}' \"$@\"\n",
        folder = world.path("").display(),
        sim = programs::orbctl_sim(),
    );
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("ours");
    let program = program.display().to_string();
    world.variable("ORBD_ORBCTL", &program).started()
}

/// Starts a detached create; returns its job id.
fn making(world: &World) -> u64 {
    let mut caller = world.client();
    let params = json!({"name": "a", "distro": "ubuntu", "detach": true});
    let id = caller.ok::<MachineCreate>(params).job_id;
    caller.until_running(id);
    eventually("it is there", || world.path("begun").exists().then_some(()));
    id
}

/// Lets the create continue after its daemon is gone, and checks how the job ends.
fn finishes_alone(world: &mut World, id: u64) {
    fs::write(world.path("go"), "").expect("written");
    eventually("the machine is made", || {
        world.path("made").exists().then_some(())
    });
    world.start();
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(id)), ("unknown", "outcome_unknown"));
    assert_eq!(caller.state_of("a").as_deref(), Some("running"));
    assert_eq!(world.ledger().spawns("create"), 1);
}

#[test]
fn create_that_writes_output_finishes_after_the_daemon_is_killed() {
    let mut world = talkative();
    let id = making(&world);
    world.kill();
    finishes_alone(&mut world, id);
}

#[test]
fn create_that_writes_output_finishes_after_the_daemon_has_stopped() {
    let mut world = talkative();
    let id = making(&world);
    world.terminate();
    assert_eq!(world.ended().code(), Some(0));
    finishes_alone(&mut world, id);
}

#[test]
fn surviving_command_is_ended_before_its_machine_is_changed() {
    let mut world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let id = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(id);
    eventually("it is there", || {
        (world.ledger().spawns("run") == 1).then_some(())
    });
    world.kill();
    world.start();
    let mut caller = world.client();
    let next = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    // The command's args and the reader of its output were lost with the daemon, so the next instance ends it. The gate
    // stays closed.
    assert_eq!(outcome_of(&caller.end_of(id)), ("interrupted", "job_interrupted"));
    assert_eq!(outcome_of(&caller.end_of(next)), ("succeeded", ""));
    world.ledger().assert_no_overlap();
}

#[test]
fn after_a_crash_detached_changes_run_once_and_attached_ones_never() {
    let mut world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(holding);
    eventually("it is there", || {
        (world.ledger().spawns("run") == 1).then_some(())
    });
    let attached =
        world.background(|caller| drop(caller.try_call::<MachineRestart>(json!({"machine": "a"}))));
    caller.find("restart", "a", JobStateWord::Waiting);
    let promised = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    world.kill();
    world.start();
    attached.join().expect("no panic");
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(promised)), ("succeeded", ""));
    for _ in 0..2 {
        world.kill();
        world.start();
    }
    let mut caller = world.client();
    caller.machines();
    assert_eq!(world.ledger().order_on("a"), ["run", "stop"]);
    assert_eq!(
        caller.refused::<JobGet>(json!({"job_id": promised})).kind,
        "job_not_found"
    );
}

/// Damage to the journal while no daemon runs.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Header,
    Everything,
    File,
}

impl Loss {
    fn happens_in(self, world: &World) {
        let journal = world.path("state/journal");
        let mut bytes = fs::read(&journal).expect("a journal");
        match self {
            Self::Header => bytes[..20].fill(0xa5),
            Self::Everything => bytes.fill(0xa5),
            Self::File => return fs::remove_file(&journal).expect("removed"),
        }
        fs::write(&journal, bytes).expect("written");
    }
}

/// Leaves a restart by the daemon, a restart by the drop-in and an export by orbd-ctl running, and checks that the next
/// change of each machine waits for them although the journal is damaged or missing.
fn lanes_stay_held_after(loss: Loss) {
    let mut world = World::new()
        // Long enough to outlive the daemon's restart on a loaded machine.
        .latency("restart=2000,export=2000")
        .machines(&["a", "b", "c"])
        .started();
    // Another daemon of the same user, whose children must not be adopted.
    let other = World::new().latency("restart=600000").machines(&["a"]).started();
    let restart = |caller: &mut Caller| drop(caller.try_call::<MachineRestart>(json!({"machine": "a"})));
    let others = other.background(restart);
    eventually("it runs", || {
        (other.ledger().spawns("restart") == 1).then_some(())
    });

    let attached = world.background(restart);
    let mut drop_in = Way::DropIn.command(&world, &["orbctl", "restart", "b"]);
    let mut drop_in = drop_in.spawn().expect("it starts");
    let mut export = ctl(&world, &["export", "c", "file"]).spawn().expect("it starts");
    let mut caller = world.client();
    let left = [("a", "restart"), ("b", "restart"), ("c", "export")]
        .map(|(machine, verb)| (machine, caller.find(verb, machine, JobStateWord::Running).job_id));
    eventually("all of them run", || {
        let ledger = world.ledger();
        (ledger.spawns("restart") == 2 && ledger.spawns("export") == 1).then_some(())
    });
    world.kill();
    loss.happens_in(&world);
    world.start();

    let mut caller = world.client();
    let next = left.map(|(machine, left)| {
        assert_eq!(caller.job(left).state, JobStateWord::Running, "{machine}");
        let next = caller
            .ok::<MachineRestart>(json!({"machine": machine, "detach": true}))
            .job_id;
        assert!(next > left, "job ids are not reused");
        let waits_for = caller.job(next).waiting_for.expect("it waits");
        assert_eq!(waits_for.job_id(), Some(left), "{machine}");
        next
    });
    for next in next {
        assert_eq!(outcome_of(&caller.end_of(next)), ("succeeded", ""));
    }
    world.ledger().assert_no_overlap();
    assert!(
        drop_in.wait().expect("ours").success(),
        "the tool was not disturbed"
    );
    // orbd-ctl reports that it does not know how the job ended.
    export.wait().expect("ours");
    attached.join().expect("no panic");
    drop(other);
    others.join().expect("no panic");
}

#[test]
fn lanes_stay_held_after_a_crash_with_a_damaged_journal_header() {
    lanes_stay_held_after(Loss::Header);
}

#[test]
fn lanes_stay_held_after_a_crash_with_an_unreadable_journal() {
    lanes_stay_held_after(Loss::Everything);
}

#[test]
fn lanes_stay_held_after_a_crash_with_a_missing_journal() {
    lanes_stay_held_after(Loss::File);
}

#[test]
fn detached_change_survives_a_damaged_journal_header() {
    let mut world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let holding = caller.run_detached("a", &["cat", &gate]);
    caller.until_running(holding);
    let promised = caller
        .ok::<MachineStop>(json!({"machine": "a", "detach": true}))
        .job_id;
    world.kill();
    Loss::Header.happens_in(&world);
    world.start();
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(promised)), ("succeeded", ""));
    assert_eq!(world.ledger().spawns("stop"), 1);
}

#[test]
fn on_a_full_disk_only_detached_changes_are_refused_and_lanes_survive_a_crash() {
    let world = World::new().latency("restart=900").machines(&["a", "b"]);
    let Some(world) = world.with_small_disk("state") else {
        return;
    };
    let mut world = world.started();
    let filler = world.daemon_path("state/filler");
    let mut file = fs::File::create(&filler).expect("a file on the small disk");
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut caller = world.client();
    // The last block of the journal has room for a few more entries.
    let refused = (0..100).find_map(|_| {
        let params = json!({"machine": "b", "detach": true});
        match caller.call::<MachineStart>(params) {
            Ok(started) => {
                caller.end_of(started.job_id);
                None
            }
            Err(error) => error.data,
        }
    });
    assert_eq!(refused.expect("the disk is full").kind, "journal_unavailable");
    assert_eq!(
        caller.run("b", &["true"]).exit_code,
        Some(0),
        "commands still run"
    );
    let tool = Way::DropIn
        .command(&world, &["orbctl", "restart", "b"])
        .output()
        .expect("it starts");
    assert!(tool.status.success(), "the tool still runs: {tool:?}");
    let attached = world.background(|caller| caller.ok::<MachineRestart>(json!({"machine": "a"})).changed);
    assert!(caller.find("restart", "a", JobStateWord::Running).not_durable);
    assert_eq!(
        attached.join().expect("no panic"),
        Some(true),
        "attached changes still run"
    );
    // Once there is room again, the journal becomes complete without a restart.
    drop(file);
    fs::remove_file(&filler).expect("it is there");
    let attached = world.background(|caller| caller.ok::<MachineRestart>(json!({"machine": "a"})).changed);
    eventually("detached changes are accepted", || {
        caller
            .call::<MachineStart>(json!({"machine": "b", "detach": true}))
            .ok()
    });
    attached.join().expect("no panic");
    let problems = world.log().matches("other jobs run without an entry").count();
    assert_eq!(problems, 1, "logged once, not once per job: {}", world.log());
    // The next daemon has another disk and no journal. An ordinary user's disk needs a user namespace of its own, and Linux hides the
    // environment of its processes from the next daemon, which is in another one.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let attached =
        world.background(|caller| drop(caller.try_call::<MachineRestart>(json!({"machine": "a"}))));
    let id = caller.find("restart", "a", JobStateWord::Running).job_id;
    eventually("it is there", || {
        (world.ledger().spawns("restart") == 4).then_some(())
    });
    world.kill();
    attached.join().expect("no panic");
    world.start();
    let mut caller = world.client();
    let next = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    assert_eq!(caller.job(next).waiting_for.expect("it waits").job_id(), Some(id));
    caller.end_of(next);
    world.ledger().assert_no_overlap();
}

#[test]
fn surviving_jobs_can_be_cancelled_or_overridden_by_force() {
    let mut world = World::new()
        .set("grace", "200ms")
        .script(
            "[[trouble]]\ncommand = \"restart\"\nkind = \"hang_hard\"\n\
             [[trouble]]\ncommand = \"run\"\nkind = \"hang_hard\"",
        )
        .machines(&["a", "b"])
        .started();
    let mut caller = world.client();
    let change = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    let command = caller.run_detached("b", &["true"]);
    eventually("both are there", || {
        (world.ledger().invocations.len() == 2).then_some(())
    });
    world.kill();
    world.start();
    let mut caller = world.client();
    assert_eq!(caller.cancel(change), "stopping");
    assert_eq!(outcome_of(&caller.end_of(change)).0, "unknown");
    let told = caller.ok::<MachineStop>(json!({"machine": "b", "force": true}));
    assert_eq!(told.changed, Some(true));
    assert_eq!(outcome_of(&caller.end_of(command)).0, "interrupted");
    for invocation in world.ledger().invocations.iter().take(2) {
        assert!(!crate::support::is_alive(invocation.pid), "{invocation:?}");
    }
}

#[test]
fn job_ids_are_never_reused() {
    let mut world = World::with_machines(&["a"]);
    let mut seen = BTreeSet::new();
    for life in 0..5 {
        let mut caller = world.client();
        for _ in 0..4 {
            let id = caller.run("a", &["true"]).job_id;
            assert!(seen.last().is_none_or(|last| *last < id), "{id} after {seen:?}");
            seen.insert(id);
        }
        if life % 2 == 0 {
            world.kill();
        } else {
            world.terminate();
            world.ended();
        }
        world.start();
    }
}

#[test]
fn cached_answers_do_not_survive_a_crash() {
    let mut world = World::with_machines(&["a"]);
    world.client().machines();
    world.kill();
    assert!(world.sim(&["stop", "a"]).status.success());
    world.start();
    assert_eq!(world.client().state_of("a").as_deref(), Some("stopped"));
}

/// Daemon deaths in an ordinary run of the suite; `make soak` runs a thousand.
const CYCLES: usize = 32;

#[test]
fn under_load_and_many_deaths_no_change_overlaps_is_lost_or_runs_twice() {
    let seed = u64::from(std::process::id()) << 16 | 0x5eed;
    println!("seed {seed}");
    let figures = crate::deaths::run(crate::deaths::cycles_or(CYCLES), seed);
    println!("{figures}");
    figures.assert_nothing_broke();
}
