"""JSON that fastres writes and reads: one model a file, through which both go.

Files may come from anywhere, damaged or made up, and from other versions. So what is read is checked before anything
believes it; keys that another version added are ignored, and a field that older files lack has a default.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from fastres.errors import UserError
from fastres.utils.files import write_json, write_text
from fastres.utils.untrusted import read_regular

# Bounds far beyond any run, below which sums and axes stay finite.
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, le=10**15)]
LARGEST = 1e300
Loss = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]

LIMIT = 64 << 20
"""Bytes of a file that is read: 100,000 epochs take some 25 MB."""
MOST_LINES = 200_000
"""Lines of a file of lines, which take some hundred bytes of memory for each of the file's ten."""
DAMAGED = "restore it, train again, or leave the run out"


def finite(value: Any) -> Any:
    """A number that strict JSON can hold and an axis can show: NumPy and torch scalars become Python's, NaN, infinity
    and what is beyond LARGEST become None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not abs(value) <= LARGEST else value


Finite = BeforeValidator(finite)
"""Makes None of what is not finite: no number that a run computes may end it when it is written."""


class Entry(BaseModel):
    """A JSON object, or a part of one. Its fields answer to their names as keys, too: `summary["test_accuracy"]`."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __getitem__(self, key: str) -> Any:
        if key not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, key)

    def to_json(self) -> dict[str, JsonValue]:
        """The fields that were given, in their order."""
        return self.model_dump(mode="json", exclude_unset=True)

    def given(self) -> dict[str, Any]:
        """The fields that were given, as they are, in their order."""
        return {key: self[key] for key in type(self).model_fields if key in self.model_fields_set}

    def updated(self, **fields: Any) -> Self:
        """The object with other values of `fields`, checked."""
        return type(self).model_validate(self.given() | fields)

    @classmethod
    def of(cls, *sources: Any, **fields: Any) -> Self:
        """The object with `fields`, and what the first of `sources` that has an attribute of a field's name has."""
        for source in sources:
            fields = {key: getattr(source, key) for key in cls.model_fields if hasattr(source, key)} | fields
        return cls.model_validate(fields)

    @classmethod
    def parse(cls, data: bytes | str, path: Path, fix: str = DAMAGED) -> Self:
        """The object that `data`, from `path`, holds. Raises UserError, which ends in `fix`, where it is damaged."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise damaged(path, fault_in(error), fix) from error


class File(Entry):
    """A JSON file."""

    VERSION: ClassVar[int] = 1
    """Of the form that is written; that of files without the key is 0."""
    version: Count = 0

    def to_json(self) -> dict[str, JsonValue]:
        """What the file holds."""
        return {"version": self.VERSION} | {key: value for key, value in super().to_json().items() if key != "version"}

    def write(self, path: Path) -> None:
        """Replace `path`, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path, fix: str = DAMAGED) -> Self:
        """What `write` wrote. Raises UserError, which ends in `fix`, where `path` cannot be read or is damaged."""
        content = cls.parse(read_regular(path, LIMIT, f"fastres wrote no such file; {fix}"), path, fix)
        if content.version > cls.VERSION:
            raise UserError(f"{path} was written by a newer version of fastres: update fastres, or {fix}")
        return content

    @classmethod
    def read_if_there(cls, path: Path, fix: str = DAMAGED) -> Self | None:
        """`read`, or None where there is no such file."""
        return cls.read(path, fix) if path.exists() else None


Line = TypeVar("Line", bound=Entry)


def fault_in(error: ValidationError) -> str:
    """The first fault that a model found: its key and what is wrong."""
    fault = error.errors(include_url=False)[0]
    return ": ".join(part for part in (".".join(map(str, fault["loc"])), fault["msg"]) if part)


def damaged(path: Path, what: str, fix: str = DAMAGED) -> UserError:
    """The error for a file that holds something else than fastres writes."""
    return UserError(f"{path} is damaged ({what}): {fix}")


def write_lines(path: Path, entries: Iterable[Entry]) -> None:
    """Replace `path` by one object a line: an append could be cut off in the middle of a line."""
    write_text(path, "".join(json.dumps(entry.to_json(), allow_nan=False) + "\n" for entry in entries))


def read_lines(path: Path, kind: type[Line], fix: str = DAMAGED) -> list[Line]:
    """What `write_lines` wrote; nothing where there is no such file. Raises UserError as `File.read` does."""
    if not path.exists():
        return []
    lines = read_regular(path, LIMIT, f"fastres wrote no such file; {fix}").splitlines()
    if len(lines) > MOST_LINES:
        raise damaged(path, f"it has {len(lines):,} lines", fix)
    return [kind.parse(line, path, fix) for line in lines]
