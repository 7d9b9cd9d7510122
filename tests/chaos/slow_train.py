"""jobs/train.py with a phase made slow, so that a signal can be sent in it: SLOW=evaluate or SLOW=save."""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

JOBS = Path(__file__).parents[2] / "jobs"
sys.path[:0] = [str(JOBS), str(JOBS.parent)]


def slowed(function: Any, seconds: float) -> Any:
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    return slow


if os.environ["SLOW"] == "evaluate":
    from distcifar.training import evaluate

    evaluate.predict = slowed(evaluate.predict, 0.4)  # type: ignore[attr-defined]
else:
    from distcifar.training import checkpoint

    checkpoint.save_file = slowed(checkpoint.save_file, 0.4)  # type: ignore[attr-defined]

sys.argv[0] = str(JOBS / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
