"""Sources: what a user names, told apart and read.

To add a data set with a name of its own: write its name in recipe/data.py, and a module of this package that registers
it in `named.SETS`. All modules of the package are imported, so that there is no list of them.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
