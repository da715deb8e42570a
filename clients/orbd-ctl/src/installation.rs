//! How a program of orbd was installed, judged by its path: which command upgrades or removes it, and whether the path will last.

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::environment::variable;

/// Name of the directory in which Homebrew keeps versions.
const CELLAR: &str = "Cellar";

/// Directories whose contents the system may delete. `/tmp` and `/var` are links on macOS.
const TEMPORARY: [&str; 7] = [
    "/tmp",
    "/var/tmp",
    "/var/folders",
    "/dev/shm",
    "/private/tmp",
    "/private/var/tmp",
    "/private/var/folders",
];

/// How to install orbd so that its programs stay where they are.
pub(crate) const INSTALL_FOR_GOOD: &str = "install orbd permanently, for example with `uv tool install orbd`, `pipx install orbd` or `brew install orbd`";

/// The installation that a program belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Installation {
    /// A tool of `uv tool install`, by name.
    UvTool(String),
    /// An application of `pipx install`, by name.
    Pipx(String),
    /// A Homebrew formula.
    Homebrew,
    /// A virtual environment in this directory.
    Venv(PathBuf),
    /// `cargo install`.
    Cargo,
    /// The copy that `service install` keeps in the state directory.
    ServiceCopy,
    /// A cache or a temporary directory, as `uvx` and `pipx run` use. It may be deleted at any time.
    Temporary,
    /// Unpacked or built by hand.
    Other,
}

impl Installation {
    /// Returns the installation of the program at a path, which may be a link. `service_copy` is the path of the copy that the service
    /// runs.
    pub(crate) fn of(program: &Path, service_copy: Option<&Path>) -> Self {
        let real = program.canonicalize().unwrap_or_else(|_| program.to_owned());
        let is_copy = service_copy
            .is_some_and(|copy| copy == program || copy.canonicalize().is_ok_and(|copy| copy == real));
        if is_copy {
            return Self::ServiceCopy;
        }
        let above = real.parent().and_then(Path::parent);
        let venv = above.filter(|folder| folder.join("pyvenv.cfg").is_file());
        Self::judge(&real, &caches(), venv)
    }

    /// As [`Installation::of`], for a path without links. `venv` is the virtual environment that the program is in.
    fn judge(real: &Path, caches: &[PathBuf], venv: Option<&Path>) -> Self {
        let parts: Vec<&OsStr> = real
            .components()
            .filter_map(|part| match part {
                Component::Normal(part) => Some(part),
                _ => None,
            })
            .collect();
        let after = |folders: [&str; 2]| {
            let at = parts
                .windows(2)
                .position(|pair| pair == folders.map(OsStr::new))?;
            // The name is a directory: the program is below it.
            let name = parts.get(at + 2)?;
            (parts.len() > at + 3).then(|| name.to_string_lossy().into_owned())
        };
        if is_in_cache(real, caches) {
            Self::Temporary
        } else if let Some(name) = after(["uv", "tools"]) {
            Self::UvTool(name)
        } else if let Some(name) = after(["pipx", "venvs"]) {
            Self::Pipx(name)
        } else if parts.contains(&OsStr::new(CELLAR)) {
            Self::Homebrew
        } else if let Some(venv) = venv {
            Self::Venv(venv.to_owned())
        } else if real.parent().is_some_and(|folder| folder.ends_with(".cargo/bin")) {
            Self::Cargo
        } else {
            Self::Other
        }
    }

    /// Returns whether the environment of the program may be deleted or created again while its users expect it to stay.
    pub(crate) fn is_environment(&self) -> bool {
        matches!(self, Self::UvTool(_) | Self::Pipx(_) | Self::Venv(_))
    }

    /// Returns the command or the step that upgrades the program at this path.
    pub(crate) fn upgrade(&self, program: &Path) -> String {
        match self {
            Self::UvTool(name) => format!("uv tool upgrade {name}"),
            Self::Pipx(name) => format!("pipx upgrade --include-injected {name}"),
            Self::Homebrew => "brew upgrade orbd".into(),
            Self::Venv(folder) => pip(folder, "install --upgrade"),
            Self::Cargo => "cargo install orbd orbd-ctl".into(),
            Self::ServiceCopy => "orbd-ctl service install".into(),
            Self::Temporary => {
                format!(
                    "{INSTALL_FOR_GOOD}; then run `orbd-ctl daemon stop`: the next use starts the installed one"
                )
            }
            Self::Other => format!(
                "install the new version as {}, as you installed this one",
                program.display()
            ),
        }
    }

    /// Returns the command or the step that removes the programs at these paths, which belong to this installation.
    pub(crate) fn removal(&self, programs: &[PathBuf]) -> String {
        let paths: Vec<String> = programs.iter().map(|path| shell_word(path)).collect();
        match self {
            Self::UvTool(name) => format!("uv tool uninstall {name}"),
            Self::Pipx(name) => format!("pipx uninstall {name}"),
            Self::Homebrew => "brew uninstall orbd".into(),
            Self::Venv(folder) => pip(folder, "uninstall"),
            Self::Cargo => "cargo uninstall orbd orbd-ctl".into(),
            Self::ServiceCopy | Self::Temporary | Self::Other => format!("rm {}", paths.join(" ")),
        }
    }
}

/// Returns whether a directory, or the nearest one above it that exists, is in a cache or a temporary directory.
pub(crate) fn is_temporary(folder: &Path) -> bool {
    let real = folder.ancestors().find_map(|above| above.canonicalize().ok());
    real.is_some_and(|real| is_in_cache(&real, &caches()))
}

/// Returns the directories that may be deleted at any time.
fn caches() -> Vec<PathBuf> {
    let mut caches: Vec<PathBuf> = TEMPORARY.iter().map(PathBuf::from).collect();
    let named = ["UV_CACHE_DIR", "TMPDIR"].into_iter().filter_map(variable);
    caches.extend(named.filter_map(|path| Path::new(&path).canonicalize().ok()));
    caches
}

fn is_in_cache(real: &Path, caches: &[PathBuf]) -> bool {
    let has = |name: &str| real.components().any(|part| part.as_os_str() == name);
    caches.iter().any(|cache| real.starts_with(cache)) || has(".cache") || has("Caches")
}

/// Returns the command of pip, or of uv where the virtual environment has no pip, for the distribution that brought orbd.
fn pip(venv: &Path, verb: &str) -> String {
    let has_connector = fs::read_dir(venv.join("lib"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .any(|python| python.path().join("site-packages/pyinfra_orbd").is_dir());
    let packages = match (has_connector, verb) {
        // The connector requires `orbd` in its own version.
        (true, "uninstall") => "pyinfra-orbd orbd",
        (true, _) => "pyinfra-orbd",
        (false, _) => "orbd",
    };
    if venv.join("bin/pip").exists() {
        format!(
            "{} -m pip {verb} {packages}",
            shell_word(&venv.join("bin/python"))
        )
    } else {
        format!("uv pip {verb} --python {} {packages}", shell_word(venv))
    }
}

/// Quotes a path for a shell if necessary.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+@%:,".contains(letter);
    if text.chars().all(is_plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(path: &str, venv: Option<&str>) -> Installation {
        let caches = ["/tmp", "/private/var/folders", "/big/uv-cache"].map(PathBuf::from);
        Installation::judge(Path::new(path), &caches, venv.map(Path::new))
    }

    #[test]
    fn installation_is_recognised_by_the_path() {
        use Installation as I;
        for (path, expected) in [
            (
                "/Users/me/.local/share/uv/tools/pyinfra/bin/orbd",
                I::UvTool("pyinfra".into()),
            ),
            (
                "/Users/me/.local/pipx/venvs/orbd/bin/orbd",
                I::Pipx("orbd".into()),
            ),
            (
                "/Users/me/Library/Application Support/pipx/venvs/orbd/bin/orbd",
                I::Pipx("orbd".into()),
            ),
            ("/opt/homebrew/Cellar/orbd/0.1.0/bin/orbd", I::Homebrew),
            ("/Users/me/.cargo/bin/orbd", I::Cargo),
            ("/usr/local/bin/orbd", I::Other),
            ("/Users/me/src/orbd/target/release/orbd", I::Other),
            ("/Users/me/.cache/uv/archive-v0/x/bin/orbd", I::Temporary),
            ("/Users/me/.local/pipx/.cache/x/bin/orbd", I::Temporary),
            ("/Users/me/Library/Caches/pipx/x/bin/orbd", I::Temporary),
            ("/private/var/folders/ab/T/x/bin/orbd", I::Temporary),
            ("/big/uv-cache/archive-v0/x/bin/orbd", I::Temporary),
            ("/tmp/orbd", I::Temporary),
            ("/tmpfiles/orbd", I::Other),
            ("/srv/uv/tools/orbd", I::Other),
        ] {
            assert_eq!(judge(path, None), expected, "{path}");
        }
        let venv = "/Users/me/my project/.venv";
        assert_eq!(
            judge(&format!("{venv}/bin/orbd"), Some(venv)),
            I::Venv(venv.into())
        );
        assert_eq!(
            judge("/tmp/venv/bin/orbd", Some("/tmp/venv")),
            I::Temporary,
            "a temporary virtual environment does not last"
        );
    }

    #[test]
    fn copy_of_the_service_is_recognised_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("orbd");
        fs::write(&copy, "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&copy, &link).unwrap();
        for program in [&copy, &link] {
            assert_eq!(Installation::of(program, Some(&copy)), Installation::ServiceCopy);
        }
    }

    /// Returns a virtual environment with pip and the connector.
    fn venv_with_pip() -> tempfile::TempDir {
        let venv = tempfile::tempdir().unwrap();
        fs::create_dir_all(venv.path().join("bin")).unwrap();
        fs::write(venv.path().join("bin/pip"), "").unwrap();
        fs::create_dir_all(venv.path().join("lib/python3.13/site-packages/pyinfra_orbd")).unwrap();
        venv
    }

    #[test]
    fn upgrade_fits_the_installation() {
        let check = |installation: Installation, expected: &str| {
            assert_eq!(installation.upgrade(Path::new("/a b/orbd")), expected);
        };
        check(Installation::UvTool("orbd".into()), "uv tool upgrade orbd");
        check(
            Installation::Other,
            "install the new version as /a b/orbd, as you installed this one",
        );
        let venv = tempfile::tempdir().unwrap();
        check(
            Installation::Venv(venv.path().to_owned()),
            &format!("uv pip install --upgrade --python {} orbd", venv.path().display()),
        );
        let venv = venv_with_pip();
        check(
            Installation::Venv(venv.path().to_owned()),
            &format!(
                "{}/bin/python -m pip install --upgrade pyinfra-orbd",
                venv.path().display()
            ),
        );
    }

    #[test]
    fn removal_fits_the_installation() {
        let check = |installation: Installation, expected: &str| {
            let programs = ["/a b/orbd", "/it's/orbd-ctl"].map(PathBuf::from);
            assert_eq!(installation.removal(&programs), expected);
        };
        check(Installation::Pipx("orbd".into()), "pipx uninstall orbd");
        check(Installation::Other, r"rm '/a b/orbd' '/it'\''s/orbd-ctl'");
        let venv = venv_with_pip();
        check(
            Installation::Venv(venv.path().to_owned()),
            &format!(
                "{}/bin/python -m pip uninstall pyinfra-orbd orbd",
                venv.path().display()
            ),
        );
    }
}
