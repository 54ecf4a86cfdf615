"""The unpickler reads what NumPy and both Pythons write, and does nothing else, whatever the bytes."""

import os
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastres.data.untrusted import unpickle
from fastres.errors import UserError

# What Python 2 and NumPy 1 wrote for {'data': array([[1, 2], [3, 4]], uint8), 'labels': [6, 9]}, protocol 2 and 0.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
    b"(K\x01K\x02K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89U\x04\x01\x02\x03\x04tbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
)
PYTHON2_PROTOCOL0 = (
    b"(dp0\nS'data'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
    b"(I1\n(I2\nI2\ntp8\ncnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
    b"I00\nS'\\x01\\x02\\x03\\x04'\np15\ntp16\nbsS'labels'\np17\n(lp18\nI6\naI9\nas."
)


@pytest.mark.parametrize("data", [PYTHON2, PYTHON2_PROTOCOL0])
def test_python_2_pickles(data: bytes) -> None:
    content = unpickle.load(data, "x")
    assert content["data"].dtype == np.uint8
    assert content["data"].tolist() == [[1, 2], [3, 4]]
    assert content["labels"] == [6, 9]


arrays = hnp.arrays(
    st.sampled_from(["u1", "<i8", ">i4", "f4", "S3", "U2"]), hnp.array_shapes(max_dims=4, max_side=4, min_side=1)
)


@given(arrays, st.integers(0, 5), st.booleans(), st.booleans())
def test_what_numpy_writes_comes_back(array: np.ndarray, protocol: int, fortran: bool, turned: bool) -> None:
    array = array.T if turned else array
    array = np.asfortranarray(array) if fortran else array
    data = pickle.dumps({b"data": array, "ids": ["a", b"b", 3], "number": np.int64(7)}, protocol)
    content = unpickle.load(data, "x")
    # Compared as bytes, because a NaN differs from itself.
    assert content["data"].tobytes() == array.tobytes()
    assert content["data"].dtype == array.dtype
    assert content["data"].shape == array.shape
    assert content["ids"] == ["a", b"b", 3]
    assert content["number"] == 7
    old = data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data
    assert unpickle.load(old, "x")["data"].shape == array.shape


class Runs:
    """Unpickled by pickle, this runs a command."""

    def __init__(self, target: Path) -> None:
        self.command = f"touch {target}"

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_os_system_does_not_run(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({b"data": Runs(tmp_path / "ran")}, protocol))
    with pytest.raises(UserError, match=r"not run: it asks for (posix|nt)\.system"):
        unpickle.load_file(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert (tmp_path / "ran").exists()


NDARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
UINT8 = b"cnumpy\ndtype\n(V|u1\nI0\nI1\ntR"
HOSTILE = {
    "a reconstruct of terabytes": b"}Vdata\n" + NDARRAY + b"(I1099511627776\ntVb\ntRs.",
    "a state of terabytes": b"}Vdata\n" + NDARRAY + b"(I0\ntVb\ntR(I1\n(I1099511627776\nt" + UINT8 + b"I00\nC\x01xtbs.",
    "a negative side": b"}Vdata\n" + NDARRAY + b"(I0\ntVb\ntR(I1\n(I-1\nI-1\nt" + UINT8 + b"I00\nC\x01xtbs.",
    "objects": b"}Vdata\ncnumpy\ndtype\n(V|O\nI0\nI1\ntRs.",
    "a huge dtype": b"}Vdata\ncnumpy\ndtype\n(VS999999999999\nI0\nI1\ntRs.",
    "a bytearray of terabytes": b"\x80\x05}\x8c\x04data\x96" + struct.pack("<Q", 1 << 42) + b"xs.",
    "a string of terabytes": b"\x80\x04}\x8c\x04data\x8e" + struct.pack("<Q", 1 << 42) + b"xs.",
    "a frame of terabytes": b"\x80\x04\x95" + struct.pack("<Q", 1 << 42) + b"}",
    "attributes of a function": b"cnumpy\ndtype\n}V__defaults__\nI1\nsb.",
    "a persistent id": b"Pmodule\n.",
    "an instance": b"(inumpy\nndarray\n.",
    "newobj": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "an extension code": b"\x80\x02\x82\x01.",
    "an unknown attribute of numpy": b"cnumpy\nfromfile\n(V/etc/passwd\ntR.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "another codec": b"}Vdata\nc_codecs\nencode\n(Vx\nVrot13\ntRs.",
    "a list": b"(lI1\na.",
    "no data": b"",
    "text": b"ID,Labels\n1,2\n",
    "a key nested a million deep": b"}" + b"(" + b"t" + b"\x85" * 1_000_000 + b"Ns.",
    "encoded again and again": b"\x80\x02}(X\x00\x00\x01\x00" + b"x" * 65536 + b"q\x010"
    b"c_codecs\nencode\nq\x02" + b"h\x02h\x01U\x06latin1\x86R" * 20_000 + b"t.",
    "too many instructions": b"\x80\x02]" + b"N0" * 2_100_000 + b".",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused(what: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"evil\.pkl is (not a pickle of images|damaged)") as error:
        unpickle.load(HOSTILE[what], "evil.pkl")
    assert len(str(error.value)) < 300
    # Each is refused in microseconds but the last, which runs the four million steps allowed: seconds, not minutes.
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("order", "<>")
def test_text_beyond_unicode_is_refused(order: str) -> None:
    """NumPy takes any 32 bits for a character, and fails only when they become a str."""
    whole = np.array(["ab", "c\U0010ffff"], f"{order}U2")
    data = pickle.dumps({"ids": whole})
    assert unpickle.load(data, "evil.pkl")["ids"].tolist() == whole.tolist()
    last = struct.pack(f"{order}I", 0x10FFFF)
    with pytest.raises(UserError, match="text of no characters"):
        unpickle.load(data.replace(last, struct.pack(f"{order}I", 0x110000)), "evil.pkl")


def test_the_message_has_one_line_whatever_the_name() -> None:
    with pytest.raises(UserError) as error:
        unpickle.load(b"\x80\x04\x8c\x03a\nb\x8c\x05\x1b[31m\x93.", "evil.pkl")
    assert str(error.value).isprintable() and "it asks for a?b.?[31m" in str(error.value)


def plain(value: object, depth: int = 3) -> bool:
    if isinstance(value, dict | list | tuple) and depth:
        parts = [*value.values()] if isinstance(value, dict) else value
        return all(plain(part, depth - 1) for part in parts)
    allowed = (dict, list, tuple, str, bytes, bytearray, int, float, bool, type(None), np.ndarray)
    return isinstance(value, allowed) or type(value).__module__ == "fastres.data.untrusted.unpickle"


SEEDS = [PYTHON2, PYTHON2_PROTOCOL0] + [
    pickle.dumps({b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"ids": [1, 2, 3], "t": ("a", 1.5)}, protocol)
    for protocol in range(6)
]


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 500), st.binary(max_size=3), st.integers(0, 4)), min_size=1, max_size=6),
)
@example(PYTHON2, [(0, b"", 0)])
def test_mutated_pickles_give_plain_data_or_an_error(seed: bytes, edits: list[tuple[int, bytes, int]]) -> None:
    data = bytearray(seed)
    for position, insert, cut in edits:
        position %= len(data) + 1
        data[position : position + cut] = insert
    try:
        content = unpickle.load(bytes(data), "x")
    except UserError:
        return
    assert all(type(key) is str for key in content)
    assert all(plain(value) for value in content.values())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([bytes([code]) for code in range(256)] + [NDARRAY, UINT8, b"I1\n", b"U\x01x"])))
def test_random_programs_give_plain_data_or_an_error(program: list[bytes]) -> None:
    try:
        assert all(plain(value) for value in unpickle.load(b"}" + b"".join(program) + b".", "x").values())
    except UserError as error:
        assert "x is" in str(error)


def test_a_missing_file_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        unpickle.load_file(tmp_path / "absent.pkl")
