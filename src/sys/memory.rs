//! Returns freed memory to the system. By default an allocator keeps most of it for later allocations.

/// Returns freed memory to the system, as far as the allocator supports it. Call it when idle: it scans all free memory,
/// concurrent allocations wait, and memory that is needed again is faulted in page by page.
#[cfg_attr(
    any(target_os = "macos", target_env = "gnu"),
    expect(unsafe_code, reason = "the allocators have no safe interface for this")
)]
pub fn give_memory_back() {
    // `malloc_trim(3)`: since glibc 2.8 it releases whole pages of all arenas, also between used blocks, not only at the end of
    // the heap. Its result, whether anything was released, is not needed.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number and acquires the allocator's own locks, so any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    // `malloc/malloc.h`: a null zone means all zones, a goal of 0 as much as possible. Returns the number of bytes released.
    #[cfg(target_os = "macos")]
    // SAFETY: the declaration matches that header; a null zone is allowed, and the allocator acquires its own locks.
    unsafe {
        malloc_zone_pressure_relief(std::ptr::null_mut(), 0);
    }
}

#[cfg(target_os = "macos")]
#[expect(unsafe_code, reason = "libc does not declare this function")]
unsafe extern "C" {
    fn malloc_zone_pressure_relief(zone: *mut libc::malloc_zone_t, goal: libc::size_t) -> libc::size_t;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_is_unchanged() {
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
