//! `orbd-conformance`: checks what orbd assumes about `orbctl` against the stand-in, or on a Mac against OrbStack.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program of its own: it starts children, reads its environment and prints"
)]

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use orbd_conformance::checks::{PREFIX, check_machines, check_reads, own_machines, remove_machines};
use orbd_conformance::claims::Table;
use orbd_conformance::report::Report;
use orbd_conformance::tool::Tool;

const HELP: &str = "\
Checks what orbd assumes about orbctl, and writes a report that names no machine, user or path of yours.

Usage: orbd-conformance [--orbctl sim|real|PATH] [--create] [--report FILE]

  --orbctl WHICH  sim: the stand-in, in a folder of its own (default). real: OrbStack's, from PATH or where it is
                  usually installed. Or the path of a program
  --create        also make, change and delete machines orbd-conformance-*; takes some minutes with OrbStack.
                  Without it nothing is changed, and a run takes at most a minute. The stand-in gets machines always
  --report FILE   where the report goes (default: build/conformance.txt)

Exit code 0: every checked claim holds. 1: at least one does not; please send the report. 2: the check did not run.
";

/// Longest time of all calls that only read.
const READS: Duration = Duration::from_secs(60);

/// Longest time of all calls with machines.
const MACHINES: Duration = Duration::from_secs(1800);

struct Options {
    orbctl: String,
    create: bool,
    report: PathBuf,
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => return fail(&problem),
    };
    match check(&options) {
        Ok(report) => {
            print!("{}", report.text());
            if let Err(problem) = write(&options.report, report.text()) {
                return fail(&problem);
            }
            println!("report: {}", options.report.display());
            ExitCode::from(u8::from(!report.is_same()))
        }
        Err(problem) => fail(&problem),
    }
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("orbd-conformance: {problem}");
    ExitCode::from(2)
}

fn options() -> Result<Option<Options>, String> {
    let mut options = Options {
        orbctl: "sim".to_owned(),
        create: false,
        report: PathBuf::from("build/conformance.txt"),
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .ok_or_else(|| format!("{word} needs a value; see --help"))
        };
        match word.as_str() {
            "--orbctl" => options.orbctl = value()?,
            "--report" => options.report = value()?.into(),
            "--create" => options.create = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown argument '{word}'; see --help")),
        }
    }
    Ok(Some(options))
}

fn check(options: &Options) -> Result<Report, String> {
    let table = Table::built_in().map_err(|error| format!("tests/claims.toml: {error}"))?;
    let is_sim = options.orbctl == "sim";
    let program = locate(&options.orbctl)?;
    let creates = options.create || is_sim;
    // A folder below the home, which machines share. The stand-in gets a home of its own, next to its program: a machine has a
    // /tmp of its own.
    let home = if is_sim {
        program.parent().map(Path::to_owned)
    } else {
        env::var_os("HOME").map(PathBuf::from)
    };
    let folder = tempfile::Builder::new()
        .prefix(".orbd-conformance-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(home.ok_or("HOME is not set")?);
    let folder = folder.map_err(|error| format!("cannot make a temporary folder: {error}"))?;
    let tool = |limit| {
        Tool::new(
            &program,
            folder.path(),
            environment(is_sim, folder.path()),
            private(),
            limit,
        )
    };
    let mut reads = tool(READS);
    let mut results = Vec::new();
    if is_sim {
        // Reads need machines to see something.
        for words in [["create", "ubuntu", "one"], ["create", "debian", "two"]] {
            let made = reads.change(&words);
            if made.code != Some(0) {
                return Err(format!(
                    "the stand-in makes no machine: {}",
                    reads.describe(&made)
                ));
            }
        }
        let _ = reads.change(&["stop", "two"]);
    }
    results.extend(check_reads(&mut reads));
    if reads.is_late() {
        results.push((
            "tool-sleep",
            orbd_conformance::checks::Seen::Nothing("a minute has passed".to_owned()),
        ));
    }
    if creates {
        let machines = tool(MACHINES);
        let left = own_machines(&machines);
        if let Some(name) = left.first() {
            let start = format!("machines {PREFIX}* exist; delete them first:");
            return Err(format!("{start} orbctl delete {name}"));
        }
        results.extend(check_machines(&machines));
        remove_machines(&machines);
    }
    let subject = match (is_sim, options.orbctl == "real") {
        (true, _) => "the stand-in".to_owned(),
        (_, true) => format!("OrbStack, {}", reads.shown(&reads.read(&["version"]).out())),
        _ => "the given program".to_owned(),
    };
    if is_sim {
        // Its machines are processes, which the removal of the folder would leave.
        let _ = tool(READS).change(&["sim-cleanup"]);
    }
    let report = Report::new(&table, &results, &subject);
    match report.unknown() {
        [] => Ok(report),
        unknown => Err(format!("no claim has the id {}", unknown.join(", "))),
    }
}

/// Returns the path of the tool.
fn locate(which: &str) -> Result<PathBuf, String> {
    let is_file = |path: &PathBuf| path.is_file();
    match which {
        "sim" => {
            let own = env::current_exe().map_err(|error| error.to_string())?;
            let sim = own.with_file_name("orbctl-sim");
            Some(sim.clone())
                .filter(is_file)
                .ok_or_else(|| format!("{} does not exist; cargo build -p orbctl-sim", sim.display()))
        }
        "real" => {
            let on_path = env::var_os("PATH").unwrap_or_default();
            let home = env::var_os("HOME").unwrap_or_default();
            let usual = [
                Path::new(&home).join(".orbstack/bin"),
                "/opt/homebrew/bin".into(),
                "/usr/local/bin".into(),
                "/Applications/OrbStack.app/Contents/MacOS/bin".into(),
            ];
            let folders = env::split_paths(&on_path).chain(usual);
            // A link of that name may lead to orbd's drop-in, which would check orbd instead.
            let is_tool = |path: &PathBuf| {
                let real = path.canonicalize().unwrap_or_default();
                path.is_file() && real.file_name().is_none_or(|name| name != "orbd-ctl")
            };
            folders
                .map(|folder| folder.join("orbctl"))
                .find(is_tool)
                .ok_or_else(|| "orbctl not found; give its path: --orbctl PATH".to_owned())
        }
        path => Some(PathBuf::from(path))
            .filter(is_file)
            .and_then(|path| path.canonicalize().ok())
            .ok_or_else(|| format!("'{path}' is not a file")),
    }
}

/// Returns the variables that the tool gets in addition to those of this process.
fn environment(is_sim: bool, folder: &Path) -> Vec<(String, OsString)> {
    if !is_sim {
        return Vec::new();
    }
    // The stand-in skips the profile of a login shell to save time; the claim is that it is read.
    let answers = env::var("ORBCTL_SIM_ANSWERS").unwrap_or_default();
    vec![
        (
            "ORBCTL_SIM_ANSWERS".to_owned(),
            format!("run-profile=read,{answers}").into(),
        ),
        ("HOME".to_owned(), folder.into()),
        ("ORBCTL_SIM_HOME".to_owned(), folder.join("sim").into()),
        ("ORBCTL_SIM_LATENCY".to_owned(), "0".into()),
        ("ORBCTL_SIM_ISOLATION".to_owned(), "auto".into()),
    ]
}

/// Returns what must not be in the report.
fn private() -> Vec<String> {
    let variables = ["HOME", "USER", "LOGNAME", "HOSTNAME"];
    let values = variables.iter().filter_map(|name| env::var(name).ok());
    let host = fs::read_to_string("/etc/hostname").unwrap_or_default();
    values
        .chain([host.trim().to_owned(), rustix_name()])
        .filter(|word| word.len() > 1)
        .collect()
}

/// Returns the name of this computer.
fn rustix_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}
