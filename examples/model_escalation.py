"""A cheap model first, a stronger one for what it could not do.

`attempt` counts from 1 and goes up after each failure. A rate limit says nothing about the
model, so a refused call is repeated with the same attempt number, hence by the same model.

Run it: python examples/model_escalation.py
With GEMINI_API_KEY set it asks Gemini, else a local server that plays it.
"""

import asyncio
from collections.abc import Sequence
from typing import Literal

from _gemini import gemini_client
from pydantic import BaseModel, Field

from batch_llm import (
    GeminiErrorClassifier,
    GeminiStrategy,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    TokenUsage,
    parse_json,
)
from batch_llm.testing.gemini import Fault, RecordedRequest

MODELS = ["gemini-2.5-flash-lite", "gemini-2.5-flash", "gemini-2.5-pro"]
TICKETS = {
    "T-1": "I was charged twice in May.",
    "T-2": "The app crashes when I open it.",
    "T-3": "It logs me out, then bills me for a new account.",
    "T-4": "Where is my parcel?",
    "T-5": "As discussed, the usual, but not like last time!",
}


class Routing(BaseModel):
    team: Literal["billing", "engineering", "shipping"]
    urgency: int = Field(ge=1, le=5)


class Escalating(LLMCallStrategy[Routing]):
    """Asks its first strategy on attempt 1, the second on attempt 2, and so on."""

    def __init__(self, steps: Sequence[LLMCallStrategy[Routing]]) -> None:
        self.steps = steps

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[Routing, TokenUsage]:
        step = self.steps[min(attempt, len(self.steps)) - 1]
        return await step.execute(prompt, attempt, timeout)


async def main() -> None:
    config = ProcessorConfig(
        max_workers=3,
        retry=RetryConfig(max_attempts=len(MODELS)),
        rate_limit=RateLimitConfig(slow_start_items=0),
    )
    async with (
        gemini_client(played_answer, played_fault) as client,
        ParallelBatchProcessor[str, Routing, None](
            config=config, error_classifier=GeminiErrorClassifier()
        ) as processor,
    ):
        strategy = Escalating(
            [
                GeminiStrategy(
                    model=model,
                    client=client,
                    response_parser=parse_json(Routing),
                    config={"response_mime_type": "application/json", "response_schema": Routing},
                )
                for model in MODELS
            ]
        )
        for ticket, text in TICKETS.items():
            await processor.add_work(LLMWorkItem(ticket, strategy, f"Route this ticket: {text}"))
        batch = await processor.process_all()
        stats = await processor.get_stats()

    for result in sorted(batch.results, key=lambda result: result.item_id):
        answer = result.output.team if result.output else result.error
        print(f"{result.item_id}  {answer:12} by {MODELS[result.attempts - 1]}")
    print(f"\nCalls refused for the rate limit, at no attempt's cost: {stats['rate_limit_count']}")


def played_answer(request: RecordedRequest) -> dict[str, object]:
    """T-3 is too hard for the smallest model, and T-5 for all but the largest."""
    needed = {"T-3": 1, "T-5": 2}
    ticket = next(ticket for ticket, text in TICKETS.items() if text in request.prompt)
    if MODELS.index(request.model or "") < needed.get(ticket, 0):
        return {"team": "not sure", "urgency": 3}
    team = {"T-2": "engineering", "T-4": "shipping"}.get(ticket, "billing")
    return {"team": team, "urgency": 3}


def played_fault(request: RecordedRequest) -> Fault | None:
    """The second call is refused, with the advice to wait 0.3 seconds."""
    return Fault.rate_limit(0.3) if request.index == 1 else None


if __name__ == "__main__":
    asyncio.run(main())
