"""Contribution of each technique of a recipe: the command of published/ablations.py, which explains it.

python benchmarks/ablations.py recipes/speed/94.toml --runs 3 --out runs/ablations
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # Python puts only benchmarks/ there for a script
    from benchmarks.published.ablations import main

    sys.exit(main())
