"""The golden pairs: the typed client reads every answer, and a real daemon gives it."""

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

# A parameter of the wire whose name or form is another one in Python.
RENAMED = {"stdin_text": ("stdin", str.encode), "text": ("data", str.encode)}

# Every connection says hello by itself; the client ends a subscription by closing its connection.
UNTYPED = {"daemon.hello", "events.subscribe", "job.unfollow", "machine.run_unfollow"}


def parameters(cases: list[Case]) -> list[Any]:
    """Makes a parameter of each case."""
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
def test_placeholders(pattern: str, value: Any, expected: bool) -> None:
    """They stand for what they say and nothing else."""
    assert golden.stands_for(pattern, value) is expected


def test_nothing_may_be_missing_or_too_much() -> None:
    """Everything else is compared exactly."""
    assert golden.differences({"a": [1, {"b": "<int>"}]}, {"a": [1, {"b": 5}]}) == []
    assert golden.differences({"a": 1, "b": True}, {"b": 1, "c": 2}) == [
        "/a is missing",
        "/b is 1, not True",
        "/c is not in the example: 2",
    ]


def test_there_are_examples() -> None:
    """An empty list of cases would look like success."""
    if not golden.FOLDER.is_dir():
        pytest.skip(f"{golden.FOLDER} is not there yet")
    assert len(CASES) > 50


def is_readable(case: Case) -> bool:
    """Says whether the client could have asked so: by name, one request at a time."""
    request = case.parts.get("request")
    return isinstance(request, dict) and isinstance(request.get("params", {}), dict) and case.method not in UNTYPED


@pytest.mark.parametrize("case", parameters(list(filter(is_readable, CASES))))
def test_the_client_reads_it(case: Case, daemon: FakeDaemon, client: Client) -> None:
    """What an example answers becomes what the client's method returns or raises, and it asks as the example does."""
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
        # Called by its name: much of what is refused cannot be said to the typed method.
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
    """Compares an exception with what it was made of; no kind may be without a class of its own."""
    assert (error.code, error.message, error.kind) == (wire["code"], wire["message"], wire["data"]["kind"])
    assert type(error) is not errors.RequestFailed, f"{error.kind} has no class of its own"


def check_events(case: Case, told: Iterator[Any], wire: list[dict[str, Any]]) -> None:
    """Compares what a follower was told; whoever asked for the command is told its failure as an exception, after the end."""
    read: list[str] = []
    failure = wire[-1]["job"]["outcome"].get("error")
    try:
        read.extend({"Chunk": "output"}.get(type(event).__name__, type(event).__name__.lower()) for event in told)
    except errors.RequestFailed as error:
        assert case.method == "machine.run_follow"
        check_error(error, failure)
        failure = None
    assert read == [event["type"] for event in wire]
    assert failure is None or case.method == "job.follow"


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[str]]]]:
    """Plays all cases that were chosen, some at a time: a player mostly waits for its daemon."""
    wanted = {item.callspec.params["case"].name for item in request.session.items if item.originalname == PLAYED}  # type: ignore[attr-defined]
    with ThreadPoolExecutor(4) as players:
        yield {name: players.submit(Player(BY_NAME[name]).play) for name in sorted(wanted)}
        players.shutdown(cancel_futures=True)


@pytest.mark.needs_daemon
@pytest.mark.parametrize("case", parameters(CASES))
def test_the_daemon_answers_it(case: Case, played: dict[str, Future[list[str]]]) -> None:
    """A daemon of its own answers the request as the example says."""
    assert played[case.name].result() == []


PLAYED = test_the_daemon_answers_it.__name__
