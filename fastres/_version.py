"""The version, alone in a module so that neither the build nor `fastres --version` imports anything else."""

__version__ = "0.1.0"
