//! `daemon config`: orbd's own configuration, in its file.
//!
//! The file is the user's: what is written keeps his comments, his order and his spelling of everything else. The whole is checked before
//! anything is written, and written beside it and renamed over it, so that orbd never reads a half.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Cell;
use orbd::causes::with_causes;
use orbd::config::{self, Config, ConfigError, Environment, Flags, Key, Origin, Places};
use orbd::rpc::api::{DaemonInfo, DaemonReload};
use orbd::rpc::types::{NoParams, ReloadAnswer};
use serde::Serialize;
use toml_edit::{DocumentMut, Item, Value};

use crate::args::OwnConfigCommand;
use crate::context::Context;
use crate::layout::Look;
use crate::render;
use crate::trouble::{Trouble, exit};

/// How long a running orbd has to say what it made of a change.
const RELOAD_MAX: Duration = Duration::from_secs(5);

/// What a new file begins with.
const FIRST_LINE: &str = "# orbd's configuration; `orbd --sample-config` explains every key.\n";

/// Shows and changes orbd's own configuration.
pub(super) fn own_config(context: &mut Context, command: OwnConfigCommand) -> Result<ExitCode, Trouble> {
    let here = Here::find()?;
    match command {
        OwnConfigCommand::Path => {
            let answer = PathAnswer {
                config_file: here.file.display().to_string(),
                exists: here.file.exists(),
            };
            context
                .console
                .answer(&answer, |answer, _| format!("{}\n", answer.config_file))?;
        }
        OwnConfigCommand::Show => {
            let answer = shown(&here.load(&Flags::default()).map_err(|error| invalid(&error))?);
            context.console.answer(&answer, show)?;
        }
        OwnConfigCommand::Check { file } => return check(context, &here, file),
        OwnConfigCommand::Set { key, value } => {
            let key = known(&key)?;
            let value = Config::as_toml(&here.places, key.name, &value).map_err(|error| wrong(&error))?;
            edit(context, &here, key, Some(&value))?;
        }
        OwnConfigCommand::Unset { key } => edit(context, &here, known(&key)?, None)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the configuration is, seen from here. A service may have been started with other variables.
struct Here {
    places: Places,
    environment: Environment,
    file: PathBuf,
}

impl Here {
    fn find() -> Result<Self, Trouble> {
        let places = Places::of_this_user().map_err(|error| invalid(&error))?;
        let environment = Environment::of_process();
        Ok(Self {
            file: config::file_in_use(&places, &Flags::default(), &environment),
            places,
            environment,
        })
    }

    fn load(&self, flags: &Flags) -> Result<Config, ConfigError> {
        Config::load_for(&self.places, flags, &self.environment)
    }
}

/// Answer of `path`.
#[derive(Serialize)]
struct PathAnswer {
    config_file: String,
    exists: bool,
}

/// One key of `show`.
#[derive(Serialize)]
struct ShownKey {
    key: &'static str,
    /// As a flag would give it; null where nothing is set.
    value: Option<String>,
    /// `default`, `file` or `variable`.
    from: &'static str,
    /// Which line or variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    needs_restart: bool,
}

/// Answer of `show`.
#[derive(Serialize)]
struct Shown {
    config_file: Option<String>,
    keys: Vec<ShownKey>,
}

fn shown(config: &Config) -> Shown {
    let keys = config.texts().into_iter().map(|(name, value)| {
        let origin = config.origin(name);
        ShownKey {
            key: name,
            value,
            from: match origin {
                Origin::Default => "default",
                Origin::File { .. } => "file",
                Origin::Variable(_) => "variable",
                Origin::Flag(_) => "flag",
            },
            place: (origin != Origin::Default).then(|| origin.to_string()),
            needs_restart: config::find_key(name).is_ok_and(Key::needs_restart),
        }
    });
    Shown {
        config_file: config.file().map(|path| path.display().to_string()),
        keys: keys.collect(),
    }
}

fn show(answer: &Shown, look: Look) -> String {
    look.table(
        &["KEY", "VALUE", "FROM"],
        &[],
        &[1, 2],
        answer.keys.iter().map(|key| {
            vec![
                Cell::new(key.key),
                Cell::new(key.value.as_deref().unwrap_or("-")),
                Cell::new(key.place.as_deref().unwrap_or(key.from)),
            ]
        }),
    )
}

/// Answer of `check`.
#[derive(Serialize)]
struct Checked {
    config_file: Option<String>,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

fn check(context: &mut Context, here: &Here, file: Option<PathBuf>) -> Result<ExitCode, Trouble> {
    let flags = Flags {
        file,
        values: Vec::new(),
    };
    let path = config::file_in_use(&here.places, &flags, &here.environment);
    let found = here.load(&flags);
    let answer = Checked {
        config_file: (found.is_err() || path.exists()).then(|| path.display().to_string()),
        valid: found.is_ok(),
        problem: found.as_ref().err().map(|error| with_causes(error)),
    };
    context.console.answer(&answer, |answer, _| match answer {
        Checked {
            problem: Some(problem),
            ..
        } => format!("{problem}\n"),
        Checked {
            config_file: Some(file),
            ..
        } => format!("{file} is valid\n"),
        Checked { .. } => "there is no file, and all is default\n".into(),
    })?;
    Ok(ExitCode::from(if answer.valid { 0 } else { exit::FAILED }))
}

/// Answer of `set` and `unset`.
#[derive(Serialize)]
struct Edited {
    config_file: String,
    key: &'static str,
    /// What the file says now, as a flag would give it; null where it says nothing.
    value: Option<String>,
    /// Whether the file is another than before.
    changed: bool,
    /// The variable of this environment that goes before the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    overridden_by: Option<String>,
    /// What a running orbd made of it; null where none runs, or it could not be asked.
    running: Option<ReloadAnswer>,
    /// Why a running orbd made nothing of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_running: Option<String>,
}

/// Puts a value for a key into the file, or takes it out.
fn edit(context: &mut Context, here: &Here, key: &'static Key, value: Option<&str>) -> Result<(), Trouble> {
    let file = end_of_links(&here.file);
    let before = match fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(cannot("read", &file, source)),
    };
    let text = before.clone().unwrap_or_default();
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        refused(&format!(
            "{} is not valid TOML: {}",
            file.display(),
            error.to_string().trim_end()
        ))
    })?;
    match value {
        Some(value) => put(&mut document, key.name, value),
        None => take_out(&mut document, key.name),
    }
    let after = match &before {
        None if value.is_none() => String::new(),
        None => format!("{FIRST_LINE}{document}"),
        Some(_) => document.to_string(),
    };
    let changed = before.as_ref().map_or(value.is_some(), |before| *before != after);
    let config = Config::of_text(&here.places, &here.file, &after)
        .map_err(|error| refused(&format!("nothing was written: {}", with_causes(&error))))?;
    if changed {
        write(&file, &after).map_err(|source| cannot("write", &file, source))?;
    }
    let variable = key.variable();
    let (running, not_running) = match tell_daemon(context, &here.file) {
        Ok(reloaded) => (Some(reloaded), None),
        Err(reason) => (None, Some(reason)),
    };
    let texts = config.texts();
    let is_set = matches!(config.origin(key.name), Origin::File { .. });
    let answer = Edited {
        config_file: here.file.display().to_string(),
        key: key.name,
        value: texts
            .into_iter()
            .find(|(name, _)| *name == key.name)
            .and_then(|(_, value)| value)
            .filter(|_| is_set),
        changed,
        overridden_by: variable.filter(|variable| here.environment.get(variable).is_some()),
        running,
        not_running,
    };
    context.console.answer(&answer, told)
}

fn told(answer: &Edited, look: Look) -> String {
    let file = &answer.config_file;
    let mut text = match (&answer.value, answer.changed) {
        (Some(value), true) => format!("{} = {value} in {file}\n", answer.key),
        (Some(value), false) => format!("{} is {value} in {file} already\n", answer.key),
        (None, true) => format!("{} is not set in {file} any more\n", answer.key),
        (None, false) => format!("{} was not set in {file}\n", answer.key),
    };
    if let Some(variable) = &answer.overridden_by {
        let _ = writeln!(text, "${variable} is set here and goes before the file");
    }
    match (&answer.running, &answer.not_running) {
        (Some(running), _) => {
            let is_told = running.applied.iter().any(|key| key.key == answer.key)
                || running.needs_restart.iter().any(|key| key.key == answer.key);
            if answer.changed && !is_told {
                text.push_str(
                    "orbd goes on with the value that it has: it is the same, or a variable or a flag of its own goes before the file\n",
                );
            }
            if !(running.applied.is_empty() && running.needs_restart.is_empty()) {
                text.push_str(&render::reload(running, look));
            }
        }
        (None, Some(reason)) => text.extend([reason, "\n"]),
        (None, None) => {}
    }
    text
}

/// Makes a running orbd read the file; the error says in words why it does not.
fn tell_daemon(context: &mut Context, file: &Path) -> Result<ReloadAnswer, String> {
    let asked = || -> Result<Result<ReloadAnswer, String>, Trouble> {
        let mut client = context.link.dial()?;
        let mute = || Trouble::Mute {
            socket: context.link.socket.clone(),
        };
        let reloaded = client
            .start::<DaemonReload>(&NoParams {})?
            .wait(RELOAD_MAX)?
            .ok_or_else(mute)?;
        let reads = match &reloaded.config_file {
            Some(reads) => reads.clone(),
            None => client
                .call::<DaemonInfo>(&NoParams {})?
                .config_file
                .unwrap_or_default(),
        };
        Ok(if reads == file.to_string_lossy() {
            Ok(reloaded)
        } else if reads.is_empty() {
            // It was taken out to the last key, or it looks elsewhere; nothing is known to be wrong.
            Err("the orbd that runs reads another file, or none: it was started with other variables".into())
        } else {
            Err(format!("the orbd that runs reads {reads}"))
        })
    };
    match asked() {
        Ok(answer) => answer,
        Err(Trouble::NotRunning { .. }) => Err("orbd does not run; it is in force when it starts".into()),
        Err(trouble) => Err(format!(
            "the orbd that runs did not take it: {trouble}; `orbd-ctl daemon restart` makes it"
        )),
    }
}

/// Sets a key's value and leaves what stands around it.
fn put(document: &mut DocumentMut, key: &str, value: &str) {
    // It was made by the configuration itself, which writes TOML.
    let Ok(mut new) = value.parse::<Value>() else {
        return;
    };
    if let Some(Item::Value(old)) = document.get_mut(key) {
        *new.decor_mut() = old.decor().clone();
        *old = new;
    } else {
        new.decor_mut().set_prefix(" ");
        document.insert(key, Item::Value(new));
    }
}

/// Takes a key out. Comments above it stay: they may be about more than this key.
fn take_out(document: &mut DocumentMut, key: &str) {
    let names: Vec<String> = document.iter().map(|(name, _)| name.to_owned()).collect();
    let Some(place) = names.iter().position(|name| name == key) else {
        return;
    };
    let above = |document: &DocumentMut, name: &str| -> String {
        let prefix = document.key(name).and_then(|key| key.leaf_decor().prefix());
        prefix
            .and_then(|prefix| prefix.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let kept = above(document, key);
    document.remove(key);
    if kept.trim().is_empty() {
        return;
    }
    if let Some(next) = names.get(place + 1) {
        let prefix = kept + &above(document, next);
        if let Some(mut key) = document.key_mut(next) {
            key.leaf_decor_mut().set_prefix(prefix);
        }
    } else {
        let rest = document.trailing().as_str().unwrap_or_default().to_owned();
        document.set_trailing(kept + &rest);
    }
}

/// Follows links to where the file is, or would be.
fn end_of_links(path: &Path) -> PathBuf {
    /// More than that is a circle.
    const LINKS_MAX: usize = 16;
    let mut end = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&end) else { break };
        end = match end.parent() {
            Some(folder) => folder.join(target),
            None => target,
        };
    }
    end
}

/// Writes a file beside the one that is there, and renames it over that. Its mode stays; a new one is its owner's alone.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mode = fs::metadata(path).map_or(0o600, |found| found.permissions().mode() & 0o7777);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = folder.join(name);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Nothing is left of what failed.
        let _ = fs::remove_file(&new);
    }
    written
}

fn known(name: &str) -> Result<&'static Key, Trouble> {
    config::find_key(name).map_err(|nearest| Trouble::Usage {
        message: format!(
            "there is no key `{name}`{}",
            nearest.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
        ),
        hint: "`orbd-ctl daemon config show` lists the keys, `orbd --sample-config` explains them".into(),
    })
}

/// Says what is wrong with a value that was typed.
fn wrong(error: &ConfigError) -> Trouble {
    let message = match error {
        ConfigError::BadValue { key, problem, .. } => format!("`{key}` {problem}"),
        other => other.to_string(),
    };
    Trouble::Usage {
        message,
        hint: "`orbd --sample-config` explains every key".into(),
    }
}

fn invalid(error: &ConfigError) -> Trouble {
    refused(&with_causes(error))
}

fn refused(message: &str) -> Trouble {
    Trouble::Refused(orbd::rpc::errors::ErrorKind::ConfigInvalid.error(message))
}

fn cannot(action: &str, file: &Path, source: io::Error) -> Trouble {
    Trouble::Local {
        what: format!("cannot {action} {}", file.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> DocumentMut {
        text.parse().expect("TOML")
    }

    #[test]
    fn a_value_changes_and_what_stands_around_it_does_not() {
        let check = |text: &str, key: &str, value: &str, expected: &str| {
            let mut document = document(text);
            put(&mut document, key, value);
            assert_eq!(document.to_string(), expected);
        };
        let file = "# mine\ngrace = \"1s\" # short\n\nstrict=false\n# the end\n";
        check(
            file,
            "grace",
            "\"2s\"",
            "# mine\ngrace = \"2s\" # short\n\nstrict=false\n# the end\n",
        );
        check(
            file,
            "strict",
            "true",
            "# mine\ngrace = \"1s\" # short\n\nstrict=true\n# the end\n",
        );
        check("", "queue_max", "5", "queue_max = 5\n");
        check(
            "strict = true",
            "queue_max",
            "5",
            "strict = true\nqueue_max = 5\n",
        );
    }

    #[test]
    fn a_key_goes_and_comments_stay() {
        let check = |text: &str, key: &str, expected: &str| {
            let mut document = document(text);
            take_out(&mut document, key);
            assert_eq!(document.to_string(), expected);
        };
        let file = "# about all\ngrace = \"1s\"\n# about strict\nstrict = true\n";
        check(file, "grace", "# about all\n# about strict\nstrict = true\n");
        check(file, "strict", "# about all\ngrace = \"1s\"\n# about strict\n");
        check(file, "queue_max", file);
    }

    #[test]
    fn a_file_keeps_its_mode_and_its_links() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("real"), "old").expect("written");
        fs::set_permissions(path("real"), fs::Permissions::from_mode(0o640)).expect("ours");
        std::os::unix::fs::symlink("real", path("link")).expect("a link");
        let end = end_of_links(&path("link"));
        assert_eq!(end, path("real"));
        write(&end, "new").expect("written");
        assert_eq!(fs::read_to_string(path("link")).expect("there"), "new");
        let mode = |name: &str| fs::metadata(path(name)).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode("real"), 0o640);
        write(&path("deep/er/new"), "x").expect("written");
        assert_eq!(mode("deep/er/new"), 0o600);
        assert_eq!(fs::read_dir(path("deep/er")).expect("a folder").count(), 1);
    }
}
