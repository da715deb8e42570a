//! Connection limits: hostile clients, even if spread over many processes, are limited and keep no other client out.
#![expect(
    clippy::disallowed_methods,
    reason = "these tests start processes that hold connections"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orbd_proto::methods::{DaemonInfo, MachineRun};
use orbd_proto::types::Stream;
use serde_json::{Value, json};

use crate::ctl_suite::{call, said};
use crate::support::{Wire, World, eventually, resident, resident_peak, stream_of};

/// Environment variables of a child that holds connections.
const SOCKET: &str = "ORBD_TEST_SOCKET";
const CONNECTIONS: &str = "ORBD_TEST_CONNECTIONS";
const SENT: &str = "ORBD_TEST_SENT";

/// Child processes that hold connections; killed when dropped.
struct Crowd(Vec<Child>);

impl Crowd {
    /// Starts processes that each open connections and send the same text on each. Returns when all connections are
    /// open.
    fn start(world: &World, processes: usize, connections: usize, sent: &str) -> Self {
        let start = || {
            Command::new(std::env::current_exe().expect("this program"))
                .args([
                    "--ignored",
                    "--exact",
                    "--nocapture",
                    "daemon_limits::child_that_holds_connections",
                ])
                .env(SOCKET, world.socket())
                .env(CONNECTIONS, connections.to_string())
                .env(SENT, sent)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts")
        };
        let mut crowd = Self((0..processes).map(|_| start()).collect());
        for child in &mut crowd.0 {
            let output = BufReader::new(child.stdout.take().expect("piped"));
            let ready = output
                .lines()
                .find(|line| line.as_ref().is_ok_and(|line| line.contains("ready")));
            ready.expect("it is ready").expect("text");
        }
        crowd
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have exited already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
#[ignore = "a child process of the other tests"]
fn child_that_holds_connections() {
    let of = |name| std::env::var(name).expect("the parent sets it");
    let connections: usize = of(CONNECTIONS).parse().expect("a number");
    let held: Vec<UnixStream> = (0..connections)
        .map(|_| {
            let mut stream = UnixStream::connect(of(SOCKET)).expect("the daemon listens");
            // A connection that was refused may be closed already.
            let _ = stream.write_all(of(SENT).as_bytes());
            stream
        })
        .collect();
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop(held);
}

const INFO: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.info\"}\n";

/// Returns the error kind and the message of an error answer.
fn error_of(answer: &Value) -> (&str, &str) {
    let error = &answer["error"];
    let kind = error["data"]["kind"].as_str();
    (
        kind.unwrap_or_else(|| panic!("no error: {answer}")),
        error["message"].as_str().expect("a message"),
    )
}

/// Stops the daemon with `orbd-ctl daemon stop`, and retries as its refusals advise.
fn stops(world: &mut World) {
    eventually("`daemon stop` gets through", || {
        let output = call(world, &["daemon", "stop"]);
        let refusal = said(&output);
        assert!(
            output.status.success() || refusal.contains("connections are open"),
            "{refusal}"
        );
        output.status.success().then_some(())
    });
    assert!(world.ended().success());
}

#[test]
fn unfinished_http_bodies_do_not_block_daemon_stop() {
    let mut world = World::new().set("request_timeout", "1h").started();
    let body = "POST / HTTP/1.1\r\nhost: orbd\r\ncontent-length: 1000\r\n\r\n{";
    let _crowd = Crowd::start(&world, 20, 30, body);
    stops(&mut world);
}

#[test]
fn waiting_calls_on_every_connection_do_not_block_daemon_stop() {
    let mut world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let id = world.client().run_detached("a", &["cat", &gate]);
    let wait =
        json!({"jsonrpc": "2.0", "id": 1, "method": "job.wait", "params": {"job_id": id}}).to_string() + "\n";
    let _crowd = Crowd::start(&world, 20, 30, &wait);
    // Take all other connections, so that only the reserve is left.
    let mut taken = Vec::new();
    let refusal = eventually("no connection is left", || {
        let mut wire = world.wire();
        wire.send(line("machine.list", &json!({})));
        let answer = wire.receive()?;
        if answer["error"].is_object() {
            return Some(answer);
        }
        wire.send(&wait);
        taken.push(wire);
        None
    });
    assert_eq!(error_of(&refusal).0, "too_many_connections");
    stops(&mut world);
}

#[test]
fn idle_and_half_open_connections_keep_no_new_client_out() {
    let world = World::with_machines(&["a"]);
    let _idle = Crowd::start(&world, 10, 30, INFO);
    let _silent = Crowd::start(&world, 5, 30, "");
    let _half = Crowd::start(&world, 5, 30, "{\"jsonrpc\":");
    // Takes about a second: after that idle time, a connection that `connection_idle_max` does not protect may be closed.
    eventually("a newcomer is served", || {
        call(&world, &["list"]).status.success().then_some(())
    });
    let mut newcomers = Vec::new();
    while newcomers.len() < 10 {
        newcomers.push(eventually("another one is served", || {
            let mut wire = world.wire();
            wire.send(line("machine.list", &json!({})));
            wire.receive()?["result"].is_object().then_some(wire)
        }));
    }
}

#[test]
fn connections_per_process_are_limited_and_others_are_served() {
    let world = World::new()
        .set("connections_max_per_process", "3")
        .machines(&["a"])
        .started();
    let mut own: Vec<Wire> = (0..3).map(|_| world.subscribed()).collect();
    let refusal = world.wire().receive().expect("it says why");
    let (kind, message) = error_of(&refusal);
    assert_eq!(kind, "too_many_connections");
    assert!(message.contains("connections_max_per_process"), "{message}");
    assert_eq!(refusal["error"]["data"]["retryable"], true);
    let output = call(&world, &["list"]);
    assert!(output.status.success(), "{}", said(&output));
    // The refusal has the framing of the client.
    let mut refused = world.wire();
    refused.send(format!(
        "POST / HTTP/1.1\r\nhost: orbd\r\ncontent-length: {}\r\n\r\n{INFO}",
        INFO.len()
    ));
    let head = refused.head();
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    let body = refused.receive().expect("a body");
    assert_eq!(error_of(&body).0, "too_many_connections");
    own.pop();
    world.admitted();
}

#[test]
fn reserved_connections_accept_only_daemon_calls_until_there_is_room() {
    let world = World::new()
        .set("connections_max", "64")
        .machines(&["a"])
        .started();
    let mut taken: Vec<Wire> = (0..63).map(|_| world.subscribed()).collect();
    let mut wire = world.wire();
    assert!(wire.call(1, "daemon.info", &json!({}))["result"].is_object());
    let list = wire.call(2, "machine.list", &json!({}));
    let (kind, message) = error_of(&list);
    assert_eq!(kind, "too_many_connections");
    assert!(message.contains("daemon.*"), "{message}");
    assert!(list["error"]["data"]["retry_after_ms"].is_u64());
    assert!(wire.call(3, "daemon.info", &json!({}))["result"].is_object());
    taken.pop();
    let list = eventually("there is room", || {
        let list = wire.call(4, "machine.list", &json!({}));
        list["error"].is_null().then_some(list)
    });
    assert_eq!(list["result"]["machines"][0]["name"], "a");
}

#[test]
fn incomplete_request_is_refused_at_the_request_timeout() {
    let world = World::new().set("request_timeout", "300ms").started();
    let mut silent = world.wire();
    let mut half_line = world.wire();
    half_line.send("{\"jsonrpc\":");
    let mut half_head = world.wire();
    half_head.send("POST / HTTP/1.1\r\nhost:");
    let mut half_body = world.wire();
    half_body.send("POST / HTTP/1.1\r\nhost: orbd\r\ncontent-length: 1000\r\n\r\n{");
    let refusal = half_line.receive().expect("it says why");
    assert_eq!(error_of(&refusal).0, "invalid_request");
    assert!(error_of(&refusal).1.contains("request_timeout"), "{refusal}");
    assert!(half_line.receive().is_none());
    let head = half_body.head();
    assert!(head.starts_with("HTTP/1.1 408"), "{head}");
    let refusal = half_body.receive().expect("a body");
    assert!(error_of(&refusal).1.contains("request_timeout"), "{refusal}");
    assert!(half_body.receive().is_none());
    assert!(silent.receive().is_none());
    let mut rest = String::new();
    half_head.stream.read_to_string(&mut rest).expect("it is closed");
}

/// Returns the peak memory of the daemon in KiB, or its current memory if the system reports no peak.
fn memory(world: &World) -> u64 {
    resident_peak(world.pid()).unwrap_or_else(|| resident(world.pid()))
}

/// Writes a message to each connection without reading, until no connection has accepted data for a while. Serves
/// another client in between, which also gives the daemon time to run.
fn flood(world: &World, streams: &mut [UnixStream], message: &[u8]) {
    let mut other = world.client();
    let mut sent = vec![0; streams.len()];
    let mut idle = 0;
    for stream in &*streams {
        stream.set_nonblocking(true).expect("a mode");
    }
    while idle < 3 {
        let mut wrote = 0;
        for (stream, sent) in streams.iter_mut().zip(&mut sent) {
            while *sent < message.len()
                && let Ok(count) = stream.write(&message[*sent..])
            {
                *sent += count;
                wrote += count;
            }
        }
        idle = if wrote == 0 { idle + 1 } else { 0 };
        other.ok::<DaemonInfo>(json!({}));
    }
}

fn line(method: &str, params: &Value) -> Vec<u8> {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    format!("{request}\n").into_bytes()
}

/// Messages of hostile clients that never read, each with a description.
fn hostile(world: &World) -> [(&'static str, Vec<u8>); 8] {
    let mut caller = world.client();
    let zeros = caller.run("a", &["head", "-c", "1048576", "/dev/zero"]).job_id;
    let params =
        json!({"machine": "a", "command": ["cat", world.gate("gate")], "stdin_stream": true, "detach": true});
    let waiting = caller.ok::<MachineRun>(params).job_id;
    caller.pause();
    let wait = json!({"job_id": waiting});
    let megabyte = STANDARD.encode(vec![0; 1 << 20]);
    let job = json!({"machine": "a", "command": ["cat"], "detach": true, "stdin_base64": megabyte});
    let calls = (0..100).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "job.wait", "params": wait}));
    let mut unfinished = vec![b' '; 3 << 20];
    unfinished[0] = b'{';
    let mut body = b"POST / HTTP/1.1\r\nhost: orbd\r\ncontent-length: 4000000\r\n\r\n".to_vec();
    body.extend(&unfinished);
    [
        ("calls that wait", line("job.wait", &wait).repeat(5_000)),
        (
            "batches of them",
            format!("{}\n", calls.collect::<Value>()).repeat(20).into_bytes(),
        ),
        (
            "long answers",
            line("job.output", &json!({"job_id": zeros})).repeat(500),
        ),
        (
            "followers",
            line("job.follow", &json!({"job_id": zeros})).repeat(64),
        ),
        (
            "input that its command does not read",
            line("job.input", &json!({"job_id": waiting, "base64": megabyte})).repeat(12),
        ),
        ("jobs that wait", line("machine.run", &job).repeat(12)),
        ("an unfinished line", unfinished),
        ("an unfinished body", body),
    ]
}

/// Sends each hostile message over this many connections to a new daemon, and checks how much memory that takes.
fn costs_at_most(connections: usize, kib: u64) {
    for index in 0..8 {
        let world = World::with_machines(&["a"]);
        let (what, message) = &hostile(&world)[index];
        let before = memory(&world);
        let mut streams: Vec<_> = (0..connections)
            .map(|_| UnixStream::connect(world.socket()).expect("connect"))
            .collect();
        flood(&world, &mut streams, message);
        let grown = memory(&world) - before;
        assert!(grown < kib, "{what} over {connections} connections: {grown} KiB");
    }
}

#[test]
fn one_hostile_connection_costs_bounded_memory() {
    costs_at_most(1, 32 << 10);
}

#[test]
fn many_hostile_connections_cost_bounded_memory() {
    costs_at_most(60, 224 << 10);
}

#[test]
fn calls_in_flight_per_connection_are_limited_even_in_batches() {
    let world = World::new().set("requests_max", "2").machines(&["a"]).started();
    let id = world.client().run_detached("a", &["cat", &world.gate("gate")]);
    let wait =
        |number: u64| json!({"jsonrpc": "2.0", "id": number, "method": "job.wait", "params": {"job_id": id}});
    let mut one_by_one = world.wire();
    for number in [1, 2] {
        one_by_one.send(format!("{}\n", wait(number)));
    }
    one_by_one.request(3, "daemon.info", &json!({}));
    let mut batch = world.wire();
    batch.send(format!("{}\n", json!([wait(1), wait(2), wait(3)])));
    batch.request(4, "daemon.info", &json!({}));
    // The waiting calls have arrived once a later connection is answered.
    world.client().ok::<DaemonInfo>(json!({}));
    world.open_gate("gate");
    let first = one_by_one.receive().expect("an answer");
    assert!(first["id"] != 3, "{first}");
    let first = batch.receive().expect("an answer");
    assert_eq!(first.as_array().map(Vec::len), Some(3), "{first}");
    assert_eq!(batch.receive().expect("an answer")["id"], 4);
}

#[test]
fn input_beyond_connection_bytes_max_is_refused_with_the_limits_name() {
    let world = World::new()
        .set("frame_max", "64KiB")
        .set("batch_max", "1")
        .set("connection_bytes_max", "64KiB")
        .machines(&["a"])
        .started();
    let gate = world.gate("gate");
    let script = format!("cat {gate} >&2; wc -c");
    let params =
        json!({"machine": "a", "command": ["sh", "-c", script], "stdin_stream": true, "detach": true});
    let job = world.client().ok::<MachineRun>(params).job_id;
    let mut wire = world.wire();
    let piece = STANDARD.encode(vec![b'x'; 40 << 10]);
    let mut accepted = 0;
    let refusal = loop {
        let answer = wire.call(1, "job.input", &json!({"job_id": job, "base64": piece}));
        if answer["error"].is_object() {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 8, "{accepted} pieces were accepted");
    };
    let (kind, message) = error_of(&refusal);
    assert_eq!(kind, "overloaded");
    assert!(message.contains("connection_bytes_max"), "{message}");
    assert_eq!(refusal["error"]["data"]["retryable"], true);
    // The accepted input is delivered, which makes room.
    world.open_gate("gate");
    let answer = eventually("there is room", || {
        let answer = wire.call(
            2,
            "job.input",
            &json!({"job_id": job, "base64": piece, "eof": true}),
        );
        answer["error"].is_null().then_some(answer)
    });
    assert_eq!(answer["result"]["open"], true, "{answer}");
    let mut caller = world.client();
    caller.end_of(job);
    let output = caller.output_from(job, 0, 1 << 20);
    let count = String::from_utf8(stream_of(&output, Stream::Stdout)).expect("text");
    assert_eq!(count.trim(), ((accepted + 1) * (40 << 10)).to_string());
}

#[test]
fn exhausted_bytes_max_refuses_long_requests_but_no_short_ones() {
    let world = World::new()
        .set("bytes_max", "64KiB")
        .set("request_timeout", "2s")
        .machines(&["a"])
        .started();
    // One such line takes the budget for a request of maximum length, and nothing is left.
    let mut holder = world.wire();
    holder.send(format!("{{{}", " ".repeat(1 << 20)));
    let long = "x".repeat(1 << 20);
    let mut late = Vec::new();
    for _ in 0..2 {
        let mut wire = world.wire();
        wire.send(format!(
            "POST / HTTP/1.1\r\nhost: orbd\r\ncontent-length: {}\r\n\r\n",
            4 << 20
        ));
        late.push(wire);
    }
    let mut short = world.wire();
    assert!(short.call(1, "machine.list", &json!({}))["result"].is_object());
    for wire in &mut late {
        let head = wire.head();
        assert!(head.starts_with("HTTP/1.1 503"), "{head}");
        let refusal = wire.receive().expect("a body");
        let (kind, message) = error_of(&refusal);
        assert_eq!(kind, "overloaded");
        assert!(message.contains("bytes_max"), "{message}");
    }
    // The line is not completed in time, so its memory becomes available to others.
    assert_eq!(
        error_of(&holder.receive().expect("it says why")).0,
        "invalid_request"
    );
    let answer = short.call(2, "machine.start", &json!({"machine": long}));
    assert_eq!(error_of(&answer).0, "invalid_params");
}
