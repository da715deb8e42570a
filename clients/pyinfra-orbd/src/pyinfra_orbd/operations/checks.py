"""Check the network from inside a machine.

Unlike the other operations of this package, these run on the current host, because they check its network. They change nothing,
print their result, and fail if the check fails.
"""

from __future__ import annotations

from pyinfra.api import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationValueError

from .._checks import LOOKUP_TYPES, METHODS, connectivity_script, lookup_script
from .._control import Commands, control_operation

ALWAYS = "This operation runs its check every time, and changes nothing."


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
