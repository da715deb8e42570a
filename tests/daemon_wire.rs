//! The wire protocol with clients that are wrong, hostile or slow.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use orbd_proto::methods::{DaemonHello, DaemonInfo};
use orbd_proto::types::JobStateWord;
use serde_json::{Value, json};

use crate::support::{Random, Wire, World, outcome_of, resident};

/// Returns code and kind of an error answer.
fn error_of(answer: &Value) -> (i64, &str) {
    let error = &answer["error"];
    (
        error["code"].as_i64().expect("an error"),
        error["data"]["kind"].as_str().expect("a kind"),
    )
}

/// Checks that the connection still works.
fn still_works(wire: &mut Wire) {
    let answer = wire.call(4711, "daemon.info", &json!({}));
    assert!(answer["result"]["version"].is_string(), "{answer}");
}

#[test]
fn invalid_requests_get_an_error_and_the_connection_stays_open() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    let parse = (-32700, "parse_error");
    let invalid = (-32600, "invalid_request");
    for (line, expected) in [
        ("{", parse),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.info\",}",
            parse,
        ),
        ("nonsense", parse),
        ("{\u{0}}", parse),
        ("{}", invalid),
        ("{\"id\":1}", invalid),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":17}", invalid),
        (
            "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"daemon.info\"}",
            invalid,
        ),
        ("{\"id\":1,\"method\":\"daemon.info\"}", invalid),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"daemon.info\"}",
            invalid,
        ),
        ("17", invalid),
        ("\"text\"", invalid),
        ("null", invalid),
        ("[]", invalid),
        ("[1", parse),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"machine.explode\"}",
            (-32601, "method_not_found"),
        ),
    ] {
        let answer = wire.exchange(line);
        assert_eq!(error_of(&answer), expected, "{line}: {answer}");
        assert_eq!(answer["jsonrpc"], "2.0");
    }
    // Bytes that are not UTF-8, and empty lines.
    wire.send(b"\xff\xfe{}\n");
    assert_eq!(error_of(&wire.receive().expect("an answer")).0, -32700);
    wire.send("\n  \n\r\n");
    still_works(&mut wire);
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    let world = World::new().started();
    let mut wire = world.wire();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        let answer = wire.exchange(&deep);
        assert!(answer["error"].is_object() || answer.is_array(), "{answer}");
        let answer = wire.exchange(&format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"machine.list\",\"params\":{{\"max_age_ms\":{deep}}}}}"
        ));
        assert_eq!(error_of(&answer), (-32602, "invalid_params"));
        still_works(&mut wire);
    }
}

#[test]
fn wrong_parameter_is_refused_by_name() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    for (method, params, field) in [
        ("machine.start", json!({"machine": "a", "forse": true}), "forse"),
        ("machine.start", json!({}), "machine"),
        ("machine.start", json!({"machine": 7}), "machine"),
        ("machine.start", json!({"machine": "-f"}), "machine"),
        ("machine.start", json!({"machine": ""}), "machine"),
        ("machine.start", json!({"machine": "a\u{0}b"}), "machine"),
        (
            "machine.start",
            json!({"machine": "a", "run_timeout_ms": -1}),
            "run_timeout_ms",
        ),
        (
            "machine.start",
            json!({"machine": "a", "run_timeout_ms": u64::MAX}),
            "run_timeout_ms",
        ),
        ("machine.run", json!({"machine": "a", "command": []}), "command"),
        (
            "machine.run",
            json!({"machine": "a", "command": ["a\u{0}b"]}),
            "command",
        ),
        (
            "machine.run",
            json!({"machine": "a", "command": ["true"], "workdir": ""}),
            "workdir",
        ),
        (
            "machine.run",
            json!({"machine": "a", "command": ["true"], "env": {"A": "\u{0}"}}),
            "env",
        ),
        (
            "machine.run",
            json!({"machine": "a", "command": ["true"], "stdin_base64": "*"}),
            "stdin_base64",
        ),
        (
            "machine.create",
            json!({"name": "none/x", "distro": "ubuntu"}),
            "name",
        ),
        (
            "machine.create",
            json!({"name": "x", "distro": "--help"}),
            "distro",
        ),
        (
            "machine.create",
            json!({"name": "x", "distro": "ubuntu", "cpus": 0}),
            "cpus",
        ),
        ("job.get", json!({"job_id": "7"}), "job_id"),
        ("job.list", json!({"limit": 0}), "limit"),
        ("daemon.hello", json!({"client": "a b", "protocol": 1}), "client"),
        ("machine.list", json!(["positional"]), "params"),
    ] {
        let answer = wire.call(1, method, &params);
        assert_eq!(
            error_of(&answer),
            (-32602, "invalid_params"),
            "{method} {params}: {answer}"
        );
        assert_eq!(
            answer["error"]["data"]["field"], field,
            "{method} {params}: {answer}"
        );
    }
    assert_eq!(world.ledger().invocations.len(), 0);
}

#[test]
fn ids_come_back_as_sent() {
    let world = World::new().started();
    let mut wire = world.wire();
    for id in [
        "1",
        "0",
        "18446744073709551615",
        "\"text\"",
        "\"a\\\"b\\u00fc\\n\"",
        "\"\"",
    ] {
        let answer = wire.exchange(&format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"daemon.info\"}}"
        ));
        let expected: Value = serde_json::from_str(id).expect("JSON");
        assert_eq!(answer["id"], expected, "{answer}");
        assert!(answer["result"].is_object(), "{answer}");
    }
}

#[test]
fn request_without_an_id_is_neither_answered_nor_executed() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    wire.send("{\"jsonrpc\":\"2.0\",\"method\":\"machine.stop\",\"params\":{\"machine\":\"a\"}}\n");
    wire.send("[{\"jsonrpc\":\"2.0\",\"method\":\"machine.stop\",\"params\":{\"machine\":\"a\"}}]\n");
    let answer = wire.call(1, "daemon.info", &json!({}));
    assert_eq!(answer["id"], 1);
    assert_eq!(world.ledger().invocations.len(), 0);
}

#[test]
fn batch_gets_one_answer_with_an_error_per_failed_request() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    let answer = wire.exchange(
        &json!([
            {"jsonrpc": "2.0", "id": 1, "method": "machine.list", "params": {}},
            {"jsonrpc": "2.0", "method": "machine.stop", "params": {"machine": "a"}},
            {"jsonrpc": "2.0", "id": 2, "method": "machine.explode"},
            17,
            {"jsonrpc": "2.0", "id": 3, "method": "machine.list", "params": {}},
            {"jsonrpc": "2.0", "id": 4, "method": "machine.run_follow", "params": {"machine": "a", "command": ["true"]}},
            {"jsonrpc": "2.0", "id": 5, "method": "machine.start", "params": {"machin": "a"}},
        ])
        .to_string(),
    );
    let answers = answer.as_array().expect("a batch");
    let by_id = |id: Value| {
        answers
            .iter()
            .find(|answer| answer["id"] == id)
            .expect("an answer")
    };
    assert_eq!(answers.len(), 6, "{answer}");
    assert_eq!(by_id(json!(1))["result"]["machines"][0]["name"], "a");
    assert_eq!(by_id(json!(3))["result"]["machines"][0]["name"], "a");
    assert_eq!(error_of(by_id(json!(2))).1, "method_not_found");
    assert_eq!(error_of(by_id(json!(4))).1, "invalid_request");
    assert_eq!(error_of(by_id(json!(5))).1, "invalid_params");
    assert_eq!(error_of(by_id(Value::Null)).1, "invalid_request");
    let calls: Vec<Value> = (0..101)
        .map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "daemon.info"}))
        .collect();
    let answer = wire.exchange(&json!(calls).to_string());
    assert_eq!(error_of(&answer), (-32600, "invalid_request"), "over batch_max");
    let answer = wire.exchange(&json!(calls[..100]).to_string());
    assert_eq!(answer.as_array().map(Vec::len), Some(100));
}

#[test]
fn line_over_frame_max_is_refused_and_closes_only_its_connection() {
    let world = World::new().set("frame_max", "64KiB").started();
    let mut other = world.wire();
    let mut wire = world.wire();
    wire.stream.set_nonblocking(false).expect("a mode");
    let piece = vec![b' '; 16 << 10];
    let mut sent = 0;
    // No line end follows, so the daemon could not find the beginning of the next request.
    while sent < 64 << 20 {
        match wire.stream.write(if sent == 0 { b"{" } else { &piece }) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    assert!(sent < 4 << 20, "the daemon took {sent} bytes");
    let answer = wire.receive().expect("it says why");
    assert_eq!(error_of(&answer), (-32600, "invalid_request"));
    still_works(&mut other);
    // A request just below the limit is accepted.
    let name = "x".repeat(60 << 10);
    let answer = other.call(1, "machine.start", &json!({"machine": name}));
    assert_eq!(error_of(&answer).1, "invalid_params");
}

#[test]
fn answers_come_when_they_are_ready_not_in_request_order() {
    let world = World::with_machines(&["a"]);
    let gate = world.gate("gate");
    let mut wire = world.wire();
    wire.request(
        1,
        "machine.run",
        &json!({"machine": "a", "command": ["cat", gate]}),
    );
    wire.request(2, "daemon.info", &json!({}));
    assert_eq!(wire.receive().expect("an answer")["id"], 2);
    world.open_gate("gate");
    assert_eq!(wire.receive().expect("an answer")["id"], 1);
}

#[test]
fn clients_that_send_and_never_read_cost_bounded_memory() {
    let names: Vec<String> = (0..20).map(|number| format!("machine-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = World::new().machines(&names).started();
    let mut caller = world.client();
    assert_eq!(caller.machines().len(), 20);
    let before = resident(world.pid());
    let list = b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"machine.list\"}\n".repeat(2000);
    let info = b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"daemon.info\"}\n".repeat(2000);
    let mut rude: Vec<UnixStream> = (0..64)
        .map(|_| UnixStream::connect(world.socket()).expect("connect"))
        .collect();
    for stream in &rude {
        stream.set_nonblocking(true).expect("a mode");
    }
    // Until no connection accepts more data, three rounds in a row.
    let mut idle = 0;
    while idle < 3 {
        let mut wrote = 0;
        for (number, stream) in rude.iter_mut().enumerate() {
            let requests = if number % 2 == 0 { &list } else { &info };
            while let Ok(count) = stream.write(requests) {
                wrote += count;
            }
        }
        idle = if wrote == 0 { idle + 1 } else { 0 };
        // Another client is served in between, which also gives the daemon time to run.
        assert_eq!(caller.machines().len(), 20);
    }
    let grown = resident(world.pid()).saturating_sub(before);
    // Each connection may hold 64 KiB of answers, one answer beyond that, and the data of one read.
    assert!(grown < 24 << 10, "{grown} KiB for 64 connections");
}

#[test]
fn connections_beyond_connections_max_are_refused_with_a_reason() {
    let world = World::new().set("connections_max", "3").started();
    let mut kept: Vec<Wire> = (0..3).map(|_| world.admitted()).collect();
    let mut refused = world.wire();
    let answer = refused.receive().expect("it says why");
    assert_eq!(error_of(&answer), (1005, "too_many_connections"));
    assert!(answer["error"]["data"]["retry_after_ms"].is_u64());
    assert!(refused.receive().is_none());
    drop(kept.pop());
    drop(world.admitted());
    for wire in &mut kept {
        still_works(wire);
    }
}

#[test]
fn idle_connection_makes_room_for_a_new_one_and_used_ones_stay() {
    let world = World::new()
        .set("connections_max", "5")
        .set("connection_idle_max", "100ms")
        .machines(&["a"])
        .started();
    let mut in_call = world.admitted();
    let command = json!({"machine": "a", "command": ["cat", world.gate("done")]});
    in_call.request(2, "machine.run", &command);
    let mut idle = world.admitted();
    // All of these are in use, so the last one can only replace the idle connection.
    for wire in &mut [(); 4].map(|()| world.subscribed()) {
        still_works(wire);
    }
    assert!(idle.receive().is_none());
    world.open_gate("done");
    assert_eq!(
        in_call.until(|answer| answer["id"] == 2)["result"]["exit_code"],
        0
    );
}

#[test]
fn idle_http_and_silent_connections_make_room_too() {
    let world = World::new()
        .set("connections_max", "4")
        .set("connection_idle_max", "100ms")
        .started();
    let mut silent = world.wire();
    let mut kept_alive = world.wire();
    let (head, _) = http(&mut kept_alive, &post(INFO));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let _newcomers = [(); 4].map(|()| world.subscribed());
    assert!(silent.receive().is_none());
    assert!(kept_alive.receive().is_none());
}

/// A request that is always answered.
const INFO: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.info\"}";

/// Sends one HTTP request; returns head and body.
fn http(wire: &mut Wire, request: &str) -> (String, Vec<u8>) {
    wire.send(request);
    let head = wire.head();
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    if let Some(length) = header("content-length") {
        let body = wire.exactly(length.parse().expect("a number"));
        return (head, body);
    }
    assert_eq!(header("transfer-encoding").as_deref(), Some("chunked"), "{head}");
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        while !size.ends_with("\r\n") {
            size.push(char::from(wire.exactly(1)[0]));
        }
        let size = usize::from_str_radix(size.trim_end(), 16).expect("a chunk's size");
        body.extend(wire.exactly(size));
        wire.exactly(2);
        if size == 0 {
            return (head, body);
        }
    }
}

fn post(body: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: orbd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn one_http_connection_serves_several_posts() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    for id in 1..=3 {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": "machine.list", "params": {}});
        let (head, body) = http(&mut wire, &post(&request.to_string()));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            (&answer["id"], &answer["result"]["machines"][0]["name"]),
            (&json!(id), &json!("a"))
        );
    }
    let (_, body) = http(&mut wire, &post("{"));
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(answer["error"]["code"], -32700);
    let request =
        json!({"jsonrpc": "2.0", "id": 1, "method": "machine.start", "params": {"forse": 1, "machine": "a"}});
    let (_, body) = http(&mut wire, &post(&request.to_string()));
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(error_of(&answer), (-32602, "invalid_params"));
    assert_eq!(answer["error"]["data"]["field"], "forse");
}

#[test]
fn http_disconnect_cancels_the_command() {
    let world = World::with_machines(&["a"]);
    let mut wire = world.wire();
    let params = json!({"machine": "a", "command": ["sleep", "1000"]});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "machine.run", "params": params});
    wire.send(post(&request.to_string()));
    let mut caller = world.client();
    let id = caller.find("run", "a", JobStateWord::Running).job_id;
    drop(wire);
    assert_eq!(outcome_of(&caller.end_of(id)), ("cancelled", "job_cancelled"));
}

#[test]
fn job_output_over_http_is_a_plain_body() {
    let world = World::with_machines(&["a"]);
    let mut caller = world.client();
    let bytes = Random::new(21).bytes(3 << 20);
    std::fs::write(world.path("bytes"), &bytes).expect("a file");
    let script = format!("echo warning >&2; cat {}", world.path("bytes").display());
    let id = caller.run_detached("a", &["sh", "-c", &script]);
    let mut wire = world.wire();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: orbd\r\n\r\n");
    // While the job runs or after it: the body ends when the job ends.
    let (head, body) = http(&mut wire, &get(&format!("/jobs/{id}/output?stream=stdout")));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body == bytes, "{} bytes", body.len());
    let (_, body) = http(&mut wire, &get(&format!("/jobs/{id}/output?stream=stderr")));
    assert_eq!(body, b"warning\n");
    let end = caller.end_of(id).output_bytes;
    let (_, body) = http(
        &mut wire,
        &get(&format!("/jobs/{id}/output?offset={}", end - 100)),
    );
    assert_eq!(body.len(), 100);
    for (path, status) in [
        (format!("/jobs/{id}/output?offset={}", end + 1), "416"),
        (format!("/jobs/{id}/output?stream=both&x=1"), "400"),
        (format!("/jobs/{id}/output?offset=-1"), "400"),
        ("/jobs/999999/output".to_owned(), "404"),
        ("/jobs/x/output".to_owned(), "404"),
        (format!("/jobs/{id}"), "404"),
    ] {
        let (head, _) = http(&mut wire, &get(&path));
        assert_eq!(head.split(' ').nth(1), Some(status), "{path}: {head}");
    }
}

#[test]
fn websocket_upgrade_is_refused_with_the_supported_protocols() {
    let world = World::new().started();
    let mut wire = world.wire();
    let request = "GET / HTTP/1.1\r\nhost: orbd\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: BwcHBwcHBwcHBwcHBwcHBw==\r\n\r\n";
    let (head, body) = http(&mut wire, request);
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let text = String::from_utf8(body).expect("text");
    assert!(text.contains("newline-delimited JSON-RPC"), "{text}");
    assert!(text.contains("POST /"), "{text}");
    // The connection continues, with HTTP.
    let (head, _) = http(&mut wire, &post(INFO));
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[test]
fn content_length_framing_is_refused_with_the_supported_protocols() {
    let world = World::new().started();
    let mut wire = world.wire();
    let (head, body) = http(
        &mut wire,
        &format!("Content-Length: {}\r\n\r\n{INFO}", INFO.len()),
    );
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let text = String::from_utf8(body).expect("text");
    assert!(text.contains("newline-delimited JSON-RPC"), "{text}");
    assert!(wire.receive().is_none());
}

#[test]
fn other_http_paths_and_methods_are_refused_with_the_supported_ones() {
    let world = World::new().started();
    let mut wire = world.wire();
    for (line, status) in [
        ("GET /", "405"),
        ("DELETE /", "405"),
        ("GET /rpc", "404"),
        ("POST /rpc", "404"),
    ] {
        let request = format!("{line} HTTP/1.1\r\nhost: orbd\r\n\r\n");
        let (head, body) = http(&mut wire, &request);
        assert_eq!(head.split(' ').nth(1), Some(status), "{line}: {head}");
        let text = String::from_utf8(body).expect("text");
        assert!(text.contains("POST / (JSON-RPC calls)"), "{line}: {text}");
    }
}

#[test]
fn http_errors_have_the_same_data_as_json_lines() {
    let world = World::new().set("frame_max", "64KiB").started();
    let mut wire = world.wire();
    let subscribe = json!({"jsonrpc": "2.0", "id": 7, "method": "events.subscribe"}).to_string();
    let unsubscribe =
        json!({"jsonrpc": "2.0", "id": 7, "method": "events.unsubscribe", "params": [1]}).to_string();
    let batch = format!("[{subscribe},{INFO}]");
    for (body, status, kind) in [
        ("{", "200", "parse_error"),
        ("{}", "200", "invalid_request"),
        ("[]", "200", "invalid_request"),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"machine.explode\"}",
            "200",
            "method_not_found",
        ),
        (&subscribe, "200", "invalid_request"),
        (&unsubscribe, "200", "invalid_request"),
        (" \n", "400", "parse_error"),
    ] {
        let (head, answer) = http(&mut wire, &post(body));
        assert_eq!(head.split(' ').nth(1), Some(status), "{body}: {head}");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(error_of(&answer).1, kind, "{body}: {answer}");
        assert_eq!(answer["jsonrpc"], "2.0");
    }
    let (_, answer) = http(&mut wire, &post(&batch));
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert_eq!(error_of(&answer[0]).1, "invalid_request", "{answer}");
    assert!(answer[1]["result"].is_object(), "{answer}");
    // A notification has no answer.
    wire.send(post("{\"jsonrpc\":\"2.0\",\"method\":\"daemon.info\"}"));
    let head = wire.head();
    assert!(head.starts_with("HTTP/1.1 204"), "{head}");
    for length in ["content-length: 65537", "transfer-encoding: chunked"] {
        let mut wire = world.wire();
        let body = match length.split_once(": ") {
            Some((_, "chunked")) => format!("10001\r\n{}\r\n0\r\n\r\n", " ".repeat(65_537)),
            _ => String::new(),
        };
        let request = format!("POST / HTTP/1.1\r\nhost: orbd\r\n{length}\r\n\r\n{body}");
        let (head, answer) = http(&mut wire, &request);
        assert!(head.starts_with("HTTP/1.1 413"), "{head}");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(error_of(&answer).1, "invalid_request", "{answer}");
        assert!(answer.to_string().contains("frame_max"), "{answer}");
    }
}

#[test]
fn protocol_mismatch_names_the_older_side() {
    let world = World::new().started();
    let mut caller = world.client();
    let version = env!("CARGO_PKG_VERSION");
    for (protocol, mend) in [
        (0, "the client is older: upgrade it"),
        (
            2,
            "orbd is older: upgrade it; `orbd-ctl doctor` names the command",
        ),
    ] {
        let refused = caller.call::<DaemonHello>(json!({"client": "other", "protocol": protocol}));
        let error = refused.expect_err("refused");
        assert_eq!(error.data.expect("data").kind, "protocol_mismatch");
        let versions = format!(
            "client 'other' speaks protocol {protocol}, but orbd {version} speaks protocol 1; {mend}"
        );
        assert!(error.message.starts_with(&versions), "{}", error.message);
    }
    let hello = caller.ok::<DaemonHello>(json!({"client": "new", "protocol": 7, "protocol_min": 1}));
    assert_eq!(hello.protocol, 1, "the newest that both speak");
    let refused = caller.call::<DaemonHello>(json!({"client": "new", "protocol": 1, "protocol_min": 2}));
    assert_eq!(
        refused
            .expect_err("an empty range")
            .data
            .expect("data")
            .field
            .as_deref(),
        Some("protocol_min")
    );
    let info = caller.ok::<DaemonInfo>(json!({}));
    assert_eq!((info.protocol_min, info.protocol), (1, 1));
    assert_eq!(hello.instance, info.instance);
    assert_eq!(info.pid, world.pid());
}

#[test]
fn last_request_without_a_line_end_is_answered_at_half_close() {
    let world = World::new().started();
    let mut wire = world.wire();
    wire.send("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"daemon.info\"}");
    wire.half_close();
    assert_eq!(wire.receive().expect("an answer")["id"], 1);
    let mut rest = Vec::new();
    wire.stream.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty());
}
