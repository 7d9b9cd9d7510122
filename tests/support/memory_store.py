"""A store in memory, which remembers each state that it was in: what is there if nothing more arrives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from distcifar.store import Store, Stored


@dataclass
class MemoryStore(Store):
    """Objects in a dictionary. history: a copy of it from before each operation that changes something; log: those."""

    url: str = "memory://store"
    objects: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, bytes]] = field(default_factory=list, repr=False)
    log: list[str] = field(default_factory=list, repr=False)

    def read(self, name: str) -> bytes | None:
        return self.objects.get(name)

    def read_at(self, name: str, offset: int, count: int) -> bytes:
        return self.objects[name][offset : offset + count]

    def write(self, name: str, content: bytes | Path | BinaryIO) -> None:
        if isinstance(content, Path):
            content = content.read_bytes()
        elif not isinstance(content, bytes):
            content.seek(0)
            content = content.read()
        self._change(f"write {name}")
        self.objects[name] = content
        self.versions[name] = len(self.log)

    def delete(self, name: str) -> None:
        if name in self.objects:
            self._change(f"delete {name}")
            del self.objects[name]

    def delete_below(self, name: str) -> None:
        for each in [each for each in self.objects if each.startswith(f"{name}/")]:
            self.delete(each)

    def listing(self) -> dict[str, Stored]:
        return {name: Stored(name, len(content), self.versions[name]) for name, content in self.objects.items()}

    def at(self, number: int) -> "MemoryStore":
        """The store as it was after `number` operations."""
        found = MemoryStore(objects=dict([*self.history, self.objects][number]))
        found.versions = dict.fromkeys(found.objects, 0)
        return found

    def _change(self, what: str) -> None:
        self.history.append(dict(self.objects))
        self.log.append(what)
