//! Ctrl-C: the first is noticed and answered politely, the second ends us at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGQUIT};
use signal_hook::{SigId, flag, low_level};

use crate::error::exit;

/// Tells whether Ctrl-C was pressed.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    pressed: Arc<AtomicBool>,
    /// What ends us at the second press.
    leave: Option<SigId>,
}

impl Interrupt {
    /// Watches for it from now on.
    pub(crate) fn watch() -> io::Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        // The order matters: the first press finds the flag down and raises it, the second finds it up and ends us.
        let leave =
            flag::register_conditional_shutdown(SIGINT, i32::from(exit::INTERRUPTED), Arc::clone(&pressed))?;
        flag::register(SIGINT, Arc::clone(&pressed))?;
        Ok(Self {
            pressed,
            leave: Some(leave),
        })
    }

    /// Leaves Ctrl-C and Ctrl-\ to somebody else at our terminal from now on: however often they are pressed, we go on.
    pub(crate) fn let_pass(&self) -> io::Result<()> {
        flag::register(SIGQUIT, Arc::clone(&self.pressed))?;
        if let Some(leave) = self.leave {
            low_level::unregister(leave);
        }
        Ok(())
    }

    /// Says whether it was pressed.
    pub(crate) fn came(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Presses it.
    #[cfg(test)]
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Relaxed);
    }
}
