"""Gemini models, through the google-genai SDK."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic

from batch_llm.base import TokenUsage, TOutput
from batch_llm.classifiers.gemini import GeminiErrorClassifier
from batch_llm.llm_strategies._gemini_client import pool_size
from batch_llm.llm_strategies._gemini_config import GeminiConfigs
from batch_llm.llm_strategies._gemini_response import check_answer, usage_of
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.strategies.errors import ErrorClassifier


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

    Raises:
        TypeError: What was passed is no client, no function, or no config.
        pydantic.ValidationError: The dict is no config.
    """

    error_classifier: ErrorClassifier | None = GeminiErrorClassifier()

    def __init__(
        self,
        model: str,
        client: Any,
        response_parser: Callable[[Any], TOutput],
        config: Any = None,
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
        self.max_concurrency: int | None = pool_size(client)
        self._configs = GeminiConfigs(client)
        # A dict that is no config fails here rather than with every item.
        self._configs.for_request(config)

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TOutput, TokenUsage]:
        """Ask the model.

        Raises:
            ResponseError: The prompt was blocked, or the answer withheld, cut off or empty.
        """
        return self._read(await self._generate(prompt))

    async def _generate(self, contents: Any, cache_name: str | None = None) -> Any:
        return await self.client.aio.models.generate_content(
            model=self.model,
            contents=contents,
            config=self._configs.for_request(self.config, cache_name),
        )

    def _read(self, response: Any) -> tuple[TOutput, TokenUsage]:
        """The output and the usage, which is read first: an answer nobody can parse is billed."""
        usage = usage_of(response)
        check_answer(response, usage)
        try:
            return self.response_parser(response), usage
        except Exception as error:
            error.__dict__["_failed_token_usage"] = usage
            raise


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
