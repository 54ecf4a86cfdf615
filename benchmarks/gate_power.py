"""`python -m benchmarks.gate_power` is `python -m benchmarks.gate.power`."""

from benchmarks.gate.power import main

if __name__ == "__main__":
    main()
