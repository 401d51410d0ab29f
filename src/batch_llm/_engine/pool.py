"""Workers, intake, outbox and shutdown."""

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from batch_llm._engine.deadlines import Holder
from batch_llm._engine.events import Events
from batch_llm._engine.item import ItemRunner
from batch_llm._engine.journal import Journal
from batch_llm._engine.tasks import FATAL, Tasks
from batch_llm._engine.worker import Worker
from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.errors import FrameworkTimeoutError

_log = logging.getLogger(__name__)

Item = LLMWorkItem[Any, Any, Any]
Result = WorkItemResult[Any, Any]

WIND_DOWN_SECONDS = 30.0
"""How long calls in flight may go on after the first Ctrl-C."""

# Calls that never wait must not keep the loop for themselves.
_PAUSE_AFTER = 100


class Pool:
    """The workers of one run: they take items from a queue and hand results to a consumer.

    A worker that finds no item goes home: its task ends, and the next item that is added calls
    one back. The run is over when the queue is empty and all are home; or before that, when
    it is ended, or wound down and no call is in flight any more. Streaming, a few
    results per worker wait for the consumer at most; then the workers wait for it too.
    Collecting, the consumer wants all of them together at the end, and is woken once.

    Args:
        queue: What is to be done.
        workers: How many workers there are.
        max_queue_size: Items that may wait in the queue; 0 means any number.
        collecting: Whether the consumer wants the results at the end.
        tasks: Where the workers' tasks live.
        events: Told of workers.

    Attributes:
        queue: What is to be done.
        taking: Whether workers take items.
        self_service: Whether they may take them from the queue without asking ``next_item``:
            while it is not bounded, nobody waits for the room that this makes.
        outbox: Results that nobody has taken yet.
        pause_at: With how many results workers pause: 1 while the consumer waits.
        not_run: Ids of items that the end of the run left without a result, once closed.
        stop_reason: Why the run was wound down.
        error: What stopped the run and is to come out of it.
        complete: Whether the run ended by itself, with nothing left to do.
    """

    def __init__(  # noqa: PLR0913 - one builder, all by name
        self,
        queue: deque[Item],
        *,
        workers: int,
        max_queue_size: int,
        collecting: bool,
        tasks: Tasks,
        events: Events,
    ) -> None:
        self.queue = queue
        self._workers = workers
        self._max_queue_size = max_queue_size
        self._tasks = tasks
        self._events = events
        self._runner: ItemRunner
        self._context = contextvars.copy_context()
        # Those at work, by number; whoever has a task, which may have been replaced; and the
        # numbers of those that have neither an item nor a task, unless they are lent.
        self._crew: dict[int, Worker] = {}
        self._running: dict[asyncio.Task[None], Worker] = {}
        self._home: deque[int] = deque()
        self._borrowers: deque[asyncio.Future[None]] = deque()
        self._lent: dict[asyncio.Future[None], int] = {}
        self._adding: deque[asyncio.Future[None]] = deque()
        self._adders = 0
        self.outbox: list[Result] = []
        self._collecting = collecting
        self._most = _PAUSE_AFTER if collecting else 2 * workers + 16
        self.pause_at = self._most
        self._consumer: asyncio.Future[None] | None = None
        self._full: deque[asyncio.Future[None]] = deque()
        self.not_run: list[str]
        self.stop_reason: str | None = None
        self.taking = True
        self.self_service = not max_queue_size
        self._over = False
        self._grace: asyncio.TimerHandle | None = None
        self.complete = False
        self.error: BaseException | None = None

    def start(self, runner: ItemRunner) -> None:
        """Put as many workers to work as there are items for."""
        self._runner = runner
        for worker_id in range(self._workers):
            self._tell(ProcessingEvent.WORKER_STARTED, worker_id)
            self._home.append(worker_id)
        for _ in range(min(self._workers, len(self.queue))):
            self._call_back()
        self._end_if_done()

    def crew(self) -> Iterable[Worker]:
        """The workers that are not at home, and that nobody has replaced."""
        return self._crew.values()

    async def results(self) -> AsyncGenerator[list[Result], None]:
        """The results as they are made, some at a time, until the run is over."""
        while True:
            while self.outbox:
                made, self.outbox = self.outbox, []
                while self._full:
                    _wake(self._full)
                yield made
            if self._over:
                return
            self._consumer = asyncio.get_running_loop().create_future()
            if not self._collecting:
                self.pause_at = 1
            await self._consumer

    def rest(self) -> list[Result]:
        """What was finished while the run was ended."""
        rest, self.outbox = self.outbox, []
        return rest

    async def add(self, item: Item, *, waits: bool) -> None:
        """Queue an item.

        Args:
            item: What is to be done.
            waits: Whether to wait for room first.

        Raises:
            RuntimeError: The run was ended before there was room.
        """
        if waits:
            await self._room_in_queue(item)
        self.queue.append(item)
        self._call_back()

    async def _room_in_queue(self, item: Item) -> None:
        while 0 < self._max_queue_size <= len(self.queue):
            if not self._over:
                await self._next_room()
            if self._over:
                raise RuntimeError(
                    f"the run ended while item {item.item_id!r} waited for room in the queue; "
                    "add it again before the next process_all()"
                )

    async def _next_room(self) -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._adding.append(room)
        self._adders += 1
        try:
            await room
        except asyncio.CancelledError:
            # The room may have been found for the one who gives up, and nobody else may come.
            _wake(self._adding)
            self._adders -= 1
            self._end_if_done()
            raise
        self._adders -= 1

    def fail(self, error: BaseException) -> None:
        """Stop the run and let its consumer see why."""
        self.error = self.error or error
        self.end()

    def wind_down(self, reason: str) -> None:
        """Take no more items and make no more calls; end once those in flight are finished."""
        if not self.taking:
            return
        self.taking, self.self_service, self.stop_reason = False, False, reason
        self._runner.gates.close()
        staying = [worker for worker in self._crew.values() if not self._runner.may_stop(worker)]
        for worker in self._crew.values():
            if worker not in staying:
                worker.task.cancel()
        _log.warning(
            "the run ends: %s; %d items in flight may finish within %g s, unless you interrupt it",
            reason,
            len(staying),
            WIND_DOWN_SECONDS,
        )
        self._grace = asyncio.get_running_loop().call_later(WIND_DOWN_SECONDS, self.end)
        if not self._running:
            self.end()

    def close(self) -> None:
        """Let go of the workers: those that are left make calls that ignore the end of the run."""
        begun = [worker.journal for worker in self._crew.values() if worker.journal.stage != "idle"]
        self.not_run = [journal.item.item_id for journal in begun] + self.not_run
        for worker in self._crew.values():
            if not worker.task.done():
                worker.replaced = True
                self._tell(ProcessingEvent.WORKER_STOPPED, worker.id)
        self._crew.clear()

    def end(self) -> None:
        """Take no more items and drop those that wait; whoever waits goes on."""
        if not self._over:
            self.not_run = [item.item_id for item in self.queue]
            self.queue.clear()
            for worker_id in (*self._home, *self._lent.values()):
                self._tell(ProcessingEvent.WORKER_STOPPED, worker_id)
        self._over, self.taking, self.self_service = True, False, False
        if self._grace is not None:
            self._grace.cancel()
        for waiting in (self._adding, self._full):
            while waiting:
                _wake(waiting)
        self._wake_consumer()

    def _wake_consumer(self) -> None:
        self.pause_at = self._most
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)

    def replace(self, stuck: Holder) -> None:
        """Give the place of a worker whose call will not end, and its item, to another."""
        assert isinstance(stuck, Worker)
        _log.error("worker %s: a call ignores its cancellation and is left behind", stuck.id)
        error = FrameworkTimeoutError(
            "timeout: the call did not end in time and ignored its cancellation; "
            "let CancelledError pass through execute()"
        )
        gate = stuck.journal.entry.gate
        if not gate.is_calm:
            gate.ended(stuck.journal.admission, answered=False)
        self._succeed(stuck, error)

    def _succeed(self, worker: Worker, error: BaseException) -> None:
        worker.replaced = True
        successor = Worker(worker.id)
        successor.journal = worker.journal
        self._hire(successor, error)

    def _hire(self, worker: Worker, error: BaseException | None = None) -> None:
        self._crew[worker.id] = worker
        worker.task = task = self._tasks.spawn(
            self._runner.work(worker, self) if error is None else self._go_on(worker, error),
            name=f"batch_llm worker {worker.id}",
            ended=self._gone,
            # Not that of whoever has added an item.
            context=self._context.copy(),
        )
        self._running[task] = worker

    def _call_back(self) -> None:
        """Have one of the workers at home look for an item."""
        if self._home and self.taking:
            self._hire(Worker(self._home.popleft()))

    def _gone(self, task: asyncio.Task[None]) -> None:
        worker = self._running.pop(task)
        if self._crew.get(worker.id) is worker:
            if self.taking:
                self._succeed(worker, asyncio.CancelledError("the worker's task was cancelled"))
            else:
                self._tell(ProcessingEvent.WORKER_STOPPED, worker.id)
        if not (self.taking or self._running):
            self.end()

    def _end_if_done(self) -> None:
        """End the run where nobody is at work, or about to add an item."""
        if not (self._crew or self._adders):
            self.complete = True
            self.end()

    def _tell(self, event: ProcessingEvent, worker_id: int) -> None:
        if self._events.watched:
            self._events.emit(event, {"worker_id": worker_id})

    async def _go_on(self, worker: Worker, error: BaseException) -> None:
        """Conclude the item of a worker that is gone, and work on in its place."""
        journal = worker.journal
        try:
            if journal.stage != "idle":
                self._hand_over(journal, await self._runner.take_over(journal, error))
        except BaseException as bug:
            self.leave(worker, bug)
        else:
            await self._runner.work(worker, self)

    def leave(self, worker: Worker, error: BaseException) -> None:
        """Pass on what ends a worker, and save what it has.

        Raises:
            asyncio.CancelledError: That was the error.
        """
        if isinstance(error, asyncio.CancelledError):
            self._save(worker)
            raise error
        if not isinstance(error, FATAL):
            _log.critical("worker %s broke down with %s", worker.id, type(error).__name__)
            _log.debug("worker %s broke down", worker.id, exc_info=error)
        self.fail(error)
        self._save(worker)

    def _save(self, worker: Worker) -> None:
        """Keep a result that everybody was told of when the end of the run overtook it."""
        journal = worker.journal
        has_result = journal.stage in ("concluded", "released")
        if has_result and not (self.taking or worker.replaced):
            self._hand_over(journal, journal.result)

    async def next_item(self, worker: Worker) -> Item | None:
        """Let others have their turn where it is time for that, and take an item.

        Returns:
            None where there is none: the worker is to go home. The end of the run may be
            noticed here.
        """
        if len(self.outbox) >= self.pause_at or self._events.crowded:
            await self._pause()
        if not self.taking:
            return None
        if self.queue:
            _wake(self._adding)
            return self.queue.popleft()
        del self._crew[worker.id]
        self._home.append(worker.id)
        self._lend()
        self._end_if_done()
        return None

    def borrow(self) -> asyncio.Future[None]:
        """Ask for the place of a worker that has nothing to do; done once there is one."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._borrowers.append(place)
        self._lend()
        return place

    def give_back(self, place: asyncio.Future[None]) -> None:
        """Need a place no more, whether it was lent or not."""
        worker_id = self._lent.pop(place, None)
        if worker_id is None:
            place.cancel()
            return
        self._home.append(worker_id)
        if self.queue:
            self._call_back()
        self._lend()

    def _lend(self) -> None:
        while self._borrowers and self._home and self.taking:
            place = self._borrowers.popleft()
            if not place.done():
                self._lent[place] = self._home.popleft()
                place.set_result(None)

    def _hand_over(self, journal: Journal, result: Result) -> None:
        journal.stage = "idle"
        self.outbox.append(result)

    async def _pause(self) -> None:
        """Let others have their turn: observers, the consumer, or just the loop."""
        if self._events.crowded:
            await self._events.settle()
        if self._collecting:
            self.pause_at = len(self.outbox) + _PAUSE_AFTER
            await asyncio.sleep(0)
            return
        self._wake_consumer()
        while len(self.outbox) >= self.pause_at:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._full.append(room)
            await room


def _wake(waiting: deque[asyncio.Future[None]]) -> None:
    """Wake the first that still waits."""
    while waiting:
        first = waiting.popleft()
        if not first.done():
            first.set_result(None)
            return
