"""The pretended agent and strategy do what they are told, on exactly the call they are told."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from batch_llm.llm_strategies import LLMCallStrategy, PydanticAIStrategy
from batch_llm.testing import MockAgent, MockResult, MockStrategy, MockUsage, mock_strategy, run


async def call_agent(agent: MockAgent[Any], prompt: str = "hello") -> Any:
    return (await agent.run(prompt)).output


async def call_strategy(strategy: MockStrategy[Any], prompt: str = "hello") -> Any:
    output, _ = await strategy.execute(prompt, 1, 60.0)
    return output


BOTH = pytest.mark.parametrize(
    ("mock", "call"),
    [(MockAgent, call_agent), (MockStrategy, call_strategy)],
    ids=["agent", "strategy"],
)
Mock = Callable[..., Any]


async def outcomes(mock: Any, call: Mock, count: int) -> list[Any]:
    """What concurrent calls come to, in the order in which they began."""
    return await asyncio.gather(*(call(mock) for _ in range(count)), return_exceptions=True)


@BOTH
def test_the_defaults_are_the_contract(mock: Mock, call: Mock) -> None:
    made = mock()
    names = "response_factory latency failure_rate rate_limit_on_call timeout_on_call call_count"
    assert [getattr(made, name) for name in names.split()] == [None, 0.1, 0.0, None, None, 0]


@BOTH
def test_the_arguments_have_an_order_and_become_attributes(mock: Mock, call: Mock) -> None:
    made = mock(str.upper, 0.2, 0.3, 4, 5)
    names = "response_factory latency failure_rate rate_limit_on_call timeout_on_call"
    assert [getattr(made, name) for name in names.split()] == [str.upper, 0.2, 0.3, 4, 5]


@BOTH
def test_the_default_answer_quotes_the_head_of_the_prompt(mock: Mock, call: Mock) -> None:
    assert run(call(mock(), "x" * 80)) == {"response": "Mock response to: " + "x" * 50}


@BOTH
def test_a_factory_makes_the_answer(mock: Mock, call: Mock) -> None:
    assert run(call(mock(str.upper), "hello")) == "HELLO"
    assert run(call(mock(lambda prompt: None))) is None


@BOTH
def test_what_a_factory_raises_is_the_failure_of_the_call(mock: Mock, call: Mock) -> None:
    def refuse(prompt: str) -> str:
        raise LookupError(prompt)

    with pytest.raises(LookupError, match="hello"):
        run(call(mock(refuse)))


@BOTH
def test_every_call_takes_the_latency(mock: Mock, call: Mock) -> None:
    async def main() -> float:
        made = mock(latency=7.5)
        await call(made)
        await asyncio.gather(call(made), call(made))
        return asyncio.get_running_loop().time()

    assert run(main()) == 15.0


@BOTH
def test_exactly_one_of_many_concurrent_calls_is_rate_limited(mock: Mock, call: Mock) -> None:
    made = mock(str.upper, rate_limit_on_call=3)
    results = run(outcomes(made, call, 6))
    refusal = results.pop(2)
    assert type(refusal).__name__ == "ClientError"
    assert str(refusal) == "429 RESOURCE_EXHAUSTED"
    assert results == ["HELLO"] * 5
    assert run(outcomes(made, call, 6)) == ["HELLO"] * 6
    assert made.call_count == 12


@BOTH
def test_exactly_one_of_many_concurrent_calls_hangs(mock: Mock, call: Mock) -> None:
    made = mock(str.upper, 1.0, timeout_on_call=2)
    ends: list[float] = []

    async def timed() -> None:
        assert await call(made) == "HELLO"
        ends.append(asyncio.get_running_loop().time())

    async def main() -> None:
        await asyncio.gather(*(timed() for _ in range(3)))

    run(main())
    assert ends == [1.0, 1.0, 1000.0]


@BOTH
def test_a_random_failure_names_its_call(mock: Mock, call: Mock) -> None:
    failures = run(outcomes(mock(failure_rate=1.0), call, 3))
    assert [type(failure) for failure in failures] == [Exception] * 3
    assert [str(failure) for failure in failures] == [
        f"Random failure on call {number}" for number in (1, 2, 3)
    ]


@BOTH
def test_a_seed_makes_the_same_calls_fail_again(mock: Mock, call: Mock) -> None:
    def failed(**seed: int) -> list[bool]:
        results = run(outcomes(mock(failure_rate=0.5, **seed), call, 64))
        return [isinstance(result, Exception) for result in results]

    assert failed(seed=1) == failed(seed=1)
    assert failed(seed=1) != failed(seed=2)
    assert True in failed(seed=1)
    assert False in failed(seed=1)


@BOTH
def test_without_a_seed_the_common_one_counts(mock: Mock, call: Mock) -> None:
    def failed() -> list[bool]:
        random.seed(7)
        results = run(outcomes(mock(failure_rate=0.5), call, 64))
        return [isinstance(result, Exception) for result in results]

    assert failed() == failed()


def test_an_agent_takes_the_arguments_of_a_real_one_and_passes_them_over() -> None:
    result = run(MockAgent(str.upper).run(prompt="hello", model="m", deps=object()))
    assert result.output == "HELLO"
    assert result.usage() == MockUsage(100, 50)
    assert result.all_messages() == []


def test_a_result_gives_the_usage_it_was_given() -> None:
    usage = MockUsage(7, 8)
    assert MockResult("out", usage).usage() is usage
    assert usage.total_tokens == 15
    assert MockResult("out").usage().total_tokens == 150


def test_mock_strategy_puts_an_agent_behind_the_real_strategy() -> None:
    agent = MockAgent(str.upper)
    strategy = mock_strategy(agent)
    assert type(strategy) is PydanticAIStrategy
    output, usage = run(strategy.execute("hello", 1, 60.0))
    assert output == "HELLO"
    assert {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}.items() <= usage.items()
    assert agent.call_count == 1


def test_a_mock_strategy_is_a_strategy_and_counts_tokens() -> None:
    strategy = MockStrategy(str.upper)
    assert isinstance(strategy, LLMCallStrategy)
    output, usage = run(strategy.execute("hello", 1, 60.0))
    assert (output, usage) == (
        "HELLO",
        {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150},
    )


def test_importing_the_helpers_imports_no_sdk_and_no_test_framework() -> None:
    code = (
        "import sys, batch_llm.testing\n"
        "heavy = {'google', 'httptools', 'pytest', 'pydantic_ai', 'anyio'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
