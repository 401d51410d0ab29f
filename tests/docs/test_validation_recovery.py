"""The example of validation recovery goes through its stages, and saves what it says."""

import random
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from batch_llm import BatchResult, LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.cli.books import read_books
from batch_llm.cli.enrichment import instructions, prompt_for
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest

pytestmark = pytest.mark.gemini

EXAMPLE = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[2] / "examples" / "validation_recovery.py"))
)
BOOKS = read_books(2)
FIELDS = ["genres", "themes", "audience", "summary"]
GOOD: dict[str, Any] = {
    "genres": ["horror"],
    "themes": ["fate"],
    "audience": "adult",
    "summary": "A man turns into a beetle.",
}
NO_GENRE = {"genres": ["space opera"]}
NO_THEME: dict[str, Any] = {"themes": []}


async def describe(
    *answers: dict[str, Any] | str | Fault,
) -> tuple[BatchResult[Any, Any], list[RecordedRequest]]:
    """Describe a book with the model giving these answers, one after the other."""
    faults = [answer if isinstance(answer, Fault) else None for answer in answers]

    def respond(request: RecordedRequest) -> dict[str, Any] | str:
        answer = answers[request.index]
        assert not isinstance(answer, Fault)
        return answer

    config = ProcessorConfig(retry=RetryConfig(max_attempts=EXAMPLE.MOST_PROMPTS))
    async with (
        GeminiEmulator(respond) as server,
        ParallelBatchProcessor[str, Any, Any](config=config) as processor,
    ):
        server.script(*faults)
        strategy = EXAMPLE.FourStages(server.client())
        await processor.add_work(LLMWorkItem("1", strategy, prompt_for(BOOKS[0])))
        return await processor.process_all(), server.requests


def stages_of(requests: list[RecordedRequest]) -> list[tuple[list[str], float]]:
    """The fields that each request asks for, and its temperature."""
    return [
        (
            sorted(request.generation_config["responseSchema"]["properties"], key=FIELDS.index),
            request.generation_config["temperature"],
        )
        for request in requests
    ]


async def test_each_refusal_leads_to_the_next_stage() -> None:
    bad = GOOD | NO_GENRE | NO_THEME
    batch, requests = await describe(bad, GOOD | NO_GENRE, bad, NO_GENRE | NO_THEME, GOOD)
    assert batch.results[0].output == EXAMPLE.BookEnrichment(**GOOD)
    assert batch.results[0].attempts == 5
    assert stages_of(requests) == [
        (FIELDS, 0.0),
        (["genres", "themes"], 0.0),
        (FIELDS, 0.25),
        (["genres", "themes"], 0.25),
        (["genres", "themes"], 0.25),
    ]
    told = [request.body.get("systemInstruction") is not None for request in requests]
    assert told == [True, False, True, False, False]


async def test_a_repair_tells_what_was_wrong_and_keeps_what_was_right() -> None:
    batch, requests = await describe(GOOD | NO_GENRE, GOOD | {"audience": "children"})
    assert batch.results[0].output == EXAMPLE.BookEnrichment(**GOOD)
    prompt = requests[1].prompt
    assert prompt.startswith(prompt_for(BOOKS[0]))
    assert re.search("^- genres.0: Input should be 'literary fiction', ", prompt, re.MULTILINE)
    assert '"audience": "adult"' in prompt
    assert len(prompt) < len(instructions()) / 10


async def test_what_a_failed_repair_mended_is_kept() -> None:
    bad = GOOD | NO_GENRE | NO_THEME
    _, requests = await describe(bad, bad, bad, GOOD | NO_GENRE, GOOD)
    assert [fields for fields, _ in stages_of(requests)][3:] == [["genres", "themes"], ["genres"]]


async def test_an_answer_that_breaks_off_is_completed() -> None:
    batch, requests = await describe('{"genres": ["horror"], "themes": ["fate"], "aud', GOOD)
    assert batch.results[0].output == EXAMPLE.BookEnrichment(**GOOD)
    assert stages_of(requests)[1] == (["audience", "summary"], 0.0)


async def test_a_broken_off_repair_brings_nothing_that_is_wrong() -> None:
    bad = GOOD | NO_GENRE | NO_THEME
    cut = '{"genres": ["space opera"], "the'
    batch, requests = await describe(bad, cut, bad, cut, GOOD)
    assert batch.results[0].success
    assert stages_of(requests)[-1] == (["genres", "themes"], 0.25)


async def test_without_anything_valid_there_is_nothing_to_repair() -> None:
    _, requests = await describe("I cannot say.", "I cannot say.", GOOD)
    assert stages_of(requests) == [(FIELDS, 0.0), (FIELDS, 0.25), (FIELDS, 0.25)]


async def test_a_network_error_repeats_the_stage() -> None:
    _, requests = await describe(
        Fault.cut(), GOOD | NO_GENRE, Fault.status(503), Fault.html(502), GOOD
    )
    full, repair = (FIELDS, 0.0), (["genres"], 0.0)
    assert stages_of(requests) == [full, full, repair, repair, repair]


async def test_after_five_prompts_an_item_fails() -> None:
    batch, requests = await describe(*[GOOD | NO_GENRE] * 5)
    assert not batch.results[0].success
    assert len(requests) == 5
    assert batch.total_output_tokens > 0


async def test_items_of_one_strategy_do_not_know_each_other() -> None:
    def respond(request: RecordedRequest) -> dict[str, Any]:
        is_repair = "refused" in request.prompt
        wrong = NO_GENRE if prompt_for(BOOKS[0]) in request.prompt else NO_THEME
        return GOOD if is_repair else GOOD | wrong

    async with (
        GeminiEmulator(respond) as server,
        ParallelBatchProcessor[str, Any, Any](max_workers=2) as processor,
    ):
        strategy = EXAMPLE.FourStages(server.client())
        for book in BOOKS:
            await processor.add_work(LLMWorkItem(book.book_id, strategy, prompt_for(book)))
        batch = await processor.process_all()
    assert (batch.succeeded, len(server.requests)) == (2, 4)
    asked = {
        book.book_id: fields
        for book in BOOKS
        for request, (fields, _) in zip(server.requests, stages_of(server.requests), strict=True)
        if request.prompt.startswith(prompt_for(book)) and "refused" in request.prompt
    }
    assert asked == {BOOKS[0].book_id: ["genres"], BOOKS[1].book_id: ["themes"]}


async def test_the_comparison_tells_what_it_computed() -> None:
    compared = await EXAMPLE.compare()
    once, plain, stages = compared.once, compared.plain, compared.stages
    refused = sum(
        random.Random(f"{EXAMPLE.SEED} 1 {prompt_for(book)}").random() < EXAMPLE.SHARE_INVALID
        for book in read_books(EXAMPLE.BOOKS)
    )
    assert once.failed == refused
    assert refused / EXAMPLE.BOOKS == 0.12
    assert plain.succeeded == stages.succeeded == EXAMPLE.BOOKS
    assert max(result.attempts for result in stages.results) <= 5
    assert compared.ended_at()[1] == EXAMPLE.BOOKS - refused
    assert compared.ended_at().total() == EXAMPLE.BOOKS

    first, all_again, staged = (
        sum(result.token_usage["total_tokens"] for result in batch.results)
        for batch in (once, plain, stages)
    )
    of_retries = (all_again - staged) / (all_again - first)
    assert compared.share_saved_of_retries == pytest.approx(of_retries)
    assert compared.share_saved == pytest.approx(1 - staged / all_again)
    assert of_retries > 0.8
    assert compared.share_saved > 0.1
    assert f"save {of_retries:.1%} of the tokens" in str(compared)
    assert f"and {1 - staged / all_again:.1%} of all tokens" in str(compared)
    assert f"{EXAMPLE.BOOKS - refused} books in stage 1, " in str(compared)
