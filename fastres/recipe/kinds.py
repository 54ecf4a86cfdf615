"""What a recipe may name: the kinds of a table, such as optimizers, and the values of a key, such as loaders.

Both can be added to at run time. The JSON Schema lists what is there when a table is defined.
"""

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, Union

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, SchemaValidator, core_schema

from fastres.recipe.fields import Table

AnyTable = TypeVar("AnyTable", bound=Table)


class Kinds:
    """Tables by their `name`. A field `Annotated[Base, kinds]` takes any of them that is a Base; a table that does not
    say its kind is of the kind `default`."""

    def __init__(self, default: str) -> None:
        self.default = default
        self._tables: dict[str, type[Table]] = {}

    def register(self, table: type[AnyTable]) -> type[AnyTable]:
        """Let recipes name `table`, by the default of its key `name`: a decorator."""
        self._tables[table.model_fields["name"].default] = table
        return table

    def under(self, base: Any) -> dict[str, type[Table]]:
        """The registered tables that are a `base`, by name."""
        return {name: table for name, table in self._tables.items() if issubclass(table, base)}

    def table(self, base: Any, content: Any) -> type[Table] | None:
        """The one of them that `content`, as a file has it, is for; None where it names no such kind."""
        name = content.get("name", self.default) if isinstance(content, dict) else self.default
        return self.under(base).get(str(name))

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> Any:
            if isinstance(value, base):
                return value
            if not isinstance(value, dict):
                raise PydanticKnownError("model_attributes_type")
            value = {"name": self.default, **value}
            table = self.table(base, value)
            if table is None:
                tags = ", ".join(map(repr, self.under(base)))
                raise PydanticKnownError(
                    "union_tag_invalid", {"discriminator": "'name'", "tag": str(value["name"]), "expected_tags": tags}
                )
            return table.model_validate(value)

        listed: Any = Union.__getitem__(tuple(self.under(base).values()))
        union = handler.generate_schema(Annotated[listed, Field(discriminator="name")])
        return core_schema.no_info_plain_validator_function(validate, json_schema_input_schema=union)


class Names:
    """Values of a key, in the order of messages: a field `Annotated[str, names]` takes any of them."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)

    def register(self, name: str) -> None:
        """Let recipes use `name`."""
        self._names.append(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> Any:
            return SchemaValidator(core_schema.literal_schema(self._names)).validate_python(value)

        return core_schema.no_info_plain_validator_function(
            validate, json_schema_input_schema=core_schema.literal_schema(self._names)
        )
