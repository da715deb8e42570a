//! A machine during a change: its lock, the state that the inventory shows, and which other changes are refused
//! meanwhile.
//!
//! The real service does not queue changes of one machine. It refuses those that the machine's state does not allow, as
//! in `cannot transition from creating to deleting` (gh#1410, gh#364). And it shows a new machine as running during its
//! initial set-up (gh#1583), so a `stop` is accepted then and the create fails. Here a machine is locked during a
//! change, but not during that set-up.

use crate::Sim;
use crate::catalog;
use crate::guest;
use crate::refusal::{Outcome, Refusal};
use crate::state::{Image, Inventory, Lock, Machine, MachineConfig, MachineState};

/// A machine that one change works on. The ledger's work lines span the time from the first lock to the end.
pub(super) struct Held<'a> {
    sim: &'a Sim<'a>,
    operation: &'static str,
    pub(super) machine: Machine,
    /// Whether the change succeeded.
    pub(super) done: bool,
    /// `Inventory::stops` when the change began.
    stops: u64,
    /// `None` during the initial set-up.
    lock: Option<Lock>,
}

impl<'a> Held<'a> {
    /// Locks an existing machine and shows its transition, to `Starting`, `Stopping` or `Deleting`, unless the change
    /// keeps the state. A machine in another transition refuses. One in the same transition, or locked without a
    /// transition, is waited for.
    pub(super) fn take(
        sim: &'a Sim<'a>,
        operation: &'static str,
        target: &str,
        way: Option<MachineState>,
    ) -> Outcome<Held<'a>> {
        let missing = || Refusal::MachineNotFound(target.to_owned());
        let id = sim.store.read()?.find(target).ok_or_else(missing)?.id.clone();
        loop {
            let taken = sim.store.change(|inventory| {
                let stops = inventory.stops;
                let Some(machine) = inventory.by_id_mut(&id) else {
                    sim.store.remove_lock(&id);
                    return Err(missing());
                };
                let lock = sim.store.try_lock(&id)?;
                admit(machine.state, way, lock.is_none())?;
                let Some(lock) = lock else { return Ok(None) };
                if let Some(way) = way.filter(|way| !is_there(machine, *way)) {
                    machine.state = way;
                }
                Ok(Some((machine.clone(), stops, lock)))
            })?;
            if let Some((machine, stops, lock)) = taken {
                return Ok(Held::new(sim, operation, machine, stops, lock));
            }
            drop(sim.store.lock(&id)?);
        }
    }

    /// Waits for a machine in any state, and keeps the state. Returns `None` if the machine is gone by then.
    pub(super) fn wait(sim: &'a Sim<'a>, operation: &'static str, id: &str) -> Outcome<Option<Held<'a>>> {
        let lock = sim.store.lock(id)?;
        let mut inventory = sim.store.read()?;
        let stops = inventory.stops;
        let machine = inventory.by_id_mut(id).map(|machine| machine.clone());
        if machine.is_none() {
            sim.store.remove_lock(id);
        }
        Ok(machine.map(|machine| Held::new(sim, operation, machine, stops, lock)))
    }

    /// Adds a new machine to the inventory, already locked.
    pub(super) fn make(
        sim: &'a Sim<'a>,
        operation: &'static str,
        name: &str,
        state: MachineState,
        fill: impl FnOnce(&mut Machine) -> Outcome<()>,
    ) -> Outcome<Held<'a>> {
        if !catalog::is_machine_name(name) {
            return Err(Refusal::service(
                operation,
                name,
                format!("invalid machine name: '{name}'"),
            ));
        }
        let id = catalog::new_id()?;
        let lock = sim.store.lock(&id)?;
        let (machine, stops) = sim.store.change(|inventory| {
            vacant(inventory, operation, name)?;
            let address = inventory
                .free_address()
                .ok_or_else(|| Refusal::service(operation, name, "no address is left in the subnet"))?;
            let mut machine = Machine {
                disk_size: 0,
                id: id.clone(),
                name: name.to_owned(),
                state,
                image: Image {
                    distro: String::new(),
                    version: String::new(),
                    arch: String::new(),
                    variant: "default".to_owned(),
                },
                config: MachineConfig::default(),
                isolation: guest::Isolation::Dir,
                address,
                resident: None,
                boots: 0,
                starts_with_service: false,
            };
            fill(&mut machine)?;
            inventory.machines.push(machine.clone());
            Ok((machine, inventory.stops))
        })?;
        Ok(Held::new(sim, operation, machine, stops, lock))
    }

    fn new(sim: &'a Sim<'a>, operation: &'static str, machine: Machine, stops: u64, lock: Lock) -> Held<'a> {
        sim.ledger.work_start(operation, &machine.name);
        Held {
            sim,
            operation,
            machine,
            done: false,
            stops,
            lock: Some(lock),
        }
    }

    /// Sets the state, here and in the inventory.
    pub(super) fn show(&mut self, state: MachineState) -> Outcome<()> {
        self.machine.state = state;
        let machine = &self.machine;
        self.sim.store.change_machine(&machine.id, |stored| {
            stored.state = machine.state;
            stored.resident = machine.resident;
            stored.boots = machine.boots;
            stored.starts_with_service = machine.starts_with_service;
        })
    }

    /// Boots the machine and shows it as running, or as stopped if that fails.
    pub(super) fn boot(&mut self) -> Outcome<()> {
        match guest::boot(self.sim, &self.machine) {
            Ok(resident) => {
                self.machine.resident = resident;
                self.machine.boots += 1;
                self.machine.starts_with_service = false;
                self.show(MachineState::Running)
            }
            Err(error) => {
                self.show(MachineState::Stopped)?;
                Err(Refusal::service(
                    self.operation,
                    &self.machine.name,
                    format!("setup: {error:#}"),
                ))
            }
        }
    }

    /// Ends all processes in the machine and shows it as stopped.
    pub(super) fn halt(&mut self) -> Outcome<()> {
        guest::halt(self.sim, &self.machine).map_err(|error| self.refuse(error))?;
        self.machine.resident = None;
        self.show(MachineState::Stopped)
    }

    /// Removes the machine and its files.
    pub(super) fn remove(&self) -> Outcome<()> {
        guest::halt(self.sim, &self.machine).map_err(|error| self.refuse(error))?;
        guest::remove(self.sim, &self.machine).map_err(|error| self.refuse(error))?;
        self.sim.store.change(|inventory| {
            inventory.machines.retain(|machine| machine.id != self.machine.id);
            if inventory.default.as_deref() == Some(&self.machine.name) {
                inventory.default = None;
            }
            Ok(())
        })?;
        self.sim.store.remove_lock(&self.machine.id);
        Ok(())
    }

    pub(super) fn refuse(&self, cause: impl std::fmt::Display) -> Refusal {
        Refusal::service(self.operation, &self.machine.name, cause)
    }

    pub(super) fn pass_time(&self) {
        self.sim.settings.latency.pass(self.operation);
    }

    /// Waits for the latency of the change. A stop of OrbStack cuts the change short.
    pub(super) fn pass_time_in_service(&self) -> Outcome<()> {
        let is_served = || {
            let inventory = self.sim.store.read();
            inventory.is_ok_and(|inventory| inventory.stops == self.stops)
        };
        if self.sim.settings.latency.pass_while(self.operation, is_served) {
            Ok(())
        } else {
            Err(Refusal::ServiceGone)
        }
    }

    /// Runs the initial set-up of a new machine. The list shows the machine as running and all operations accept it,
    /// but any shutdown of it makes the create fail, and a create that fails removes its machine.
    pub(super) fn set_up(&mut self) -> Outcome<()> {
        self.lock = None;
        let (id, boots) = (self.machine.id.clone(), self.machine.boots);
        let is_up = || {
            let inventory = self.sim.store.read();
            inventory.is_ok_and(|mut inventory| {
                inventory
                    .by_id_mut(&id)
                    .is_some_and(|machine| machine.state == MachineState::Running && machine.boots == boots)
            })
        };
        if self.sim.settings.latency.pass_while("setup", is_up) {
            return Ok(());
        }
        let refusal = self.refuse("setup: do initial setup: canceled by machine shutdown");
        self.lock = Some(self.sim.store.lock(&id)?);
        match self.sim.store.read()?.by_id_mut(&id) {
            Some(machine) => {
                self.machine = machine.clone();
                self.show(MachineState::Deleting)?;
                self.remove()?;
            }
            None => self.sim.store.remove_lock(&id),
        }
        Err(refusal)
    }
}

/// Returns whether a machine is already in the state to which a transition leads.
fn is_there(machine: &Machine, way: MachineState) -> bool {
    match way {
        MachineState::Starting => machine.state == MachineState::Running && guest::is_alive(machine),
        MachineState::Stopping => machine.state == MachineState::Stopped,
        _ => false,
    }
}

/// Refuses a change that the machine's state does not allow. `is_held` is whether another change works on the machine:
/// a state that a dead worker left refuses nothing, unless the machine was never finished.
fn admit(state: MachineState, way: Option<MachineState>, is_held: bool) -> Outcome<()> {
    let is_refused = match state {
        MachineState::Running | MachineState::Stopped => false,
        MachineState::Creating | MachineState::Provisioning => true,
        MachineState::Deleting => is_held,
        MachineState::Starting | MachineState::Stopping => is_held && way.is_some_and(|way| way != state),
    };
    if is_refused {
        Err(Refusal::Transition { state, way })
    } else {
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The line is written while the lock is still held, so that the work of the machine's next change begins below
        // it.
        self.sim
            .ledger
            .work_end(self.operation, &self.machine.name, self.done);
        drop(self.lock.take());
    }
}

/// Refuses a name that is taken.
pub(super) fn vacant(inventory: &Inventory, operation: &'static str, name: &str) -> Outcome<()> {
    if catalog::is_builtin(name) || inventory.machines.iter().any(|machine| machine.name == name) {
        return Err(Refusal::AlreadyExists {
            operation,
            machine: name.to_owned(),
        });
    }
    Ok(())
}
