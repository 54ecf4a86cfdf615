"""Many runs: sweeps and searches, speedruns, comparisons, Pareto fronts, the reproduction of the report."""
