"""Tags of a Gemini cache: two versions of a prompt never share one, and a person can read them."""

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import GeminiCachedStrategy
from batch_llm.llm_strategies._gemini_content import display_name_of
from batch_llm.testing.gemini import Fault, GeminiEmulator

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100
PARTS = {"contents": [BOOK]}
BARE = display_name_of(PARTS)

TAGS = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=60), max_size=4)


def text_of(response: Any) -> str:
    return str(response.text)


def cached(server: GeminiEmulator, tags: Any = None, **options: Any) -> Any:
    client = server.client(vertex=options.pop("vertex", False))
    content = options.pop("content", BOOK)
    return GeminiCachedStrategy(MODEL, client, text_of, content, cache_tags=tags, **options)


def names_of(server: GeminiEmulator) -> list[str | None]:
    return [cache.display_name for cache in server.caches.values()]


class TestDisplayName:
    def test_without_tags_is_what_it_always_was(self) -> None:
        assert display_name_of(PARTS, {}) == display_name_of(PARTS, None) == BARE
        assert len(BARE) == len("batch-llm ") + 64

    def test_has_tags_that_fit_in_full_and_in_order(self) -> None:
        tags = {"purpose": "enrich/books", "prompt_version": "3"}
        name = display_name_of(PARTS, tags)
        assert name == f"{BARE} prompt_version=3&purpose=enrich/books"
        assert display_name_of(PARTS, dict(reversed(tags.items()))) == name

    def test_has_a_digest_and_the_beginning_of_tags_that_do_not_fit(self) -> None:
        name = display_name_of(PARTS, {"prompt_version": "2026-11-22", "purpose": "p" * 40})
        # In full, since other processes and releases have to find it.
        assert name == f"{BARE} #-i5iPaqkYfQZtpsCkII5 prompt_version=2026-11-22&purpo"
        assert len(name) == 128

    def test_fills_the_room_to_the_last_character(self) -> None:
        room = 128 - len(BARE) - 1
        fits, exceeds = ({"k": "v" * (room - 2 + more)} for more in (0, 1))
        assert display_name_of(PARTS, fits) == f"{BARE} k={fits['k']}"
        assert display_name_of(PARTS, exceeds).startswith(f"{BARE} #")

    def test_a_difference_behind_what_can_be_read_is_one(self) -> None:
        one, other = ({"note": "n" * 100 + end} for end in "ab")
        assert display_name_of(PARTS, one) != display_name_of(PARTS, other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": "b&c=d"}, {"a": "b", "c": "d"}),
            ({"a=b": "c"}, {"a": "b=c"}),
            ({"a": " b"}, {"a": "b"}),
            ({"a": "+"}, {"a": " "}),
            ({"a": "%20"}, {"a": " "}),
            ({"a": "ü"}, {"a": "%C3%BC"}),
            ({"a": ""}, {"a ": ""}),
            ({"a": "b"}, {"A": "b"}),
        ],
        ids=str,
    )
    def test_tags_that_look_alike_are_told_apart(self, one: Any, other: Any) -> None:
        assert display_name_of(PARTS, one) != display_name_of(PARTS, other)

    @given(TAGS, TAGS)
    def test_differs_where_the_tags_do(self, one: dict[str, str], other: dict[str, str]) -> None:
        names = display_name_of(PARTS, one), display_name_of(PARTS, other)
        assert (names[0] == names[1]) == (one == other)
        assert (names[0] == BARE) == (not one)
        for name in names:
            assert len(name) <= 128
            assert name.isascii()
            assert name.isprintable()

    def test_half_a_character_is_one_too(self) -> None:
        one, other = (display_name_of(PARTS, {"a": half}) for half in ("\ud83d", "\ud83e"))
        assert one != other


class TestReuse:
    @pytest.mark.parametrize("vertex", [False, True])
    @pytest.mark.parametrize(
        ("there", "wanted"),
        [
            ({"prompt_version": "1"}, {"prompt_version": "2"}),
            ({"prompt_version": "1"}, {"prompt_version": "1", "purpose": "test"}),
            ({"prompt_version": "1"}, None),
            (None, {"prompt_version": "1"}),
            ({"note": "n" * 100 + "a"}, {"note": "n" * 100 + "b"}),
        ],
        ids=str,
    )
    async def test_never_of_other_tags(self, there: Any, wanted: Any, vertex: bool) -> None:
        async with GeminiEmulator() as server:
            first = cached(server, there, vertex=vertex)
            await first.prepare()
            second = cached(server, wanted, vertex=vertex)
            await second.prepare()
            assert server.count("cache_create") == 2
            assert first.cache_info().name != second.cache_info().name
            assert second.cache_info().rejected == {"other_tags": 1}

    @pytest.mark.parametrize(
        "tags", [{"b": "2", "a": "1"}, {"note": "n" * 200}, {}, None], ids=["two", "long", "", "-"]
    )
    async def test_of_the_same_tags_in_any_order(self, tags: Any) -> None:
        async with GeminiEmulator() as server:
            await cached(server, tags).prepare()
            strategy = cached(server, tags and dict(reversed(tags.items())))
            await strategy.prepare()
            assert server.count("cache_create") == 1
            assert strategy.cache_info().status == "found"

    async def test_of_the_same_tags_is_none_of_other_contents(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server, {"prompt_version": "1"}).prepare()
            strategy = cached(server, {"prompt_version": "1"}, content=f"{BOOK}!")
            await strategy.prepare()
            assert server.count("cache_create") == 2
            assert strategy.cache_info().rejected == {"other_contents": 1}

    async def test_of_what_was_made_before_there_were_tags(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            made = await client.aio.caches.create(
                model=MODEL, config={"contents": BOOK, "display_name": BARE}
            )
            strategy = cached(server)
            await strategy.prepare()
            assert strategy.cache_info().name == made.name


class TestTheProvidersList:
    async def test_shows_the_tags(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server, {"prompt_version": "3", "purpose": "enrichment"}).prepare()
            (name,) = names_of(server)
        assert name is not None
        assert name.endswith(" prompt_version=3&purpose=enrichment")

    async def test_shows_them_also_of_a_cache_made_in_place_of_another(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, {"prompt_version": "3"})
            await strategy.prepare()
            await asyncio.sleep(3400)
            server.script(Fault.status(500), operation="cache_update")
            await strategy.execute("Who?", 1, 60.0)
            names = names_of(server)
        assert names == [f"{BARE} prompt_version=3"] * 2


class TestAtTheDoor:
    def test_the_callers_dict_is_copied(self) -> None:
        tags = {"prompt_version": "1"}
        strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_tags=tags)
        tags["prompt_version"] = "2"
        assert strategy.cache_tags == {"prompt_version": "1"}
        assert GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK).cache_tags == {}

    def test_as_many_and_as_long_as_may_be(self) -> None:
        tags = {f"{number:0128}": "v" * 256 for number in range(50)}
        strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_tags=tags)
        assert strategy.cache_tags == tags

    @pytest.mark.parametrize(
        ("tags", "error", "message"),
        [
            ("prompt_version=1", TypeError, r"must be a dict of texts \(got str\)"),
            ([("a", "b")], TypeError, r"must be a dict of texts \(got list\)"),
            ({"prompt_version": 3}, TypeError, r"must be texts \(got str and int\)"),
            ({3: "prompt_version"}, TypeError, r"must be texts \(got int and str\)"),
            ({"a": None}, TypeError, r"must be texts \(got str and NoneType\)"),
            ({"": "a"}, ValueError, r"must not be blank \(got ''\)"),
            ({" \t": "a"}, ValueError, "must not be blank"),
            ({"k" * 129: "a"}, ValueError, r"a key .* at most 128 characters \(got 129\)"),
            ({"a": "v" * 257}, ValueError, r"a value .* at most 256 characters \(got 257\)"),
            ({str(n): "" for n in range(51)}, ValueError, r"at most 50 \(got 51\)"),
        ],
    )
    def test_what_is_no_tag_is_refused(self, tags: Any, error: Any, message: str) -> None:
        with pytest.raises(error, match=message):
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_tags=tags)
