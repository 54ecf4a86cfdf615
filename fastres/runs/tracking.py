"""Weights & Biases: what a run writes into metrics.jsonl and summary.json, there too.

The files of the library lie in `wandb/` of the run directory, so that an offline run can be sent later with
`wandb sync RUN/wandb/offline-run-*`; its id lies beside them, so that a resumed run goes on as the same one.
"""

import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastres.errors import UserError
from fastres.recipe import Recipe, RecordConfig
from fastres.recipe.teacher import FOLDER as TEACHER
from fastres.runs.directory import PLAN
from fastres.runs.schema import Epoch, Summary
from fastres.utils.files import write_text
from fastres.utils.variables import kept_variables

FOLDER = "wandb"
ID = "id"
IN_BOTH = ("images_per_second", "input_stall", "seconds", "test_accuracy", "test_loss")
"""Keys of metrics.jsonl and of summary.json, of one epoch there and of the run here."""
START_SECONDS, FINISH_SECONDS = 30, 60
"""How long a run waits for the server at its start, and at its end for the last upload; `wandb sync` sends the rest."""


def check_tracker(options: RecordConfig) -> None:
    """Raise UserError where the tracker that is asked for is not installed, or needs an account that nobody named."""
    if options.wandb == "off":
        return
    wandb = _import()
    if options.wandb == "offline":
        return
    with TemporaryDirectory() as folder, _cache_in(Path(folder)), redirect_stderr(io.StringIO()):
        known = wandb.login(prompt=False, verify=False)
    if not known:
        raise UserError("record.wandb = 'online' needs an account: run `wandb login`, or set record.wandb = 'offline'")


class Tracker:
    """A run as Weights & Biases shows it: each epoch's row of metrics.jsonl, the resolved recipe as its config, at the
    end summary.json. Where `record.wandb` is off, nothing at all.

    A failure of the tracker never costs the run its result: `say` hears of the first one, and the rest goes untracked.
    `rows` are those of the epochs before a resumption, which it has unless it could not be begun then.
    """

    def __init__(self, run: Path, recipe: Recipe, rows: list[Epoch], say: Callable[[str], None]) -> None:
        self._run: Any = None
        self._say = say
        if recipe.record.wandb != "off":
            with self._spared():
                self._begin(run.absolute(), recipe, rows)

    def _begin(self, run: Path, recipe: Recipe, rows: list[Epoch]) -> None:
        wandb = _import()
        known = run / FOLDER / ID
        resumed = known.is_file()
        identity = known.read_text().strip() if resumed else secrets.token_hex(4)
        name, group = names(run)
        settings = wandb.Settings(
            mode=recipe.record.wandb,
            project=recipe.record.wandb_project,
            run_id=identity,
            run_name=name,
            run_group=group,
            resume="allow",
            allow_val_change=True,  # the config of a run that was resumed with other keys of [record]
            root_dir=str(run),
            use_dot_wandb=False,
            symlink=False,
            reinit="create_new",  # leaves alone a run that the caller of this library has begun
            silent=True,
            console="off",
            init_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
            x_transaction_log_flush_interval=1.0,  # all that a killed process loses
            # environment.json has the machine; nothing samples it beside the training.
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        with _cache_in(run / FOLDER):
            self._run = wandb.init(config=recipe.model_dump(), settings=settings)
        for key in IN_BOTH:
            self._run.define_metric(key, summary="none")  # else the last epoch's would replace the run's
        write_text(known, identity + "\n")
        for row in [] if resumed else rows:
            self.log(row)

    def log(self, row: Epoch) -> None:
        """The metrics of one epoch, as metrics.jsonl holds them."""
        with self._spared():
            if self._run is not None:
                self._run.log(row.model_dump(exclude_none=True, exclude_unset=True), step=row.epoch)

    def close(self, summary: Summary | None) -> None:
        """End the run there: as finished with what summary.json holds, as failed without."""
        with self._spared():
            if self._run is not None:
                if summary is not None:
                    self._run.summary.update(summary.to_json())
                self._run.finish(exit_code=int(summary is None))
        self._run = None

    @contextmanager
    def _spared(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the library, its process or the network raises
            self._run = None
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            self._say(f"Weights & Biases failed, the run goes on without it ({said})")


def names(run: Path) -> tuple[str, str | None]:
    """Name and group of the run directory `run`, an absolute path.

    The runs of a sweep are a group of its name, as are those inside of a run: its rounds, its teacher.
    """
    whole = run.parent.parent if run.parent.name == "rounds" else run
    if run.name == TEACHER and (run.parent / "recipe.toml").is_file():
        whole = run.parent
    group = whole.name if whole != run else None
    if (whole.parent / PLAN).is_file():
        group = whole.parent.name
    return run.relative_to(whole.parent).as_posix(), group


def _import() -> Any:
    """The module wandb. Raises UserError where it is not installed."""
    # Its reports of errors to its makers would be the one thing that an offline run sends.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "record.wandb needs Weights & Biases, which is not installed:\n"
            "run pip install 'fastres[wandb]', or set record.wandb = 'off'"
        ) from error
    return wandb


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Let the process that the library starts write its log into `folder` instead of the user's cache."""
    with kept_variables("XDG_CACHE_HOME"):
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        yield
