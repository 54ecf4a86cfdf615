"""Work done ahead of its consumer, by threads, in order, and never too far."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, depth: int
) -> Generator[Result, None, None]:
    """`function(item)` for each of `items`, in their order, computed by `threads` threads.

    At most `depth` results are finished or under way beyond the one that the consumer has. What `function` raises is
    raised here, at its item's turn. Closing the generator waits for the calls under way and leaves no thread.
    """
    remaining = iter(items)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="loader") as pool:
        try:
            pending.extend(pool.submit(function, item) for item in islice(remaining, depth))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
