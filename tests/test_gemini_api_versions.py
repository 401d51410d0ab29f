"""Every release of google-genai, or none: what is installed is looked at, not its number."""

import builtins
import sys
import warnings
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, patch

import pytest
from google import genai
from google.genai import types

from batch_llm.llm_strategies import GeminiCachedStrategy, GeminiStrategy
from batch_llm.testing.gemini import GeminiEmulator

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100


def text_of(response: Any) -> str:
    return str(response.text)


def client_with(create: Any) -> Any:
    client = MagicMock()
    client.aio.caches.list = AsyncMock(return_value=[])
    client.aio.caches.create = create
    client.aio.models.generate_content = AsyncMock(return_value=MagicMock(text="Hi"))
    return client


class Creations:
    """Caches' creation as different releases take it; remembers what it was given."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    async def with_config(self, *, model: str, config: Any = None) -> Any:
        self.given = {"model": model, "config": config}
        return SimpleNamespace(name="cachedContents/1")

    async def with_contents(self, *, model: str, contents: Any, config: Any = None) -> Any:
        self.given = {"model": model, "contents": contents, "config": config}
        return SimpleNamespace(name="cachedContents/1")


class TestDetection:
    def test_the_installed_release(self) -> None:
        assert GeminiCachedStrategy._detect_google_genai_version() == "v1.46+"
        strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK)
        assert strategy._api_version == "v1.46+"

    def test_without_the_type_or_without_the_sdk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patched:
            patched.delattr(types, "CreateCachedContentConfig")
            assert GeminiCachedStrategy._detect_google_genai_version() == "v1.45"
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "google.genai.types", None)
            assert GeminiCachedStrategy._detect_google_genai_version() == "v1.45"

        def barred(name: str, *rest: Any, **more: Any) -> Any:
            raise ImportError(name)

        with monkeypatch.context() as patched:
            patched.setattr(builtins, "__import__", barred)
            detected = GeminiCachedStrategy._detect_google_genai_version()
        assert detected == "v1.45"


class TestCreation:
    async def test_a_typed_config(self) -> None:
        creations = Creations()
        strategy = GeminiCachedStrategy(
            MODEL, client_with(creations.with_config), text_of, BOOK, 1800
        )
        await strategy.prepare()
        config = creations.given["config"]
        assert isinstance(config, types.CreateCachedContentConfig)
        assert (config.ttl, config.contents) == ("1800s", BOOK)

    async def test_contents_beside_the_config_where_the_signature_has_them(self) -> None:
        creations = Creations()
        strategy = GeminiCachedStrategy(
            MODEL, client_with(creations.with_contents), text_of, BOOK, 1800
        )
        await strategy.prepare()
        assert creations.given["contents"] == BOOK
        assert creations.given["config"].contents is None
        assert creations.given["config"].ttl == "1800s"

    async def test_a_signature_that_nobody_can_read(self) -> None:
        creations = Creations()

        class Unreadable:
            __signature__ = "none"

            def __call__(self, **arguments: Any) -> Any:
                return creations.with_config(**arguments)

        strategy = GeminiCachedStrategy(MODEL, client_with(Unreadable()), text_of, BOOK)
        await strategy.prepare()
        assert creations.given["config"].ttl == "3600s"

    async def test_without_the_type_a_dict_says_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(types, "CreateCachedContentConfig")
        creations = Creations()
        client = client_with(creations.with_config)
        with pytest.warns(DeprecationWarning, match="before 1.46"):
            strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK)
        await strategy.prepare()
        config = creations.given["config"]
        assert config.pop("display_name").startswith("batch-llm ")
        assert config == {"ttl": "3600s", "contents": BOOK}


class TestOldReleases:
    async def test_work_and_warn_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(genai, "__version__", "1.45.0")
        async with GeminiEmulator() as server:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                strategy = GeminiCachedStrategy(MODEL, server.client(), text_of, BOOK)
                await strategy.prepare()
                _, usage = await strategy.execute("Who?", 1, 60.0)
        assert usage["cached_input_tokens"] > 1024
        (warning,) = caught
        assert warning.category is DeprecationWarning
        assert "installed: 1.45.0" in str(warning.message)
        assert warning.filename == __file__

    async def test_so_they_do_where_a_test_says_that_they_are_old(self) -> None:
        creations = Creations()
        with (
            patch.object(
                GeminiCachedStrategy, "_detect_google_genai_version", return_value="v1.45"
            ),
            pytest.warns(DeprecationWarning, match="before 1.46"),
        ):
            strategy = GeminiCachedStrategy(
                MODEL, client_with(creations.with_config), text_of, BOOK
            )
        assert strategy._api_version == "v1.45"
        await strategy.prepare()
        assert creations.given["config"].ttl == "3600s"

    @pytest.mark.parametrize("version", ["1.46.0", "2.0.0rc1", "10.0", "unknown"])
    def test_others_do_not_warn(self, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(genai, "__version__", version)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK)
        assert not caught

    def test_no_sdk_is_no_old_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "google.genai.types", None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK)
        assert not caught
        assert strategy._api_version == "v1.45"


class TestOptionsTheSdkLacks:
    async def test_retries_that_cannot_be_configured_are_left_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fields = dict(types.HttpOptions.model_fields)
        del fields["retry_options"]
        told = types.HttpOptions(retry_options=types.HttpRetryOptions(attempts=1))
        told.retry_options.attempts = 2  # type: ignore[union-attr]
        async with GeminiEmulator() as server:
            client = server.client(http_options=told)
            monkeypatch.setattr(types, "HttpOptions", SimpleNamespace(model_fields=fields))
            config = GeminiStrategy(MODEL, client, text_of)._configs.for_request(None)
        assert config.http_options is None

    async def test_continuations_that_do_not_exist_are_not_switched_off(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        strategy = GeminiStrategy(MODEL, MagicMock(), text_of)
        known = "automatic_continuation" in types.GenerateContentConfig.model_fields
        sent = strategy._configs.for_request(None)
        assert ("automatic_continuation" in sent.model_fields_set) is known
