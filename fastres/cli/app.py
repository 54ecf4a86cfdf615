"""The command line: parse, call one function, print. Nothing heavy is imported before a command runs.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done; 2 an error of the user's, in
one or two lines that name the fix; 130 interrupted, in training after a checkpoint was saved.
"""

import os
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fastres.cli import bench, data, evaluate, inspect, reproduce, train
from fastres.cli.options import Commands
from fastres.errors import Interrupted, UserError, disk_fault, out_of_gpu_memory
from fastres.utils.signals import Ending
from fastres.utils.terminal import ReaderGone, flushed, lasting_streams, printable, quiet_thread, tell


class _Group(TyperGroup):
    """Names what ends a command before Typer sees it: Typer (and Click, on which its older releases stand) ends Ctrl-C
    without a word or with 'Aborted!', and any broken pipe with status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None
        except ReaderGone:
            sys.exit(0)  # head, or less, has read enough
        except BrokenPipeError as error:  # Typer would end it with status 1: a process that the work needs has died
            raise RuntimeError("a pipe broke in the middle of the work") from error
        except Exception as error:
            if not out_of_gpu_memory(error):
                raise
            fix = "lower train.batch_size (or eval.batch_size, if it was testing)"
            if ctx.invoked_subcommand in ("eval", "predict", "report"):
                fix = "lower eval.batch_size in the run's recipe.toml"
            raise UserError(f"the GPU has too little free memory: {fix}, or choose --device cpu") from error


app = Commands(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train small-image ResNets fast and report honestly.",
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "speedrun": train.speedrun,
    "sweep": train.sweep,
    "eval": evaluate.evaluate,
    "report": evaluate.report,
    "predict": evaluate.predict,
    "compare": evaluate.compare,
    "reproduce": reproduce.reproduce,
    "show": inspect.show,
    "doctor": inspect.doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(name=_name)(_command)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        from fastres._version import __version__

        print(f"fastres {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `fastres` command."""
    with lasting_streams(), Ending():
        threading.excepthook = quiet_thread
        sys.exit(_run())


def _run() -> int:
    """Run the command of sys.argv, say on standard error what stopped it, and return the exit status."""
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which this process may lack; figures go into files
    try:
        try:
            app()
        except SystemExit as stop:  # the way in which Typer always ends
            if Ending.asked:  # while it read the arguments
                raise Interrupted("interrupted") from None
            # rich, which prints help and `doctor`, makes status 1 of a reader that has gone.
            code = 0 if isinstance(stop.__context__, BrokenPipeError) and stop.code == 1 else int(stop.code or 0)
        flushed(sys.stdout)
        return code
    except UserError as error:
        return _say(str(error), 2)
    except (Interrupted, KeyboardInterrupt) as stop:
        return _say(str(stop) or "interrupted", 130)
    except Exception as error:
        if Ending.asked:  # an import that was interrupted fails in its own way
            return _say("interrupted", 130)
        fault = disk_fault(error) if isinstance(error, OSError) else None
        if fault is None:
            raise
        return _say(fault, 2)


def _say(message: str, code: int) -> int:
    tell("fastres: " + "\n".join(printable(line) for line in message.split("\n")))
    return code
