"""A sample of the cases, where the whole of them runs elsewhere."""

import zlib

import pytest
from covering import ONE_IN


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the first case of each test and one in ONE_IN of the others, by their names, so that no option of a product
    is left out for standing in step with the others."""
    seen: set[str] = set()
    left_out = []
    for item in items:
        name = item.nodeid.partition("[")[0]
        if name in seen and zlib.crc32(item.nodeid.rpartition("/")[2].encode()) % ONE_IN:
            left_out.append(item)
        seen.add(name)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
