//! What the system reports of processes: `/proc` on Linux, `ps` and `lsof` elsewhere.
//!
//! The second way has never been run on a Mac. Where `ps` is installed, a test on Linux compares it with the first.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Returns whether a process runs; a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| state != 'Z')
}

/// Returns the state of a process, such as `S` or `T`; `None` if there is no such process.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    if cfg!(target_os = "linux") {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        return stat.rsplit_once(") ")?.1.chars().next();
    }
    by_ps::state_of(pid)
}

/// Returns the args of a process, separated by blanks.
pub(crate) fn words_of(pid: u32) -> String {
    if cfg!(target_os = "linux") {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = words.strip_suffix(&[0]).unwrap_or(&words);
        return String::from_utf8_lossy(words).replace('\0', " ");
    }
    by_ps::column("command", pid).unwrap_or_default()
}

/// Returns the resident memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> u64 {
    if cfg!(target_os = "linux") {
        return memory(pid, "VmRSS:").expect("it runs");
    }
    by_ps::column("rss", pid)
        .and_then(|kib| kib.parse().ok())
        .expect("it runs")
}

/// Returns the peak resident memory of a process, in KiB. Linux only.
pub(crate) fn resident_peak(pid: u32) -> Option<u64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Counts the open descriptors of a process.
pub(crate) fn count_open(pid: u32) -> usize {
    if cfg!(target_os = "linux") {
        return fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    }
    by_ps::said(Command::new("lsof").args(["-p", &pid.to_string()]))
        .lines()
        .count()
}

/// Lists living processes whose working directory is below a folder, or whose environment contains its path. Outside
/// Linux, the environment of the system's own programs is hidden; such a process is found only if one of its args names
/// the folder.
pub(crate) fn belonging_to(folder: &Path) -> Vec<u32> {
    let named = folder.as_os_str().as_encoded_bytes();
    let found: Vec<u32> = if cfg!(target_os = "linux") {
        let all = fs::read_dir("/proc").into_iter().flatten();
        let is_one = |pid: &u32| {
            let of = |file: &str| format!("/proc/{pid}/{file}");
            let environment = fs::read(of("environ")).unwrap_or_default();
            let stands_in = fs::read_link(of("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            stands_in || contains(&environment, named)
        };
        all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(is_one)
            .collect()
    } else {
        by_ps::said(Command::new("ps").args(["-axwwE", "-o", "pid=,command="]))
            .lines()
            .filter(|line| contains(line.as_bytes(), named))
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect()
    };
    let is_ours = |pid: &u32| *pid != std::process::id() && is_alive(*pid);
    found.into_iter().filter(is_ours).collect()
}

/// Lists the children of a process, including ended ones.
pub(crate) fn children_of(parent: u32) -> Vec<u32> {
    if !cfg!(target_os = "linux") {
        let all = by_ps::said(Command::new("ps").args(["-axo", "pid=,ppid="]));
        let pairs = all.lines().filter_map(|line| line.trim().split_once(' '));
        return pairs
            .filter(|(_, of)| of.trim().parse() == Ok(parent))
            .filter_map(|(pid, _)| pid.parse().ok())
            .collect();
    }
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").into_iter().flatten();
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Functions that read from `ps`, which every such system has.
mod by_ps {
    use std::process::Command;

    /// Returns what a program prints.
    pub(super) fn said(command: &mut Command) -> String {
        let output = command.output().expect("this program");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns one column of one process; `None` if there is no such process.
    pub(super) fn column(name: &str, pid: u32) -> Option<String> {
        let text = said(Command::new("ps").args(["-ww", "-o", &format!("{name}="), "-p", &pid.to_string()]));
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    pub(super) fn state_of(pid: u32) -> Option<char> {
        column("state", pid)?.chars().next()
    }
}

#[test]
fn proc_and_ps_report_the_same_process() {
    if !cfg!(target_os = "linux") || Command::new("ps").arg("--version").output().is_err() {
        return;
    }
    let mut child = Command::new("sleep").arg("1000").spawn().expect("it starts");
    let pid = child.id();
    // Before its exec, the child is still this test program.
    super::eventually("it sleeps", || {
        (words_of(pid) == "sleep 1000" && state_of(pid) == Some('S')).then_some(())
    });
    assert_eq!(by_ps::column("command", pid).as_deref(), Some("sleep 1000"));
    assert_eq!(by_ps::state_of(pid), Some('S'));
    let kib: u64 = by_ps::column("rss", pid)
        .expect("a figure")
        .parse()
        .expect("a number");
    assert_eq!(kib > 0, resident(pid) > 0);
    child.kill().expect("it is ours");
    super::eventually("it is a zombie", || {
        (by_ps::state_of(pid) == Some('Z')).then_some(())
    });
    assert_eq!(state_of(pid), Some('Z'));
    assert!(!is_alive(pid));
    child.wait().expect("it is ours");
    assert_eq!((by_ps::state_of(pid), state_of(pid)), (None, None));
}
