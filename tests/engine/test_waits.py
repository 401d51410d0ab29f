"""How long the first in line waited, and for what."""

from batch_llm._engine.waits import Waits


def test_nobody_waited_yet() -> None:
    assert Waits().seconds(100.0) == {"quota": 0.0, "cooldown": 0.0, "slots": 0.0}


def test_each_wait_counts_for_its_reason_up_to_now() -> None:
    waits = Waits()
    waits.note("quota", 10.0)
    waits.note("cooldown", 12.0)
    waits.note("quota", 17.0)
    waits.note(None, 18.0)
    waits.note("slots", 30.0)
    assert waits.seconds(34.0) == {"quota": 3.0, "cooldown": 5.0, "slots": 4.0}
    assert waits.seconds(35.0) == {"quota": 3.0, "cooldown": 5.0, "slots": 5.0}
