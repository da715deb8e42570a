"""The records of :mod:`orbd.models`, for those who look for them beside the connector."""

from orbd.models import *  # noqa: F403
