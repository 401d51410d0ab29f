"""What an item remembers from its first attempt to its end."""

import asyncio
import functools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
    RetryConfig,
    RetryState,
    WorkItemResult,
)
from batch_llm._engine.state import takes_state
from tests.engine.support import Item, Processor, Provider, now

CONFIG = ProcessorConfig(max_workers=3, retry=RetryConfig(max_attempts=3, jitter=False))


class Remembering(LLMCallStrategy[Any]):
    """Fails twice, and answers with what it remembers."""

    def __init__(self, failures: int = 2) -> None:
        self.failures = failures
        self.states: list[RetryState] = []

    async def execute(
        self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
    ) -> Any:
        assert state is not None
        self.states.append(state)
        state.setdefault("attempts", []).append(attempt)
        await asyncio.sleep(0.1)
        if attempt <= self.failures:
            raise ConnectionError(prompt)
        return dict(state), {}

    async def on_error(
        self, exception: Exception, attempt: int, state: RetryState | None = None
    ) -> None:
        assert state is not None
        state.setdefault("errors", []).append(str(exception))


async def process(*work: Item, **options: Any) -> list[WorkItemResult[Any, Any]]:
    async with Processor(config=CONFIG, **options) as processor:
        for item in work:
            await processor.add_work(item)
        return sorted((await processor.process_all()).results, key=lambda r: r.item_id)


async def test_it_lives_through_all_attempts_apart_from_that_of_other_items() -> None:
    strategy = Remembering()
    results = await process(*[LLMWorkItem(f"row {n}", strategy, f"prompt {n}") for n in range(5)])
    assert [result.output for result in results] == [
        {"attempts": [1, 2, 3], "errors": [f"prompt {n}", f"prompt {n}"]} for n in range(5)
    ]
    assert len({id(state) for state in strategy.states}) == 5


async def test_it_knows_its_item_and_cannot_change_it() -> None:
    strategy, context = Remembering(0), {"title": "Emma"}
    [result] = await process(LLMWorkItem("row 1", strategy, context=context))
    state = result.retry_state
    assert state is strategy.states[0]
    assert state.item_id == "row 1"
    assert state.context is context
    for name in ("item_id", "context", "other"):
        with pytest.raises(AttributeError):
            setattr(state, name, 1)


async def test_a_rate_limited_call_that_is_repeated_has_the_same() -> None:
    class Refused(Remembering):
        async def execute(
            self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
        ) -> Any:
            assert state is not None
            state["calls"] = state.get("calls", 0) + 1
            if state["calls"] == 1:
                raise RuntimeError("429 Too Many Requests")
            return state["calls"], {}

    [result] = await process(LLMWorkItem("row 1", Refused()))
    assert (result.output, result.attempts) == (2, 1)


async def test_the_next_run_of_the_item_begins_anew() -> None:
    strategy = Remembering(0)
    item: Item = LLMWorkItem("row 1", strategy)
    [first], [second] = await process(item), await process(item)
    assert first.output == second.output == {"attempts": [1]}


async def test_who_does_not_ask_for_it_costs_nothing() -> None:
    [result] = await process(LLMWorkItem("row 1", Provider()))
    assert result.retry_state is None


class Middleware(BaseMiddleware[Any, Any, Any]):
    """Keeps what it sees at the item's end."""

    seen: Any = None

    async def after_process(self, result: WorkItemResult[Any, Any]) -> WorkItemResult[Any, Any]:
        self.seen = result.retry_state
        return WorkItemResult("another", True)

    async def on_error(
        self,
        work_item: LLMWorkItem[Any, Any, Any],
        exception: Exception,
        state: RetryState | None = None,
    ) -> None:
        self.seen = state


class Observer:
    """Keeps the data of events that come with a state."""

    def __init__(self) -> None:
        self.told: dict[ProcessingEvent, dict[str, Any]] = {}

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        if "state" in data:
            self.told[event] = data


@pytest.mark.parametrize("failures", [2, 3])
async def test_middleware_and_observers_read_it_at_the_end(failures: int) -> None:
    strategy, middleware, observer = Remembering(failures), Middleware(), Observer()
    [result] = await process(
        LLMWorkItem("row 1", strategy), middlewares=[middleware], observers=[observer]
    )
    [(event, data)] = observer.told.items()
    assert middleware.seen is strategy.states[0]
    assert data.pop("state") is strategy.states[0]
    if failures == 3:
        assert event is ProcessingEvent.ITEM_FAILED
        assert data == {"item_id": "row 1", "error_type": "ConnectionError"}
    else:
        assert event is ProcessingEvent.ITEM_COMPLETED
        assert data == {"item_id": result.item_id, "duration": now(), "tokens": 0}
    assert result.retry_state is strategy.states[0]


async def test_an_observer_of_strategies_without_it_sees_nothing_new() -> None:
    observer = Observer()
    await process(LLMWorkItem("row 1", Provider()), observers=[observer])
    assert observer.told == {}


async def test_middleware_may_ask_for_it_though_the_strategy_does_not() -> None:
    class Failing(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            raise ValueError("no")

    middleware = Middleware()
    await process(LLMWorkItem("row 1", Failing()), middlewares=[middleware])
    assert middleware.seen == {}
    assert middleware.seen.item_id == "row 1"


async def test_it_may_be_a_parameter_that_has_to_be_named() -> None:
    class Named(LLMCallStrategy[Any]):
        async def execute(self, prompt: str, attempt: int, timeout: float, **more: Any) -> Any:
            return sorted(more), {}

    class Keyword(LLMCallStrategy[Any]):
        async def execute(
            self, prompt: str, attempt: int, timeout: float, *, state: RetryState | None = None
        ) -> Any:
            return type(state), {}

        async def on_error(
            self, exception: Exception, attempt: int, *, state: RetryState | None = None
        ) -> None: ...

    results = await process(LLMWorkItem("1", Named()), LLMWorkItem("2", Keyword()))
    assert [result.output for result in results] == [[], RetryState]


async def test_an_instance_with_an_execute_of_its_own_is_asked_itself() -> None:
    async def execute(prompt: str, attempt: int, timeout: float, state: Any) -> Any:
        return type(state), {}

    strategy: Any = Provider()
    strategy.execute = execute
    results = await process(LLMWorkItem("1", strategy), LLMWorkItem("2", Provider()))
    assert [result.output for result in results] == [RetryState, "ok"]


def passing_on(method: Any) -> Any:
    @functools.wraps(method)
    async def wrapper(*args: Any, **more: Any) -> Any:
        return await method(*args, **more)

    return wrapper


def keeping(method: Any) -> Any:
    @functools.wraps(method)
    async def wrapper(self: Any, prompt: str, attempt: int, timeout: float) -> Any:
        return await method(self, prompt, attempt, timeout)

    return wrapper


@pytest.mark.parametrize(("decorate", "kind"), [(passing_on, RetryState), (keeping, type(None))])
async def test_a_decorator_may_pass_it_on(decorate: Any, kind: type) -> None:
    class Decorated(LLMCallStrategy[Any]):
        @decorate
        async def execute(
            self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
        ) -> Any:
            return type(state), {}

    [result] = await process(LLMWorkItem("1", Decorated()))
    assert result.output is kind


async def test_it_is_never_given_to_a_parameter_without_a_name_for_callers() -> None:
    class Positional(LLMCallStrategy[Any]):
        async def execute(
            self, prompt: str, attempt: int, timeout: float, state: Any = None, /
        ) -> Any:
            return state, {}

    [result] = await process(LLMWorkItem("1", Positional()))
    assert (result.success, result.output) == (True, None)


async def test_a_proxy_asks_as_what_it_stands_for() -> None:
    class Proxy:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    proxy: Any = Proxy(Remembering(1))
    [result] = await process(LLMWorkItem("1", proxy, "p"))
    assert result.output == {"attempts": [1, 2], "errors": ["p"]}


async def test_a_hook_that_cannot_be_looked_up_costs_its_own_effect_only() -> None:
    class Proxy:
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            raise ValueError(prompt)

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name) if name == "on_error" else AttributeError(name)

    proxy: Any = Proxy()
    [result] = await process(LLMWorkItem("1", proxy, "p"))
    assert result.error == "ValueError: p"


async def test_what_is_not_async_is_told_here_too() -> None:
    class Plain:
        def __call__(self, prompt: str, attempt: int, timeout: float, state: Any) -> Any:
            return "text", {}

    strategy: Any = Provider()
    strategy.execute = Plain()
    [result] = await process(LLMWorkItem("1", strategy))
    assert str(result.error).startswith("StrategyContractError: Provider.execute is not async")
    assert result.attempts == 1


async def test_a_type_error_inside_is_no_reason_to_try_without() -> None:
    class Broken(LLMCallStrategy[Any]):
        calls = 0

        async def execute(
            self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
        ) -> Any:
            self.calls += 1
            raise TypeError("execute() got an unexpected keyword argument 'state'")

    strategy = Broken()
    [result] = await process(LLMWorkItem("1", strategy))
    assert not result.success
    assert strategy.calls == result.attempts


async def test_results_are_pickled_without_it() -> None:
    [result] = await process(LLMWorkItem("1", Remembering(0)))
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.retry_state is None


async def test_anything_with_metadata_hands_it_to_the_result() -> None:
    class Reporting(LLMCallStrategy[Any]):
        def __init__(self, returned: Any) -> None:
            self.returned = returned

        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            return self.returned

    ratings = {"HARM_CATEGORY_HARASSMENT": "LOW"}
    results = await process(
        LLMWorkItem("1", Reporting(("text", {"input_tokens": 1}, {"id": 7}))),
        LLMWorkItem("2", Reporting(("text", {}, {"safety_ratings": ratings}))),
        LLMWorkItem("3", Reporting(("text", {}, None))),
        LLMWorkItem("4", Reporting(("text", {}, "any thing"))),
    )
    assert [result.success for result in results] == [True] * 4
    assert [r.metadata for r in results] == [
        {"id": 7},
        {"safety_ratings": ratings},
        None,
        "any thing",
    ]
    assert [r.gemini_safety_ratings for r in results] == [None, ratings, None, None]
    assert results[0].token_usage["input_tokens"] == 1


async def test_a_tuple_class_of_the_callers_own_is_an_answer_too() -> None:
    class Answer(tuple[Any, ...]):
        __slots__ = ()

    class Strategy(LLMCallStrategy[Any]):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            return Answer(("text", {"input_tokens": 3}))

    async with ParallelBatchProcessor[str, Any, Any](config=CONFIG) as processor:
        await processor.add_work(LLMWorkItem("1", Strategy()))
        result = await processor.process_all()
    assert result.results[0].output == "text"
    assert result.total_input_tokens == 3


async def test_metadata_of_an_attempt_that_failed_does_not_stay() -> None:
    class Flaky(LLMCallStrategy[Any]):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            if attempt == 1:
                raise ConnectionError("once more")
            return "text", {}, {"attempt": attempt}

    [result] = await process(LLMWorkItem("1", Flaky()))
    assert result.metadata == {"attempt": 2}


@pytest.mark.parametrize("method", [5, min], ids=["no function", "written in C"])
def test_what_has_no_signature_takes_no_state(method: object) -> None:
    assert takes_state(SimpleNamespace(on_error=method), "on_error") is False
