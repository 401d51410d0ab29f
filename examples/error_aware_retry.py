"""After a refused answer, ask again and say what was wrong with it.

`on_error` hears why an attempt failed, and the item's state keeps it for the next attempt:
one strategy serves all items, and each remembers only what was wrong with its own answer.

Run it: python examples/error_aware_retry.py
With GEMINI_API_KEY set it asks Gemini, else a local server that plays it.
"""

import asyncio

from _gemini import gemini_client
from pydantic import BaseModel, Field, field_validator

from batch_llm import (
    GeminiErrorClassifier,
    GeminiStrategy,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryState,
    StructuredOutputError,
    TokenUsage,
    parse_json,
)
from batch_llm.testing.gemini import RecordedRequest

PRODUCTS = ["a lamp", "a tent", "a kettle", "a bicycle bell"]


class Slogan(BaseModel):
    text: str = Field(max_length=60)

    @field_validator("text")
    @classmethod
    def _keep_calm(cls, text: str) -> str:
        """A rule that a response schema cannot express."""
        if "!" in text:
            raise ValueError("do not shout: no exclamation marks")
        return text


class WithFeedback(LLMCallStrategy[Slogan]):
    """Tells the model what was wrong with its last answer to the same prompt."""

    def __init__(self, inner: LLMCallStrategy[Slogan]) -> None:
        self.inner = inner

    async def execute(
        self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
    ) -> tuple[Slogan, TokenUsage]:
        feedback = "" if state is None else state.get("feedback", "")
        return await self.inner.execute(prompt + feedback, attempt, timeout)

    async def on_error(
        self, exception: Exception, attempt: int, state: RetryState | None = None
    ) -> None:
        # A timeout or a rate limit says nothing about the answer: keep what is known.
        if state is not None and isinstance(exception, StructuredOutputError):
            problems = [f"{path}: {reason}" for path, reason in exception.failing_fields.items()]
            problems = problems or [str(exception)]
            state["feedback"] = "\n\nYour last answer was refused. " + "\n".join(problems)
            print(f"refused   {problems[0]}")


async def main() -> None:
    async with (
        gemini_client(played_answer) as client,
        ParallelBatchProcessor[str, Slogan, None](
            config=ProcessorConfig(max_workers=4), error_classifier=GeminiErrorClassifier()
        ) as processor,
    ):
        strategy = WithFeedback(
            GeminiStrategy(
                model="gemini-2.5-flash",
                client=client,
                response_parser=parse_json(Slogan),
                config={"response_mime_type": "application/json", "response_schema": Slogan},
            )
        )
        for product in PRODUCTS:
            prompt = f"Write a rousing slogan for {product}."
            await processor.add_work(LLMWorkItem(product, strategy, prompt))
        batch = await processor.process_all()

    for result in batch.results:
        answer = result.output.text if result.output else result.error
        print(f"accepted  {result.item_id}: {answer} (attempt {result.attempts})")


def played_answer(request: RecordedRequest) -> dict[str, object]:
    """Shouts about all but the tent until it is told not to."""
    product = next(product for product in PRODUCTS if f"for {product}." in request.prompt)
    calm = product == "a tent" or "do not shout" in request.prompt
    return {"text": f"There is nothing like {product}{'.' if calm else '!!!'}"}


if __name__ == "__main__":
    asyncio.run(main())
