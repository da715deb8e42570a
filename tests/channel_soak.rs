//! Many commands through channels while everything that carries them is killed at random: loops, guest shells, `orbctl` and the daemon.
//!
//! Each command appends its name to a file in its machine before anything else. That file and the answers show that no command ran twice,
//! that none was reported as run which did not run, and that no output reached another command.
#![expect(
    clippy::disallowed_methods,
    reason = "the number of commands comes from the environment"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orbd_client::Client;
use orbd_proto::methods::{MachineList, MachineRestart, MachineRun, MetricsHistory};
use orbd_proto::types::Stream;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{
    Caller, PATIENCE, Random, World, children_of, eventually, resident, stream_of, words_of,
};

const MACHINES: usize = 10;
const CLIENTS: u64 = 6;
/// Commands in an ordinary run of the suite; `make soak-channels` runs a hundred thousand.
const COMMANDS: usize = 1_000;
/// Commands between two attacks.
const ATTACK_EVERY: usize = 20;

/// What a client was told about one command.
struct Told {
    name: String,
    machine: usize,
    /// Exit code; `None` if it failed or the answer was lost.
    exit_code: Option<i32>,
    /// Kind of the error; "lost" if the daemon died before it answered.
    error: String,
}

struct Load {
    socket: PathBuf,
    wanted: usize,
    begun: AtomicUsize,
    told: Mutex<Vec<Told>>,
    breaches: Mutex<Vec<String>>,
}

impl Load {
    fn breach(&self, text: String) {
        self.breaches.lock().expect("no panic with it").push(text);
    }

    fn connect(&self) -> Caller {
        let client = eventually("the daemon takes connections", || {
            Client::connect(&self.socket).ok()
        });
        client.set_timeout(Some(PATIENCE)).expect("a timeout");
        Caller(client)
    }

    /// Runs commands until enough have begun.
    fn go_on(&self, client: u64, seed: u64) {
        let mut random = Random::new(seed.wrapping_add(client * 1_000_003));
        let mut caller = self.connect();
        for number in 0.. {
            if self.begun.fetch_add(1, Ordering::Relaxed) >= self.wanted {
                return;
            }
            let name = format!("c{client}-{number}");
            let machine = usize::try_from(random.below(MACHINES as u64)).expect("small");
            let command = Command::random(&name, &mut random);
            if command.is_abandoned {
                self.abandon(machine, &command);
                continue;
            }
            let mut params = command.params.clone();
            params["machine"] = machine_name(machine).into();
            let told = |exit_code, error: &str| Told {
                name: name.clone(),
                machine,
                exit_code,
                error: error.to_owned(),
            };
            let answer = match caller.try_call::<MachineRun>(params) {
                Ok(Ok(answer)) => {
                    let mut chunks = answer.output.clone();
                    if answer.next_offset < answer.output_bytes {
                        // The daemon may die before it is asked for the rest.
                        chunks.clear();
                    }
                    if !chunks.is_empty() {
                        self.check_output(&command, answer.exit_code, &stream_of(&chunks, Stream::Stdout));
                    }
                    told(answer.exit_code, "")
                }
                Ok(Err(error)) => told(None, &error.data.expect("data").kind),
                Err(_) => {
                    caller = self.connect();
                    told(None, "lost")
                }
            };
            self.told.lock().expect("no panic with it").push(answer);
        }
    }

    /// Sends a command and disconnects, which cancels it.
    fn abandon(&self, machine: usize, command: &Command) {
        let Ok(mut client) = Client::connect(&self.socket) else {
            return;
        };
        client
            .set_timeout(Some(Duration::from_millis(20)))
            .expect("a timeout");
        let mut params = command.params.clone();
        params["machine"] = machine_name(machine).into();
        let params = serde_json::from_value(params).expect("parameters");
        // Ends at the timeout.
        let _ = client.call::<MachineRun>(&params);
    }

    fn check_output(&self, command: &Command, exit_code: Option<i32>, stdout: &[u8]) {
        let stdout = String::from_utf8_lossy(stdout);
        let is_whole = stdout == command.stdout || stdout == command.late_stdout;
        // A command that was killed has written the beginning.
        let is_beginning = command.stdout.starts_with(&*stdout) && exit_code != Some(command.exit_code);
        if !is_whole && !is_beginning {
            self.breach(format!(
                "{}: exit code {exit_code:?}, {} bytes of output, {} expected, beginning {:?}",
                command.params,
                stdout.len(),
                command.stdout.len(),
                stdout.chars().take(80).collect::<String>()
            ));
        }
    }
}

/// A command, and what it does if nothing disturbs it.
struct Command {
    params: Value,
    stdout: String,
    /// The same with what a process adds that the command leaves behind.
    late_stdout: String,
    exit_code: i32,
    is_abandoned: bool,
}

impl Command {
    fn random(name: &str, random: &mut Random) -> Self {
        let kind = random.below(24);
        let code = i32::try_from(random.below(4)).expect("small");
        let mut stdout = format!("out {name}\n");
        let mut extra = json!({});
        let rest = match kind {
            0 | 1 => {
                stdout =
                    format!("in {name}\n").repeat(usize::try_from(random.below(400)).expect("small") + 1);
                extra = json!({"stdin_text": stdout});
                "cat".to_owned()
            }
            2 => {
                stdout = format!("{name}\n").repeat(2_000);
                format!("yes {name} | head -n 2000")
            }
            3 => {
                extra = json!({"run_timeout_ms": 30});
                format!("echo out {name}; sleep 5")
            }
            4 => format!("echo out {name}; sleep 5"),
            5 => format!("(sleep 1; echo LATE {name}) & echo out {name}"),
            6 => format!("touch .profile; echo out {name}"),
            7 => format!("setsid sleep 0.1 >/dev/null 2>&1 & echo out {name}"),
            _ => format!("echo out {name}; echo err {name} >&2"),
        };
        let script = format!("echo {name} >>ledger; {rest}; exit {code}");
        let mut params = json!({"command": ["sh", "-c", script], "channel": "open"});
        for (key, value) in extra.as_object().expect("an object") {
            params[key] = value.clone();
        }
        Self {
            params,
            late_stdout: format!("{stdout}LATE {name}\n"),
            stdout,
            exit_code: code,
            is_abandoned: kind == 4,
        }
    }
}

fn machine_name(number: usize) -> String {
    format!("m{number}")
}

/// Sends a signal; the process may have ended.
fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

fn pick(random: &mut Random, of: &[u32]) -> Option<u32> {
    let at = usize::try_from(random.below(of.len().max(1) as u64)).expect("small");
    of.get(at).copied()
}

/// Attacks something that carries commands. Returns what.
fn attack(world: &mut World, load: &Load, random: &mut Random) -> &'static str {
    let kind = random.below(20);
    let runs = |world: &World| -> Vec<u32> {
        let children = children_of(world.pid()).into_iter();
        children.filter(|pid| words_of(*pid).contains("run -m")).collect()
    };
    match kind {
        0 => {
            world.kill();
            world.start();
            "daemon killed"
        }
        1 => {
            let machine = machine_name(usize::try_from(random.below(MACHINES as u64)).expect("small"));
            let _ = load
                .connect()
                .try_call::<MachineRestart>(json!({"machine": machine}));
            "machine restarted"
        }
        2..=4 => {
            let stopped = pick(random, &runs(world));
            if let Some(pid) = stopped {
                signal(pid, Signal::STOP);
                until_more(load, ATTACK_EVERY / 2);
                signal(pid, Signal::CONT);
            }
            "orbctl stopped for a while"
        }
        5..=9 => {
            if let Some(pid) = pick(random, &runs(world)) {
                signal(pid, Signal::KILL);
            }
            "orbctl killed"
        }
        _ => {
            let guests = world.processes().into_iter();
            let is_guest = |pid: &u32| {
                let words = words_of(*pid);
                ["sh ", "cat", "setsid ", "sleep "]
                    .iter()
                    .any(|word| words.starts_with(word))
            };
            let guests: Vec<u32> = guests.filter(is_guest).collect();
            if let Some(pid) = pick(random, &guests) {
                signal(
                    pid,
                    if kind.is_multiple_of(2) {
                        Signal::KILL
                    } else {
                        Signal::TERM
                    },
                );
            }
            "guest process killed"
        }
    }
}

/// Waits until so many more commands have begun.
fn until_more(load: &Load, commands: usize) {
    let begun = load.begun.load(Ordering::Relaxed);
    eventually("commands begin", || {
        let now = load.begun.load(Ordering::Relaxed);
        (now >= load.wanted.min(begun + commands)).then_some(())
    });
}

fn ledger(folder: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(folder.join("home/ledger"))
        .unwrap_or_default()
        .lines()
    {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

#[test]
fn under_attack_no_command_runs_twice_and_no_output_is_mixed() {
    let wanted = std::env::var("ORBD_SOAK_COMMANDS");
    let wanted = wanted.map_or(COMMANDS, |wanted| wanted.parse().expect("a number of commands"));
    let seed = u64::from(std::process::id()) << 16 | 0xc4a7;
    println!("seed {seed}");
    let names: Vec<String> = (0..MACHINES).map(machine_name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::new()
        .channels()
        .latency("list=25,run=25")
        .set("grace", "500ms")
        .machines(&names)
        .started();
    let machines = world.client().ok::<MachineList>(json!({})).machines;
    let folders: Vec<PathBuf> = names
        .iter()
        .map(|name| {
            let machine = machines
                .iter()
                .find(|machine| machine.name == *name)
                .expect("it exists");
            world.path("sim/machines").join(&machine.id)
        })
        .collect();
    let load = Load {
        socket: world.socket(),
        wanted,
        begun: AtomicUsize::new(0),
        told: Mutex::default(),
        breaches: Mutex::default(),
    };
    let mut attacks: BTreeMap<&str, usize> = BTreeMap::new();
    let mut random = Random::new(seed);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let load = &load;
                scope.spawn(move || load.go_on(client, seed))
            })
            .collect();
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            *attacks.entry(attack(&mut world, &load, &mut random)).or_default() += 1;
            until_more(&load, ATTACK_EVERY);
        }
    });
    let mut caller = world.client();
    let memory = resident(world.pid());
    for name in &names {
        let last = caller.run(name, &["echo", "last"]);
        assert_eq!(
            stream_of(&last.output, Stream::Stdout),
            b"last\n",
            "{name} serves on"
        );
    }
    let records = caller.ok::<MetricsHistory>(json!({"limit": 1000})).records;
    let in_channel = records.iter().filter(|record| record.in_channel).count();
    drop(caller);
    world.terminate();
    world.ended();
    eventually("no process is left", || {
        world.processes().is_empty().then_some(())
    });

    let ledgers: Vec<_> = folders.iter().map(|folder| ledger(folder)).collect();
    let mut breaches = load.breaches.into_inner().expect("no panic with it");
    let twice = ledgers.iter().flatten().filter(|(_, runs)| **runs > 1);
    breaches.extend(twice.map(|(name, runs)| format!("{name} ran {runs} times")));
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for told in load.told.into_inner().expect("no panic with it") {
        let has_run = ledgers[told.machine].contains_key(&told.name);
        // Exit codes above 3 are those of commands that were killed, perhaps before their first line.
        if matches!(told.exit_code, Some(0..=3)) && !has_run {
            breaches.push(format!("{} was reported as run, and did not run", told.name));
        }
        let answer = match told.exit_code {
            Some(code @ 0..=3) => format!("exit code {code}"),
            Some(_) => "killed".to_owned(),
            None => told.error,
        };
        *answers.entry(answer).or_default() += 1;
    }
    let mut report = format!(
        "{wanted} commands, {memory} KiB resident, {in_channel} of the last {} in channels\n",
        records.len()
    );
    let _ = writeln!(report, "answers: {answers:?}\nattacks: {attacks:?}");
    println!("{report}");
    assert!(breaches.is_empty(), "{report}{}", breaches.join("\n"));
    assert!(in_channel > records.len() / 4, "{report}");
}
