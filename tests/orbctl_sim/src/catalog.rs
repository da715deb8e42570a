//! What machines have: distributions, versions, architectures, names, ids, addresses.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{SystemTime, UNIX_EPOCH};

/// A distribution, and its versions that have another name in the machine's record.
struct Distro {
    /// Name on the command line.
    word: &'static str,
    /// Name in the record.
    recorded: &'static str,
    /// Version if none is named.
    newest: &'static str,
    /// Version numbers that are recorded as codenames.
    codenames: &'static [(&'static str, &'static str)],
    /// Whether any other version is accepted as given.
    open: bool,
}

const fn rolling(word: &'static str, newest: &'static str) -> Distro {
    Distro {
        word,
        recorded: word,
        newest,
        codenames: &[],
        open: true,
    }
}

const DISTROS: &[Distro] = &[
    rolling("alma", "9"),
    rolling("alpine", "3.22"),
    rolling("arch", "current"),
    rolling("centos", "9-Stream"),
    Distro {
        word: "debian",
        recorded: "debian",
        newest: "trixie",
        codenames: &[
            ("11", "bullseye"),
            ("12", "bookworm"),
            ("13", "trixie"),
            ("", "sid"),
        ],
        open: false,
    },
    rolling("devuan", "daedalus"),
    rolling("fedora", "42"),
    rolling("gentoo", "current"),
    rolling("kali", "current"),
    rolling("nixos", "25.05"),
    rolling("openeuler", "24.03"),
    rolling("opensuse", "tumbleweed"),
    rolling("oracle", "9"),
    rolling("rocky", "9"),
    Distro {
        word: "ubuntu",
        recorded: "ubuntu",
        newest: "questing",
        codenames: &[
            ("20.04", "focal"),
            ("22.04", "jammy"),
            ("24.04", "noble"),
            ("25.04", "plucky"),
            ("25.10", "questing"),
            ("26.04", "resolute"),
        ],
        open: false,
    },
    Distro {
        word: "void",
        recorded: "voidlinux",
        newest: "current",
        codenames: &[],
        open: true,
    },
];

/// Returns the distribution and version as the record spells them, or why there is no such image.
pub(crate) fn image(distro: &str, version: Option<&str>) -> Result<(String, String), String> {
    let known = DISTROS.iter().find(|known| known.word == distro);
    let Some(known) = known else {
        return Err(format!("unknown distro: '{distro}'"));
    };
    let version = match version {
        None => known.newest,
        Some(version) => {
            let named = known
                .codenames
                .iter()
                .find(|(number, name)| *name == version || (!number.is_empty() && *number == version));
            match named {
                Some((_, name)) => name,
                None if known.open => version,
                None => return Err(format!("unknown version: '{distro}:{version}'")),
            }
        }
    };
    Ok((known.recorded.to_owned(), version.to_owned()))
}

/// Returns the architecture of this host, as the tool names it.
pub(crate) fn native_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

/// Returns whether `arch` is an architecture that machines can have.
pub(crate) fn is_arch(arch: &str) -> bool {
    matches!(arch, "arm64" | "amd64")
}

/// The longest machine name that the stand-in accepts; the real limit is not known.
const NAME_MAX: usize = 63;

/// Returns whether a name has only letters, digits, `-` and `.`, and begins with a letter or digit.
pub(crate) fn is_machine_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(allowed)
        // `default none` clears the default machine.
        && name != "none"
}

/// Returns whether `start`, `stop`, `restart`, `delete` and `logs` accept this name although no list shows it.
pub(crate) fn is_builtin(name: &str) -> bool {
    matches!(name, "docker" | "k8s")
}

/// Returns random bytes from the system.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Returns a new machine id: a ULID, which is 48 bits of milliseconds and 80 random bits in Crockford's base 32.
pub(crate) fn new_id() -> io::Result<String> {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let tail: [u8; 10] = random()?;
    let tail = tail
        .iter()
        .fold(0_u128, |bits, byte| (bits << 8) | u128::from(*byte));
    let bits = (now << 80) | tail;
    let digit = |place: u32| {
        let index = usize::try_from((bits >> (5 * place)) & 31).unwrap_or_default();
        char::from(DIGITS[index])
    };
    Ok((0..26).rev().map(digit).collect())
}

/// Returns the size that a new machine of this distribution reports, slightly different for each id.
pub(crate) fn first_size(distro: &str, id: &str) -> u64 {
    let base = match distro {
        "alpine" => 13_500_000,
        "debian" | "devuan" => 512_000_000,
        "nixos" => 1_900_000_000,
        _ => 687_200_000,
    };
    base + u64::from(spread(id) % 4096) * 4096
}

/// The lowest and highest host number in the machines' subnet.
pub(crate) const ADDRESS_FIRST: u8 = 2;
pub(crate) const ADDRESS_LAST: u8 = 254;

/// Returns the IPv4 address of a host number, in the subnet seen on 2.x.
pub(crate) fn ip4(place: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 139, place)
}

/// Returns an IPv6 address in the recorded network, made as a link-local one is from a MAC address.
pub(crate) fn ip6(id: &str) -> Ipv6Addr {
    let front = spread(id).to_be_bytes();
    let back = spread(&id.chars().rev().collect::<String>()).to_be_bytes();
    // Locally administered, not multicast.
    let first = (front[0] & 0xfc) | 0x02;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let network = [0xfd07, 0xb51a, 0xcc66, 0];
    let host = [
        pair(first, front[1]),
        pair(front[2], 0xff),
        pair(0xfe, front[3]),
        pair(back[0], back[1]),
    ];
    let [n0, n1, n2, n3] = network;
    let [h0, h1, h2, h3] = host;
    Ipv6Addr::new(n0, n1, n2, n3, h0, h1, h2, h3)
}

/// FNV-1a: returns the same number for the same text, on every host and in every version.
pub(crate) fn spread(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
