//! Users and groups of a machine, read from its own files and added by editing them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl Account {
    fn parse(line: &str) -> Option<Account> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        Some(Account {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.to_owned(),
            shell: if shell.is_empty() {
                "/bin/sh".to_owned()
            } else {
                shell.to_owned()
            },
        })
    }

    /// Finds a user by name, else by number, in a `passwd` text.
    pub(crate) fn find(passwd: &str, user: &str) -> Option<Account> {
        let accounts = || passwd.lines().filter_map(Account::parse);
        accounts().find(|account| account.name == user).or_else(|| {
            let uid: u32 = user.parse().ok()?;
            accounts().find(|account| account.uid == uid)
        })
    }

    /// The user's groups, the own one first.
    pub(crate) fn groups(&self, group: &str) -> Vec<u32> {
        let others = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [_, _, gid, members] = fields[..] else {
                return None;
            };
            let gid: u32 = gid.parse().ok()?;
            let member = members.split(',').any(|member| member == self.name);
            (member && gid != self.gid).then_some(gid)
        });
        [self.gid].into_iter().chain(others).collect()
    }
}

/// OrbStack gives the default user the number of the first user of a Mac.
const WANTED_UID: u32 = 501;

/// Adds a user with a group of the same name to the files in `etc`, unless there is one.
pub(crate) fn add(etc: &Path, name: &str) -> Result<Account> {
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
    // `*` is a password that nothing matches.
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
