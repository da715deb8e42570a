//! Kernel interfaces for the daemon that the standard library does not offer, beyond those that [`orbd_host::sys`] shares with the
//! clients: waiting for a process's exit or a peer's hang-up, descriptors, resource limits, memory.
//!
//! `unsafe` is allowed only in the small files about descriptors, hang-ups and memory.
//!
//! This module does not depend on `orbctl` and starts no programs.

mod descriptors;
mod exit;
mod hang_up;
mod memory;

pub use descriptors::{
    inherited, raise_descriptor_limit, reserve, restore_limits, seal_inherited_descriptors, take_variable,
};
pub use exit::gone;
pub use hang_up::HangUp;
pub use memory::give_memory_back;
pub use orbd_host::sys::*;

/// Returns the processes that carry exactly this marker.
#[cfg(test)]
pub(crate) fn children_with_marker(marker: &str) -> Vec<ChildIdentity> {
    marked_processes()
        .into_iter()
        .filter(|process| process.marker.as_os_str() == std::ffi::OsStr::new(marker))
        .map(|process| process.identity)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;

    #[expect(
        clippy::disallowed_methods,
        reason = "the tests need a process that is not orbctl"
    )]
    fn stranger(marker: &str) -> tokio::process::Child {
        tokio::process::Command::new("/bin/sh")
            .args(["-c", "read line"])
            .env(MARKER, marker)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("a shell")
    }

    fn identity_of(child: &tokio::process::Child) -> ChildIdentity {
        let pid = child.id().expect("not waited for");
        ChildIdentity {
            pid,
            started: process_identity(pid).expect("it runs"),
        }
    }

    #[tokio::test]
    async fn gone_returns_when_the_process_exits() {
        let mut child = stranger("gone");
        let identity = identity_of(&child);
        let mut waiting = tokio::spawn(gone(identity));
        assert!(
            tokio::time::timeout(Duration::from_millis(50), &mut waiting)
                .await
                .is_err()
        );
        drop(child.stdin.take());
        waiting.await.expect("no panic");
        // The child is still a zombie here, and a zombie does not count as running.
        assert!(!is_alive(&identity));
        child.wait().await.expect("reaped");
        gone(identity).await;
    }

    #[tokio::test]
    async fn process_that_reuses_a_pid_is_never_signalled() {
        let mut child = stranger("reused");
        let real = identity_of(&child);
        let earlier = ChildIdentity {
            started: StartTime {
                at: real.started.at - 1,
                ..real.started
            },
            ..real
        };
        // The earlier process with this pid has exited, although another process has the pid now.
        gone(earlier).await;
        for signal in [terminate, kill, terminate_group, kill_group] {
            signal(earlier);
        }
        drop(child.stdin.take());
        let status = child.wait().await.expect("ours");
        assert_eq!(
            status.code(),
            Some(1),
            "the process was signalled before its input ended"
        );
    }

    #[tokio::test]
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests need a process that is not orbctl"
    )]
    async fn terminate_group_signals_the_group_only_if_the_process_leads_it() {
        use tokio::io::{AsyncBufReadExt, BufReader};
        for leads in [true, false] {
            let mut command = tokio::process::Command::new("/bin/sh");
            command
                .args(["-c", "sleep 600 & echo $!; wait"])
                .stdout(Stdio::piped());
            if leads {
                command.process_group(0);
            }
            let mut parent = command.kill_on_drop(true).spawn().expect("a shell");
            let mut line = String::new();
            let stdout = parent.stdout.take().expect("piped");
            BufReader::new(stdout).read_line(&mut line).await.expect("a pid");
            let pid = line.trim().parse().expect("a pid");
            let started = process_identity(pid).expect("it runs");
            let grandchild = ChildIdentity { pid, started };
            terminate_group(identity_of(&parent));
            parent.wait().await.expect("ours");
            if leads {
                gone(grandchild).await;
            } else {
                assert!(is_alive(&grandchild));
                kill(grandchild);
            }
        }
    }

    #[tokio::test]
    async fn marked_child_is_found_by_its_marker() {
        let marker = format!("sys-test-{}", std::process::id());
        let child = stranger(&marker);
        assert_eq!(children_with_marker(&marker), [identity_of(&child)]);
        assert_eq!(children_with_marker(&marker[1..]), []);
    }
}
