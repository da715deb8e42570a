//! Ctrl-C: the first press sets a flag that the command polls, the second exits immediately.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGQUIT};
use signal_hook::{SigId, flag, low_level};

use crate::error::exit;

/// Records whether Ctrl-C was pressed.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    pressed: Arc<AtomicBool>,
    /// The handler that exits on the second press. `None` in the default value, which installs no handlers.
    leave: Option<SigId>,
}

impl Interrupt {
    /// Installs the signal handlers.
    pub(crate) fn watch() -> io::Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        // The order matters: handlers run in order of registration. The first press finds the flag clear, so it only sets it; the
        // second finds it set and exits.
        let leave =
            flag::register_conditional_shutdown(SIGINT, i32::from(exit::INTERRUPTED), Arc::clone(&pressed))?;
        flag::register(SIGINT, Arc::clone(&pressed))?;
        Ok(Self {
            pressed,
            leave: Some(leave),
        })
    }

    /// Ignores Ctrl-C and Ctrl-\ from now on, because another process uses our terminal and handles them.
    pub(crate) fn let_pass(&self) -> io::Result<()> {
        flag::register(SIGQUIT, Arc::clone(&self.pressed))?;
        if let Some(leave) = self.leave {
            low_level::unregister(leave);
        }
        Ok(())
    }

    /// Returns whether Ctrl-C was pressed.
    pub(crate) fn came(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Simulates Ctrl-C.
    #[cfg(test)]
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Relaxed);
    }
}
