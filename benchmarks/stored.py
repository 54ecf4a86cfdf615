"""`python -m benchmarks.stored` is `python -m benchmarks.gate.baselines`."""

from benchmarks.gate.baselines import main

if __name__ == "__main__":
    print(main())
