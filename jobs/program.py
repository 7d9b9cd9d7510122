"""What all programs share: their mistakes are told in one message, their exit codes mean something."""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distcifar.config import RunSpec
from distcifar.errors import DistcifarError

INTERRUPTED = 130  # as a shell reports Ctrl-C
VARIABLES = {
    "RAY_ADDRESS": "address",  # set inside `ray job submit`
    "WANDB_MODE": "wandb",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_RUN_GROUP": "group",
}


def command(*words: str) -> str:
    """This program with other `words`, as it can be typed here without activating anything."""
    python, here = Path(sys.executable), Path.cwd()
    python = python.relative_to(here) if python.is_relative_to(here) else python
    return shlex.join([str(python), sys.argv[0], *words])


def from_environment(spec: RunSpec) -> RunSpec:
    """`spec` with what Ray's and W&B's own variables say about fields that the command line has left alone."""
    default = RunSpec()
    found: dict[str, Any] = {
        field: os.environ[variable]
        for variable, field in VARIABLES.items()
        if os.environ.get(variable) and getattr(spec, field) == getattr(default, field)
    }
    os.environ.pop("WANDB_MODE", None)  # the client would refuse to go online, though it is asked to
    return replace(spec, **found)


def run_program(main: Callable[[list[str]], int]) -> None:
    """Runs `main` on the command line and exits: 0, 2 for a mistake, 3 for diverged training, 130 when stopped.

    With --debug a mistake shows its traceback; anything else that is raised is a bug and always does.
    """
    argv = sys.argv[1:]
    try:
        code = main(argv)
    except DistcifarError as error:
        if "--debug" in argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
