"""Scripts of the checks that run inside a machine.

They are POSIX ``sh`` and use only programs that every distribution has. The caller's values are passed as args, never as part of
the script, so no value is interpreted as shell syntax or as a flag.
"""

from __future__ import annotations

METHODS = ("ping", "curl", "nc")

LOOKUP_TYPES = ("A", "AAAA", "CNAME", "MX", "NS", "TXT", "SRV", "PTR")

_NEEDS = """\
needs() { command -v "$1" >/dev/null 2>&1 || { echo "$1 is not installed here (package $2)" >&2; exit 127; }; }
"""

_PING = """\
needs ping "iputils-ping or iputils"
exec ping -c "$2" -W "$3" -- "$1"
"""

# Some programs treat `--` as a host name, so args that start with a dash are rejected instead.
_NO_FLAG = """\
case $1 in -*) echo "'$1' is not a host name" >&2; exit 2;; esac
"""

_CURL = """\
needs curl curl
exec curl -sS -o /dev/null -w '%{http_code}\\n' --connect-timeout "$2" --max-time "$(($2 * 3))" -- "$1"
"""

_NC = """\
if command -v nc >/dev/null 2>&1; then
    nc -z -w "$3" "$1" "$2" || { echo "no connection to $1 port $2" >&2; exit 1; }
elif command -v bash >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1; then
    timeout "$3" bash -c 'exec 3<>"/dev/tcp/$1/$2"' tcp "$1" "$2" || { echo "no connection to $1 port $2" >&2; exit 1; }
else
    needs nc "netcat-openbsd, nmap-ncat or netcat"
fi
echo "connected to $1 port $2"
"""

_LOOKUP = """\
if command -v dig >/dev/null 2>&1; then
    found=$(dig +short "+time=$3" +tries=2 -t "$2" -q "$1") || { printf '%s\\n' "$found" >&2; exit 1; }
elif command -v host >/dev/null 2>&1; then
    output=$(host -W "$3" -t "$2" "$1") || { printf '%s\\n' "$output" >&2; exit 1; }
    found=$(printf '%s\\n' "$output" | sed -n \\
        -e 's/^.* has address //p' -e 's/^.* has IPv6 address //p' -e 's/^.* mail is handled by //p' \\
        -e 's/^.* is an alias for //p' -e 's/^.* name server //p' -e 's/^.* descriptive text //p' \\
        -e 's/^.* has SRV record //p' -e 's/^.* domain name pointer //p')
elif command -v nslookup >/dev/null 2>&1; then
    output=$(nslookup "-type=$2" "$1") || { printf '%s\\n' "$output" >&2; exit 1; }
    found=$(printf '%s\\n' "$output" | sed -e '1,/^$/d' | sed -n \\
        -e 's/^Address\\( [0-9]*\\)\\{0,1\\}: *//p' -e 's/^.*has AAAA address //p' -e 's/^.*mail exchanger = //p' \\
        -e 's/^.*canonical name = //p' -e 's/^.*nameserver = //p' -e 's/^.*text = //p' \\
        -e 's/^.*service = //p' -e 's/^.*name = //p')
else
    case $2 in
        A) database=ahostsv4 ;;
        AAAA) database=ahostsv6 ;;
        *) needs dig "bind9-dnsutils, bind-utils or bind-tools" ;;
    esac
    found=$(getent "$database" "$1" | while read -r address kind rest; do printf '%s\\n' "$address"; done | sort -u)
fi
[ -n "$found" ] || { echo "no $2 record of $1" >&2; exit 1; }
printf '%s\\n' "$found"
"""


def connectivity_script(target: str, method: str, count: int, timeout: int) -> tuple[str, ...]:
    """Returns a script that connects to ``target``, and its args."""
    if method == "ping":
        return _NEEDS + _NO_FLAG + _PING, target, str(count), str(timeout)
    if method == "curl":
        return _NEEDS + _NO_FLAG + _CURL, target, str(timeout)
    host, port = host_and_port(target)
    return _NEEDS + _NO_FLAG + _NC, host, port, str(timeout)


def lookup_script(hostname: str, lookup_type: str, timeout: int) -> tuple[str, ...]:
    """Returns a script that resolves ``hostname``, and its args."""
    return _NEEDS + _NO_FLAG + _LOOKUP, hostname, lookup_type, str(timeout)


def host_and_port(target: str) -> tuple[str, str]:
    """Splits ``HOST:PORT``; the default port is 22. Also accepts ``[::1]:22`` and a bare ``::1``."""
    if target.startswith("["):
        host, _, rest = target[1:].partition("]")
        return host, rest.removeprefix(":") or "22"
    if target.count(":") == 1:
        host, _, port = target.partition(":")
        return host, port or "22"
    return target, "22"
