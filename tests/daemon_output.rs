//! Commands: stdin, output byte for byte, exit codes, and followers.

use std::fs;
use std::io::Write;

use base64::Engine;
use orbd_proto::methods::{JobFollow, JobInput, JobOutput, MachineRestart, MachineRun, MachineRunFollow};
use orbd_proto::types::{JobEvent, JobStateWord, Stream, WaitReason};
use serde_json::json;

use crate::support::{
    Caller, PATIENCE, Random, World, bytes_of, eventually, is_alive, outcome_of, stdout_of, stream_of,
};

#[test]
fn long_binary_streams_come_back_byte_for_byte() {
    let world = World::with_machines(&["a"]);
    let mut random = Random::new(11);
    let (out, err) = (random.bytes(4 << 20), random.bytes(1 << 20));
    fs::write(world.path("out"), &out).expect("a file");
    fs::write(world.path("err"), &err).expect("a file");
    let script = format!(
        "cat {} & cat {} >&2; wait",
        world.path("out").display(),
        world.path("err").display()
    );
    let mut caller = world.client();
    let answer = caller.run("a", &["sh", "-c", &script]);
    let total = (out.len() + err.len()) as u64;
    assert_eq!((answer.exit_code, answer.output_bytes), (Some(0), total));
    assert!(
        answer.next_offset <= 1 << 20,
        "an answer carries at most a mebibyte"
    );
    assert!(answer.next_offset > 1 << 19, "the answer carries many bytes");
    let mut chunks = answer.output;
    chunks.extend(caller.output_from(answer.job_id, answer.next_offset, 300_000));
    assert_eq!(stream_of(&chunks, Stream::Stdout), out);
    assert_eq!(stream_of(&chunks, Stream::Stderr), err);
    assert_eq!(world.ledger().spawns("run"), 1);
}

#[test]
fn silent_command_has_empty_output() {
    let world = World::with_machines(&["a"]);
    let answer = world.client().run("a", &["true"]);
    assert_eq!(
        (answer.output.len(), answer.output_bytes, answer.next_offset),
        (0, 0, 0)
    );
}

#[test]
fn empty_output_is_read_like_any_other() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let id = caller.run("a", &["true"]).job_id;
    let answer = caller.ok::<JobOutput>(json!({"job_id": id}));
    assert_eq!((answer.output.len(), answer.next_offset), (0, 0));
    assert!(answer.eof && answer.gap.is_none());
    let data = caller.refused::<JobOutput>(json!({"job_id": id, "offset": 1}));
    assert_eq!(data.field.as_deref(), Some("offset"));
    for (from, status) in [(0, "200"), (1, "416")] {
        let mut wire = world.wire();
        wire.send(format!(
            "GET /jobs/{id}/output?offset={from} HTTP/1.1\r\nhost: orbd\r\n\r\n"
        ));
        let head = wire.head();
        assert_eq!(head.split(' ').nth(1), Some(status), "{head}");
    }
    let params = serde_json::from_value(json!({"job_id": id})).expect("parameters");
    let mut events = caller.0.subscribe::<JobFollow>(&params).expect("accepted");
    let mut next = || events.next_event().expect("an event");
    assert!(matches!(next(), JobEvent::Accepted { job_id } if job_id == id));
    assert!(matches!(next(), JobEvent::Started {}));
    assert!(matches!(next(), JobEvent::Ended { job } if job.output_bytes == 0));
}

#[test]
fn run_returns_the_commands_exit_code() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    for code in [0, 1, 2, 42, 126, 127, 128, 255] {
        let answer = caller.run("a", &["sh", "-c", &format!("exit {code}")]);
        assert_eq!(answer.exit_code, Some(code));
        assert_eq!(answer.state, JobStateWord::Ended);
    }
    assert_eq!(caller.run("a", &["sh", "-c", "kill -9 $$"]).exit_code, Some(137));
    let missing = caller.run("a", &["no-such-program-anywhere"]);
    assert_eq!(missing.exit_code, Some(127));
    assert!(!stream_of(&missing.output, Stream::Stderr).is_empty());
}

#[test]
fn input_arrives_byte_for_byte() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let text = "zwölf\n\u{1f980} without an end";
    let answer = caller.ok::<MachineRun>(json!({"machine": "a", "command": ["cat"], "stdin_text": text}));
    assert_eq!(stdout_of(&answer), text);

    let bytes = Random::new(12).bytes(700_000);
    let coded = base64::engine::general_purpose::STANDARD.encode(&bytes);
    let params = json!({"machine": "a", "command": ["cat"], "stdin_base64": coded});
    let answer = caller.ok::<MachineRun>(params);
    assert_eq!(stream_of(&answer.output, Stream::Stdout), bytes);

    // Without input, the command reads end of file at once, not a terminal or the daemon's own stdin.
    assert_eq!(stdout_of(&caller.run("a", &["cat"])), "");
    // A command that does not read its input does not fail for that.
    let params = json!({"machine": "a", "command": ["true"], "stdin_base64": coded});
    assert_eq!(caller.ok::<MachineRun>(params).exit_code, Some(0));
}

#[test]
fn streamed_input_arrives_in_pieces_and_ends_at_eof() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let params = json!({"machine": "a", "command": ["cat"], "stdin_stream": true, "detach": true});
    let id = caller.ok::<MachineRun>(params).job_id;
    let bytes = Random::new(13).bytes(1 << 20);
    for piece in bytes.chunks(100_001) {
        let coded = base64::engine::general_purpose::STANDARD.encode(piece);
        assert!(caller.ok::<JobInput>(json!({"job_id": id, "base64": coded})).open);
    }
    caller.ok::<JobInput>(json!({"job_id": id, "text": "the end", "eof": true}));
    assert_eq!(outcome_of(&caller.end_of(id)), ("succeeded", ""));
    let expected = [&bytes[..], b"the end"].concat();
    assert_eq!(
        stream_of(&caller.output_from(id, 0, 1 << 20), Stream::Stdout),
        expected
    );
    assert!(!caller.ok::<JobInput>(json!({"job_id": id, "text": "late"})).open);
    let other = caller.run_detached("a", &["true"]);
    let data = caller.refused::<JobInput>(json!({"job_id": other, "text": "x"}));
    assert_eq!(data.kind, "invalid_params");
}

#[test]
fn environment_folder_and_user_are_as_requested() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let strange = "a 'b' \"c\" $HOME `id` \\ * \n\ttab; & | \u{1f980}=x";
    let params = json!({
        "machine": "a",
        "command": ["sh", "-c", "printf %s \"$STRANGE\""],
        "env": {"STRANGE": strange, "OTHER": ""},
    });
    assert_eq!(stdout_of(&caller.ok::<MachineRun>(params)), strange);

    let folder = world.path("home").display().to_string();
    let params = json!({"machine": "a", "command": ["pwd"], "workdir": folder});
    assert_eq!(stdout_of(&caller.ok::<MachineRun>(params)).trim_end(), folder);

    let words = ["printf", "[%s]", "", "two words", "'", "$(id)", "*", "-x", "\n"];
    let answer = caller.run("a", &words);
    assert_eq!(stdout_of(&answer), "[][two words]['][$(id)][*][-x][\n]");

    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["-u"]}));
    assert_eq!(data.field.as_deref(), Some("command"));
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["true"], "user": "-x"}));
    assert_eq!(data.field.as_deref(), Some("user"));
    let data = caller.refused::<MachineRun>(json!({"machine": "a", "command": ["env"], "env": {"A=B": "c"}}));
    assert_eq!(data.field.as_deref(), Some("env"));
}

#[test]
fn output_can_be_read_from_every_offset() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let bytes = Random::new(14).bytes(64);
    fs::write(world.path("bytes"), &bytes).expect("a file");
    let script = format!(
        "cat {}; printf 'gr\u{fc}n' >&2; printf end",
        world.path("bytes").display()
    );
    let answer = caller.run("a", &["sh", "-c", &script]);
    let whole: Vec<u8> = answer.output.iter().flat_map(bytes_of).collect();
    assert_eq!(whole.len(), 64 + 5 + 3);
    for offset in 0..=whole.len() {
        for most in [1, 7, 1 << 20] {
            let chunks = caller.output_from(answer.job_id, offset as u64, most);
            let rest: Vec<u8> = chunks.iter().flat_map(bytes_of).collect();
            assert_eq!(
                rest,
                whole[offset..],
                "from offset {offset}, {most} bytes at a time"
            );
        }
    }
    let data = caller.refused::<JobOutput>(json!({"job_id": answer.job_id, "offset": whole.len() + 1}));
    assert_eq!(data.field.as_deref(), Some("offset"));
}

#[test]
fn output_is_readable_while_the_command_runs() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut caller = world.client();
    let id = caller.run_detached("a", &["sh", "-c", &format!("echo first; cat {gate}")]);
    let answer = caller.ok::<JobOutput>(json!({"job_id": id, "wait_ms": PATIENCE.as_millis()}));
    assert_eq!(stream_of(&answer.output, Stream::Stdout), b"first\n");
    assert!(!answer.eof);
    let nothing = caller.ok::<JobOutput>(json!({"job_id": id, "offset": answer.next_offset}));
    assert_eq!((nothing.output.len(), nothing.eof), (0, false));
    world.open_gate("gate");
    caller.end_of(id);
    let rest = caller.output_from(id, answer.next_offset, 1000);
    assert_eq!(stream_of(&rest, Stream::Stdout), b"go\n");
}

#[test]
fn output_of_a_job_that_waits_or_never_started_is_empty() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let id = caller.run_detached("a", &["echo", "x"]);
    let answer = caller.ok::<JobOutput>(json!({"job_id": id}));
    assert_eq!(
        (answer.output.len(), answer.next_offset, answer.eof),
        (0, 0, false)
    );
    // A client that waits for output gets an empty answer when the job is cancelled.
    let follower = world.background(move |caller| caller.output_from(id, 0, 1000).len());
    assert_eq!(caller.cancel(id), "never_started");
    assert_eq!(follower.join().expect("no panic"), 0);
    assert!(caller.ok::<JobOutput>(json!({"job_id": id})).eof);
}

#[test]
fn waiting_for_the_output_of_a_change_waits_for_its_end() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let id = caller
        .ok::<MachineRestart>(json!({"machine": "a", "detach": true}))
        .job_id;
    assert!(!caller.ok::<JobOutput>(json!({"job_id": id})).eof);
    let mut wire = world.wire();
    wire.request(1, "job.output", &json!({"job_id": id, "wait_ms": 20_000}));
    wire.request(2, "job.get", &json!({"job_id": id}));
    assert_eq!(
        wire.receive().expect("an answer")["id"],
        2,
        "the first call still waits"
    );
    caller.resume();
    assert_eq!(wire.receive().expect("an answer")["result"]["eof"], true);
}

#[test]
fn follower_gets_events_in_order() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let params = serde_json::from_value(json!({
        "machine": "a",
        "command": ["sh", "-c", "echo out; echo err >&2; exit 3"],
    }))
    .expect("parameters");
    let mut events = caller.0.subscribe::<MachineRunFollow>(&params).expect("accepted");
    let mut words = Vec::new();
    let mut chunks = Vec::new();
    let job = loop {
        match events.next_event().expect("an event") {
            JobEvent::Accepted { .. } => words.push("accepted"),
            JobEvent::Waiting { .. } => words.push("waiting"),
            JobEvent::Started {} => words.push("started"),
            JobEvent::Output(chunk) => chunks.push(chunk),
            JobEvent::Gap(gap) => panic!("{gap:?}"),
            JobEvent::Ended { job } => break job,
        }
    };
    assert_eq!(words, ["accepted", "started"]);
    assert_eq!(stream_of(&chunks, Stream::Stdout), b"out\n");
    assert_eq!(stream_of(&chunks, Stream::Stderr), b"err\n");
    assert_eq!(
        job.outcome.as_ref().and_then(|outcome| outcome.exit_code),
        Some(3)
    );
    // Another client may follow the job again, from any offset.
    let params = serde_json::from_value(json!({"job_id": job.job_id, "offset": 3})).expect("parameters");
    let mut events = caller.0.subscribe::<JobFollow>(&params).expect("accepted");
    let mut bytes = Vec::new();
    loop {
        match events.next_event().expect("an event") {
            JobEvent::Output(chunk) => bytes.extend(bytes_of(&chunk)),
            JobEvent::Ended { .. } => break,
            _ => {}
        }
    }
    assert_eq!(bytes.len(), "out\nerr\n".len() - 3);
}

#[test]
fn passed_through_output_reaches_its_follower_whole_and_only_its_end_is_kept() {
    let world = World::with_machines(&["a"]);
    let all = Random::new(13).bytes(8 << 20);
    fs::write(world.path("out"), &all).expect("a file");
    let mut caller = world.client();
    let params = serde_json::from_value(json!({
        "machine": "a",
        "command": ["cat", world.path("out")],
        "pass_through": true,
    }))
    .expect("parameters");
    let mut events = caller.0.subscribe::<MachineRunFollow>(&params).expect("accepted");
    let mut bytes = Vec::new();
    let job = loop {
        match events.next_event().expect("an event") {
            JobEvent::Output(chunk) => bytes.extend(bytes_of(&chunk)),
            JobEvent::Gap(gap) => panic!("{gap:?}"),
            JobEvent::Ended { job } => break job,
            _ => {}
        }
    };
    assert!(bytes == all);
    // A later reader gets a gap for the dropped part, and then the rest.
    let answer = caller.ok::<JobOutput>(json!({"job_id": job.job_id, "offset": 0}));
    let gap = answer.gap.expect("the beginning is dropped");
    assert_eq!((gap.offset, gap.next_offset), (0, answer.next_offset));
    let rest = caller.output_from(job.job_id, gap.next_offset, 1 << 20);
    assert!(stream_of(&rest, Stream::Stdout) == all[usize::try_from(gap.next_offset).expect("small")..]);
}

#[test]
fn follower_of_a_waiting_command_learns_what_it_waits_for() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    caller.pause();
    let params = serde_json::from_value(json!({"machine": "a", "command": ["true"]})).expect("parameters");
    let mut other = world.client();
    let mut events = caller.0.subscribe::<MachineRunFollow>(&params).expect("accepted");
    assert!(matches!(
        events.next_event().expect("an event"),
        JobEvent::Accepted { .. }
    ));
    match events.next_event().expect("an event") {
        JobEvent::Waiting { waiting_for } => {
            assert!(matches!(waiting_for.reason, WaitReason::Paused { machine: None }));
        }
        other => panic!("{other:?}"),
    }
    other.resume();
    assert!(matches!(
        events.next_event().expect("an event"),
        JobEvent::Started {}
    ));
    assert!(matches!(
        events.next_event().expect("an event"),
        JobEvent::Ended { .. }
    ));
}

#[test]
fn unfollow_cancels_the_command() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    let params = json!({"machine": "a", "command": ["sh", "-c", "echo $$; exec sleep 1000"]});
    let subscription = wire.call(1, "machine.run_follow", &params)["result"].clone();
    assert!(!subscription.is_null());
    let accepted = wire.until(|message| message["params"]["result"]["type"] == "accepted");
    let id = accepted["params"]["result"]["job_id"].as_u64().expect("an id");
    let output = wire.until(|message| message["params"]["result"]["type"] == "output");
    let pid = output["params"]["result"]["text"].as_str().expect("text");
    let pid: u32 = pid.trim().parse().expect("a pid");
    assert!(is_alive(pid));
    let answer = wire.call(2, "machine.run_unfollow", &json!([subscription]));
    assert_eq!(answer["result"], true);
    let mut caller = world.client();
    assert_eq!(outcome_of(&caller.end_of(id)), ("cancelled", "job_cancelled"));
    eventually("the command is gone", || (!is_alive(pid)).then_some(()));
}

/// Reads the kept output of a job; returns it with the offset of its first byte.
fn kept_output(caller: &mut Caller, id: u64) -> (u64, Vec<u8>) {
    let (mut first, mut offset, mut all) = (0, 0, Vec::new());
    loop {
        let params = json!({"job_id": id, "offset": offset, "wait_ms": 20_000});
        let answer = caller.ok::<JobOutput>(params);
        if let Some(gap) = &answer.gap {
            assert_eq!((gap.offset, all.len()), (0, 0), "one gap, at the beginning");
            first = gap.next_offset;
        }
        all.extend(answer.output.iter().flat_map(bytes_of));
        offset = answer.next_offset;
        if answer.eof {
            return (first, all);
        }
    }
}

#[test]
fn full_disk_fails_no_job_and_the_newest_output_is_kept() {
    let world = World::new().set("spool_max", "4MiB").machines(&["a"]);
    let Some(world) = world.with_small_disk("state/spool") else {
        return;
    };
    let world = world.started();
    let mut caller = world.client();
    let much = |count: u32| -> Vec<u8> {
        (1..=count)
            .flat_map(|line| format!("{line:09}\n").into_bytes())
            .collect()
    };
    let mut check = |count: u32, at_least: u64| {
        let script = format!("seq -f %09.0f 1 {count}; exit 7");
        let answer = caller.run("a", &["sh", "-c", &script]);
        let all = much(count);
        assert_eq!(
            (answer.exit_code, answer.output_bytes),
            (Some(7), all.len() as u64)
        );
        let (first, kept) = kept_output(&mut caller, answer.job_id);
        assert!(kept.len() as u64 >= at_least, "{} bytes are kept", kept.len());
        assert!(
            kept == all[usize::try_from(first).expect("small")..],
            "not the newest"
        );
        first
    };
    // Another file has filled the disk: output is kept in memory.
    let filler = world.daemon_path("state/spool/filler");
    let mut file = fs::File::create(&filler).expect("a file on the small disk");
    while file.write_all(&[0; 4096]).is_ok() {}
    // Whole chunks are dropped, and a chunk may be almost as large as the memory of a spool.
    assert!(check(300_000, 1) > 0);
    // Changes do not fail either: their output goes to files on a disk that has room.
    let restarted = world.client().ok::<MachineRestart>(json!({"machine": "a"}));
    assert_eq!(restarted.changed, Some(true));
    // Once there is room again, nothing is lost, without a restart.
    fs::remove_file(&filler).expect("it is there");
    drop(file);
    assert_eq!(check(50_000, 500_000), 0);
    // Three times what the disk holds: the oldest output is dropped.
    assert!(check(300_000, 512 << 10) > 0);
    assert!(!world.log().contains("bug in orbd"), "{}", world.log());
}
