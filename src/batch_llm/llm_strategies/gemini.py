"""Gemini models, through the google-genai SDK."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar, cast, overload

from batch_llm.base import TokenUsage, TOutput
from batch_llm.classifiers.gemini import GeminiErrorClassifier
from batch_llm.llm_strategies._gemini_client import pool_size
from batch_llm.llm_strategies._gemini_config import GeminiConfigs
from batch_llm.llm_strategies._gemini_response import (
    GeminiResponse,
    answer_in,
    metadata_of,
    usage_of,
)
from batch_llm.llm_strategies._usage import ReportedUsage
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.strategies.errors import ErrorClassifier

TParsed = TypeVar("TParsed")


class GeminiStrategy(LLMCallStrategy[TOutput], Generic[TOutput]):
    """Asks a Gemini model once per attempt.

    Retries of the SDK's own are switched off, and so are its automatic continuations and
    function calls, unless ``config`` sets them or holds a function as a tool.

    Args:
        model: Name of the model, such as ``"gemini-2.5-flash"``.
        client: A ``google.genai.Client``. One client serves any number of strategies.
        response_parser: Makes the output from the SDK's response. It gets only answers
            that ended normally; an exception it raises fails the attempt.
        config: A ``GenerateContentConfig``, the same as a dict, or None. It is read anew
            for each call and never changed.
        include_metadata: Whether the output is a `GeminiResponse`, which has the parser's
            output, the safety ratings and the SDK's response.

    Raises:
        TypeError: What was passed is no client, no function, or no config.
        pydantic.ValidationError: The dict is no config.
    """

    error_classifier: ErrorClassifier | None = GeminiErrorClassifier()

    @overload
    def __init__(
        self,
        model: str,
        client: Any,
        response_parser: Callable[[Any], TOutput],
        config: Any = ...,
        *,
        include_metadata: Literal[False] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: "GeminiStrategy[GeminiResponse[TParsed]]",
        model: str,
        client: Any,
        response_parser: Callable[[Any], TParsed],
        config: Any = ...,
        *,
        include_metadata: Literal[True],
    ) -> None: ...

    def __init__(
        self,
        model: str,
        client: Any,
        response_parser: Callable[[Any], Any],
        config: Any = None,
        *,
        include_metadata: bool = False,
    ) -> None:
        _check_client(client)
        _check_config(config)
        if not callable(response_parser):
            raise TypeError(
                f"response_parser must be a function of the response (got {response_parser!r}); "
                "pass for instance lambda response: response.text"
            )
        if inspect.iscoroutinefunction(response_parser):
            raise TypeError(
                "response_parser must not be async (got an async function); parse in a plain "
                "function, and await elsewhere, such as in a post-processor"
            )
        self.model = model
        self.client = client
        self.response_parser = response_parser
        self.config = config
        self.include_metadata = include_metadata
        self.max_concurrency: int | None = pool_size(client)
        self.quota: str | None = f"gemini/{model}"
        self._configs = GeminiConfigs(client)
        # A dict that is no config fails here rather than with every item.
        self._configs.for_request(config)

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TOutput, TokenUsage]:
        """Ask the model.

        Returns:
            The output, and the tokens. They bring along in ``metadata`` what the API says of
            the answer: ``safety_ratings``, ``finish_reason`` and ``model_version``.

        Raises:
            ResponseError: The prompt was blocked, or the answer withheld, cut off or empty.
        """
        return self._read(await self._generate(prompt))

    async def dry_run(self, prompt: str) -> tuple[TOutput, TokenUsage]:
        """Stand in for ``execute`` when ``ProcessorConfig.dry_run`` is on.

        Returns:
            A mock output with the head of the prompt, in a `GeminiResponse` where one is asked
            for, and 100/50/150 tokens.
        """
        output, usage = await super().dry_run(prompt)
        if self.include_metadata:
            response: Any = GeminiResponse(output, token_usage=usage)
            return response, usage
        return output, usage

    async def _generate(self, contents: Any, cache_name: str | None = None) -> Any:
        return await self.client.aio.models.generate_content(
            model=self.model,
            contents=contents,
            config=self._configs.for_request(self.config, cache_name),
        )

    def _read(self, response: Any) -> tuple[TOutput, TokenUsage]:
        """The output and the usage, which is read first: an answer nobody can parse is billed."""
        usage = usage_of(response)
        candidate = answer_in(response, usage)
        try:
            output: Any = self.response_parser(response)
        except Exception as error:
            error.__dict__["_failed_token_usage"] = usage
            raise
        metadata = metadata_of(response, candidate)
        if self.include_metadata:
            output = GeminiResponse(output, token_usage=usage, raw_response=response, **metadata)
        return output, cast("TokenUsage", ReportedUsage(usage, metadata))


def _check_config(config: object) -> None:
    if not (config is None or isinstance(config, Mapping) or hasattr(config, "model_copy")):
        raise TypeError(
            "config must be a GenerateContentConfig, a dict or None (got "
            f"{type(config).__name__}); pass for instance {{'temperature': 0.2}}"
        )


def _check_client(client: Any) -> None:
    if hasattr(client, "aio"):
        return
    if hasattr(client, "models"):
        advice = "pass the Client itself, not its .aio"
    else:
        advice = (
            "make one with google.genai.Client(api_key=...), which needs: "
            'pip install "batch-llm[gemini]"'
        )
    # Not its value: it may be a key.
    raise TypeError(f"client must be a google.genai.Client (got {type(client).__name__}); {advice}")
