//! The socket: who may connect to it, and which daemon serves it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use orbd_proto::methods::DaemonInfo;
use serde_json::json;

use crate::support::World;

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path)
        .expect("it is there")
        .permissions()
        .mode()
        & 0o777
}

#[test]
fn socket_and_state_are_private_to_the_user() {
    let world = World::with_machines(&["a"]);
    world.client().run("a", &["true"]);
    assert_eq!(mode(&world.socket()), 0o600);
    assert_eq!(mode(&world.path("")), 0o700);
    assert_eq!(mode(&world.path("state")), 0o700);
    let mut folders = vec![world.path("state")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            // The folder above keeps other users out; the files are private too, in case they are moved or copied.
            if path.is_dir() {
                assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name == "journal") {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
    }
}

#[test]
fn missing_socket_folder_is_created_private() {
    let mut world = World::new();
    let socket = world.path("deep/er/orbd.sock");
    let mut command = world.daemon_command();
    let mut daemon = command.env("ORBD_SOCKET", &socket).spawn().expect("it starts");
    crate::support::eventually("it listens", || {
        std::os::unix::net::UnixStream::connect(&socket).ok()
    });
    assert_eq!(mode(&world.path("deep/er")), 0o700);
    daemon.kill().expect("ours");
    daemon.wait().expect("ours");
    world.start();
}

#[test]
fn second_daemon_exits_with_success_and_the_first_keeps_serving() {
    let world = World::new().started();
    let first = world.client().ok::<DaemonInfo>(json!({}));
    let inode = fs::metadata(world.socket()).expect("it is there").ino();
    for _ in 0..3 {
        let status = world.daemon_command().status().expect("it starts");
        assert!(status.success(), "{status}");
    }
    assert_eq!(fs::metadata(world.socket()).expect("it is there").ino(), inode);
    let still = world.client().ok::<DaemonInfo>(json!({}));
    assert_eq!((still.pid, still.instance), (first.pid, first.instance));
}

#[test]
fn one_of_ten_daemons_started_at_once_serves() {
    let mut world = World::new();
    let mut daemons: Vec<_> = (0..10)
        .map(|_| world.daemon_command().spawn().expect("it starts"))
        .collect();
    let pid = crate::support::eventually("one serves", || {
        let mut client = orbd_client::Client::connect(&world.socket()).ok()?;
        let info = client.call::<DaemonInfo>(&orbd_proto::types::NoParams {});
        Some(info.ok()?.pid)
    });
    for daemon in &mut daemons {
        if daemon.id() != pid {
            let status = crate::support::eventually("it leaves", || daemon.try_wait().expect("ours"));
            assert!(status.success(), "{status}: {}", world.log());
        }
    }
    for daemon in &mut daemons {
        if daemon.id() == pid {
            daemon.kill().expect("ours");
            daemon.wait().expect("ours");
        }
    }
    world.start();
}

#[test]
fn socket_left_by_a_crash_is_replaced() {
    let mut world = World::new().started();
    world.kill();
    assert!(world.socket().exists());
    world.start();
    assert_eq!(world.client().ok::<DaemonInfo>(json!({})).pid, world.pid());
}

#[test]
fn other_file_at_the_socket_path_is_left_alone() {
    let world = World::new();
    fs::write(world.socket(), "precious").expect("a file");
    let status = world.daemon_command().status().expect("it starts");
    assert!(!status.success());
    assert_eq!(
        fs::read_to_string(world.socket()).expect("still there"),
        "precious"
    );
}

#[test]
fn socket_of_a_program_without_the_lock_is_taken_over() {
    let mut world = World::new();
    let _stranger = UnixListener::bind(world.socket()).expect("a socket");
    world.start();
    assert_eq!(world.client().ok::<DaemonInfo>(json!({})).pid, world.pid());
}

#[test]
fn root_is_refused_unless_allowed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let output = world
        .daemon_command()
        .env_remove("ORBD_ALLOW_ROOT")
        .stderr(std::process::Stdio::piped())
        .output()
        .expect("it starts");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("refusing to run as root"), "{said}");
    assert!(!world.socket().exists());
}
