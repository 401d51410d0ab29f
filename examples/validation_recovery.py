"""Refused answers mended in four stages, and what that saves beside asking all over again.

1. The full prompt, at temperature 0.
2. Only the fields that failed, at temperature 0: a short prompt, since the rest is kept.
3. The full prompt at temperature 0.25, in case the first answer was a dead end.
4. Only the fields that failed, at temperature 0.25.

A refused answer leads to the next stage; a timeout, a lost connection or a 503 says nothing about
the answer and repeats the stage. What an item went through is in its state, so that one strategy
serves all items.

Run it: python examples/validation_recovery.py
It needs no key: a local server plays Gemini, and errs as often as it is told to.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google import genai
from pydantic import create_model

from batch_llm import (
    BatchResult,
    GeminiStrategy,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
    RetryState,
    StructuredOutputError,
    TokenUsage,
    parse_json,
)
from batch_llm.cli.books import Book, read_books
from batch_llm.cli.enrichment import BookEnrichment, instructions, prompt_for
from batch_llm.cli.invented import answer_for
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest

MODEL = "gemini-2.5-flash"
BOOKS = 200
MOST_PROMPTS = 5
SHARE_INVALID = 0.12
SHARE_UNREACHABLE = 0.04
SEED = 14

parse_book = parse_json(BookEnrichment)


@dataclass(frozen=True)
class Stage:
    is_repair: bool
    temperature: float


STAGES = (Stage(False, 0.0), Stage(True, 0.0), Stage(False, 0.25), Stage(True, 0.25))
LAST_FULL = 2


class FourStages(LLMCallStrategy[BookEnrichment]):
    """Keeps in an item's state its stage, the fields that are valid, and what is wrong."""

    def __init__(self, client: genai.Client) -> None:
        self.client = client

    async def execute(
        self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
    ) -> tuple[BookEnrichment, TokenUsage]:
        assert state is not None, "made by the processor"
        stage = STAGES[state.get("stage", 0)]
        if not stage.is_repair:
            full = full_prompt_strategy(self.client, stage.temperature)
            return await full.execute(prompt, attempt, timeout)
        repair = self._repair(state["valid"], stage.temperature)
        return await repair.execute(repair_prompt(prompt, state), attempt, timeout)

    def _repair(self, valid: dict[str, Any], temperature: float) -> GeminiStrategy[BookEnrichment]:
        """Asks for the fields that are not valid, and takes the answer together with the rest."""
        fields = BookEnrichment.model_fields
        wanted = {name: fields[name] for name in fields if name not in valid}
        repair: Any = create_model("Repair", **{n: (f.annotation, f) for n, f in wanted.items()})
        parse_repair = parse_json(repair)
        return GeminiStrategy(
            MODEL,
            self.client,
            lambda answer: parse_book(json.dumps(valid | parse_repair(answer).model_dump())),
            json_config(repair, temperature),
        )

    async def on_error(
        self, exception: Exception, attempt: int, state: RetryState | None = None
    ) -> None:
        if state is None or not isinstance(exception, StructuredOutputError):
            return
        stage = state.get("stage", 0)
        kept = state["valid"] if STAGES[stage].is_repair else {}
        state["valid"] = kept | exception.valid
        state["problems"] = exception.failing_fields or {"": str(exception)}
        # Where nothing is valid there is nothing to keep: a repair would be a full prompt.
        following = min(stage + 1, len(STAGES) - 1)
        state["stage"] = following if state["valid"] else LAST_FULL


def full_prompt_strategy(
    client: genai.Client, temperature: float
) -> GeminiStrategy[BookEnrichment]:
    """Asks for everything, with the whole style guide."""
    config = json_config(BookEnrichment, temperature) | {"system_instruction": instructions()}
    return GeminiStrategy(MODEL, client, parse_book, config)


def json_config(schema: Any, temperature: float) -> dict[str, Any]:
    return {
        "response_mime_type": "application/json",
        "response_schema": schema,
        "temperature": temperature,
    }


def repair_prompt(prompt: str, state: Mapping[str, Any]) -> str:
    problems = (f"- {path}: {reason}" for path, reason in state["problems"].items())
    return "\n".join(
        [
            prompt,
            "",
            "Your answer about this book was refused:",
            *problems,
            f"What is right about it, and is kept: {json.dumps(state['valid'])}",
            "Answer with the missing fields alone, as the schema asks.",
        ]
    )


async def describe_books(
    strategy_for: Callable[[genai.Client], LLMCallStrategy[BookEnrichment]],
    *,
    most_prompts: int = MOST_PROMPTS,
    unreachable: float = SHARE_UNREACHABLE,
) -> BatchResult[BookEnrichment, Book]:
    """Describe the same books as every other time, asked of a model with the same whims."""
    model = PlayedModel(unreachable)
    config = ProcessorConfig(
        max_workers=20, retry=RetryConfig(max_attempts=most_prompts, initial_wait=0.05)
    )
    async with (
        GeminiEmulator(model.answer, faults=model.fault, latency_seconds=0.02) as server,
        ParallelBatchProcessor[str, BookEnrichment, Book](config=config) as processor,
    ):
        strategy = strategy_for(server.client())
        for book in read_books(BOOKS):
            await processor.add_work(LLMWorkItem(book.book_id, strategy, prompt_for(book), book))
        return await processor.process_all()


class PlayedModel:
    """Errs in a share of its answers, whatever the temperature.

    Its nth answer about a book is the same in every run, or fails in the same way.
    """

    def __init__(self, unreachable: float) -> None:
        self.unreachable = unreachable
        self.asked = Counter[str]()
        self.reached = set[str]()

    def fault(self, request: RecordedRequest) -> Fault | None:
        """Some books' first requests find a server that is overloaded."""
        book = book_in(request)
        if book in self.reached:
            return None
        self.reached.add(book)
        is_unreachable = random.Random(f"{SEED} line {book}").random() < self.unreachable
        return Fault.status(503) if is_unreachable else None

    def answer(self, request: RecordedRequest) -> str | dict[str, Any]:
        book = book_in(request)
        self.asked[book] += 1
        chance = random.Random(f"{SEED} {self.asked[book]} {book}")
        wanted = request.generation_config["responseSchema"]["properties"]
        whole = answer_for(book, seed=SEED)
        answer = {name: whole[name] for name in wanted}
        return spoiled(answer, chance) if chance.random() < SHARE_INVALID else answer


def book_in(request: RecordedRequest) -> str:
    """The lines of a prompt that name the book."""
    return "\n".join(request.prompt.splitlines()[:4])


WRONG = {
    "genres": ["space opera"],
    "themes": [],
    "audience": "grown-ups",
    "summary": "A book about very many things. " * 10,
}


def spoiled(answer: dict[str, Any], chance: random.Random) -> str | dict[str, Any]:
    """An answer with one field or two that break a rule, or one that breaks off."""
    if chance.random() < 0.1:
        text = json.dumps(answer)
        return text[: len(text) * 2 // 3]
    wrong = chance.sample(sorted(answer), min(len(answer), chance.choice([1, 1, 2])))
    return answer | {name: WRONG[name] for name in wrong}


@dataclass(frozen=True)
class Comparison:
    """Three runs over the same books: one prompt each, plain retries, four stages."""

    once: BatchResult[BookEnrichment, Book]
    plain: BatchResult[BookEnrichment, Book]
    stages: BatchResult[BookEnrichment, Book]

    @property
    def share_saved(self) -> float:
        """Of all tokens that plain retries take."""
        return 1 - tokens(self.stages) / tokens(self.plain)

    @property
    def share_saved_of_retries(self) -> float:
        """Of the tokens that plain retries take beside one prompt for each book."""
        first = tokens(self.once)
        return 1 - (tokens(self.stages) - first) / (tokens(self.plain) - first)

    def ended_at(self) -> Counter[int]:
        """How many books were described at which stage, from 1."""
        states = (result.retry_state for result in self.stages.results if result.success)
        return Counter(state["stage"] + 1 if state else 1 for state in states)

    def __str__(self) -> str:
        runs = {"one prompt": self.once, "plain retries": self.plain, "four stages": self.stages}
        rows = [f"{'':14}{'described':>11}{'prompts':>9}{'tokens':>12}"]
        for name, batch in runs.items():
            described = f"{batch.succeeded}/{batch.total_items}"
            rows.append(f"{name:14}{described:>11}{prompts(batch):>9,}{tokens(batch):>12,}")
        ended = sorted(self.ended_at().items())
        rows.append("\nThe four stages: " + ", ".join(f"{n} books in stage {s}" for s, n in ended))
        rows.append(
            f"They save {self.share_saved_of_retries:.1%} of the tokens that plain retries take "
            f"beside\none prompt for each book, and {self.share_saved:.1%} of all tokens."
        )
        return "\n".join(rows)


def prompts(batch: BatchResult[Any, Any]) -> int:
    return sum(result.attempts for result in batch.results)


def tokens(batch: BatchResult[Any, Any]) -> int:
    return batch.total_input_tokens + batch.total_output_tokens


async def compare() -> Comparison:
    def plain(client: genai.Client) -> GeminiStrategy[BookEnrichment]:
        return full_prompt_strategy(client, temperature=0.25)

    return Comparison(
        once=await describe_books(plain, most_prompts=1, unreachable=0.0),
        plain=await describe_books(plain),
        stages=await describe_books(FourStages),
    )


if __name__ == "__main__":
    print(asyncio.run(compare()))
