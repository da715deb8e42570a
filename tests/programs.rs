//! The programs under test: builds them and returns their paths.
//!
//! Cargo gives the paths of programs (`CARGO_BIN_EXE_*`) only to the tests of the package that contains them, and orbd, its command line
//! and the stand-in for `orbctl` are packages of their own. Their first use in a test process therefore runs `cargo build`, which takes a
//! moment if they are up to date.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// Paths of the built programs, which are next to the running test.
struct Programs {
    orbd: String,
    orbd_ctl: String,
    orbctl_sim: String,
    conformance: String,
}

static PROGRAMS: LazyLock<Programs> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("the path of this test");
    // target/debug/deps/suite-0123456789abcdef, or with the name of a target before the profile.
    let folder = test.ancestors().nth(2).expect("a folder of cargo");
    build(folder);
    let path = |name| folder.join(name).into_os_string().into_string();
    let path = |name| path(name).expect("a path in UTF-8");
    Programs {
        orbd: path("orbd"),
        orbd_ctl: path("orbd-ctl"),
        orbctl_sim: path("orbctl-sim"),
        conformance: path("orbd-conformance"),
    }
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
        .args([
            "-p",
            "orbd",
            "-p",
            "orbd-ctl",
            "-p",
            "orbctl-sim",
            "-p",
            "orbd-conformance",
        ])
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
    &PROGRAMS.orbd
}

/// Returns the path of `orbd-ctl`.
pub fn orbd_ctl() -> &'static str {
    &PROGRAMS.orbd_ctl
}

/// Returns the path of `orbctl-sim`.
pub fn orbctl_sim() -> &'static str {
    &PROGRAMS.orbctl_sim
}

/// Returns the path of `orbd-conformance`.
pub fn conformance() -> &'static str {
    &PROGRAMS.conformance
}

/// Returns the root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent")
}
