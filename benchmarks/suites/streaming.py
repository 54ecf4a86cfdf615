"""A store larger than the memory that may be used: does a loader stream it, how fast, and with how much memory?

    python -m benchmarks.suites.streaming STORE KIND [--group FOLDER] [--epochs N]

STORE is made by `synthetic_store`. One process goes through it in shuffled batches of 512 and checks of every image
that it is the one asked for. With `--group` it joins a control group (`limited_group`) that limits its memory in all,
page cache included. Prints one JSON object: images a second of each epoch, how many images were wrong, and the most
anonymous memory (RssAnon, of the process and its children together) at any time.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

SIDE, BATCH = 32, 512
_BLOCK = 20_000  # images drawn and written at a time


def synthetic_store(root: Path, total: int) -> Path:
    """A decoded store of random images, `total` bytes of them, each with its position in its first eight bytes."""
    import numpy as np

    from fastres.data.store.decoded import Writer, building, write_manifest

    count = total // (SIDE * SIDE * 3)
    path = root / "stores" / f"synthetic-{count}"
    with building(path, quiet=True, rebuild=False) as folder:
        if folder is not None:
            writer = Writer(folder)
            random = np.random.default_rng(0)
            labels = np.arange(count) % 10
            for part, images in (("train", count), ("test", 10)):
                with writer.images(part, images, SIDE) as file:
                    for start in range(0, images, _BLOCK):
                        block = random.integers(0, 256, (min(_BLOCK, images - start), SIDE * SIDE * 3), dtype=np.uint8)
                        block[:, :8] = np.arange(start, start + len(block))[:, None].view(np.uint8)
                        file.write(start, block)
                writer.array(f"{part}_labels", labels[:images])
            names: Any = {"name": "synthetic", "source": "synthetic", "classes": tuple("0123456789")}
            write_manifest(folder, **names, image_size=SIDE, facts=writer.facts)
    return path


def forget(folder: Path) -> None:
    """Drop the files below `folder` from the page cache: who reads them next is charged for them."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what is not written yet is not dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def anonymous_bytes(process: int) -> int:
    """RssAnon of a process and its descendants."""
    total = 0
    with suppress(OSError):  # it ended
        status = Path(f"/proc/{process}/status").read_text()
        total = 1024 * sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(OSError):
                for child in (task / "children").read_text().split():
                    total += anonymous_bytes(int(child))
    return total


@contextmanager
def limited_group(limit: int) -> Iterator[Path]:
    """A memory control group below this process's own, for at most `limit` bytes; OSError where none can be made.

    A process joins it by writing its number to `cgroup.procs` in the yielded folder.
    """
    groups = dict(line.split(":")[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in groups:  # version 1
        parent, name, more = Path("/sys/fs/cgroup/memory") / groups["memory"].lstrip("/"), "memory.limit_in_bytes", ""
    else:
        parent, name, more = Path("/sys/fs/cgroup") / groups[""].lstrip("/"), "memory.max", "memory.swap.max"
    group = parent / f"fastres-{os.getpid()}"
    group.mkdir()
    try:
        if not (group / "cgroup.procs").exists():
            raise OSError(f"{parent} is no control group")
        (group / name).write_text(str(limit))
        if more:
            with suppress(OSError):
                (group / more).write_text("0")
        yield group
    finally:
        for _ in range(50):  # a process that has just ended may still be counted
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def go_through(store: Path, kind: str, epochs: int) -> dict[str, Any]:
    """Read the store's training images with the loader `kind`."""
    import numpy as np

    from fastres.data.loaders import make_loader
    from fastres.data.store.decoded import open_store
    from fastres.engine.memory import keep_freed_memory

    keep_freed_memory()
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, anonymous_bytes(os.getpid()))
            over.wait(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    rates, wrong = [], 0
    try:
        with make_loader(open_store(store, "synthetic"), loader=kind, batch_size=BATCH, seed=0) as loader:
            for epoch in range(epochs):
                began, count = time.perf_counter(), 0
                for batch in loader.batches(epoch):
                    count += len(batch.rows)
                    first = batch.source[:, 0, :, :].reshape(len(batch.source), -1)[:, :8].contiguous().numpy()
                    wrong += int(np.sum(first.view(np.int64)[:, 0] != batch.indices.numpy()))
                rates.append(count / (time.perf_counter() - began))
    finally:
        over.set()
        watcher.join()
    return {"loader": kind, "images": count, "images_per_second": rates, "wrong": wrong, "peak_anonymous_bytes": peak}


def run(store: Path, kind: str, *, epochs: int = 1, limit: int | None = None) -> dict[str, Any]:
    """`go_through` in a process of its own, which may use `limit` bytes of memory in all. It begins with nothing in the
    page cache, since what another process has read there counts against no limit of this one."""
    forget(store.parent)
    command = [sys.executable, "-m", "benchmarks.suites.streaming", str(store), kind, "--epochs", str(epochs)]
    with limited_group(limit) if limit else nullcontext() as group:
        more = [] if group is None else ["--group", str(group)]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{kind} ended with status {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites.streaming", description=__doc__.split("\n\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("kind", choices=["ffcv", "dali", "torch"])
    parser.add_argument("--group", type=Path, help="a control group to join")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    if options.group is not None:
        (options.group / "cgroup.procs").write_text(str(os.getpid()))
    print(json.dumps(go_through(options.store, options.kind, options.epochs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
