"""The two packages of the distribution: what each offers and what neither may bring along."""

from __future__ import annotations

import orbd
import orbd.errors
import orbd.models
import pyinfra_orbd
import pyinfra_orbd.errors
import pyinfra_orbd.models


def test_the_client_can_be_had_beside_the_connector() -> None:
    """The same classes, so that an ``except`` with one name catches what was raised under the other."""
    assert pyinfra_orbd.Client is orbd.Client
    assert pyinfra_orbd.OrbdError is orbd.OrbdError
    assert pyinfra_orbd.errors.MachineNotFound is orbd.errors.MachineNotFound
    assert pyinfra_orbd.models.Machine is orbd.models.Machine
