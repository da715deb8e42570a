"""The examples in ``proto/examples``: the client parses every answer, and a real daemon returns it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

import golden
from fake_daemon import Failure, FakeDaemon, Peer
from golden import Case, Player
from orbd import Client, errors

CASES = golden.cases()
BY_NAME = {case.name: case for case in CASES}

# Parameters that have another name or type in Python.
RENAMED = {"stdin_text": ("stdin", str.encode), "text": ("data", str.encode)}

# The client sends hello by itself, and ends a subscription by closing its connection.
UNTYPED = {"daemon.hello", "events.subscribe", "job.unfollow", "machine.run_unfollow"}


def parameters(cases: list[Case]) -> list[Any]:
    """Returns a pytest parameter for each case."""
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("<any>", None, True),
        ("<int>", 0, True),
        ("<int>", -1, False),
        ("<int>", "7", False),
        ("<int>", True, False),
        ("<time>", "2026-01-02T03:04:05.678Z", True),
        ("<time>", "2026-01-02T03:04:05Z", False),
        ("<ulid>", "01ARZ3NDEKTSV4RRFFQ69G5FAV", True),
        ("<string>", "", True),
        ("<string>", 1, False),
        ("job <int> (start <string>) waited", "job 12 (start web) waited", True),
        ("job <int> (start <string>) waited", "job (start web) waited", False),
        ("pla.n", "plain", False),
    ],
)
def test_placeholders_match_only_their_type(pattern: str, value: Any, expected: bool) -> None:
    assert golden.stands_for(pattern, value) is expected


def test_differences_reports_missing_and_additional_fields() -> None:
    assert golden.differences({"a": [1, {"b": "<int>"}]}, {"a": [1, {"b": 5}]}) == []
    assert golden.differences({"a": 1, "b": True}, {"b": 1, "c": 2}) == [
        "/a is missing",
        "/b is 1, not True",
        "/c is not in the example: 2",
    ]


def test_examples_exist() -> None:
    """An empty list of cases would look like success."""
    if not golden.FOLDER.is_dir():
        pytest.skip(f"{golden.FOLDER} does not exist")
    assert len(CASES) > 50


def is_readable(case: Case) -> bool:
    """Returns whether the typed client can send the request: named parameters, one request at a time."""
    request = case.parts.get("request")
    return isinstance(request, dict) and isinstance(request.get("params", {}), dict) and case.method not in UNTYPED


@pytest.mark.parametrize("case", parameters(list(filter(is_readable, CASES))))
def test_client_sends_the_request_and_parses_the_response(case: Case, daemon: FakeDaemon, client: Client) -> None:
    response = golden.filled(case.parts["response"])
    events = [one["params"]["result"] for one in golden.filled(case.parts.get("notifications", []))]
    params = golden.substituted(case.parts["request"].get("params", {}), lambda name: 1)

    def answer(peer: Peer, params: Any) -> Any:
        if "error" in response:
            failure = Failure("", "")
            failure.wire = response["error"]
            raise failure
        return iter(events) if events else response["result"]

    daemon.handlers[case.method] = answer
    if "error" in response:
        # Called by name, because the typed method cannot send most invalid requests.
        with pytest.raises(errors.RequestFailed) as caught:
            client.call(case.method, params)
        check_error(caught.value, response["error"])
    else:
        arguments = {}
        for name, value in params.items():
            renamed, convert = RENAMED.get(name, (name, None))
            arguments[renamed] = convert(value) if convert else value
        read = getattr(client, case.method.replace(".", "_"))(**arguments)
        if events:
            check_events(case, read, events)
    assert [method for method, _ in daemon.requests] == ["daemon.hello", case.method]
    sent = daemon.requests[-1][1]
    assert {name: sent.get(name) for name in params} == params


def check_error(error: errors.RequestFailed, wire: dict[str, Any]) -> None:
    """Compares an exception with its error object; every kind must have its own class."""
    assert (error.code, error.message, error.kind) == (wire["code"], wire["message"], wire["data"]["kind"])
    assert type(error) is not errors.RequestFailed, f"{error.kind} has no class of its own"


def check_events(case: Case, events: Iterator[Any], wire: list[dict[str, Any]]) -> None:
    """Compares the events with the example; ``machine.run_follow`` raises a failure after the last event."""
    read: list[str] = []
    failure = wire[-1]["job"]["outcome"].get("error")
    try:
        read.extend({"Chunk": "output"}.get(type(event).__name__, type(event).__name__.lower()) for event in events)
    except errors.RequestFailed as error:
        assert case.method == "machine.run_follow"
        check_error(error, failure)
        failure = None
    assert read == [event["type"] for event in wire]
    assert failure is None or case.method == "job.follow"


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[str]]]]:
    """Plays all selected cases, four at a time, because a player mostly waits for its daemon."""
    wanted = {item.callspec.params["case"].name for item in request.session.items if item.originalname == PLAYED}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(4) as players:
        yield {name: players.submit(Player(BY_NAME[name]).play) for name in sorted(wanted)}
        players.shutdown(cancel_futures=True)


@pytest.mark.needs_daemon
@pytest.mark.parametrize("case", parameters(CASES))
def test_daemon_returns_the_response(case: Case, played: dict[str, Future[list[str]]]) -> None:
    """Each case has its own daemon."""
    assert played[case.name].result() == []


PLAYED = test_daemon_returns_the_response.__name__
