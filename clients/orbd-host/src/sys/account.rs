//! The account of the user that this process runs as, from the system's user database.
#![expect(unsafe_code, reason = "the list of users has no safe interface")]

use std::ffi::{CStr, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

/// Buffer size for the strings of an entry; larger than any entry needs.
const ENTRY_MAX: usize = 64 * 1024;

/// A user of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The login name.
    pub name: OsString,
    /// The login shell.
    pub shell: OsString,
}

/// Returns the account of this process's real user; `None` if the user database has no entry for it.
pub fn account() -> Option<Account> {
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut room: Vec<libc::c_char> = vec![0; ENTRY_MAX];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers point to memory that lives until the end of this function, and the length is that of `room`.
    let status = unsafe {
        libc::getpwuid_r(
            rustix::process::getuid().as_raw(),
            entry.as_mut_ptr(),
            room.as_mut_ptr(),
            room.len(),
            &raw mut found,
        )
    };
    if status != 0 || found.is_null() {
        return None;
    }
    // SAFETY: the call succeeded, so the entry is filled in, and its strings end with a NUL within `room`.
    let (name, shell) = unsafe {
        let entry = entry.assume_init_ref();
        (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_shell))
    };
    let owned = |text: &CStr| OsStr::from_bytes(text.to_bytes()).to_owned();
    let shell = if shell.is_empty() { c"/bin/sh" } else { shell };
    Some(Account {
        name: owned(name),
        shell: owned(shell),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_matches_the_output_of_id() {
        #[expect(clippy::disallowed_methods, reason = "the baseline of the comparison")]
        let output = std::process::Command::new("id").arg("-un").output().expect("id");
        let name = String::from_utf8(output.stdout).expect("text");
        let account = account().expect("listed");
        assert_eq!(account.name, name.trim());
        assert!(account.shell.as_bytes().starts_with(b"/"));
    }
}
