"""The house rules as tests. Each names the offending file and line, and why the rule is there.

A rule is a function of one Source that yields (line, what is wrong). The table at the end shows each rule a snippet
that breaks it and one that keeps it: so it is known that each can fail.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Offences = Iterator[tuple[int, str]]

# Who may import whom inside distcifar. What is not listed is not allowed: to allow an edge, argue it in the design.
BASE = {"errors", "files", "sealed", "store", "config", "world"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "sealed": {"errors", "files"},
    "store": {"errors", "files"},
    "config": {"errors"},
    "world": {"errors"},
    "recipes": {"config", "errors"},
    "models": BASE,
    "data": BASE,
    "tracking": BASE,
    "training": BASE | {"models", "data"},
    "sweep": BASE | {"tracking"},
    "insight": BASE | {"models", "data", "training", "tracking", "sweep"},
    "cluster": BASE | {"models", "data", "training", "tracking", "sweep"},
    "benchmark": BASE | {"recipes", "models", "data", "training", "tracking", "sweep", "insight", "cluster"},
    "doctor": BASE | {"tracking", "cluster"},
    "jobs": BASE
    | {"recipes", "models", "data", "training", "tracking", "sweep", "insight", "cluster", "benchmark", "doctor"},
}

# Where each vendor may be imported at all: behind our own nouns, so that it can be replaced in one place.
HOMES = {
    "ffcv": ("distcifar/data/", "distcifar/benchmark/loader.py"),  # there as a peer
    "ray": ("distcifar/cluster/",),
    "wandb": ("distcifar/tracking/wandb/",),
    "wandb_workspaces": ("distcifar/insight/wandb_report.py", "distcifar/insight/wandb_panels.py"),
    "torchvision": ("distcifar/models/", "distcifar/data/", "distcifar/benchmark/loader.py"),
    "matplotlib": ("distcifar/insight/", "distcifar/benchmark/plot.py"),
    "optuna": ("distcifar/sweep/importance.py", "distcifar/cluster/"),
    "tyro": ("jobs/",),
}
# gloo and NCCL can be told their interface by variables only, and each node's is its own.
SETS_VARIABLES = "distcifar/cluster/interfaces.py"
# What the package itself starts with -m.
PROCESSES = (
    *(f"distcifar/tracking/shipping/{name}.py" for name in ("shipper", "fetch")),
    "distcifar/benchmark/ours.py",
)
# The same as HOMES, for imports that run when the module is imported. These cost a second and wait until needed.
EAGER = {**HOMES, "matplotlib": (), "optuna": ()}
WITHOUT_TORCH = (
    "distcifar/config/",
    "distcifar/recipes/",
    "distcifar/errors.py",
    "distcifar/files.py",
    "distcifar/sealed.py",
)
ASKS_FOR_THE_RANK = ("distcifar/world.py", "distcifar/cluster/rank.py")
MOST_CODE_LINES_OF_A_PROGRAM = 60
MOST_LINES_OF_A_FILE = 300
# Calls that make a value and nothing else. Names in CamelCase are classes, whose values are allowed too.
VALUE_CALLS = {
    "getLogger", "compile", "field", "replace", "dtype", "lines", "by_name", "frozenset", "tuple", "dict",
    "ranged", "chosen", "only_if",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One Python file, by its path from the repository's root."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def layer(self) -> str:
        first, *rest = Path(self.path).parts
        return "jobs" if first == "jobs" else rest[0].removesuffix(".py")

    def imports(self, *, eager: bool = False) -> Iterator[tuple[int, str]]:
        """Line and dotted name of each import; with `eager` only of those that importing this file runs."""
        nodes = _run_on_import(self.tree) if eager else ast.walk(self.tree)
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                prefix = "." * node.level + (node.module or "")
                yield from ((node.lineno, f"{prefix}.{name.name}") for name in node.names)


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that run on import: not the bodies of functions, nor what is for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_type_checking(child):
            continue
        yield child
        yield from _run_on_import(child)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _is_within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def imports_run_one_way(source: Source) -> Offences:
    if source.layer not in MAY_IMPORT and source.path != "distcifar/__init__.py":
        yield 1, f"{source.layer!r} is no layer of the design: give it a place in MAY_IMPORT, or move the file"
        return
    allowed = MAY_IMPORT.get(source.layer, set()) | {source.layer}
    for line, name in source.imports():
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if not top:
            yield line, "relative import: write it from distcifar on, as everywhere else"
        elif top == "jobs" or (top == "distcifar" and target not in allowed | {"__version__", ""}):
            yield line, f"{source.layer} imports {name}: it may import {', '.join(sorted(allowed))}"


def vendors_stay_at_home(source: Source) -> Offences:
    for line, name in source.imports():
        vendor = name.partition(".")[0]
        if not _is_within(source.path, HOMES.get(vendor, (source.path,))):
            yield line, f"{vendor} is imported in {' and '.join(HOMES[vendor])} only"


def heavy_imports_wait(source: Source) -> Offences:
    for line, name in source.imports(eager=True):
        heavy = name.partition(".")[0]
        if not _is_within(source.path, EAGER.get(heavy, (source.path,))):
            yield line, f"{heavy} takes seconds to import: import it in the function that needs it"


def a_laptop_without_torch_can_read_recipes(source: Source) -> Offences:
    if _is_within(source.path, WITHOUT_TORCH):
        for line, name in source.imports():
            if name.partition(".")[0] not in sys.stdlib_module_names | {"distcifar"}:
                yield line, f"{name} is not of the standard library: recipes are read where nothing is installed"


def the_environment_is_read_in_jobs_only(source: Source) -> Offences:
    if source.layer == "jobs" or source.path == SETS_VARIABLES:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "putenv", "environb"):
            yield node.lineno, f"{ast.unparse(node)}: jobs/ reads the environment; pass it on as a field of RunSpec"
    for line, name in source.imports():
        if name in ("os.environ", "os.getenv", "os.putenv"):
            yield line, f"{name}: jobs/ reads the environment; pass it on as a field of RunSpec"


def importing_does_no_work(source: Source) -> Offences:
    for node in source.tree.body:
        is_program = source.layer == "jobs" or source.path in PROCESSES
        if isinstance(node, ast.If) and is_program and ast.unparse(node.test) == "__name__ == '__main__'":
            continue
        yield from _work(node)


def _work(node: ast.stmt) -> Offences:
    """What a statement of a module or class does on import beyond defining names."""
    reason = "runs on import, in each worker anew: a module defines, functions act"
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return
        case ast.Expr(value=ast.Constant()):
            return
        case ast.If() if _is_type_checking(node):
            return
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            values = [*node.args.defaults, *filter(None, node.args.kw_defaults), *_eager_decorators(node)]
        case ast.ClassDef():
            for statement in node.body:
                yield from _work(statement)
            values = _eager_decorators(node)
        case ast.Assign() | ast.AnnAssign():
            values = [node.value] if node.value else []
        case _:
            yield node.lineno, f"{ast.unparse(node).splitlines()[0]!r} {reason}"
            return
    for value in values:
        for call in (value, *_run_on_import(value)):
            if isinstance(call, ast.Call) and not _makes_a_value(call):
                yield call.lineno, f"{ast.unparse(call.func)}() {reason}"


def _eager_decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[ast.expr]:
    """The arguments of decorators; numba compiles at once when it is given a signature, so then the whole call."""
    found: list[ast.expr] = []
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            compiles = ast.unparse(decorator.func).rpartition(".")[2] in ("njit", "jit", "vectorize") and decorator.args
            found += [decorator] if compiles else [*decorator.args, *(word.value for word in decorator.keywords)]
    return found


def _makes_a_value(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2].lstrip("_")
    return name[:1].isupper() or name in VALUE_CALLS


def few_places_ask_for_the_rank(source: Source) -> Offences:
    reason = "every rank does the same; what only the primary does is chosen in " + ", ".join(ASKS_FOR_THE_RANK)
    if _is_within(source.path, ASKS_FOR_THE_RANK):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr == "is_primary":
            yield node.lineno, reason
        elif isinstance(node, ast.Compare):
            left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
            if (left.endswith("rank") and right == "0") or (right.endswith("rank") and left == "0"):
                yield node.lineno, reason


def programs_are_short(source: Source) -> Offences:
    if source.layer == "jobs" and (count := _code_lines(source)) > MOST_CODE_LINES_OF_A_PROGRAM:
        yield 1, f"{count} lines of code, and a program parses, calls and exits: at most {MOST_CODE_LINES_OF_A_PROGRAM}"


def _code_lines(source: Source) -> int:
    """Lines with code: not blank, not a comment, not of a docstring."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type not in ignored:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def files_are_short(source: Source) -> Offences:
    most = MOST_LINES_OF_A_FILE
    if (count := source.text.count("\n")) > most:
        yield most, f"{count} lines, and a file holds one thought: aim at 250, at most {most}"


def files_are_named_for_what_they_hold(source: Source) -> Offences:
    if vague := {"utils", "util", "helpers", "misc", "common"} & {*Path(source.path).with_suffix("").parts}:
        yield 1, f"{vague.pop()} says nothing: name the file for what is in it"


def errors_are_not_swallowed(source: Source) -> Offences:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            silent = all(
                isinstance(step, ast.Pass | ast.Continue)
                or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
                for step in node.body
            )
            if not caught:
                yield node.lineno, "a bare except also catches Ctrl-C: name the exceptions that are expected"
            elif silent and caught in ("Exception", "BaseException"):
                yield (
                    node.lineno,
                    f"{caught} is swallowed, and with it every bug: name what is expected, or say what happened",
                )
        elif isinstance(node, ast.With) and any(map(_suppresses_all, node.items)):
            yield node.lineno, "every bug is swallowed: suppress what is expected by its name"


def _suppresses_all(item: ast.withitem) -> bool:
    return ast.unparse(item.context_expr).endswith(("suppress(Exception)", "suppress(BaseException)"))


def no_pickle_is_read(source: Source) -> Offences:
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name.startswith(("pickle.load", "cloudpickle.load", "pickle.Unpickler", "joblib.load")):
            yield node.lineno, f"{name} runs whatever code the file holds (contract 7)"
        if name == "torch.load" and words.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True runs whatever code the file holds (contract 7)"
        if words.get("allow_pickle") == "True":
            yield node.lineno, "allow_pickle=True runs whatever code the file holds (contract 7)"


@cache
def sources() -> list[Source]:
    """The package and the programs."""
    paths = sorted([*ROOT.glob("distcifar/**/*.py"), *ROOT.glob("jobs/**/*.py")])
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


def offences(rule: Callable[[Source], Offences]) -> str:
    """What breaks `rule`, a line each."""
    return "".join(f"\n{source.path}:{line}: {reason}" for source in sources() for line, reason in rule(source))


def test_there_is_something_to_look_at():
    assert {"jobs/train.py", "distcifar/config/recipe.py"} <= {source.path for source in sources()}


def test_imports_run_one_way():
    assert not offences(imports_run_one_way)


def test_vendors_stay_at_home():
    assert not offences(vendors_stay_at_home)


def test_heavy_imports_wait():
    assert not offences(heavy_imports_wait)


def test_a_laptop_without_torch_can_read_recipes():
    assert not offences(a_laptop_without_torch_can_read_recipes)


def test_the_environment_is_read_in_jobs_only():
    assert not offences(the_environment_is_read_in_jobs_only)


def test_importing_does_no_work():
    assert not offences(importing_does_no_work)


def test_few_places_ask_for_the_rank():
    assert not offences(few_places_ask_for_the_rank)


def test_programs_are_short():
    assert not offences(programs_are_short)


def test_files_are_short():
    assert not offences(files_are_short)


def test_files_are_named_for_what_they_hold():
    assert not offences(files_are_named_for_what_they_hold)


def test_errors_are_not_swallowed():
    assert not offences(errors_are_not_swallowed)


def test_no_pickle_is_read():
    assert not offences(no_pickle_is_read)


MODEL, JOB = "distcifar/models/a.py", "jobs/a.py"
TRY = "try:\n    f()\nexcept {}:\n    {}\n"
# rule, (path, text that breaks it), (path, text that keeps it)
EXAMPLES = [
    (
        imports_run_one_way,
        (MODEL, "from distcifar.training.engine import fit"),
        (MODEL, "from distcifar.config import Recipe"),
    ),
    (imports_run_one_way, (MODEL, "def f():\n    import distcifar.cluster"), (JOB, "import distcifar.cluster")),
    (imports_run_one_way, (MODEL, "from distcifar import data"), (MODEL, "from distcifar import __version__")),
    (imports_run_one_way, (MODEL, "from . import b"), (MODEL, "from distcifar.models import b")),
    (imports_run_one_way, ("distcifar/data/a.py", "from jobs import train"), ("distcifar/data/a.py", "import json")),
    (imports_run_one_way, ("distcifar/new/a.py", ""), ("distcifar/errors.py", "")),
    (
        imports_run_one_way,
        ("distcifar/cluster/a.py", "from distcifar.recipes import RECIPES"),
        ("jobs/a.py", "import distcifar.recipes"),
    ),
    (vendors_stay_at_home, (MODEL, "def f():\n    import ray.train"), ("distcifar/cluster/a.py", "import ray.train")),
    (
        vendors_stay_at_home,
        ("distcifar/tracking/journal.py", "import wandb"),
        ("distcifar/tracking/wandb/run.py", "import wandb"),
    ),
    (vendors_stay_at_home, (MODEL, "from tyro import cli"), (JOB, "from tyro import cli")),
    (
        heavy_imports_wait,
        ("distcifar/insight/a.py", "class A:\n    from matplotlib.figure import Figure"),
        ("distcifar/insight/a.py", "if TYPE_CHECKING:\n    import matplotlib\ndef f():\n    import matplotlib"),
    ),
    (heavy_imports_wait, (JOB, "try:\n    import ffcv\nfinally:\n    pass"), ("distcifar/data/a.py", "import ffcv")),
    (
        a_laptop_without_torch_can_read_recipes,
        ("distcifar/config/a.py", "import torch"),
        ("distcifar/config/a.py", "import json\nfrom distcifar.errors import ConfigError"),
    ),
    (
        the_environment_is_read_in_jobs_only,
        (MODEL, "def f():\n    return os.environ['A']"),
        (JOB, "A = os.environ['A']"),
    ),
    (the_environment_is_read_in_jobs_only, (MODEL, "from os import getenv"), (MODEL, "from os import fsync")),
    (importing_does_no_work, (MODEL, "print('hello')"), (MODEL, "LOG = logging.getLogger(__name__)")),
    (importing_does_no_work, (MODEL, "DEVICE = choose()"), (MODEL, "SMALL = replace(BIG, size=lambda: choose())")),
    (importing_does_no_work, (MODEL, "for i in range(3):\n    pass"), (MODEL, "A = {i: i * 2 for i in B}")),
    (importing_does_no_work, (MODEL, "def f(a=open('b')): pass"), (MODEL, "def f(a=None):\n    return open('b')")),
    (
        importing_does_no_work,
        (MODEL, "class A:\n    b = connect()"),
        (MODEL, "@dataclass(frozen=True)\nclass A:\n    b: int = 1"),
    ),
    (
        importing_does_no_work,
        (MODEL, "@njit('f4(f4)')\ndef f(x): return x"),
        (MODEL, "@njit(nogil=True)\ndef f(x): return x"),
    ),
    (
        importing_does_no_work,
        (MODEL, "if __name__ == '__main__':\n    f()"),
        (JOB, "if __name__ == '__main__':\n    f()"),
    ),
    (
        few_places_ask_for_the_rank,
        ("distcifar/training/engine.py", "def f(world):\n    if world.is_primary: save()"),
        ("distcifar/cluster/rank.py", "def f(world):\n    if world.is_primary: save()"),
    ),
    (
        few_places_ask_for_the_rank,
        (MODEL, "A = [1 if world.rank == 0 else 2]"),
        (MODEL, "A = [1 if world.size == 0 else 2]"),
    ),
    (programs_are_short, (JOB, "a = 1\n" * 61), (JOB, '"""\n' + "doc\n" * 90 + '"""\n\n# why\n' + "a = 1\n" * 60)),
    (files_are_short, (MODEL, "# why\n" * 301), (MODEL, "a = 1\n" * 300)),
    (files_are_named_for_what_they_hold, ("distcifar/data/utils.py", ""), ("distcifar/data/plan.py", "")),
    (files_are_named_for_what_they_hold, ("distcifar/utils/plan.py", ""), ("distcifar/data/plan.py", "")),
    (errors_are_not_swallowed, (MODEL, TRY.format("", "raise")), (MODEL, TRY.format("Exception", "raise"))),
    (errors_are_not_swallowed, (MODEL, TRY.format("Exception", "pass")), (MODEL, TRY.format("KeyError", "pass"))),
    (errors_are_not_swallowed, (MODEL, "with suppress(Exception): f()"), (MODEL, "with suppress(OSError): f()")),
    (no_pickle_is_read, (MODEL, "torch.load('a')"), (MODEL, "torch.load('a', weights_only=True)")),
    (no_pickle_is_read, (MODEL, "np.load('a', allow_pickle=True)"), (MODEL, "np.load('a', allow_pickle=False)")),
    (no_pickle_is_read, (MODEL, "pickle.loads(a)"), (MODEL, "json.loads(a)")),
]


@pytest.mark.parametrize(("rule", "bad", "good"), EXAMPLES, ids=lambda value: getattr(value, "__name__", ""))
def test_each_rule_finds_what_breaks_it_and_nothing_else(rule, bad, good):
    assert list(rule(Source(*bad)))
    assert not list(rule(Source(*good)))
