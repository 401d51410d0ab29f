"""How much of what came stands in a result's error."""

from batch_llm.testing.gemini import Fault
from tests.fuzz.support import of, run_among_good_ones
from tests.fuzz.test_gemini_answers import MEGABYTE, plain


async def test_an_error_is_no_page() -> None:
    page = Fault.raw(b"<html>" + b"x" * MEGABYTE, status=502)
    error = of(await run_among_good_ones({"page": page}, plain), "page").error
    assert error is not None
    assert error.startswith("ServerError: 502 Bad Gateway. {'message': '<html>xxx")
    assert len(error) <= 2_100
    assert error.endswith(" characters)")
