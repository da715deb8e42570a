//! The upper layer of a machine's overlay: the machine's own files before its first boot.
//!
//! It is written from outside as plain files of the host, so nothing has to be mounted for it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::catalog;
use crate::guest::accounts::Account;
use crate::state::Machine;

/// Returns where a machine's files go if the state directory is on an overlay.
pub(crate) fn other_place(folder: &Path) -> Result<Option<PathBuf>> {
    const OVERLAY: i64 = 0x794c_7630;
    let parent = folder.parent().context("a machine's folder has a parent")?;
    let kind = rustix::fs::statfs(parent)?.f_type;
    if i128::from(kind) != i128::from(OVERLAY) {
        return Ok(None);
    }
    let home = catalog::spread(&parent.to_string_lossy());
    let name = folder.file_name().context("a machine's folder has a name")?;
    Ok(Some(
        Path::new("/dev/shm")
            .join(format!("orbctl-sim-{home:08x}"))
            .join(name),
    ))
}

/// Writes the machine's own files to the upper layer: users, names, its default user's home.
pub(crate) fn prepare(folder: &Path, machine: &Machine) -> Result<()> {
    let upper = folder.join("upper");
    fs::create_dir(&upper)?;
    // The root of the overlay has the upper layer's own mode and owner.
    fs::set_permissions(&upper, Permissions::from_mode(0o755))?;
    let etc = mirror(&upper, "etc")?;
    for file in ["passwd", "group", "shadow", "gshadow"] {
        let host = Path::new("/etc").join(file);
        if let Ok(metadata) = fs::metadata(&host) {
            fs::copy(&host, etc.join(file))?;
            chown(etc.join(file), Some(metadata.uid()), Some(metadata.gid()))?;
        }
    }
    let user = add_account(&etc, &machine.config.default_username)?;
    make_home(&upper, &user)?;
    let sudoers = mirror(&upper, "etc/sudoers.d")?.join("90-orbctl-sim");
    fs::write(&sudoers, format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", user.name))?;
    fs::set_permissions(&sudoers, Permissions::from_mode(0o440))?;
    let machine_id = format!("{:032x}", u128::from_be_bytes(catalog::random()?));
    fs::write(etc.join("machine-id"), machine_id + "\n")?;
    Ok(())
}

/// Makes a folder of the upper layer with the mode and owner of the host's folder of the same name.
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
    if !user.home.starts_with("/home/") || Path::new(&user.home).is_dir() {
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

/// Writes the machine's name where programs read it. `host.orb.internal` is the Mac on the real tool and this host
/// here.
pub(crate) fn write_names(upper: &Path, name: &str) -> Result<()> {
    let etc = upper.join("etc");
    fs::write(etc.join("hostname"), format!("{name}\n"))?;
    let mut hosts = format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n127.0.0.1\thost.orb.internal\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    // The network is the host's, and so are the names of its mirrors and proxies.
    for line in fs::read_to_string("/etc/hosts").unwrap_or_default().lines() {
        let address = line.split_whitespace().next().unwrap_or("#");
        if !address.starts_with('#') && !address.starts_with("127.") && !address.contains(':') {
            hosts.push_str(line);
            hosts.push('\n');
        }
    }
    // If the machine's administrator has changed the file, it stays, except for the machine's own name.
    let path = etc.join("hosts");
    match fs::read_to_string(&path) {
        Ok(old) => {
            let renamed = old.lines().map(|line| match line.strip_prefix("127.0.1.1\t") {
                Some(_) => format!("127.0.1.1\t{name}\n"),
                None => format!("{line}\n"),
            });
            fs::write(&path, renamed.collect::<String>())?;
        }
        Err(_) => fs::write(&path, hosts)?,
    }
    // The host's file may be a link into /run, or one that is bind-mounted over the file in the overlay.
    let resolver = etc.join("resolv.conf");
    if let Ok(text) = fs::read("/etc/resolv.conf")
        && fs::symlink_metadata(&resolver).is_err()
    {
        fs::write(&resolver, text)?;
    }
    Ok(())
}

/// OrbStack gives the default user the uid of the first user of a Mac.
const WANTED_UID: u32 = 501;

/// Adds a user and a group of the same name to the files in `etc`, unless they exist.
fn add_account(etc: &Path, name: &str) -> Result<Account> {
    let read = |file: &str| {
        fs::read_to_string(etc.join(file)).with_context(|| format!("read {file} of the machine"))
    };
    let passwd = read("passwd")?;
    if let Some(account) = Account::find(&passwd, name) {
        return Ok(account);
    }
    let group = read("group")?;
    let taken = |number: u32| {
        let in_text = |text: &str, field: usize| {
            text.lines().any(|line| {
                line.split(':')
                    .nth(field)
                    .is_some_and(|word| word.parse() == Ok(number))
            })
        };
        in_text(&passwd, 2) || in_text(&group, 2)
    };
    let number = [WANTED_UID]
        .into_iter()
        .chain(1001..60_000)
        .find(|number| !taken(*number));
    let number = number.context("no free uid")?;
    let home = format!("/home/{name}");
    let shell = if Path::new("/bin/bash").exists() {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    append(
        etc,
        "passwd",
        &format!("{name}:x:{number}:{number}::{home}:{shell}"),
    )?;
    append(etc, "group", &format!("{name}:x:{number}:"))?;
    // No password matches `*`.
    append(etc, "shadow", &format!("{name}:*:19000:0:99999:7:::"))?;
    append(etc, "gshadow", &format!("{name}:*::"))?;
    Ok(Account {
        name: name.to_owned(),
        uid: number,
        gid: number,
        home,
        shell: shell.to_owned(),
    })
}

/// Appends a line in place, so that owner and mode stay. A host without the file needs no line.
fn append(etc: &Path, file: &str, line: &str) -> Result<()> {
    let path = etc.join(file);
    let Ok(mut text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
    fs::write(&path, text).with_context(|| format!("write {file} of the machine"))
}
