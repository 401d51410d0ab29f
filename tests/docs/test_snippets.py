"""Every snippet of README.md and docs/, and every example, runs as a reader would run it.

Each document is one program and each example another, in a process of its own, with nothing
imported for it and nothing replaced. The environment alone is special: it names a key and, in
GOOGLE_GEMINI_BASE_URL, a local emulator, so a plain ``genai.Client()`` costs nothing.
"""

import asyncio
import os
import re
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from batch_llm.testing.gemini import GeminiEmulator
from tests.docs.run_document import fences

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LANGUAGES = {"python", "bash", "json", "jsonl", "toml", "text"}
SECONDS_FOR_A_PROGRAM = 60
WARNINGS_ARE_ERRORS = [
    "-Werror",
    # google-genai 1.46, the oldest release we support, was written before pydantic 2.12.
    "-Wignore:Using `@model_validator`:DeprecationWarning",
]
RUN_DOCUMENT = Path(__file__).with_name("run_document.py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


def _without_keys() -> dict[str, str]:
    """A developer's environment, less what would let an example spend money."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OPENAI_", "ANTHROPIC_", "PYDANTIC_AI_", "GOOGLE_", "GEMINI_"))
    }


async def run_with_emulator(*command: str | Path, folder: Path) -> None:
    """Run a Python program in an empty folder; whatever it says when it fails is shown."""
    async with GeminiEmulator() as emulator:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *WARNINGS_ARE_ERRORS,
            *command,
            cwd=folder,
            env=_without_keys()
            | {"GEMINI_API_KEY": "emulated", "GOOGLE_GEMINI_BASE_URL": emulator.base_url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(SECONDS_FOR_A_PROGRAM):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, output.decode()


@pytest.mark.real_time
@pytest.mark.gemini
@each_document
async def test_document(document: Path, tmp_path: Path) -> None:
    await run_with_emulator(RUN_DOCUMENT, document, folder=tmp_path)


@pytest.mark.real_time
@pytest.mark.gemini
@pytest.mark.parametrize("example", EXAMPLES, ids=name)
async def test_example(example: Path, tmp_path: Path) -> None:
    await run_with_emulator(example, folder=tmp_path)


@each_document
def test_each_snippet_tells_its_language(document: Path) -> None:
    told = {fence.info for fence in fences(document)}
    assert told <= LANGUAGES, "a snippet in an unknown language would go unchecked"


@each_document
def test_commands_exist(document: Path) -> None:
    commands = "\n".join(fence.content for fence in fences(document) if fence.info == "bash")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(metadata("batch-llm").get_all("Provides-Extra", []))
    assert set(re.findall(r"\bmake ([a-z-]+)", commands)) <= targets
    named = re.findall(r"batch-llm\[([^]]*)\]", commands)
    assert {extra.strip() for names in named for extra in names.split(",")} <= extras
    assert all((ROOT / script).is_file() for script in re.findall(r"python (\S+\.py)", commands))


@pytest.mark.real_time
async def test_a_failing_snippet_is_found_where_it_stands(tmp_path: Path) -> None:
    document = tmp_path / "broken.md"
    document.write_text("Text.\n```python\nx = 1\n```\n- item\n\n  ```python\n  x / 0\n  ```\n")
    with pytest.raises(AssertionError, match=r'broken.md", line 8'):
        await run_with_emulator(RUN_DOCUMENT, document, folder=tmp_path)


@pytest.mark.real_time
@pytest.mark.gemini
async def test_a_snippet_builds_on_those_before_and_reaches_the_emulator(tmp_path: Path) -> None:
    document = tmp_path / "whole.md"
    document.write_text("""
```python
from google import genai

client = genai.Client()
```

```python
answer = await client.aio.models.generate_content(model="gemini-2.5-flash", contents="Hello")
assert answer.text
await client.aio.aclose()
client.close()
```
""")
    await run_with_emulator(RUN_DOCUMENT, document, folder=tmp_path)
