"""Check the network from inside a machine.

Unlike the other operations of this package, these run on the current host, because they check its network. They change nothing,
print their result, and fail if the check fails.

The scripts are POSIX ``sh`` and use only programs that every distribution has. The caller's values are passed as args, never as
part of the script, so no value is interpreted as shell syntax or as a flag.
"""

from __future__ import annotations

from pyinfra.api import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationValueError

from .._control import Commands, control_operation

ALWAYS = "This operation runs its check every time, and changes nothing."

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


@control_operation(is_idempotent=False, idempotent_notice=ALWAYS)
def vm_test_connectivity(target: str, method: str = "ping", count: int = 3, timeout: int = 5) -> Commands:
    """
    Check that the current host can reach another host.

    + target: host name or address; with ``curl`` a URL, with ``nc`` ``HOST:PORT`` (default port: 22)
    + method: ``ping``, ``curl`` or ``nc``
    + count: how many times to ping
    + timeout: seconds to wait for each answer

    It fails if the target cannot be reached. With ``curl`` any HTTP answer is a success; the output is the HTTP status.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_test_connectivity

        check = vm_test_connectivity(
            name="Check that the database answers",
            target="db.orb.local:5432",
            method="nc",
        )
    """
    if method not in METHODS:
        raise OperationValueError(f"vm_test_connectivity: unknown method {method!r}; use {', '.join(METHODS)}")
    yield _command(*connectivity_script(target, method, count, timeout))


@control_operation(is_idempotent=False, idempotent_notice=ALWAYS)
def vm_dns_lookup(hostname: str, lookup_type: str = "A", timeout: int = 5) -> Commands:
    """
    Resolve a name on the current host. The output has one answer per line.

    + hostname: name to resolve, such as ``db.orb.local``
    + lookup_type: ``A``, ``AAAA``, ``CNAME``, ``MX``, ``NS``, ``TXT``, ``SRV`` or ``PTR``
    + timeout: seconds to wait for an answer

    It uses ``dig``, ``host`` or ``nslookup``, whichever is installed on the host. If none is, it uses ``getent``, which only
    supports ``A`` and ``AAAA``. It fails if there is no such record.

    **Example:**

    .. code:: python

        from pyinfra import logger
        from pyinfra.operations import python
        from pyinfra_orbd.operations import vm_dns_lookup

        found = vm_dns_lookup(name="Find the mail servers", hostname="example.com", lookup_type="MX")
        python.call(name="Log the result", function=lambda: logger.info(found.stdout))
    """
    wanted = lookup_type.upper()
    if wanted not in LOOKUP_TYPES:
        raise OperationValueError(f"vm_dns_lookup: unknown lookup_type {lookup_type!r}; use {', '.join(LOOKUP_TYPES)}")
    yield _command(*lookup_script(hostname, wanted, timeout))


def _command(script: str, *args: str) -> StringCommand:
    return StringCommand("sh", "-c", QuoteString(script), "orbd-check", *(QuoteString(arg) for arg in args))


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
