"""Fixtures of the unit tests."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@pytest.fixture
def time_limit() -> Callable[[int], AbstractContextManager[None]]:
    """A context that fails the test after so many seconds: for code that might never end."""

    def expired(*_: object) -> None:
        pytest.fail("did not end in time")

    @contextmanager
    def limit(seconds: int) -> Iterator[None]:
        previous = signal.signal(signal.SIGALRM, expired)
        signal.alarm(seconds)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    return limit
