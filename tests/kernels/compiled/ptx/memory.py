"""The memory that kernels see: tensors as buffers far apart, and the shared memory of all blocks.

Both know of each byte whether it was ever written. Shared memory knows who touched a word since the last barrier.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptx.parse import PtxError

DISTANCE = 40
"""Buffers begin 2⁴⁰ bytes apart: no wrong offset leads from one into the next."""

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
WRITTEN = {size: UNSIGNED[size](int.from_bytes(b"\1" * size, "little")) for size in UNSIGNED}
"""What `size` bytes of a map of written bytes are where all of them were."""


class Uninitialised:
    """Of tensors that were made empty, which bytes kernels have written; they are full of NaN at first.

    What PyTorch itself writes into them is not seen: kernels that read it would be refused.
    """

    def __init__(self) -> None:
        self.written: dict[int, NDArray[np.uint8]] = {}
        """Maps by the address of the storage, as long as that lives."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Know the tensors that are made within, by the functions that the launch code calls."""
        places = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))
        with ExitStack() as stack:
            for where, name in places:
                stack.enter_context(mock.patch.object(where, name, self._noting(getattr(where, name))))
            yield

    def _noting(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            storage = tensor.untyped_storage()
            if tensor.device.type == "cpu" and storage.nbytes():
                content(tensor).fill(0xFF)
                address = storage.data_ptr()
                self.written[address] = np.zeros(storage.nbytes(), np.uint8)
                weakref.finalize(storage, self.written.pop, address, None)
            return tensor

        return made


def content(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a CPU tensor's whole storage, shared with it."""
    storage = tensor.untyped_storage()
    flat = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),))
    return flat.numpy()


class Buffer:
    """The storage of a kernel's arguments, one or several, of which their own extents may be touched."""

    def __init__(self, name: str, number: int, tensor: Tensor, written: NDArray[np.uint8] | None) -> None:
        self.name = name
        address = tensor.untyped_storage().data_ptr()
        self.base = ((number + 1) << DISTANCE) + address % 4096  # as aligned as it is in truth
        self.address, self.bytes, self.written = address, content(tensor), written
        self.first, self.end = self.bytes.size, 0
        self._views: dict[tuple[int, int], NDArray] = {}

    def admit(self, tensor: Tensor) -> int:
        """Let the extent of one more argument be touched; returns its address."""
        start = tensor.data_ptr() - self.address
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.first = min(self.first, start)
        self.end = max(self.end, start + (last + 1) * tensor.itemsize if tensor.numel() else start)
        return self.base + start

    def view(self, size: int) -> NDArray:
        """The bytes as words."""
        return self._viewed(self.bytes, 0, size)

    def written_view(self, size: int) -> NDArray | None:
        """Whether words were written: equal to WRITTEN where they were."""
        return None if self.written is None else self._viewed(self.written, 1, size)

    def _viewed(self, array: NDArray, which: int, size: int) -> NDArray:
        if (which, size) not in self._views:
            self._views[which, size] = array[: array.size // size * size].view(UNSIGNED[size])
        return self._views[which, size]


class GlobalMemory:
    """The arguments of a launch, with the bytes and the sectors of 32 bytes that go to and from each."""

    def __init__(self, uninitialised: Uninitialised | None, count_sectors: bool) -> None:
        self.buffers: list[Buffer] = []
        self.traffic: Counter[tuple[str, str]] = Counter()
        """Bytes by "load" or "store" and the argument's name."""
        self.sectors: Counter[tuple[str, str]] = Counter()
        """Likewise the sectors that each instruction of each warp touches, where they are counted."""
        self._uninitialised = {} if uninitialised is None else uninitialised.written
        self._count_sectors = count_sectors
        self._by_address: dict[int, Buffer] = {}

    def admit(self, name: str, tensor: Tensor) -> int:
        """The address of an argument in this memory."""
        address = tensor.untyped_storage().data_ptr()
        if address not in self._by_address:
            written = self._uninitialised.get(address)
            self._by_address[address] = Buffer(name, len(self.buffers), tensor, written)
            self.buffers.append(self._by_address[address])
        return self._by_address[address].admit(tensor)

    def load(self, addresses: NDArray, size: int, count: int, warps: NDArray, text: str) -> list[NDArray]:
        """`count` words of `size` bytes from each address."""
        words = [np.empty(len(addresses), UNSIGNED[size]) for _ in range(count)]
        for lanes, buffer, offsets in self._located(addresses, size, count, text):
            self._count("load", buffer, offsets, size * count, warps[lanes])
            places, view, written = offsets // size, buffer.view(size), buffer.written_view(size)
            for number, word in enumerate(words):
                word[lanes] = view[places + number]
                if written is not None and (written[places + number] != WRITTEN[size]).any():
                    raise PtxError(f"reads what nobody wrote, in {buffer.name}: {text}")
        return words

    def store(self, addresses: NDArray, words: list[NDArray], size: int, warps: NDArray, text: str) -> None:
        """The counterpart of `load`; two threads that store different values to one place are an error."""
        for lanes, buffer, offsets in self._located(addresses, size, len(words), text):
            self._count("store", buffer, offsets, size * len(words), warps[lanes])
            places, view, written = offsets // size, buffer.view(size), buffer.written_view(size)
            for number, word in enumerate(words):
                view[places + number] = word[lanes]
                if (view[places + number] != word[lanes]).any():
                    raise PtxError(f"two threads store different values to one place of {buffer.name}: {text}")
                if written is not None:
                    written[places + number] = WRITTEN[size]

    def exchange(self, addresses: NDArray, values: NDArray, adds: bool, text: str) -> NDArray:
        """Atomics of 32 bits, one thread after another; returns what stood there before."""
        before = np.empty(len(addresses), np.uint32)
        for lanes, buffer, offsets in self._located(addresses, 4, 1, text):
            view = buffer.view(4)
            for lane, place in zip(np.arange(len(addresses))[lanes], offsets // 4, strict=True):
                before[lane] = view[place]
                view[place] = before[lane] + values[lane] if adds else values[lane]
        return before

    def _located(self, addresses: NDArray, size: int, count: int, text: str) -> Any:
        """(lanes, buffer, offsets) of each buffer that is touched, after all checks of the addresses."""
        if (addresses & np.uint64(size * count - 1)).any():
            raise PtxError(f"misaligned: {text}")
        numbers = (addresses >> np.uint64(DISTANCE)).astype(np.int64) - 1
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= len(self.buffers):
            raise PtxError(f"an address in no tensor: {text}")
        for number in [low] if low == high else np.unique(numbers).tolist():
            lanes: Any = slice(None) if low == high else np.flatnonzero(numbers == number)
            buffer = self.buffers[number]
            offsets = (addresses[lanes] - np.uint64(buffer.base)).view(np.int64)
            first, last = int(offsets.min()), int(offsets.max())
            if first < buffer.first or last + size * count > buffer.end:
                outside = (offsets < buffer.first) | (offsets + size * count > buffer.end)
                raise PtxError(
                    f"{int(outside.sum())} threads out of bounds, at bytes {first} to {last} of {buffer.name}, "
                    f"which has {buffer.first} to {buffer.end - 1}: {text}"
                )
            yield lanes, buffer, offsets

    def _count(self, direction: str, buffer: Buffer, offsets: NDArray, size: int, warps: NDArray) -> None:
        self.traffic[direction, buffer.name] += len(offsets) * size
        if self._count_sectors:  # an access of 16 bytes at most, aligned, lies within one sector
            sectors = (buffer.base % 32 + offsets) // 32
            self.sectors[direction, buffer.name] += 32 * len(np.unique(warps * (sectors.max() + 1) + sectors))


class SharedMemory:
    """The shared memory of all blocks, and who touched each word since the block's last barrier.

    A word is as long as the shortest access of the program. Reading what another warp wrote, or writing what another
    warp read or wrote, without a barrier in between is an error. The threads of a warp are taken to be in step.
    """

    def __init__(self, blocks: int, size: int, word: int) -> None:
        self.size, self.word = size, word
        self.stride = -(-max(size, 16) // 16) * 16
        self.bytes = np.full(blocks * self.stride, 0xFF, np.uint8)
        self.written = np.zeros(blocks * self.stride, np.uint8)
        words = blocks * self.stride // word
        self.epoch = np.ones(blocks, np.int64)
        """Barriers that a block has passed."""
        self._writer = np.zeros(words, np.int64)
        """32 · epoch + warp of the last store."""
        self._readers = np.zeros(words, np.uint32)
        """A bit for each warp that has read in the epoch `_read_epoch`."""
        self._read_epoch = np.zeros(words, np.int64)

    def load(self, addresses: NDArray, size: int, count: int, blocks: NDArray, warps: NDArray, text: str) -> Any:
        """`count` words of `size` bytes from each address; `warps` are numbers within the block."""
        places = self._places(addresses, size, count, blocks, text)
        self._reads(places, size * count, blocks, warps, text)
        view, written = self.bytes.view(UNSIGNED[size]), self.written.view(UNSIGNED[size])
        words = []
        for number in range(count):
            at = places // size + number
            if (written[at] != WRITTEN[size]).any():
                raise PtxError(f"reads shared memory that nobody wrote: {text}")
            words.append(view[at])
        return words

    def store(
        self, addresses: NDArray, words: list[NDArray], size: int, blocks: NDArray, warps: NDArray, text: str
    ) -> None:
        """The counterpart of `load`; two threads that store different values to one place are an error."""
        places = self._places(addresses, size, len(words), blocks, text)
        view, written = self.bytes.view(UNSIGNED[size]), self.written.view(UNSIGNED[size])
        ats = [places // size + number for number in range(len(words))]
        changes = np.zeros(len(places), np.bool_)
        for at, word in zip(ats, words, strict=True):
            changes |= (view[at] != word) | (written[at] != WRITTEN[size])
        self._writes(places, size * len(words), blocks, warps, changes, text)
        for at, word in zip(ats, words, strict=True):
            view[at] = word
            written[at] = WRITTEN[size]
            if (view[at] != word).any():
                raise PtxError(f"two threads store different values to one place of shared memory: {text}")

    def forget(self, addresses: NDArray, size: int, blocks: NDArray, warps: NDArray, text: str) -> None:
        """Bytes that an asynchronous copy will write hold nothing until it has come."""
        places = self._places(addresses, size, 1, blocks, text)
        self._writes(places, size, blocks, warps, np.ones(len(places), np.bool_), text)
        for byte in range(size):
            self.written[places + byte] = 0

    def _places(self, addresses: NDArray, size: int, count: int, blocks: NDArray, text: str) -> NDArray:
        total = size * count
        if (addresses & (total - 1)).any():
            raise PtxError(f"misaligned: {text}")
        if int(addresses.min()) < 0 or int(addresses.max()) + total > self.size:
            raise PtxError(f"out of bounds, up to byte {int(addresses.max())} of {self.size} shared: {text}")
        return addresses + blocks * self.stride

    def _words(self, places: NDArray, size: int, blocks: NDArray, warps: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Words that are touched, with epoch and warp of each touch."""
        count = size // self.word
        words = places // self.word
        if count > 1:
            words = (words[:, None] + np.arange(count)).ravel()
            blocks, warps = blocks.repeat(count), warps.repeat(count)
        return words, self.epoch[blocks], warps

    def _reads(self, places: NDArray, size: int, blocks: NDArray, warps: NDArray, text: str) -> None:
        words, epoch, warps = self._words(places, size, blocks, warps)
        writer = self._writer[words]
        if ((writer >= 32 * epoch) & (writer != 32 * epoch + warps)).any():
            raise PtxError(f"reads what another warp wrote, without a barrier in between: {text}")
        self._readers[words[self._read_epoch[words] != epoch]] = 0
        self._read_epoch[words] = epoch
        np.bitwise_or.at(self._readers, words, np.uint32(1) << warps.astype(np.uint32))

    def _writes(self, places: NDArray, size: int, blocks: NDArray, warps: NDArray, changes: NDArray, text: str) -> None:
        """`changes`: where another value is written than stands there already; who repeats a value, disturbs nobody."""
        words, epoch, warps = self._words(places, size, blocks, warps)
        changes = changes.repeat(size // self.word)
        stamp, writer = 32 * epoch + warps, self._writer[words]
        others = self._readers[words] & ~(np.uint32(1) << warps.astype(np.uint32))
        if (changes & (self._read_epoch[words] == epoch) & (others != 0)).any():
            raise PtxError(f"overwrites what another warp reads, without a barrier in between: {text}")
        if (changes & (writer >= 32 * epoch) & (writer != stamp)).any():
            raise PtxError(f"two warps write to one place without a barrier in between: {text}")
        self._writer[words] = stamp  # of several in one instruction, whose values `store` compares, any one
