//! Reload: loads the configuration again and passes the changed settings to the parts of the daemon.
//!
//! An invalid configuration changes nothing. Keys that cannot change while the daemon runs keep their values ([`Config::adopt`]), so
//! [`Running::config`] always holds the values that are in force.

use std::sync::Arc;

use tokio::sync::{Mutex, Notify, watch};

use super::{in_force, listening, settings};
use crate::dispatcher::Dispatcher;
use crate::logging::Level;
use crate::server::context::EffectiveConfig;
use crate::server::listener;
use orbd_host::config::{Config, Difference, Sources};
use orbd_host::error_chain::error_chain;
use orbd_proto::types::{AppliedKey, ReloadAnswer, RestartRequiredKey};

/// Reloads the configuration. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reloader {
    sources: Arc<Sources>,
    running: Arc<Mutex<Running>>,
}

/// The configuration in force, and the channels to the parts that depend on it.
pub(super) struct Running {
    /// The values in force.
    pub(super) config: Config,
    pub(super) instance: String,
    pub(super) dispatcher: Dispatcher,
    pub(super) listening: watch::Sender<listener::Settings>,
    pub(super) in_force: watch::Sender<EffectiveConfig>,
    pub(super) log_level: Level,
    /// Notifies the `UpgradeSupervisor`, which then repeats a failed preflight: its cause may have been the configuration.
    pub(super) reloaded: Arc<Notify>,
}

impl Reloader {
    pub(super) fn new(sources: Sources, running: Running) -> Self {
        Self {
            sources: Arc::new(sources),
            running: Arc::new(Mutex::new(running)),
        }
    }

    /// Loads the configuration and applies the keys that can change at run time. Concurrent reloads run one after the other. The error
    /// is a message that names the problem and the file, variable or flag.
    pub(super) async fn reload(&self) -> Result<ReloadAnswer, String> {
        let mut running = self.running.lock().await;
        running.reloaded.notify_one();
        let configured = self.sources.load().map_err(|error| {
            let text = error_chain(&error);
            tracing::error!(error = %text, "invalid configuration; nothing was changed");
            text
        })?;
        let reloaded = running.config.adopt(configured);
        running
            .dispatcher
            .adopt(settings(&running.config, &running.instance))
            .await;
        running.listening.send_replace(listening(&running.config));
        running.in_force.send_replace(in_force(&running.config));
        // Cannot fail: `Config::load_for` has checked the level.
        running.log_level.set(&running.config.log_level);
        let names = |differences: &[Difference]| -> String {
            let names: Vec<_> = differences.iter().map(|difference| difference.key).collect();
            names.join(" ")
        };
        tracing::info!(
            applied = names(&reloaded.applied),
            needs_restart = names(&reloaded.needs_restart),
            "reloaded the configuration"
        );
        Ok(ReloadAnswer {
            config_file: running.config.file().map(|path| path.display().to_string()),
            applied: reloaded.applied.into_iter().map(applied).collect(),
            needs_restart: reloaded.needs_restart.into_iter().map(in_waiting).collect(),
        })
    }
}

fn applied(difference: Difference) -> AppliedKey {
    AppliedKey {
        key: difference.key.to_owned(),
        old_value: difference.from,
        new_value: difference.to,
    }
}

fn in_waiting(difference: Difference) -> RestartRequiredKey {
    RestartRequiredKey {
        key: difference.key.to_owned(),
        running: difference.from,
        configured: difference.to,
    }
}
