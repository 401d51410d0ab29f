"""The suite's own rules bite: each of these small suites breaks one."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = real_time\nfilterwarnings = error")
    return pytester


def test_async_tests_run_in_virtual_time_unless_they_ask_for_real_time(
    suite: pytest.Pytester,
) -> None:
    suite.makepyfile(
        """
        import asyncio, time
        import pytest
        from hypothesis import given, settings, strategies as st

        @pytest.fixture
        def hour():
            return 3600

        async def test_an_hour_takes_no_time(hour):
            start = time.monotonic()
            await asyncio.sleep(hour)
            assert time.monotonic() - start < 60

        @settings(max_examples=3)
        @given(st.just(3600))
        async def test_given_is_awaited(hour):
            await asyncio.sleep(hour)
            assert hour == 0

        @pytest.mark.real_time
        async def test_real_time():
            assert asyncio.get_running_loop().time() == pytest.approx(time.monotonic(), abs=60)
        """
    )
    result = suite.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines("FAILED *::test_given_is_awaited*")


def test_whatever_a_test_leaves_behind_fails_it(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import asyncio, socket, threading

        KEPT = []

        async def test_task():
            KEPT.append(asyncio.create_task(asyncio.sleep(5)))

        def test_thread():
            threading.Thread(target=threading.Event().wait, daemon=True).start()

        def test_socket():
            KEPT.append(socket.socket())

        def test_file():
            KEPT.append(open(__file__))

        def test_tidy():
            with open(__file__), socket.socket():
                pass
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
        """
    )
    result = suite.runpytest_subprocess("-p", "no:randomly", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4, failed=1, errors=3)
    result.stdout.fnmatch_lines("*tasks still running*")
    result.stdout.fnmatch_lines("*thread still running*")
    result.stdout.fnmatch_lines("*files or sockets still open*socket:*")
    result.stdout.fnmatch_lines("*files or sockets still open*.py*")


def test_a_real_provider_is_called_only_with_a_key(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.mkdir("live").joinpath("test_it.py").write_text("def test_call(): pass")
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    suite.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(skipped=1)
    monkeypatch.setenv("GEMINI_API_KEY", "a key")
    suite.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def sleeps(tree: ast.AST) -> list[int]:
    """Lines that wait in real time: any time.sleep, and asyncio.sleep in a real-time test."""
    lines = [node.lineno for node in ast.walk(tree) if _calls(node, "time.sleep")]
    for test in ast.walk(tree):
        if isinstance(test, ast.AsyncFunctionDef) and any(
            "real_time" in ast.unparse(decorator) for decorator in test.decorator_list
        ):
            lines += [
                node.lineno
                for node in ast.walk(test)
                if _calls(node, "asyncio.sleep") and ast.unparse(node.args[0]) != "0"
            ]
    return lines


def _calls(node: ast.AST, function: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == function


def test_no_test_sleeps() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        if TESTS / "live" not in path.parents
        for line in sleeps(ast.parse(path.read_text()))
    ]
    assert not found


def test_a_sleep_is_found() -> None:
    sample = """
time.sleep(1)

@pytest.mark.real_time
async def test_slow():
    await asyncio.sleep(0)
    await asyncio.sleep(0.1)

async def test_virtual():
    await asyncio.sleep(3600)
"""
    assert sleeps(ast.parse(sample)) == [2, 7]
