"""Print the JSON Schema of recipes: `make schema`."""

import json

from fastres.recipe import schema

print(json.dumps(schema(), indent=2))
