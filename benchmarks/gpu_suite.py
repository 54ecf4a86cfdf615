"""Everything that only a GPU can tell: the command of gpu/suite.py, which says more.

python benchmarks/gpu_suite.py --minutes 8 --json out.json --data cifar10.tar.xz
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # Python puts only benchmarks/ there for a script
    if not (ROOT / "fastres" / "kernels" / "__init__.py").is_file():
        print("gpu_suite: fastres/kernels is missing: run `ln -sfn ../kernels fastres/kernels` there", file=sys.stderr)
        sys.exit(2)
    from benchmarks.gpu.suite import main

    sys.exit(main())
