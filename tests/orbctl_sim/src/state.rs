//! The state directory: one JSON file of all machines, and the locks around it.
//!
//! ```text
//! <home>/state.json            the inventory; replaced whole, by rename
//! <home>/locks/state           held while the inventory is read, changed and replaced
//! <home>/locks/<machine id>    held by the worker that is changing that machine
//! <home>/locks/service         held while OrbStack itself starts or stops
//! <home>/machines/<id>/        the machine's files; see `guest`
//! ```
//!
//! The state lock is never held while time passes, so two creates overlap. A machine's own lock is held meanwhile, so
//! no two changes work on one machine. The machine's state is changed under the state lock when its own lock is
//! acquired, so a second change sees both. Readers take no lock: because the file is replaced by rename, they read the
//! old inventory or the new one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::catalog;
use crate::refusal::{Outcome, Refusal};

/// Everything that the stand-in's service stores.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inventory {
    pub(crate) service: ServiceState,
    pub(crate) default: Option<String>,
    /// Keys that `config set` has changed; the others have their defaults.
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) machines: Vec<Machine>,
    /// How often OrbStack was stopped; a change in progress detects a stop by this.
    #[serde(default)]
    pub(crate) stops: u64,
}

/// State of OrbStack, as `status` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServiceState {
    /// OrbStack runs in a new state directory.
    #[default]
    Running,
    Starting,
    Stopped,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: MachineState,
    pub(crate) image: Image,
    pub(crate) config: MachineConfig,
    pub(crate) isolation: Isolation,
    /// Host number in the subnet; shown as an address only while the machine runs.
    pub(crate) address: u8,
    pub(crate) disk_size: u64,
    /// The first process of an isolated machine, as the host sees it.
    pub(crate) resident: Option<Resident>,
    /// How often it was booted; the initial set-up detects a restart by this.
    #[serde(default)]
    pub(crate) boots: u64,
    /// Whether it ran when OrbStack was stopped, so that it starts with OrbStack.
    #[serde(default)]
    pub(crate) starts_with_service: bool,
}

/// The state word of a machine. `running`, `stopped` and `provisioning` (gh#1973) are recorded in lists; `creating`, `starting` and
/// `deleting` in refused transitions (gh#1410, gh#364).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum MachineState {
    Running,
    Stopped,
    Creating,
    Provisioning,
    Starting,
    Stopping,
    Deleting,
}

impl MachineState {
    /// Returns the word as printed.
    pub(crate) fn word(self) -> &'static str {
        match self {
            MachineState::Running => "running",
            MachineState::Stopped => "stopped",
            MachineState::Creating => "creating",
            MachineState::Provisioning => "provisioning",
            MachineState::Starting => "starting",
            MachineState::Stopping => "stopping",
            MachineState::Deleting => "deleting",
        }
    }
}

/// What a machine was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) distro: String,
    pub(crate) version: String,
    pub(crate) arch: String,
    pub(crate) variant: String,
}

/// A machine's own settings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MachineConfig {
    pub(crate) default_username: String,
    pub(crate) isolated: bool,
    pub(crate) isolate_network: bool,
    pub(crate) forward_ssh_agent: bool,
    pub(crate) mounts: Vec<String>,
    /// 0 means no limit, for all three.
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) http_port: u16,
    pub(crate) https_port: u16,
}

/// How a machine is isolated, decided when it is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Isolation {
    Root,
    Dir,
}

/// A process with its start time, so that another process with the same number is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resident {
    pub(crate) pid: i32,
    pub(crate) started: u64,
}

impl Inventory {
    /// Returns the machine with this name, else with this id.
    pub(crate) fn find(&self, target: &str) -> Option<&Machine> {
        let by_name = self.machines.iter().find(|machine| machine.name == target);
        by_name.or_else(|| self.machines.iter().find(|machine| machine.id == target))
    }

    /// Returns the machine with this id, to be changed.
    pub(crate) fn by_id_mut(&mut self, id: &str) -> Option<&mut Machine> {
        self.machines.iter_mut().find(|machine| machine.id == id)
    }

    /// Returns the lowest free host number in the subnet.
    pub(crate) fn free_address(&self) -> Option<u8> {
        (catalog::ADDRESS_FIRST..=catalog::ADDRESS_LAST)
            .find(|place| self.machines.iter().all(|machine| machine.address != *place))
    }
}

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    home: PathBuf,
}

/// A lock that is released when this is dropped or the process ends in any way.
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its descriptor")] File);

impl Store {
    /// Opens the state directory, and makes it if it is new.
    pub(crate) fn open(home: &Path) -> Outcome<Store> {
        let locks = home.join("locks");
        if !locks.is_dir() {
            fs::create_dir_all(&locks)?;
        }
        Ok(Store {
            home: home.to_owned(),
        })
    }

    /// Returns the path of the state directory.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the current inventory.
    pub(crate) fn read(&self) -> Outcome<Inventory> {
        match fs::read(self.home.join("state.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Refusal::Whole(format!("state.json is damaged: {error}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Inventory::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes the inventory; nothing is stored if `change` refuses.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Inventory) -> Outcome<T>) -> Outcome<T> {
        let _lock = self.lock("state")?;
        let mut inventory = self.read()?;
        let result = change(&mut inventory)?;
        let bytes =
            serde_json::to_vec_pretty(&inventory).map_err(|error| Refusal::Whole(error.to_string()))?;
        self.replace("state.json", &bytes)?;
        Ok(result)
    }

    /// Changes one machine, if it still exists.
    pub(crate) fn change_machine(&self, id: &str, change: impl FnOnce(&mut Machine)) -> Outcome<()> {
        self.change(|inventory| {
            if let Some(machine) = inventory.by_id_mut(id) {
                change(machine);
            }
            Ok(())
        })
    }

    /// Replaces a file of the state directory in one step. The caller holds a lock.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Outcome<()> {
        let new = self.home.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        drop(file);
        fs::rename(&new, self.home.join(name))?;
        Ok(())
    }

    /// Waits for a named lock.
    pub(crate) fn lock(&self, name: &str) -> Outcome<Lock> {
        let file = self.lock_file(name)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Lock(file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Acquires a named lock; `None` while another process holds it.
    pub(crate) fn try_lock(&self, name: &str) -> Outcome<Option<Lock>> {
        let file = self.lock_file(name)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.home.join("locks").join(name))
    }

    /// Removes the lock of a machine that is gone. Its id is never used again.
    pub(crate) fn remove_lock(&self, name: &str) {
        let _ = fs::remove_file(self.home.join("locks").join(name));
    }

    /// Returns the folder of a machine's files.
    pub(crate) fn machine_folder(&self, id: &str) -> PathBuf {
        self.home.join("machines").join(id)
    }
}
