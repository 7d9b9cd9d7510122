"""What --fix does. Each act is told before it is done; no living process is ended, nothing of the user's is changed.

Each fix looks again at what is there now, so that what the checks have seen and what is removed cannot be two things.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from distcifar.cluster.census import leaks, remove_leaks
from distcifar.cluster.session import connected
from distcifar.config import RunSpec
from distcifar.doctor.findings import Finding
from distcifar.doctor.gather import Place
from distcifar.doctor.ray_here import answers, dead_sessions, exposed
from distcifar.doctor.storage import left_aside

Say = Callable[[str], None]


def fix(findings: Iterable[Finding], place: Place, address: str, say: Say) -> list[str]:
    """Does what the findings' fixes name, each once, and gives back what was said. Of this machine and the cluster."""
    done: list[str] = []

    def told(sentence: str) -> None:
        done.append(sentence)
        say(sentence)

    for name in dict.fromkeys(finding.fix for finding in findings if finding.fix):
        try:
            FIXES[name](place, address, told)
        except OSError as reason:
            told(f"That failed: {reason}")
    return done


def make_private(place: Place, address: str, say: Say) -> None:
    """Files of keys are their owner's only."""
    token = Path(place.environment.get("RAY_AUTH_TOKEN_PATH") or place.home / ".ray" / "auth_token")
    for path in (token, Path(place.environment.get("NETRC") or place.home / ".netrc")):
        if exposed(path):
            say(f"chmod 600 {path}")
            path.chmod(0o600)


def forget_dead_head(place: Place, address: str, say: Say) -> None:
    """Ray's note of a head that does not answer any more."""
    note = place.ray_temp / "ray_current_cluster"
    if note.is_file() and not answers(note.read_text().strip()):
        say(f"Removing {note}")
        note.unlink()


def remove_sessions(place: Place, address: str, say: Say) -> None:
    """Folders of this user's heads without a living process."""
    dead = dead_sessions(place.sessions, time.time())
    say(f"Removing {len(dead)} folder(s) of dead heads in {place.sessions}")
    for folder in dead:
        _remove(folder, say)


def remove_leftovers(place: Place, address: str, say: Say) -> None:
    """What killed processes have left half-written, a day ago or earlier."""
    for path in (left for folder in place.folders.values() for left in left_aside(folder, time.time())):
        say(f"Removing {path}")
        _remove(path, say)


def _remove(path: Path, say: Say) -> None:
    """One that cannot be removed does not keep the others."""
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as reason:
        say(f"{path} stays: {reason}")


def free_places(place: Place, address: str, say: Say) -> None:
    """Placement groups and detached actors of dead drivers."""
    with connected(RunSpec(address=address), 0):
        remove_leaks(leaks(), say)


FIXES: dict[str, Callable[[Place, str, Say], None]] = {
    "permissions": make_private,
    "dead-head": forget_dead_head,
    "sessions": remove_sessions,
    "leftovers": remove_leftovers,
    "leaks": free_places,
}
