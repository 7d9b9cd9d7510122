"""The registry at the command line: which act is meant, and what is shown of it."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distcifar.errors import ConfigError
from distcifar.tracking.registry.gates import percent
from distcifar.tracking.registry.log import Act, State
from distcifar.tracking.registry.registry import Promotion


def asked_act(words: Mapping[str, Any]) -> str:
    """The one flag of an act among the command's `words`: to, rollback, list, history, pull or sync."""
    given = [name for name in ("to", "rollback", "list", "history", "sync") if words[name]]
    given += ["pull"] * any(words["pull"])
    if len(given) != 1 or bool(words["model"]) != bool(words["to"]):
        flags = " and ".join(["RUN|MODEL"] * bool(words["model"]) + [f"--{name}" for name in given])
        raise ConfigError(
            f"{flags or 'Nothing'} is asked for",
            "A command does one act: RUN|MODEL --to ALIAS, --rollback, --list, --history, --pull or --sync",
            "python jobs/promote.py --help shows examples",
        )
    return given[0]


def require_online(act: str, *, online: bool) -> None:
    """ConfigError where W&B is to be told something, and is not to be spoken to."""
    if act == "sync" and not online:
        raise ConfigError(
            "--sync is asked for, and W&B is not to be spoken to",
            "--sync tells W&B; --offline and WANDB_MODE=offline do not speak to it",
            "Leave one of them out",
        )


def show(table: Table) -> None:
    """Prints a table, or that there is nothing in it; where there is no terminal, wide enough for its lines."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table if table.row_count else "No model has been promoted here yet.")


def versions_table(state: State) -> Table:
    """Each version with its aliases."""
    table = Table("version", "aliases", "test accuracy", "recipe", "run", "since (UTC)")
    for version, first in state.versions.items():
        known = state.newest(version)
        aliases = ", ".join(alias for alias, held in state.aliases.items() if held == version)
        row = (version, aliases, percent(known.test_accuracy), known.recipe, known.run, _moment(first.time))
        table.add_row(*map(Text, row))
    return table


def history_table(state: State) -> Table:
    """Each act, the newest last."""
    table = Table("time (UTC)", "act", "alias", "version", "test accuracy", "run", "by", "reason")
    for act in state.acts:
        words = f"{act.act}, forced" if act.forced else act.act
        change = f"{act.before} -> {act.version}" if act.before else act.version
        row = (_moment(act.time), words, act.alias, change, percent(act.test_accuracy), act.run, act.who, act.reason)
        table.add_row(*map(Text, row))
    return table


def _moment(time: str) -> str:
    """An ISO time without seconds and zone."""
    return time[:16].replace("T", " ")


TABLES = {"list": versions_table, "history": history_table}


def promotion_text(done: Promotion, alias: str) -> str:
    """What came of a promotion, in sentences."""
    if done.act is None:
        return f"{alias} is {done.version} already."
    was = f"; it was {done.act.before}" if done.act.before else ""
    how = " by --force" if done.act.forced else ""
    told = f"{alias} is {done.version} now{how}{was}. Test accuracy {percent(done.act.test_accuracy)}"
    return "\n".join([f"{told}, sha256 {done.act.digest[:16]}.", *(f"note: {note}" for note in done.notes)])


def rollback_text(act: Act) -> str:
    """What came of a rollback, in a sentence."""
    return f"{act.alias} is {act.version} again; it was {act.before}. Test accuracy {percent(act.test_accuracy)}."


def pull_text(found: str, folder: str) -> str:
    """What was pulled to where, and the lines that load its weights."""
    return (
        f"{found} is in {folder}, every digest verified. To load it:\n\n"
        "from safetensors.torch import load_file\n"
        f"weights = load_file({folder.rstrip('/') + '/model.safetensors'!r})\n"
        "model.load_state_dict(weights)  # docs/registry.md: how such a model is built"
    )
