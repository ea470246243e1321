"""An upload to three parties waits for the slowest, and ends when one fails."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cipherdm.engine.wire import PartyError, spread

MESSAGES = [(f"{index}, to 0", f"{index}, to 1", f"{index}, to 2") for index in range(6)]


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as started:
        yield started


def call(pool, pause: float = 0.0, fails: bool = False):
    """Return what begins a party's call: it takes a message after each pause, or fails at the first."""

    def receive(messages) -> list[str]:
        received = []
        for message in messages:
            if fails:
                raise RuntimeError("no")
            time.sleep(pause)
            received.append(message)
        return received

    return lambda messages: pool.submit(receive, messages)


def test_a_slow_party_gets_all_its_messages_though_the_others_are_done(pool):
    answers = spread(MESSAGES, [call(pool), call(pool, pause=0.3), call(pool)])
    assert answers == [list(parts) for parts in zip(*MESSAGES, strict=True)]


def test_a_party_that_fails_ends_the_upload_and_is_named(pool):
    sent = []

    def endless():
        while True:
            sent.append(0)
            yield ("a", "b", "c")

    def reads_nothing(messages):
        return pool.submit(time.sleep, 0.1)

    with pytest.raises(PartyError) as failure:
        spread(endless(), [reads_nothing, call(pool, fails=True), reads_nothing])
    assert failure.value.rank == 1 and len(sent) < 10
