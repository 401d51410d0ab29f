"""A provider that has no SDK: plain HTTP as a strategy, with its own error classifier.

Run it: python examples/custom_provider.py
It needs no key: a local server plays the provider, which translates into Pig Latin.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from _fake_server import Answer, fake_server

from batch_llm import (
    DefaultErrorClassifier,
    ErrorInfo,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    TokenUsage,
)

WORKERS = 4
TEXTS = ["hello world", "plain http", "swear word", "four short words here", "one more"]


class PiglatError(Exception):
    """The provider's refusal. The tokens in `usage` are counted for the failed attempt."""

    def __init__(self, kind: str, wait_seconds: float | None, usage: TokenUsage) -> None:
        super().__init__(kind)
        self.kind = kind
        self.wait_seconds = wait_seconds
        self.usage = usage


class PiglatErrorClassifier(DefaultErrorClassifier):
    """Knows the provider's own words; all else, such as a lost connection, is the default's."""

    def classify(self, exception: Exception) -> ErrorInfo:
        match exception:
            case PiglatError(kind="busy"):
                return ErrorInfo(
                    is_retryable=True,
                    is_rate_limit=True,
                    is_timeout=False,
                    error_category="rate_limit",
                    suggested_wait=exception.wait_seconds,
                )
            case PiglatError(kind="indecent"):
                return ErrorInfo(
                    is_retryable=False,
                    is_rate_limit=False,
                    is_timeout=False,
                    error_category="refused",
                )
            case _:
                return super().classify(exception)


class PiglatStrategy(LLMCallStrategy[str]):
    """Asks over HTTP, in threads of its own since urllib blocks."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def prepare(self) -> None:
        self.threads = ThreadPoolExecutor(WORKERS)

    async def cleanup(self) -> None:
        self.threads.shutdown(wait=False)

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(self.threads, self._post, {"text": prompt}, timeout)
        return reply["translation"], _usage(reply)

    def _post(self, body: dict[str, Any], timeout: float) -> dict[str, Any]:
        request = Request(self.url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=timeout) as response:
                reply: dict[str, Any] = json.load(response)
                return reply
        except HTTPError as error:
            with error:
                reply = json.load(error)
            raise PiglatError(reply["error"], reply.get("wait"), _usage(reply)) from error


def _usage(reply: dict[str, Any]) -> TokenUsage:
    read, written = reply["tokens_read"], reply["tokens_written"]
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


async def main() -> None:
    config = ProcessorConfig(max_workers=WORKERS, rate_limit=RateLimitConfig(slow_start_items=0))
    async with (
        fake_server(PlayedProvider().answer) as url,
        ParallelBatchProcessor[str, str, None](
            config=config, error_classifier=PiglatErrorClassifier()
        ) as processor,
    ):
        strategy = PiglatStrategy(url)
        for text in TEXTS:
            await processor.add_work(LLMWorkItem(text, strategy, text))
        batch = await processor.process_all()

    for result in batch.results:
        tokens = result.token_usage.get("total_tokens", 0)
        print(f"{result.item_id:22} {result.output or result.error}  ({tokens} tokens)")


class PlayedProvider:
    """Bills each word, those of a text it refuses too; is too busy for the third call."""

    def __init__(self) -> None:
        self.calls = 0

    def answer(self, body: dict[str, Any]) -> Answer:
        self.calls += 1
        words = body["text"].split()
        if self.calls == 3:
            refusal = {"error": "busy", "wait": 0.3, "tokens_read": 0, "tokens_written": 0}
            return 503, refusal, {}
        if "swear" in words:
            refusal = {"error": "indecent", "tokens_read": len(words), "tokens_written": 0}
            return 422, refusal, {}
        translation = " ".join(f"{word[1:]}{word[0]}ay" for word in words)
        tokens = {"tokens_read": len(words), "tokens_written": len(words)}
        return 200, {"translation": translation, **tokens}, {}


if __name__ == "__main__":
    asyncio.run(main())
