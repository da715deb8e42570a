"""The exceptions of :mod:`orbd.errors`, for those who look for them beside the connector."""

from orbd.errors import *  # noqa: F403
