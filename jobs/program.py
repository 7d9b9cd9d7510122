"""What all programs share: their mistakes are told in one message, their exit codes mean something."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distcifar.cluster.stored.places import require_folder
from distcifar.config import Recipe, RunSpec
from distcifar.config.values import value_of
from distcifar.errors import DistcifarError
from distcifar.store import is_url
from distcifar.tracking.outcome import unfinished_name

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # is set for what `ray job submit` runs
HOME = "DISTCIFAR_HOME"  # the folder below which a job's relative folders lie
INTERRUPTED = 130  # as a shell reports Ctrl-C
VARIABLES = {
    "RAY_ADDRESS": "address",  # set inside `ray job submit`
    "WANDB_MODE": "wandb",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_RUN_GROUP": "group",
    "DISTCIFAR_WAIT_MINUTES": "wait_minutes",  # these two are set by cluster.yaml
    "DISTCIFAR_DEVICE": "device",
}


def command(*words: str) -> str:
    """This program with other `words`, as it can be typed here without activating anything."""
    python, here = Path(sys.executable), Path.cwd()
    return shlex.join([str(python.relative_to(here) if python.is_relative_to(here) else python), sys.argv[0], *words])


def from_environment(spec: RunSpec, recipe: Recipe | None = None) -> RunSpec:
    """`spec` with what Ray's, W&B's and our own variables say about fields that the command line has left alone.

    recipe: of a run, which in a Ray job has a name that is the same each time: the same line goes on.
    """
    default = RunSpec()
    found: dict[str, Any] = {
        field: value_of(type(getattr(default, field)), text, variable)
        for variable, field in VARIABLES.items()
        if (text := os.environ.get(variable))
        and getattr(spec, field) == getattr(default, field)
        and not is_url(text)  # RAY_ADDRESS is http:// where jobs are submitted
    }
    os.environ.pop("WANDB_MODE", None)  # the client would refuse to go online, though it is asked to
    spec = replace(spec, **found, runs=place(spec.runs), data_root=place(spec.data_root))
    if JOB in os.environ and recipe is not None and not spec.name and spec.resume == "auto":
        return replace(spec, name=unfinished_name(spec.runs, f"{recipe.name}-{recipe.digest()[:6]}"))
    return spec


def place(word: str) -> str:
    """Where a relative folder lies: in a Ray job, whose own place is a copy that goes away, below $DISTCIFAR_HOME.

    That is ~/distcifar where it is not set; on several machines it must be storage that all of them share.
    """
    if JOB not in os.environ or is_url(word):
        return word
    return str(Path(os.environ.get(HOME) or "~/distcifar").expanduser() / word)


def folder(word: str) -> Path:
    """`place` of what has to be a folder. Raises ConfigError for a URL."""
    return Path(place(require_folder(word)))


def run_program(main: Callable[[list[str]], int]) -> None:
    """Runs `main` on the command line and exits: 0, 2 for a mistake, 3 for diverged training, 130 when stopped.

    With --debug a mistake shows its traceback; anything else that is raised is a bug and always does.
    """
    try:
        code = main(sys.argv[1:])
    except DistcifarError as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
