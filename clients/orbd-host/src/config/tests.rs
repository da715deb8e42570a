//! Tests of loading, precedence, validation and the sample.

use super::keys::{AT_START, minutes, seconds};
use super::value::Value as _;
use super::*;

fn places() -> UserDirs {
    UserDirs {
        home: "/home/u".into(),
        config: "/missing/config".into(),
        state: "/home/u/.local/state/orbd".into(),
    }
}

fn load(file: Option<&str>, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("config.toml");
    if let Some(text) = file {
        std::fs::write(&path, text).expect("written");
    }
    let flags = Flags {
        file: file.map(|_| path),
        values: flags
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
    };
    let environment = variables.iter().copied().collect();
    Config::load_for(&places(), &flags, &environment).map_err(|error| {
        error
            .to_string()
            .replace(&*folder.path().to_string_lossy(), "/etc")
    })
}

fn check_error(file: &str, expected: &str) {
    assert_eq!(load(Some(file), &[], &[]).expect_err(file), expected);
}

#[test]
fn defaults_apply_if_nothing_is_set() {
    let config = load(None, &[], &[]).expect("valid");
    assert_eq!(config, Config::defaults(&places()));
    assert_eq!(config.socket, Path::new("/home/u/.orbd/orbd.sock"));
    assert_eq!(config.origin("socket"), Origin::Default);
}

#[test]
fn sample_with_every_key_uncommented_equals_the_defaults() {
    let sample = Config::sample(&places());
    let on: String = sample
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' ') && !line.ends_with("\"\""))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(
        on.lines().count(),
        KEYS.len() - 2,
        "all keys but the two without a default"
    );
    let config = load(Some(&on), &[], &[]).expect("valid");
    assert_eq!(config.values(), Config::defaults(&places()).values());
    let untouched = load(Some(&sample), &[], &[]).expect("valid");
    assert_eq!(untouched.values(), Config::defaults(&places()).values());
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let file = "queue_max = 2000\ngrace = \"1s\"\nallow_root = true\n";
    let variables = [("ORBD_GRACE", "2s"), ("ORBD_ALLOW_ROOT", "off")];
    let config = load(Some(file), &variables, &[("allow_root", "true")]).expect("valid");
    assert_eq!(
        (config.queue_max, config.grace, config.allow_root),
        (2000, seconds(2), true)
    );
    assert!(matches!(config.origin("queue_max"), Origin::File { line: 1, .. }));
    assert_eq!(config.origin("grace"), Origin::Variable("ORBD_GRACE".into()));
    assert_eq!(config.origin("allow_root"), Origin::Flag("allow_root".into()));
}

#[test]
fn orbd_strict_in_the_environment_does_not_set_strict() {
    let config = load(None, &[("ORBD_STRICT", "1")], &[]).expect("valid");
    assert!(!config.strict);
}

#[test]
fn file_named_by_the_environment_must_exist() {
    let named = load(None, &[("ORBD_CONFIG", "/missing/x.toml")], &[]);
    assert_eq!(named, Err("cannot read the configuration /missing/x.toml".into()));
}

#[test]
fn unknown_key_is_refused_with_the_nearest_known_key() {
    check_error(
        "strict = true\nquue_max = 5\n",
        "/etc/config.toml:2: unknown key `quue_max`; did you mean `queue_max`?",
    );
    check_error("colour = 1", "/etc/config.toml:1: unknown key `colour`");
    let flag = load(None, &[], &[("log-level", "debug")]);
    assert_eq!(
        flag,
        Err("--log-level: unknown key `log-level`; did you mean `log_level`?".into())
    );
}

#[test]
fn bad_value_error_names_the_origin_the_key_and_valid_values() {
    check_error(
        "\n\ngrace = 10",
        "/etc/config.toml:3: `grace` must be a duration in quotes like \"30s\", not integer",
    );
    check_error(
        "grace = \"10 parsecs\"",
        "/etc/config.toml:1: `grace` must be a duration like \"30s\" or \"1h30m\", in d, h, m, s or ms, not \"10 parsecs\"",
    );
    check_error(
        "queue_max = 0",
        "/etc/config.toml:1: `queue_max` must be between 1 and 1000000, but is 0",
    );
    check_error(
        "queue_max = -1",
        "/etc/config.toml:1: `queue_max` cannot be negative, but is -1",
    );
    check_error(
        "strict = \"yes\"",
        "/etc/config.toml:1: `strict` must be true or false, not string",
    );
    check_error(
        "creates_max = 9",
        "/etc/config.toml:1: `creates_max` cannot be more than `changes_max`; lower `creates_max` or raise `changes_max`",
    );
    check_error(
        "orbctl = \"orbctl\"",
        "/etc/config.toml:1: `orbctl` must be an absolute path, but is orbctl",
    );
    check_error(
        "frame_max = \"16 parsecs\"",
        "/etc/config.toml:1: `frame_max` must be a size like \"64MiB\", in B, KiB, MiB, GiB or TiB, not \"16 parsecs\"",
    );
    let variable = load(None, &[("ORBD_LOG_FORMAT", "xml")], &[]);
    assert_eq!(
        variable,
        Err("$ORBD_LOG_FORMAT: `log_format` must be \"text\" or \"json\", not \"xml\"".into())
    );
    let level = load(None, &[("ORBD_LOG_LEVEL", "orbd=loud")], &[]).expect_err("refused");
    assert!(level.starts_with("$ORBD_LOG_LEVEL: `log_level` "), "{level}");
    let syntax = load(Some("strict = tru"), &[], &[]).expect_err("refused");
    assert!(
        syntax.starts_with("/etc/config.toml is not valid TOML: "),
        "{syntax}"
    );
    let twice = load(Some("strict = true\nstrict = false"), &[], &[]).expect_err("refused");
    assert!(twice.contains("duplicate key"), "{twice}");
}

#[test]
fn socket_path_longer_than_103_bytes_is_refused() {
    let fits = format!("/{}", "s".repeat(SOCKET_PATH_MAX - 1));
    assert!(load(None, &[("ORBD_SOCKET", &fits)], &[]).is_ok());
    let long = format!("{fits}s");
    assert_eq!(
        load(None, &[("ORBD_SOCKET", &long)], &[]).expect_err("refused"),
        "$ORBD_SOCKET: `socket` is 104 bytes long, but a Unix socket path can have at most 103; choose a shorter path"
    );
}

#[test]
fn tilde_expands_to_the_home_directory() {
    let config = load(Some("socket = \"~/o.sock\""), &[], &[]).expect("valid");
    assert_eq!(config.socket, Path::new("/home/u/o.sock"));
}

#[test]
fn sample_marks_every_key_that_requires_a_restart() {
    for name in AT_START {
        assert!(KEYS.iter().any(|key| key.name == name), "{name}");
    }
    let sample = Config::sample(&places());
    assert_eq!(sample.matches("# Requires a restart.\n").count(), AT_START.len());
    assert!(sample.contains("# Requires a restart.\n#frame_max = "));
}

#[test]
fn adopt_applies_keys_that_can_change_and_reports_those_that_need_a_restart() {
    let mut running = load(Some("grace = \"1s\"\nlog_dir = \"/l\""), &[], &[]).expect("valid");
    let configured = load(
        Some("queue_max = 9\nqueue_max_per_client = 9\nframe_max = 8192"),
        &[],
        &[],
    );
    let reloaded = running.adopt(configured.expect("valid"));
    let told = |differences: &[Difference]| -> Vec<String> {
        let told = differences
            .iter()
            .map(|it| format!("{} {:?} {:?}", it.key, it.from, it.to));
        told.collect()
    };
    assert_eq!(
        told(&reloaded.applied),
        [
            "queue_max Some(\"1024\") Some(\"9\")",
            "queue_max_per_client Some(\"512\") Some(\"9\")",
            "grace Some(\"1s\") Some(\"10s\")"
        ]
    );
    assert_eq!(
        told(&reloaded.needs_restart),
        [
            "frame_max Some(\"4MiB\") Some(\"8KiB\")",
            "log_dir Some(\"/l\") None"
        ]
    );
    assert_eq!((running.queue_max, running.grace), (9, seconds(10)));
    assert_eq!(running.frame_max, Bytes(4 << 20), "unchanged until a restart");
}

#[test]
fn every_default_reads_back_from_its_text_form() {
    for (key, text) in Config::defaults(&places()).texts() {
        if let Some(text) = text {
            load(None, &[], &[(key, &text)]).expect(key);
        }
    }
}

#[test]
fn durations_and_sizes_read_back_as_written() {
    for ms in [0, 1, 999, 1_000, 61_001, 5_400_000, 7_776_000_000] {
        let duration = Duration::from_millis(ms);
        assert_eq!(
            Duration::from_text(duration.to_toml().trim_matches('"')),
            Ok(duration)
        );
    }
    for bytes in [0, 1, 1023, 1024, 1 << 20, 3 << 30, (1 << 40) + 1] {
        assert_eq!(
            Bytes::from_text(Bytes(bytes).to_toml().trim_matches('"')),
            Ok(Bytes(bytes))
        );
    }
    assert_eq!(Duration::from_text("1h 30m"), Ok(minutes(90)));
    assert_eq!(Bytes::from_text("64 mib"), Ok(Bytes(64 << 20)));
    for wrong in ["", "5", "s", "-1s", "99999999999999999999d", "1.5h"] {
        assert!(Duration::from_text(wrong).is_err(), "{wrong:?}");
    }
    for wrong in ["", "MiB", "-1", "99999999999TiB", "1.5GiB"] {
        assert!(Bytes::from_text(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn every_default_is_within_its_bounds() {
    let defaults = Config::defaults(&places());
    for (key, value) in defaults.values() {
        if value != "\"\"" {
            let file = format!("{key} = {value}\n");
            assert!(load(Some(&file), &[], &[]).is_ok(), "{file}");
        }
    }
}

#[test]
fn invalid_log_level_is_refused_and_quoted() {
    assert!(log_filter("info,orbd::server=debug").is_ok());
    assert!(log_filter("orbd=loud").is_err_and(|problem| problem.contains("\"orbd=loud\"")));
}
