//! Isolated machines on Linux: an overlay over the host's root in namespaces of its own.
//!
//! ```text
//! worker ─▶ unshare(1) ─▶ orbctl-sim sim-init     pid 1 of the machine
//!                           mounts the overlay, /proc, /dev, /run, /tmp; moves its root there;
//!                           says "ready" and its number on the host; reaps zombies ever after
//! run    ─▶ setns(pidfd)                          now sees the machine's files and processes
//! stop   ─▶ SIGKILL to pid 1                      the kernel ends all others, then the mounts
//! ```
//!
//! The network is the host's: packages must be installable, and a stand-in routes nothing.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::catalog;
use crate::guest::accounts::{self, Account};
use crate::guest::{Isolation, is_folder};
use crate::state::{Machine, Resident};

/// The hidden word that starts the first process of a machine.
pub(crate) const INIT_WORD: &str = "sim-init";

/// What the first process is told, on its stdin.
#[derive(Serialize, Deserialize)]
struct Boot {
    folder: PathBuf,
    /// The state directory, which the machine must not see.
    home: PathBuf,
    hostname: String,
    user_namespace: bool,
}

fn unshare(isolation: Isolation) -> Command {
    let mut command = Command::new("unshare");
    if isolation == Isolation::Userns {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--propagation",
        "private",
    ]);
    command
}

/// Tries whether this host lets us make namespaces.
pub(crate) fn check(isolation: Isolation) -> Result<()> {
    if isolation == Isolation::Userns {
        bail!("machines in user namespaces are not implemented; use root or dir");
    }
    let output = unshare(isolation).arg("true").stdin(Stdio::null()).output();
    let output = output.context("run unshare (of util-linux)")?;
    if !output.status.success() {
        bail!(
            "unshare: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Where a machine's files go when the state directory lies on an overlay.
pub(crate) fn other_place(folder: &Path) -> Result<Option<PathBuf>> {
    const OVERLAY: i64 = 0x794c_7630;
    let parent = folder.parent().context("a machine's folder has a parent")?;
    let kind = rustix::fs::statfs(parent)?.f_type;
    if i128::from(kind) != i128::from(OVERLAY) {
        return Ok(None);
    }
    let home = catalog::spread(&parent.to_string_lossy());
    let name = folder
        .file_name()
        .context("a machine's folder has a name")?;
    Ok(Some(
        Path::new("/dev/shm")
            .join(format!("orbctl-sim-{home:08x}"))
            .join(name),
    ))
}

/// Lays the machine's own files into the upper layer: users, names, its default user's home.
pub(crate) fn prepare(folder: &Path, machine: &Machine) -> Result<()> {
    let upper = folder.join("upper");
    fs::create_dir(&upper)?;
    // The overlay shows the upper layer's own mode and owner for its root.
    fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
    let etc = mirror(&upper, "etc")?;
    for file in ["passwd", "group", "shadow", "gshadow"] {
        let host = Path::new("/etc").join(file);
        if let Ok(metadata) = fs::metadata(&host) {
            fs::copy(&host, etc.join(file))?;
            chown(etc.join(file), Some(metadata.uid()), Some(metadata.gid()))?;
        }
    }
    let user = accounts::add(&etc, &machine.config.default_username)?;
    make_home(&upper, &user)?;
    let sudoers = mirror(&upper, "etc/sudoers.d")?.join("90-orbctl-sim");
    fs::write(
        &sudoers,
        format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", user.name),
    )?;
    fs::set_permissions(&sudoers, Permissions::from_mode(0o440))?;
    let machine_id = format!("{:032x}", u128::from_be_bytes(catalog::random()?));
    fs::write(etc.join("machine-id"), machine_id + "\n")?;
    Ok(())
}

/// Makes a folder of the upper layer look like the host's folder of the same name.
fn mirror(upper: &Path, name: &str) -> Result<PathBuf> {
    let folder = upper.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir(&folder)?;
    let (mode, uid, gid) = match fs::metadata(Path::new("/").join(name)) {
        Ok(host) => (host.mode(), host.uid(), host.gid()),
        Err(_) => (0o755, 0, 0),
    };
    fs::set_permissions(&folder, Permissions::from_mode(mode & 0o7777))?;
    chown(&folder, Some(uid), Some(gid))?;
    Ok(folder)
}

fn make_home(upper: &Path, user: &Account) -> Result<()> {
    if !user.home.starts_with("/home/") || is_folder(Path::new(&user.home)) {
        return Ok(());
    }
    mirror(upper, "home")?;
    let home = upper.join(user.home.trim_start_matches('/'));
    fs::create_dir_all(&home)?;
    fs::set_permissions(&home, Permissions::from_mode(0o755))?;
    chown(&home, Some(user.uid), Some(user.gid))?;
    for entry in fs::read_dir("/etc/skel").into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let file = home.join(entry.file_name());
            fs::copy(entry.path(), &file)?;
            chown(&file, Some(user.uid), Some(user.gid))?;
        }
    }
    Ok(())
}

/// Starts the first process of a machine and waits until the machine can be entered.
pub(crate) fn boot(folder: &Path, home: &Path, machine: &Machine) -> Result<Resident> {
    let folder = fs::canonicalize(folder)?;
    write_names(&folder.join("upper"), &machine.name)?;
    // What an overlay leaves in its work folder is of no use to the next one.
    let work = folder.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir(&work)?;
    fs::create_dir_all(folder.join("root"))?;
    let console = File::options()
        .create(true)
        .append(true)
        .open(folder.join("console.log"))?;
    let boot = Boot {
        folder,
        home: fs::canonicalize(home)?,
        hostname: machine.name.clone(),
        user_namespace: machine.isolation == Isolation::Userns,
    };
    let mut child = unshare(machine.isolation)
        .arg(std::env::current_exe()?)
        .arg(INIT_WORD)
        .env_clear()
        .env("HOME", "/")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(console)
        .spawn()
        .context("run unshare")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&serde_json::to_vec(&boot)?)?;
    }
    let stdout = child
        .stdout
        .take()
        .context("the first process has no voice")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let Some(("ready", pid)) = line.trim().split_once(' ') else {
        let _ = child.wait();
        let said = line.trim();
        bail!(
            "{}",
            if said.is_empty() {
                "the first process died; see logs"
            } else {
                said
            }
        );
    };
    let pid = pid.parse()?;
    let started = started(pid).context("the first process is gone")?;
    Ok(Resident { pid, started })
}

/// Writes the machine's name where programs look for it. `host.orb.internal` is the Mac on the
/// real tool and this host here.
fn write_names(upper: &Path, name: &str) -> Result<()> {
    let etc = upper.join("etc");
    fs::write(etc.join("hostname"), format!("{name}\n"))?;
    let mut hosts = format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n127.0.0.1\thost.orb.internal\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    // The network is the host's, so are the names by which it reaches its mirrors and proxies.
    for line in fs::read_to_string("/etc/hosts").unwrap_or_default().lines() {
        let address = line.split_whitespace().next().unwrap_or("#");
        if !address.starts_with('#') && !address.starts_with("127.") && !address.contains(':') {
            hosts.push_str(line);
            hosts.push('\n');
        }
    }
    // A machine whose administrator has changed the file keeps it, except for its own name.
    let path = etc.join("hosts");
    match fs::read_to_string(&path) {
        Ok(old) => {
            let renamed = old
                .lines()
                .map(|line| match line.strip_prefix("127.0.1.1\t") {
                    Some(_) => format!("127.0.1.1\t{name}\n"),
                    None => format!("{line}\n"),
                });
            fs::write(&path, renamed.collect::<String>())?;
        }
        Err(_) => fs::write(&path, hosts)?,
    }
    // The host's may be a link into /run, or a file bound over the one that the overlay shows.
    let resolver = etc.join("resolv.conf");
    if let Ok(text) = fs::read("/etc/resolv.conf")
        && fs::symlink_metadata(&resolver).is_err()
    {
        fs::write(&resolver, text)?;
    }
    Ok(())
}

/// Ends the first process, and with it every other process of the machine.
pub(crate) fn halt(resident: Resident) -> Result<()> {
    let Some(pidfd) = handle(resident) else {
        return Ok(());
    };
    pidfd_send_signal(&pidfd, Signal::KILL)?;
    // A pidfd becomes readable when its process has ended; the first process of a namespace ends
    // after all the others.
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    while let Err(error) = poll(&mut ended, None) {
        if error != rustix::io::Errno::INTR {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Whether the first process of a machine is still that process.
pub(crate) fn is_alive(resident: Resident) -> bool {
    started(resident.pid) == Some(resident.started)
}

/// Moves this process into a machine. Its own pid stays what it is; its children are the
/// machine's.
pub(crate) fn enter(resident: Resident) -> Result<()> {
    let pidfd = handle(resident).context("the machine is not running")?;
    let spaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    move_into_thread_name_spaces(rustix::fd::AsFd::as_fd(&pidfd), spaces)
        .context("enter the machine")
}

/// A handle on the first process that cannot come to mean another one.
fn handle(resident: Resident) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(resident.pid)?, PidfdFlags::empty()).ok()?;
    // Looked at after the handle was taken: if it is the right one now, it stays so.
    is_alive(resident).then_some(pidfd)
}

/// When a living process was started, in clock ticks since the boot.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name, which may hold blanks and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The life of the first process.
pub(crate) fn init() -> Result<()> {
    let told = (|| {
        let boot: Boot = serde_json::from_reader(std::io::stdin())?;
        // Read before the move, while /proc is still the host's.
        let pid = fs::read_link("/proc/self")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        build_root(&boot)?;
        rustix::system::sethostname(boot.hostname.as_bytes())?;
        Ok::<_, anyhow::Error>(format!("ready {}", pid.display()))
    })();
    let line = told
        .as_ref()
        .map_or_else(|error| format!("{error:#}"), Clone::clone);
    writeln!(std::io::stdout(), "{}", line.replace('\n', " "))?;
    told?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    reap()
}

/// Waits for orphans for ever. Everything that loses its parent in the machine ends up here.
fn reap() -> Result<()> {
    use rustix::process::{WaitOptions, wait};
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        loop {
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            ended.recv().await;
        }
    })
}

/// Mounts everything and makes it this process's root.
fn build_root(boot: &Boot) -> Result<()> {
    let root = boot.folder.join("root");
    mount_overlay(boot, &root)?;
    let nothing = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let at = |name: &str| root.join(name);
    for name in ["proc", "sys", "dev", "run", "tmp"] {
        let _ = fs::create_dir(at(name));
    }
    mount_kind("proc", &at("proc"), nothing, "")?;
    if mount_kind("sysfs", &at("sys"), nothing | MountFlags::RDONLY, "").is_err() {
        // In a user namespace without a network of its own sysfs cannot be mounted anew.
        mount_kind("tmpfs", &at("sys"), nothing, "mode=755,size=64k")?;
    }
    mount_kind(
        "tmpfs",
        &at("run"),
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=755",
    )?;
    fs::create_dir(at("run/lock"))?;
    fs::set_permissions(at("run/lock"), Permissions::from_mode(0o1777))?;
    mount_kind(
        "tmpfs",
        &at("tmp"),
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=1777",
    )?;
    mount_devices(&at("dev"))?;
    // The machine must not walk into the files that it is made of.
    let home = at(boot
        .home
        .strip_prefix("/")?
        .to_str()
        .context("the home is not UTF-8")?);
    if is_folder(&home) {
        mount_kind(
            "tmpfs",
            &home,
            nothing | MountFlags::RDONLY,
            "mode=555,size=4k",
        )?;
    }
    rustix::process::chdir(&root)?;
    // With both arguments the same, the old root lies over the new one and can be taken off.
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn mount_overlay(boot: &Boot, root: &Path) -> Result<()> {
    let escaped = |path: PathBuf| {
        let text = path
            .to_str()
            .context("the state directory's path is not UTF-8")?
            .to_owned();
        Ok::<_, anyhow::Error>(
            text.replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace(':', "\\:"),
        )
    };
    let upper = escaped(boot.folder.join("upper"))?;
    let work = escaped(boot.folder.join("work"))?;
    let mut layers = format!("lowerdir=/,upperdir={upper},workdir={work}");
    if boot.user_namespace {
        layers.push_str(",userxattr");
    }
    // `volatile` leaves out the syncing, which package managers do for every file. Older kernels
    // do not know it.
    mount_kind(
        "overlay",
        root,
        MountFlags::empty(),
        &format!("{layers},volatile"),
    )
    .or_else(|_| mount_kind("overlay", root, MountFlags::empty(), &layers))
}

fn mount_devices(dev: &Path) -> Result<()> {
    mount_kind(
        "tmpfs",
        dev,
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "mode=755,size=1m",
    )?;
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        let node = dev.join(device);
        File::create(&node)?;
        mount_bind(Path::new("/dev").join(device), &node)
            .with_context(|| format!("bind /dev/{device}"))?;
    }
    fs::create_dir(dev.join("pts"))?;
    let options = "newinstance,ptmxmode=0666,mode=0620";
    mount_kind(
        "devpts",
        &dev.join("pts"),
        MountFlags::NOSUID | MountFlags::NOEXEC,
        options,
    )?;
    fs::create_dir(dev.join("shm"))?;
    let shared = MountFlags::NOSUID | MountFlags::NODEV;
    mount_kind("tmpfs", &dev.join("shm"), shared, "mode=1777")?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(link))?;
    }
    Ok(())
}

fn mount_kind(kind: &str, target: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let options = CString::new(options)?;
    mount(kind, target, kind, flags, options.as_c_str())
        .with_context(|| format!("mount {kind} on {}", target.display()))
}
