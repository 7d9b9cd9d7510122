"""The image's health check (Dockerfile): exit status 1, and the reason, where this container cannot train or hangs.

Looks at two things that nothing inside a training can tell of itself: whether FFCV's library still loads, and whether
each rank of this host has left a sign of life (runs/NAME/ranks/N.json, every second: distcifar/cluster/watchdog.py)
within `--seconds`. Only the standard library: 30 ms a check.
"""

import argparse
import ctypes
import json
import platform
import sys
import sysconfig
import time
from pathlib import Path


def silent_ranks(runs: Path, seconds: float) -> list[str]:
    """Ranks of this host whose process lives and has left no sign for `seconds`; other hosts judge their own."""
    found = []
    for path in sorted(runs.glob("*/ranks/*.json")):
        try:
            sign, age = json.loads(path.read_text()), time.time() - path.stat().st_mtime
        except (OSError, ValueError):
            continue  # ended meanwhile, or not a sign
        if sign["host"] == platform.node() and Path(f"/proc/{sign['pid']}").exists() and age > seconds:
            found.append(f"{path}: rank {sign['rank']} ({sign['stage']} at step {sign['step']}) silent for {age:.0f} s")
    return found


def unloadable(packages: Path) -> list[str]:
    """What is wrong with FFCV's library below `packages`."""
    libraries = list(packages.glob("ffcv/_libffcv*"))
    if not libraries:
        return [f"{packages}/ffcv has no library"]
    try:
        ctypes.CDLL(str(libraries[0]))
    except OSError as error:
        return [str(error)]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seconds", type=float, default=300.0)
    chosen = parser.parse_args()
    problems = unloadable(Path(sysconfig.get_path("purelib"))) + silent_ranks(chosen.runs, chosen.seconds)
    print("\n".join(problems) or "healthy")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
