//! The marker of a job: the value of [`crate::sys::MARKER`] in the environment of the job's process.
//!
//! The journal names every process that may outlive orbd, unless the journal is damaged, missing or could not be written. In that
//! case the next instance finds the processes by their markers. A marker states which lanes its process holds.
//!
//! ```text
//! INSTANCE:JOB:SOCKET:EXECUTOR:CLASS:VERB:MACHINE:LANES[:channel]
//! 19ad0c3e2f1-4d2:17:9f1c22ab:daemon:change:start:web:web!,*
//! ```
//!
//! LANES is a list of machine names, `*` for the fleet and `@` for the configuration; `!` after a lane means exclusive. SOCKET is a
//! checksum of the socket's path, so that two daemons of one user do not adopt each other's children. `channel` marks the process of a
//! resident channel: JOB opened it, and it serves others too.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::job::JobId;
use crate::journal::{InFlight, Recovered, Starting};
use crate::operation::{Access, Class, Footprint, Lane};
use crate::orbctl::MARKER_SUFFIX;
use crate::sys::{ChildIdentity, MarkedProcess};
use orbd_host::machine::MachineName;

use super::stored;
use super::submission::JobSpec;

/// Longest list of lanes in a marker, in bytes. A longer list is replaced by the whole fleet, exclusive: Linux limits an environment
/// variable to 128 KiB, and a truncated list would lock too few lanes.
const LANES_MAX: usize = 16 << 10;
const FLEET: &str = "*";
const CONFIGURATION: &str = "@";

/// Creates and recognizes the markers of one daemon.
#[derive(Debug, Clone)]
pub struct Markers {
    instance: Arc<str>,
    socket: u32,
}

/// Parsed marker of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marker {
    text: String,
    socket: u32,
    job: JobId,
    is_lease: bool,
    class: Class,
    verb: String,
    machine: Option<MachineName>,
    lanes: Vec<(Lane, Access)>,
    is_channel: bool,
}

/// A process that an earlier instance of this daemon left running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    marker: Marker,
    process: ChildIdentity,
}

impl Markers {
    /// Returns the markers of the instance `instance` that serves `socket`.
    pub fn new(instance: &str, socket: &Path) -> Self {
        Self {
            instance: instance.into(),
            socket: crc32fast::hash(socket.as_os_str().as_encoded_bytes()),
        }
    }

    /// Returns the marker of a job's process.
    pub(super) fn of(&self, spec: &JobSpec) -> String {
        let info = &spec.info;
        let executor = if info.is_lease { "client" } else { "daemon" };
        format!(
            "{}:{}:{:08x}:{executor}:{}:{}:{}:{}",
            self.instance,
            spec.id,
            self.socket,
            info.class.as_str(),
            info.verb.as_str(),
            info.machine.as_ref().map_or("", MachineName::as_str),
            LaneList(info.footprint.lanes()),
        )
    }

    /// Finds the processes of earlier instances that run `orbctl` and hold lanes. `orbctl` is the located program, if there is one.
    ///
    /// Other programs are ignored: a program that `orbctl` starts, such as OrbStack's own service, inherits the environment and may
    /// run indefinitely.
    pub fn survivors(&self, processes: Vec<MarkedProcess>, orbctl: Option<&Path>) -> Vec<Survivor> {
        let is_ours = |marker: &Marker| marker.socket == self.socket && !marker.lanes.is_empty();
        processes
            .into_iter()
            .filter(|process| is_orbctl(process, orbctl))
            .filter_map(|process| {
                Some(Survivor {
                    marker: Marker::parse(process.marker.to_str()?).filter(is_ours)?,
                    process: process.identity,
                })
            })
            .collect()
    }
}

/// Returns whether a process was started as `orbctl`: by its program name, or as a script, whose path the kernel passes to the
/// interpreter.
fn is_orbctl(process: &MarkedProcess, orbctl: Option<&Path>) -> bool {
    let located = orbctl.and_then(Path::file_name);
    let names = [located, Some(OsStr::new("orbctl")), Some(OsStr::new("orb"))];
    let script = process.args.get(1).map(Path::new).filter(|arg| arg.is_absolute());
    let program = process.args.first().map(Path::new);
    [program, script]
        .into_iter()
        .flatten()
        .any(|path| path.file_name().is_some() && names.contains(&path.file_name()))
}

impl Marker {
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let _instance = fields.next()?;
        let job = JobId(fields.next()?.parse().ok()?);
        let socket = u32::from_str_radix(fields.next()?, 16).ok()?;
        let is_lease = match fields.next()? {
            "daemon" => false,
            "client" => true,
            _ => return None,
        };
        let class = fields.next()?;
        let class = Class::ALL.into_iter().find(|known| known.as_str() == class)?;
        let verb = fields.next()?.to_owned();
        let machine = match fields.next()? {
            "" => None,
            name => Some(name.parse().ok()?),
        };
        let lanes = fields.next()?;
        let lanes = lanes.split(',').filter(|lane| !lane.is_empty());
        let lanes = lanes.map(parse_lane).collect::<Option<_>>()?;
        let is_channel = match fields.next() {
            None => false,
            Some(word) if MARKER_SUFFIX.strip_prefix(':') == Some(word) => true,
            Some(_) => return None,
        };
        fields.next().is_none().then(|| Self {
            text: text.to_owned(),
            socket,
            job,
            is_lease,
            class,
            verb,
            machine,
            lanes,
            is_channel,
        })
    }

    /// Returns the journal entry that is missing for the job.
    fn starting(&self) -> Starting {
        Starting {
            job: self.job,
            // The journal stores no marker for the process of a client.
            marker: if self.is_lease {
                String::new()
            } else {
                self.text.clone()
            },
            lanes: Footprint::new(self.lanes.iter().cloned()).lanes().to_vec(),
            verb: self.verb.clone(),
            machine: self.machine.clone(),
            class: self.class,
            detached: false,
        }
    }
}

struct LaneList<'a>(&'a [(Lane, Access)]);

impl fmt::Display for LaneList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lanes: Vec<String> = self
            .0
            .iter()
            .map(|(lane, access)| {
                let name = match lane {
                    Lane::Machine(name) => name.as_str(),
                    Lane::Fleet => FLEET,
                    Lane::Configuration => CONFIGURATION,
                };
                let mark = if *access == Access::Exclusive { "!" } else { "" };
                format!("{name}{mark}")
            })
            .collect();
        let list = lanes.join(",");
        if list.len() > LANES_MAX {
            write!(f, "{FLEET}!")
        } else {
            f.write_str(&list)
        }
    }
}

fn parse_lane(text: &str) -> Option<(Lane, Access)> {
    let (name, access) = match text.strip_suffix('!') {
        Some(name) => (name, Access::Exclusive),
        None => (text, Access::Shared),
    };
    let lane = match name {
        FLEET => Lane::Fleet,
        CONFIGURATION => Lane::Configuration,
        name => Lane::Machine(name.parse().ok()?),
    };
    Some((lane, access))
}

/// Takes the processes of resident channels out. Returns those that no job of the journal names: they run no command, or one that
/// nothing is known about.
pub fn take_channels(survivors: &mut Vec<Survivor>, recovered: &Recovered) -> Vec<ChildIdentity> {
    let named: Vec<ChildIdentity> = recovered
        .in_flight
        .iter()
        .filter_map(|found| stored::identity(found.process.as_ref()?))
        .collect();
    survivors
        .extract_if(.., |survivor| survivor.marker.is_channel)
        .map(|survivor| survivor.process)
        .filter(|process| !named.contains(process))
        .collect()
}

/// Adds the jobs of surviving processes that the journal does not name to `recovered`. Returns the surviving processes of each job,
/// and the ids of the added jobs.
pub(super) fn adopt(
    recovered: &mut Recovered,
    survivors: Vec<Survivor>,
) -> (BTreeMap<JobId, Vec<ChildIdentity>>, Vec<JobId>) {
    let mut processes: BTreeMap<JobId, Vec<ChildIdentity>> = BTreeMap::new();
    let mut added = Vec::new();
    for Survivor { marker, process } in survivors {
        processes.entry(marker.job).or_default().push(process);
        if recovered
            .in_flight
            .iter()
            .any(|found| found.starting.job == marker.job)
        {
            continue;
        }
        // An accepted change whose process is running has started, although its start entry is missing.
        let waiting = [&mut recovered.waiting, &mut recovered.uncertain]
            .into_iter()
            .find_map(|jobs| {
                let at = jobs.iter().position(|accepted| accepted.job == marker.job)?;
                Some(jobs.remove(at))
            });
        let mut starting = marker.starting();
        starting.detached = waiting.is_some();
        recovered.in_flight.push(InFlight {
            starting,
            process: None,
            owner: None,
            accepted: waiting,
        });
        added.push(marker.job);
    }
    (processes, added)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::dispatcher::stored;
    use crate::journal::AcceptedJob;
    use crate::operation::{Change, Force, JobInfo, Verb};
    use crate::sys::StartTime;

    fn name(text: &str) -> MachineName {
        text.parse().expect("a valid name")
    }

    fn markers() -> Markers {
        Markers::new("19ad-1", Path::new("/home/user/.orbd/orbd.sock"))
    }

    fn spec(info: JobInfo) -> JobSpec {
        let now = crate::clock::Moment::now();
        JobSpec::without_client(JobId(17), info, "", false, now)
    }

    fn start_web() -> JobSpec {
        spec(Change::Start(name("web")).info())
    }

    fn process(pid: u32, marker: &str, args: &[&str]) -> MarkedProcess {
        MarkedProcess {
            identity: identity(pid),
            marker: marker.into(),
            args: args.iter().map(OsString::from).collect(),
        }
    }

    fn identity(pid: u32) -> ChildIdentity {
        ChildIdentity {
            pid,
            started: StartTime { at: 1, boot: 2 },
        }
    }

    #[test]
    fn marker_carries_the_contents_of_the_start_entry() {
        let rename = Change::Rename {
            from: name("a"),
            to: name("ü.b_c-d"),
        };
        for change in [
            Change::Start(name("web")),
            rename,
            Change::StopAll(Force::No),
            Change::SetDefault(Some(name("web"))),
            Change::ConfigReset,
        ] {
            let info = change.info();
            let text = markers().of(&spec(info.clone()));
            let marker = Marker::parse(&text).expect("well formed");
            let expected = Starting {
                job: JobId(17),
                marker: text,
                lanes: info.footprint.lanes().to_vec(),
                verb: info.verb.as_str().to_owned(),
                machine: info.machine.clone(),
                class: info.class,
                detached: false,
            };
            assert_eq!(marker.starting(), expected);
            assert_eq!(stored::info(&expected).footprint, info.footprint);
        }
    }

    #[test]
    fn marker_format_is_stable() {
        // A daemon must be able to parse the markers of an earlier version.
        let text = markers().of(&start_web());
        let (before, after) = (text.split(':').take(2), text.split(':').skip(3));
        assert_eq!(before.collect::<Vec<_>>(), ["19ad-1", "17"]);
        assert_eq!(
            after.collect::<Vec<_>>(),
            ["daemon", "change", "start", "web", "web!,*"]
        );
        for odd in [
            "",
            "x",
            "19ad-1:17",
            "a:b:c:d:e:f:g:h",
            &format!("{text}:"),
            &text.replace("start:web", "start:w b"),
        ] {
            assert_eq!(Marker::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn too_many_lanes_become_the_whole_fleet() {
        let machines = (0..300).map(|number| name(&format!("{number:0>100}"))).collect();
        let many = JobInfo::lease(Verb::Start, machines, Force::No);
        let marker = Marker::parse(&markers().of(&spec(many))).expect("well formed");
        assert_eq!(marker.lanes, [(Lane::Fleet, Access::Exclusive)]);
    }

    #[test]
    fn survivors_are_orbctl_processes_of_this_daemon_that_hold_lanes() {
        let start = markers().of(&start_web());
        let shell = markers().of(&spec(JobInfo::lease(Verb::Shell, vec![name("web")], Force::No)));
        let other = Markers::new("19ad-1", Path::new("/tmp/other.sock"));
        let others = other.of(&start_web());
        let processes = vec![
            process(1, &start, &["/usr/local/bin/orbctl", "start", "web"]),
            process(
                2,
                &start,
                &["/Applications/OrbStack.app/Contents/MacOS/OrbStack", "orb"],
            ),
            process(3, &start, &["/bin/sh", "/tmp/fake-orbctl", "start"]),
            process(4, &shell, &["orb"]),
            process(5, &others, &["orbctl", "start", "web"]),
            process(6, "19ad-1:17", &["orbctl", "start", "web"]),
            process(7, &start, &[]),
        ];
        let survivors = markers().survivors(processes, Some(Path::new("/opt/fake-orbctl")));
        let pids: Vec<u32> = survivors.iter().map(|survivor| survivor.process.pid).collect();
        assert_eq!(pids, [1, 3]);
    }

    #[test]
    fn accepted_change_with_a_running_process_is_not_started_again() {
        let accepted = AcceptedJob {
            job: JobId(17),
            operation: Vec::new(),
            client: "deploy".into(),
            accepted_ms: 0,
            queue_timeout: None,
            run_timeout: None,
        };
        let marker = Marker::parse(&markers().of(&start_web())).expect("well formed");
        for is_doubtful in [false, true] {
            let mut recovered = Recovered::default();
            let jobs = if is_doubtful {
                &mut recovered.uncertain
            } else {
                &mut recovered.waiting
            };
            jobs.push(accepted.clone());
            let survivors = [7, 8].map(|pid| Survivor {
                marker: marker.clone(),
                process: identity(pid),
            });
            let (processes, added) = adopt(&mut recovered, survivors.to_vec());
            assert_eq!(processes[&JobId(17)], [identity(7), identity(8)]);
            assert_eq!(added, [JobId(17)]);
            assert!(recovered.waiting.is_empty() && recovered.uncertain.is_empty());
            assert_eq!(recovered.in_flight.len(), 1);
            assert_eq!(recovered.in_flight[0].accepted.as_ref(), Some(&accepted));
            assert!(recovered.in_flight[0].starting.detached);
        }
    }
}
