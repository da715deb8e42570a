//! Extremes: callers inside machines, an `orbctl` that never answers, a gibibyte of output, and no file descriptors
//! left.

use orbd_proto::methods::{
    DaemonInfo, JobOutput, MachineCreate, MachineInfo, MachineList, MachineRestart, MachineRun, MachineStop,
};
use orbd_proto::types::Stream;
use serde_json::json;

use crate::support::{Wire, World, bytes_of, eventually, outcome_of, resident_peak, stream_of};

/// Runs a command in `a` that asks orbd to change `a`, and checks that the error names the blocking job.
fn nested(world: &World, change: &str) {
    let mut caller = world.client();
    let call = format!(
        "{} --no-autostart --socket {} {change}",
        programs::orbd_ctl(),
        world.socket().display()
    );
    let answer = caller.run("a", &["sh", "-c", &call]);
    let told = String::from_utf8_lossy(&stream_of(&answer.output, Stream::Stderr)).into_owned();
    assert_eq!(answer.exit_code, Some(5), "{told}");
    assert!(
        told.contains(&format!("job {}", answer.job_id)) && told.contains("run"),
        "the error names the command itself: {told}"
    );
    assert_eq!(world.ledger().spawns("restart"), 0);
    // Afterwards the machine can be changed again.
    caller.ok::<MachineRestart>(json!({"machine": "a"}));
}

#[test]
fn command_that_changes_its_own_machine_learns_that_it_blocks_itself() {
    let world = World::with_machines(&["a"]);
    nested(&world, "restart --queue-timeout 300ms a");
}

#[test]
fn self_blocking_command_fails_at_the_configured_queue_timeout() {
    let world = World::new().set("queue_timeout", "1s").machines(&["a"]).started();
    nested(&world, "restart a");
}

#[test]
fn queue_timeout_has_a_default() {
    let world = World::new().started();
    let limits = world.client().ok::<DaemonInfo>(json!({})).limits;
    assert_eq!(limits.get("queue_timeout_ms"), Some(&(10 * 60 * 1000)));
}

#[test]
fn forced_stop_passes_a_full_queue_and_a_hanging_orbctl() {
    let everything = "[\"create\", \"run\", \"restart\", \"start\", \"list\", \"info\", \"status\", \"version\", \"default\"]";
    let world = World::new()
        .set("grace", "300ms")
        .set("changes_max", "2")
        .set("creates_max", "1")
        .set("exec_max", "2")
        .set("exec_per_machine", "2")
        .set("queries_max", "2")
        .set("queue_max", "6")
        .set("queue_max_per_client", "6")
        .script(&format!(
            "[[trouble]]\ncommand = {everything}\nkind = \"hang_hard\""
        ))
        .machines(&["a", "b", "c"])
        .started();
    let mut caller = world.client();
    // All slots are taken.
    let restart = json!({"machine": "a", "detach": true});
    let restarting = caller.ok::<MachineRestart>(restart.clone()).job_id;
    caller.ok::<MachineCreate>(json!({"name": "new", "distro": "ubuntu", "detach": true}));
    for machine in ["b", "c"] {
        caller.run_detached(machine, &["true"]);
    }
    let list = world.background(|caller| drop(caller.try_call::<MachineList>(json!({}))));
    let info = world.background(|caller| drop(caller.try_call::<MachineInfo>(json!({"machine": "b"}))));
    eventually("all of them hang", || {
        (world.ledger().invocations.len() == 6).then_some(())
    });
    // The queue is full, and nothing may start.
    let mut waiting = Vec::new();
    let full = loop {
        match caller.call::<MachineRestart>(restart.clone()) {
            Ok(accepted) => waiting.push(accepted.job_id),
            Err(error) => break *error.data.expect("data"),
        }
    };
    assert_eq!((full.kind.as_str(), waiting.len()), ("queue_full", 6));
    caller.pause();

    let told = caller.ok::<MachineStop>(json!({"machine": "a", "force": true}));
    assert_eq!(told.changed, Some(true));
    assert_eq!(
        outcome_of(&caller.end_of(restarting)),
        ("unknown", "outcome_unknown")
    );
    for id in waiting {
        assert_eq!(outcome_of(&caller.end_of(id)), ("cancelled", "job_cancelled"));
    }
    let truth = world.truth();
    assert!(
        truth.contains(&("a".to_owned(), "stopped".to_owned())),
        "{truth:?}"
    );
    drop(world);
    // Both reads hung until the end.
    for read in [list, info] {
        read.join().expect("no panic");
    }
}

#[test]
fn process_left_behind_by_a_change_does_not_delay_its_end() {
    let world = World::new()
        .script("[[trouble]]\ncommand = \"restart\"\nkind = \"grandchild\"\nms = 20000")
        .machines(&["a"])
        .started();
    let told = world.client().ok::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(told.changed, Some(true));
    assert!(told.run_us.is_some_and(|us| us < 10_000_000), "{told:?}");
}

/// The line that `yes` repeats.
const WORD: &[u8] = b"0123456789abcde\n";

/// Returns a command that writes this many bytes of repeated lines.
fn writing(bytes: u64) -> [String; 3] {
    let script = format!("yes 0123456789abcde | head -c {bytes}");
    ["sh", "-c", &script].map(str::to_owned)
}

/// Returns whether bytes are those expected at this offset.
fn are_right(bytes: &[u8], offset: u64) -> bool {
    let turn = usize::try_from(offset % WORD.len() as u64).expect("small");
    let mut expected = WORD.repeat(bytes.len() / WORD.len() + 2);
    expected.drain(..turn);
    expected.starts_with(bytes)
}

/// Reads a chunked body to its end and checks every byte; returns how many there were.
fn check_body(wire: &mut Wire) -> u64 {
    let mut offset = 0;
    loop {
        let mut size = String::new();
        while !size.ends_with("\r\n") {
            size.push(char::from(wire.exactly(1)[0]));
        }
        let size = usize::from_str_radix(size.trim_end(), 16).expect("a chunk's size");
        let bytes = wire.exactly(size);
        wire.exactly(2);
        if size == 0 {
            return offset;
        }
        assert!(are_right(&bytes, offset), "wrong bytes at offset {offset}");
        offset += size as u64;
    }
}

#[test]
fn gibibyte_of_output_arrives_whole_in_bounded_memory() {
    let world = World::with_machines(&["a"]);
    let total = 1 << 30;
    let mut caller = world.client();
    let id = caller
        .ok::<MachineRun>(json!({"machine": "a", "command": writing(total), "detach": true}))
        .job_id;
    let mut wire = world.wire();
    wire.send(format!(
        "GET /jobs/{id}/output?stream=stdout HTTP/1.1\r\nhost: orbd\r\n\r\n"
    ));
    let head = wire.head();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(check_body(&mut wire), total);
    let job = caller.end_of(id);
    assert_eq!((outcome_of(&job).0, job.output_bytes), ("succeeded", total));
    // The last bytes can still be read, as chunks.
    let rest = caller.output_from(id, total - 1000, 1 << 20);
    assert!(are_right(&stream_of(&rest, Stream::Stdout), total - 1000));
    if let Some(peak) = resident_peak(world.pid()) {
        assert!(peak <= 64 << 10, "the daemon had {} MiB", peak >> 10);
    }
}

#[test]
fn output_beyond_spool_max_is_reported_as_a_gap() {
    let max = 1 << 20;
    let world = World::new().set("spool_max", "1MiB").machines(&["a"]).started();
    let total = 8 << 20;
    let mut caller = world.client();
    let id = caller
        .ok::<MachineRun>(json!({"machine": "a", "command": writing(total), "detach": true}))
        .job_id;
    // No client follows, so the oldest bytes are dropped and the command is not blocked.
    let job = caller.end_of(id);
    assert_eq!((outcome_of(&job).0, job.output_bytes), ("succeeded", total));
    let first = caller.ok::<JobOutput>(json!({"job_id": id}));
    let gap = first.gap.expect("dropped output is reported");
    assert_eq!(gap.offset, 0);
    assert!(
        gap.next_offset >= total - max && gap.next_offset < total,
        "{gap:?}"
    );
    let mut offset = gap.next_offset;
    for chunk in first.output {
        assert_eq!(chunk.offset, offset);
        let bytes = bytes_of(&chunk);
        assert!(are_right(&bytes, offset));
        offset += bytes.len() as u64;
    }
    for chunk in caller.output_from(id, offset, 1 << 20) {
        let bytes = bytes_of(&chunk);
        assert!(are_right(&bytes, offset));
        offset += bytes.len() as u64;
    }
    assert_eq!(offset, total);
}

#[cfg(target_os = "linux")]
mod descriptors {
    use orbd_proto::types::JobStateWord;
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    use super::*;

    const NONE: Rlimit = Rlimit {
        current: None,
        maximum: None,
    };

    /// Sets the daemon's limit of file descriptors; returns the limit that it had.
    fn limit(world: &World, most: u64) -> Rlimit {
        let pid = i32::try_from(world.pid()).ok().and_then(Pid::from_raw);
        let limit = Rlimit {
            current: Some(most),
            ..getrlimit(Resource::Nofile)
        };
        prlimit(pid, Resource::Nofile, limit).unwrap_or(NONE)
    }

    #[test]
    fn daemon_raises_its_descriptor_limit_to_the_maximum() {
        let world = World::new().started();
        let had = limit(&world, 256);
        let may = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert!(had.current.is_none_or(|had| had >= may.min(10_240)), "{had:?}");
    }

    #[test]
    fn commands_beyond_the_descriptor_limit_end_or_report_what_is_missing() {
        let world = World::new()
            .set("exec_max", "200")
            .set("exec_per_machine", "200")
            .machines(&["a"])
            .started();
        let mut caller = world.client();
        limit(&world, 256);
        caller.pause();
        let ids: Vec<u64> = (0..200)
            .map(|_| caller.run_detached("a", &["sleep", "0.3"]))
            .collect();
        caller.resume();
        let (mut done, mut refused) = (0, 0);
        for &id in &ids {
            let job = caller.end_of(id);
            match outcome_of(&job) {
                ("succeeded", "") => done += 1,
                ("failed", "orbctl_unavailable") => {
                    let text = format!("{job:?}");
                    assert!(text.contains("limits reached"), "{text}");
                    refused += 1;
                }
                other => panic!("{other:?}: {job:?}"),
            }
        }
        println!("{done} ended, {refused} were refused");
        assert_eq!(done + refused, 200);
        assert!(done > 0, "as many as could be");
        // Afterwards both old and new connections work as before.
        assert_eq!(world.client().run("a", &["true"]).exit_code, Some(0));
        assert_eq!(
            caller.ok::<MachineList>(json!({"max_age_ms": 0})).machines.len(),
            1
        );
        assert_eq!(world.ledger().spawns("run"), done + 1, "each once");
        assert!(caller.jobs().iter().all(|job| job.state == JobStateWord::Ended));
    }
}
