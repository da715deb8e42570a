//! The shells of a machine: which one is its `sh`, and how a login shell gets the text of a command.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{Access, access};

use crate::answers::{RunShell, Sh};

/// A login shell and how it is started.
pub(super) struct LoginShell {
    program: PathBuf,
    /// The name by which the shell is called; for busybox that of its applet.
    name: String,
    /// Whether the shell reads the profile of the machine's users and of the machine itself.
    reads_profile: bool,
    /// A profile that is put before the command, for a shell that must not read the others.
    sourced: Option<PathBuf>,
}

impl LoginShell {
    /// Returns the shell that is chosen, else the account's.
    pub(super) fn choose(choice: RunShell, account: &str, path: &str) -> Result<LoginShell> {
        let (wanted, name) = match choice {
            RunShell::Skipped | RunShell::Account => {
                let program = PathBuf::from(account);
                let name = program.file_name().unwrap_or(program.as_os_str());
                let name = name.to_string_lossy().into_owned();
                return Ok(LoginShell::new(program, name));
            }
            RunShell::Bash => ("bash", "bash"),
            RunShell::Zsh => ("zsh", "zsh"),
            RunShell::Fish => ("fish", "fish"),
            RunShell::Dash => ("dash", "dash"),
            RunShell::Tcsh => ("tcsh", "tcsh"),
            RunShell::Busybox => ("busybox", "sh"),
        };
        Ok(LoginShell::new(find(wanted, path)?, name.to_owned()))
    }

    fn new(program: PathBuf, name: String) -> LoginShell {
        LoginShell {
            program,
            name,
            reads_profile: false,
            sourced: None,
        }
    }

    /// Returns the value of SHELL. As a login shell, busybox is its applet.
    pub(super) fn variable(&self) -> PathBuf {
        if self.program.ends_with(&self.name) {
            self.program.clone()
        } else {
            self.program.with_file_name(&self.name)
        }
    }

    /// Makes the shell read its profile. In a directory machine that is only the one of the machine: those of the host
    /// would set a PATH on which `sudo` is the host's.
    pub(super) fn read_profile(&mut self, home_of_directory: Option<&Path>) {
        let Some(home) = home_of_directory else {
            self.reads_profile = true;
            return;
        };
        let files: &[&str] = match self.name.as_str() {
            "bash" => &[".bash_profile", ".bash_login", ".profile"],
            "zsh" => &[".zprofile"],
            "fish" => &[".config/fish/config.fish"],
            "tcsh" => &[".login"],
            _ => &[".profile"],
        };
        let mut files = files.iter().map(|file| home.join(file));
        self.sourced = files.find(|file| file.is_file());
    }

    /// Returns the shell with the words as its command, or as an interactive shell if there are none.
    pub(super) fn command(&self, words: &[OsString]) -> Command {
        let mut child = Command::new(&self.program);
        let name = &self.name;
        let (is_login, without_profile) = match (self.reads_profile, name.as_str()) {
            (false, "bash") => (true, Some("--noprofile")),
            (false, "zsh" | "tcsh") => (true, Some("-f")),
            (false, "fish") => (true, Some("--no-config")),
            // No option keeps these from reading the profile as a login shell.
            (false, "dash" | "sh") => (false, None),
            _ => (true, None),
        };
        child.arg0(if is_login {
            format!("-{name}")
        } else {
            name.clone()
        });
        child.args(without_profile);
        if !words.is_empty() {
            let mut text = OsString::new();
            if let Some(profile) = &self.sourced {
                text.push(if name == "fish" || name == "tcsh" {
                    "source "
                } else {
                    ". "
                });
                text.push(quoted(&[profile.clone().into_os_string()]));
                text.push("; ");
            }
            text.push(quoted(words));
            child.arg("-c").arg(text);
        }
        child
    }
}

/// Makes `sh` in this folder of programs the chosen one.
pub(super) fn set_sh(choice: Sh, folder: &Path, path: &str) -> Result<()> {
    let wanted = match choice {
        Sh::Unchanged => return Ok(()),
        Sh::Dash => "dash",
        Sh::Bash => "bash",
        Sh::Busybox => "busybox",
    };
    let target = find(wanted, path)?;
    let link = folder.join("sh");
    if fs::read_link(&link).is_ok_and(|current| current == target) {
        return Ok(());
    }
    // In one step: a concurrent command finds either the old program or the new one.
    let new = folder.join(format!(".sh-{}", std::process::id()));
    symlink(&target, &new)
        .and_then(|()| fs::rename(&new, &link))
        .with_context(|| format!("orbctl-sim: cannot make {wanted} the machine's sh"))
}

/// Finds a shell by name.
fn find(name: &str, path: &str) -> Result<PathBuf> {
    on_path(OsStr::new(name), path).with_context(|| {
        format!(
            "orbctl-sim: the machine has no {name}, which ORBCTL_SIM_ANSWERS chooses (apt-get install {name})"
        )
    })
}

/// Returns the first program with this name on a PATH.
pub(super) fn on_path(name: &OsStr, path: &str) -> Option<PathBuf> {
    path.split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|file| is_program(file))
}

/// Returns whether this is a file that can be executed.
pub(super) fn is_program(file: &Path) -> bool {
    file.is_file() && access(file, Access::EXEC_OK).is_ok()
}

/// Joins the words to one shell text in which each stays one word.
fn quoted(words: &[OsString]) -> OsString {
    let mut text = Vec::new();
    for word in words {
        if !text.is_empty() {
            text.push(b' ');
        }
        text.push(b'\'');
        for byte in word.as_bytes() {
            match byte {
                b'\'' => text.extend_from_slice(b"'\\''"),
                byte => text.push(*byte),
            }
        }
        text.push(b'\'');
    }
    OsString::from_vec(text)
}
