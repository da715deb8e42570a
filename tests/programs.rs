//! The programs under test: builds them and returns their paths.
//!
//! Cargo gives the paths of programs (`CARGO_BIN_EXE_*`) only to the tests of the package that contains them, and orbd, its command line
//! and the stand-in for `orbctl` are three packages. Their first use in a test process therefore runs `cargo build`, which takes a
//! moment if they are up to date.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Folder of the built programs, next to the running test's own.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("the path of this test");
    // target/debug/deps/suite-0123456789abcdef, or with the name of a target before the profile.
    let folder = test.ancestors().nth(2).expect("a folder of cargo").to_owned();
    build(&folder);
    folder
});

/// Builds the programs with the profile that the running test was built with.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's own process, not one of the daemon"
)]
fn build(folder: &Path) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--bins"])
        .args(["-p", "orbd", "-p", "orbd-ctl", "-p", "orbctl-sim"])
        .arg("--manifest-path")
        .arg(root().join("Cargo.toml"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo");
    assert!(status.success(), "cannot build the programs under test: {status}");
}

/// Returns the path of `orbd`.
pub fn orbd() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| program("orbd"));
    &PATH
}

/// Returns the path of `orbd-ctl`.
pub fn orbd_ctl() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| program("orbd-ctl"));
    &PATH
}

/// Returns the path of `orbctl-sim`.
pub fn orbctl_sim() -> &'static str {
    static PATH: LazyLock<String> = LazyLock::new(|| program("orbctl-sim"));
    &PATH
}

fn program(name: &str) -> String {
    FOLDER
        .join(name)
        .into_os_string()
        .into_string()
        .expect("a path in UTF-8")
}

/// Returns the root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent")
}
