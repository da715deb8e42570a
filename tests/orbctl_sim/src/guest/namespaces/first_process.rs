//! The first process of a machine, and the mounts that it makes.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use serde::{Deserialize, Serialize};

/// Parameters of the first process, passed on its stdin.
#[derive(Serialize, Deserialize)]
pub(super) struct Boot {
    pub(super) folder: PathBuf,
    /// The state directory, which the machine must not see.
    pub(super) home: PathBuf,
    pub(super) hostname: String,
}

/// Runs as the first process.
pub(crate) fn init() -> Result<()> {
    let told = (|| {
        let boot: Boot = serde_json::from_reader(std::io::stdin())?;
        // Read before the root changes, while /proc is still the host's.
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

/// Waits for orphans for ever. Every process in the machine that loses its parent becomes a child of this one.
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

/// Mounts everything and makes it the root of this process.
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
        // A container may not allow sysfs.
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
    // The machine must not reach the files that it is made of.
    let home = at(boot
        .home
        .strip_prefix("/")?
        .to_str()
        .context("the home is not UTF-8")?);
    if home.is_dir() {
        mount_kind("tmpfs", &home, nothing | MountFlags::RDONLY, "mode=555,size=4k")?;
    }
    rustix::process::chdir(&root)?;
    // With the same path for both, the old root is mounted over the new one and can be removed.
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
        Ok::<_, anyhow::Error>(text.replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:"))
    };
    let upper = escaped(boot.folder.join("upper"))?;
    let work = escaped(boot.folder.join("work"))?;
    let layers = format!("lowerdir=/,upperdir={upper},workdir={work}");
    // `volatile` leaves out the syncing, which package managers do for every file. Older kernels do not support it.
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
        mount_bind(Path::new("/dev").join(device), &node).with_context(|| format!("bind /dev/{device}"))?;
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
