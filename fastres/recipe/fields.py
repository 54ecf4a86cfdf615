"""The base of all tables of a recipe: the table itself, and the types of its values."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastres.errors import InvalidRecipe

Precision = Literal["bf16", "fp16", "fp32"]
# Far beyond any run, below which products of two stay what a tensor can hold, and times what a clock can.
Positive = Annotated[int, Field(gt=0, le=10**9)]
Channels = Annotated[int, Field(gt=0, le=10**5)]
Epochs = Annotated[float, Field(gt=0, le=10**5, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Side = Annotated[int, Field(gt=0, le=15)]
Chance = Annotated[float, Field(ge=0, le=1)]
# Above 2 a factor would no longer be exact in the arithmetic of augment/draws.py; colours are long lost by then.
Jitter = Annotated[float, Field(ge=0, le=2)]
# Beta(alpha, alpha) with more than 1000 is a constant one half.
Alpha = Annotated[float, Field(gt=0, le=1000)]
Interval = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
Colour = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class Table(BaseModel):
    """A table of the recipe: unknown keys and coerced types are errors, values cannot change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, validate_default=True
    )

    explain: ClassVar[Callable[[type[BaseModel], ValidationError, str, dict[Any, str], Any], str]]
    """loading.py's, which imports the tables."""

    def __init__(self, **values: Any) -> None:
        """Raises InvalidRecipe, which names keys as the errors of a recipe file do."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            kind = type(self)
            raise InvalidRecipe(kind.explain(kind, error, kind.__name__, {}, values)) from None

    # Tables inside of a table are checked by pydantic itself, which then knows where in the whole they stand.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a recipe stays as it is: load another one, Recipe.load(path, ['table.{name}=…']), "
            f"or make one, {type(self).__name__}({name}=…)"
        )
