"""`python -m fastres.kernels.compile` is `python -m fastres.bench.machine_code`: machine code without a GPU."""

if __name__ == "__main__":
    import runpy

    runpy.run_module("fastres.bench.machine_code", run_name="__main__", alter_sys=True)
