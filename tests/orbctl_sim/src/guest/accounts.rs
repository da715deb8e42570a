//! Users and groups of a machine, read from its own files.

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

    /// Returns the user's groups, the primary one first.
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
