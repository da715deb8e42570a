"""Look at the network from inside a machine.

Unlike all others of this package these run on the current host, because it is its network that they are about. They change
nothing; what they found is their output, and they fail where the answer is no.
"""

from __future__ import annotations

from pyinfra.api import QuoteString, StringCommand
from pyinfra.api.exceptions import OperationValueError

from .._checks import LOOKUP_TYPES, METHODS, connectivity_script, lookup_script
from .._control import Commands, control_operation

ALWAYS = "This operation looks each time, and changes nothing."


@control_operation(is_idempotent=False, idempotent_notice=ALWAYS)
def vm_test_connectivity(target: str, method: str = "ping", count: int = 3, timeout: int = 5) -> Commands:
    """
    Check that the current host reaches another.

    + target: host name or address; with ``curl`` a URL, with ``nc`` ``HOST:PORT`` (port 22 where absent)
    + method: ``ping``, ``curl`` or ``nc``
    + count: how many times to ping
    + timeout: seconds to wait for each answer

    It fails where the target cannot be reached. With ``curl`` every answer counts; its output is the HTTP status.

    **Example:**

    .. code:: python

        from pyinfra_orbd.operations import vm_test_connectivity

        check = vm_test_connectivity(
            name="The database is there",
            target="db.orb.local:5432",
            method="nc",
        )
    """
    if method not in METHODS:
        raise OperationValueError(f"vm_test_connectivity: no method {method!r}; there are {', '.join(METHODS)}")
    yield _command(*connectivity_script(target, method, count, timeout))


@control_operation(is_idempotent=False, idempotent_notice=ALWAYS)
def vm_dns_lookup(hostname: str, lookup_type: str = "A", timeout: int = 5) -> Commands:
    """
    Look a name up as the current host does. The output is the answers, one a line.

    + hostname: name to look up, as in ``db.orb.local``
    + lookup_type: ``A``, ``AAAA``, ``CNAME``, ``MX``, ``NS``, ``TXT``, ``SRV`` or ``PTR``
    + timeout: seconds to wait for an answer

    It uses ``dig``, ``host`` or ``nslookup``, whichever the host has, and without any of them ``getent``, which knows ``A`` and
    ``AAAA``. It fails where there is no such record.

    **Example:**

    .. code:: python

        from pyinfra import logger
        from pyinfra.operations import python
        from pyinfra_orbd.operations import vm_dns_lookup

        found = vm_dns_lookup(name="Who takes the mail", hostname="example.com", lookup_type="MX")
        python.call(name="Tell", function=lambda: logger.info(found.stdout))
    """
    wanted = lookup_type.upper()
    if wanted not in LOOKUP_TYPES:
        raise OperationValueError(f"vm_dns_lookup: no type {lookup_type!r}; there are {', '.join(LOOKUP_TYPES)}")
    yield _command(*lookup_script(hostname, wanted, timeout))


def _command(script: str, *words: str) -> StringCommand:
    return StringCommand("sh", "-c", QuoteString(script), "orbd-check", *(QuoteString(word) for word in words))
