//! Giving memory back: by itself an allocator keeps most of what is freed, because it may be wanted again.

/// Gives memory that was freed back to the system, as far as its allocator knows how to. For a moment of rest: it looks through all
/// that is free, whoever wants memory meanwhile waits, and what is wanted again comes page by page.
#[cfg_attr(
    any(target_os = "macos", target_env = "gnu"),
    expect(unsafe_code, reason = "the allocators have no safe interface for this")
)]
pub fn give_memory_back() {
    // `malloc_trim(3)`: since glibc 2.8 of all arenas and whole pages amid what is in use, not only of the end of the heap. What it
    // returns is whether that was anything.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and the allocator's own locks: it may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    // `malloc/malloc.h`: of all zones where the zone is null, as much as there is where the goal is 0; returns how much that was.
    #[cfg(target_os = "macos")]
    // SAFETY: it is declared as that header declares it; a null zone is allowed, and the allocator takes its own locks.
    unsafe {
        malloc_zone_pressure_relief(std::ptr::null_mut(), 0);
    }
}

#[cfg(target_os = "macos")]
#[expect(unsafe_code, reason = "libc does not declare it")]
unsafe extern "C" {
    fn malloc_zone_pressure_relief(zone: *mut libc::malloc_zone_t, goal: libc::size_t) -> libc::size_t;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays() {
        let all = (0..=u8::MAX).map(|byte| vec![byte; 5_000]);
        let (kept, freed): (Vec<_>, Vec<_>) = all.partition(|bytes| bytes[0] % 2 == 0);
        drop(freed);
        give_memory_back();
        assert!(
            kept.iter()
                .all(|bytes| bytes.iter().all(|byte| *byte == bytes[0]))
        );
    }
}
