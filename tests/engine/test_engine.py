"""A processor that has not run yet."""

from tests.engine.support import Processor


async def test_before_the_first_run_there_is_nothing_to_tell() -> None:
    processor = Processor()
    assert processor.results == []
    assert processor.quotas == {}
    assert (await processor.get_stats())["total"] == 0
