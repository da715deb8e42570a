//! What differs between platforms.

mod hang_up;

pub use hang_up::HangUp;
