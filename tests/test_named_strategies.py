"""Items that name a strategy instead of bringing it."""

from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    StrategyContractError,
)
from tests.engine.support import Provider

Processor = ParallelBatchProcessor[str, Any, Any]


async def test_items_find_the_strategy_by_its_name() -> None:
    enrichment, summary = Provider(), Provider()
    async with Processor(config=ProcessorConfig(max_workers=2)) as processor:
        await processor.register_strategy("enrichment", enrichment)
        await processor.register_strategy("summary", summary)
        for n in range(4):
            name = "summary" if n == 3 else "enrichment"
            await processor.add_work(LLMWorkItem(str(n), strategy=name, prompt="p"))
        result = await processor.process_all()
    assert result.succeeded == 4
    assert (len(enrichment.calls), len(summary.calls)) == (3, 1)
    assert len(enrichment.prepared) == len(enrichment.cleaned) == 1


async def test_one_that_no_item_names_is_never_prepared() -> None:
    idle = Provider()
    async with Processor() as processor:
        await processor.register_strategy("idle", idle)
        await processor.process_all()
    assert idle.prepared == idle.cleaned == []


async def test_the_callers_item_goes_on_naming_it() -> None:
    item = LLMWorkItem[str, Any, Any]("1", strategy="enrichment", context=[1])
    for _ in range(2):
        async with Processor() as processor:
            await processor.register_strategy("enrichment", Provider())
            await processor.add_work(item)
            [result] = (await processor.process_all()).results
        assert item.strategy == "enrichment"
        assert result.context is item.context


async def test_the_name_holds_for_later_runs_and_after_cleanup() -> None:
    processor = Processor()
    await processor.register_strategy("enrichment", Provider())
    for n in range(2):
        await processor.add_work(LLMWorkItem(str(n), strategy="enrichment"))
        assert (await processor.process_all()).succeeded == 1
        await processor.cleanup()


async def test_an_unknown_name_is_refused_and_the_known_are_listed() -> None:
    async with Processor() as processor:
        none = r"item '1'.*'enrich'.*\(registered: none\)"
        with pytest.raises(StrategyContractError, match=none):
            await processor.add_work(LLMWorkItem("1", strategy="enrich"))
        await processor.register_strategy("enrichment", Provider())
        await processor.register_strategy("summary", Provider())
        with pytest.raises(StrategyContractError, match=r"\(registered: 'enrichment', 'summary'\)"):
            await processor.add_work(LLMWorkItem("1", strategy="enrich"))
        assert (await processor.get_stats())["total"] == 0


class Renaming(BaseMiddleware[Any, Any, Any]):
    """Sends each item to another strategy, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def before_process(
        self, work_item: LLMWorkItem[Any, Any, Any]
    ) -> LLMWorkItem[Any, Any, Any]:
        return LLMWorkItem(work_item.item_id, self.name, work_item.prompt)


async def test_middleware_may_name_one_too() -> None:
    first, second = Provider(), Provider()
    async with Processor(middlewares=[Renaming("second")]) as processor:
        await processor.register_strategy("second", second)
        await processor.add_work(LLMWorkItem("1", first))
        assert (await processor.process_all()).succeeded == 1
    assert (len(first.calls), len(second.calls)) == (0, 1)


async def test_an_unknown_name_of_middleware_fails_the_item_alone() -> None:
    provider = Provider()
    async with Processor(middlewares=[Renaming("third")]) as processor:
        await processor.add_work(LLMWorkItem("1", provider))
        [result] = (await processor.process_all()).results
    assert str(result.error).startswith("StrategyContractError: item '1': no strategy is")
    assert provider.calls == []


async def test_a_name_is_given_once() -> None:
    strategy = Provider()
    async with Processor() as processor:
        await processor.register_strategy("enrichment", strategy)
        await processor.register_strategy("enrichment", strategy)
        with pytest.raises(ValueError, match="'enrichment' is taken by another Provider"):
            await processor.register_strategy("enrichment", Provider())


@pytest.mark.parametrize("name", ["", " ", None, 7])
async def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(ValueError, match="non-blank string"):
        await Processor().register_strategy(name, Provider())


async def test_what_is_no_strategy_gets_no_name() -> None:
    nothing: Any = Provider
    with pytest.raises(StrategyContractError, match="the class Provider"):
        await Processor().register_strategy("enrichment", nothing)
