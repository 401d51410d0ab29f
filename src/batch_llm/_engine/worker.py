"""One of the pool's workers."""

import asyncio

from batch_llm._engine.journal import Journal


class Worker:
    """Takes items one after another.

    Attributes:
        id: Its number in logs and events.
        task: The task in which it makes its calls.
        deadline: Loop time at which its call has taken too long; None without a call, or when
            that time has passed.
        journal: The record of the item it has, or had last.
        replaced: Whether another has taken its place and its item.
    """

    __slots__ = ("deadline", "id", "journal", "replaced", "task")

    task: asyncio.Task[None]

    def __init__(self, worker_id: int) -> None:
        self.id = worker_id
        self.journal = Journal(worker_id)
        self.replaced = False
        self.deadline: float | None = None
