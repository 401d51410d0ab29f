"""Tokens are money: what is counted is what was billed, however it is told."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import (
    BatchResult,
    GeminiStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
    WorkItemResult,
)
from batch_llm.llm_strategies._usage import count, read_usage
from batch_llm.testing.gemini import GeminiEmulator, RecordedRequest, Reply
from tests.fuzz.support import MODEL, client_of, text_of
from tests.helpers import Script, run_batch

pytestmark = pytest.mark.gemini

KEYS = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens")
NAMES = (*KEYS, "request_tokens", "response_tokens", "cache_read_tokens")
COUNTS = st.integers(0, 10**9)
ANYTHING: Any = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=3)
    | st.decimals()
    | st.builds(object)
)
LEDGERS = st.fixed_dictionaries({"input_tokens": COUNTS, "output_tokens": COUNTS}) | (
    st.fixed_dictionaries(dict.fromkeys(KEYS, COUNTS))
)


class Explosive:
    """Fails whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self) -> Any:
        raise RuntimeError("call")


class ExplosiveMapping(Mapping[str, Any]):
    """The same as a mapping."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __iter__(self) -> Any:
        raise RuntimeError("iter")

    def __len__(self) -> int:
        return 1


FIELDS = st.dictionaries(st.sampled_from(NAMES), ANYTHING)
SOURCES: Any = (
    ANYTHING
    | FIELDS
    | FIELDS.map(lambda fields: SimpleNamespace(**fields))
    | FIELDS.map(lambda fields: lambda: fields)
    | st.sampled_from([Explosive(), ExplosiveMapping(), Explosive, BaseException])
)


class Failed(Exception):  # noqa: N818
    """A failed call that was billed."""

    def __init__(self, usage: Any) -> None:
        super().__init__("failed")
        self.usage = usage


@given(SOURCES)
def test_whatever_tells_the_usage_is_read(source: Any) -> None:
    usage = read_usage(source)
    assert usage.keys() <= set(KEYS)
    assert all(type(tokens) is int and tokens >= 0 for tokens in usage.values())
    assert not usage or "total_tokens" in usage


@given(st.lists(ANYTHING))
def test_counts_add_up_to_what_a_rate_can_be_computed_from(values: list[Any]) -> None:
    total = sum(count(value) for value in values)
    assert total >= 0
    assert float(total) >= 0.0


@given(LEDGERS)
def test_every_shape_tells_the_same(ledger: dict[str, int]) -> None:
    old = {"input_tokens": "request_tokens", "output_tokens": "response_tokens"}
    renamed = {old.get(name, name): tokens for name, tokens in ledger.items()}
    shapes = [ledger, renamed, SimpleNamespace(**ledger), SimpleNamespace(**renamed)]
    expected = {"total_tokens": ledger["input_tokens"] + ledger["output_tokens"], **ledger}
    for shape in [*shapes, lambda: ledger, lambda: SimpleNamespace(**renamed)]:
        assert read_usage(shape) == expected


@settings(max_examples=50)
@given(st.lists(LEDGERS, min_size=1, max_size=6), st.randoms(use_true_random=False))
async def test_an_items_tokens_are_the_sum_over_its_attempts_in_any_order(
    ledgers: list[dict[str, int]], random: Any
) -> None:
    shuffled = random.sample(ledgers, len(ledgers))
    config = ProcessorConfig(retry=RetryConfig(max_attempts=len(ledgers)))

    def script(attempts: list[dict[str, int]]) -> Script:
        return Script(*map(Failed, attempts[:-1]), ("answer", attempts[-1]))

    batch = await run_batch(script(ledgers), script(shuffled), config=config)
    first, second = (result.token_usage for result in batch.results)
    for key in ("input_tokens", "output_tokens", "cached_input_tokens"):
        assert first.get(key, 0) == sum(ledger.get(key, 0) for ledger in ledgers)
        assert first.get(key, 0) == second.get(key, 0)
    totals = [ledger.get("total_tokens", sum(ledger.values())) for ledger in ledgers]
    for usage in (first, second):
        assert usage.get("total_tokens", sum(usage.values())) == sum(totals)


WIRE = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
WIRE_USAGE = st.fixed_dictionaries(
    dict.fromkeys((*WIRE, "toolUsePromptTokenCount", "cachedContentTokenCount"), st.none() | COUNTS)
)


@settings(max_examples=8)
@given(st.lists(WIRE_USAGE, min_size=1, max_size=20))
async def test_a_runs_tokens_are_those_of_geminis_ledger(usages: list[dict[str, int]]) -> None:
    def answer(request: RecordedRequest) -> Reply:
        return Reply("answer", usage={**usages[int(request.prompt)], "totalTokenCount": None})

    async with GeminiEmulator(answer) as server:
        strategy = GeminiStrategy(MODEL, client_of(server), text_of)
        async with ParallelBatchProcessor[str, Any, None]() as processor:
            for number in range(len(usages)):
                await processor.add_work(LLMWorkItem(str(number), strategy, str(number)))
            batch = await processor.process_all()
            stats = await processor.get_stats()

    def billed(*names: str) -> int:
        return sum(usage[name] or 0 for usage in usages for name in names)

    assert batch.total_input_tokens == billed("promptTokenCount", "toolUsePromptTokenCount")
    assert batch.total_output_tokens == billed("candidatesTokenCount", "thoughtsTokenCount")
    assert batch.total_cached_tokens == billed("cachedContentTokenCount")
    assert stats["total_tokens"] == batch.total_input_tokens + batch.total_output_tokens


RESULTS = st.lists(
    st.builds(
        lambda new, cached, output: WorkItemResult[str, None](
            "id",
            True,
            token_usage={
                "input_tokens": new + cached,
                "output_tokens": output,
                "cached_input_tokens": cached,
            },
        ),
        COUNTS,
        COUNTS,
        COUNTS,
    )
)


@given(RESULTS, RESULTS)
def test_the_tokens_of_two_batches_are_those_of_both(one: list[Any], other: list[Any]) -> None:
    first, second, both = BatchResult(one), BatchResult(other), BatchResult(other + one)
    for name in ("total_items", "succeeded", "total_input_tokens", "total_cached_tokens"):
        assert getattr(first, name) + getattr(second, name) == getattr(both, name)
    assert first.total_output_tokens + second.total_output_tokens == both.total_output_tokens


@given(RESULTS)
def test_what_a_cache_saves(results: list[Any]) -> None:
    batch = BatchResult(results)
    saved = int(batch.total_cached_tokens * 0.9)
    assert batch.effective_input_tokens() == batch.total_input_tokens - saved
    assert batch.effective_input_tokens() >= batch.total_input_tokens // 10
    if batch.total_input_tokens:
        share = batch.total_cached_tokens / batch.total_input_tokens
        assert batch.cache_hit_rate() == pytest.approx(100 * share)
