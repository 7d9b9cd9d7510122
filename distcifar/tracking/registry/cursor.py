"""How much of a registry's log a server has been told: synced.json."""

import json
from pathlib import Path

from distcifar.files import write_json
from distcifar.tracking.registry.log import Act, State


class Cursor:
    """How many acts of each alias one server has, on the disk after each.

    server: its address, and whose account is meant there.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self._path, self._server = folder / "synced.json", server
        self._done: dict[str, int] = {}
        try:
            found = json.loads(self._path.read_text())
            if found["server"] == server:
                self._done = {str(alias): int(count) for alias, count in found["acts"].items()}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            return  # replayed from the start, which changes nothing where it was done

    def pending(self, state: State) -> list[Act]:
        """The acts that the server has not."""
        seen: dict[str, int] = {}
        found = []
        for act in state.acts:
            seen[act.alias] = seen.get(act.alias, 0) + 1
            if seen[act.alias] > self._done.get(act.alias, 0):
                found.append(act)
        return found

    def advance(self, alias: str, count: int) -> None:
        """So many more acts of `alias` are there."""
        self._done[alias] = self._done.get(alias, 0) + count
        write_json(self._path, {"server": self._server, "acts": self._done})
