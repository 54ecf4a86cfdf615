"""The JSON Schema of a recipe file."""

from typing import Any

from fastres.recipe.recipe import Recipe


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file, from which editors complete keys and show their docstrings."""
    tables = Recipe.model_json_schema()
    for table in (*tables["properties"].values(), tables["$defs"]["MuonConfig"]["properties"]["auxiliary"]):
        # A file that extends another may leave the kind (`name`) to it; then several kinds fit, which `oneOf` forbids.
        if "oneOf" in table:
            table["anyOf"] = table.pop("oneOf")
    extends = {"type": "string", "description": "Path of the recipe to start from, relative to this file."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **tables,
        "title": "fastres recipe",
        "properties": {"extends": extends, **tables["properties"]},
    }
