"""jobs/promote.py as it is typed: what it says and its exit codes, without W&B and against a server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distcifar.errors import TrackingError
from distcifar.sealed import MODEL_FILES, verify
from distcifar.tracking.wandb import registry_pull
from tests.support.wandb_lab import KEY, Lab
from tests.unit.tracking.registry.registry_runs import change_a_byte, log_lines, make_run, registry

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "jobs"))

from program import run_program  # noqa: E402
from promote import main  # noqa: E402


@pytest.fixture
def typed(runs, monkeypatch, capfd):
    """What the command says with these words, without W&B, on the three runs; in this process, where torch is."""
    monkeypatch.setenv("WANDB_MODE", "offline")

    def call(*words, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["jobs/promote.py", *map(str, words), "--runs", str(runs)])
        with pytest.raises(SystemExit) as stop:
            run_program(main)
        out, err = capfd.readouterr()
        return judged(out, err, stop.value.code, code)

    return call


def judged(out: str, err: str, code: int, expected: int) -> str:
    """All that was said. A mistake is told on stderr without a traceback, and the key is never told."""
    assert code == expected, out + err
    assert "Traceback" not in err
    assert code == 0 or err.startswith("error: ")
    assert KEY not in out + err
    return " ".join((out + err).split())


def start(*words, env) -> subprocess.Popen:
    command = [sys.executable, "jobs/promote.py", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def promote(*words, env, code=0) -> str:
    """The same as a process of its own, on a machine with this environment."""
    process = start(*words, env=env)
    out, err = process.communicate(timeout=240)
    return judged(out, err, process.returncode, code)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three finished runs: of two recipes, of different accuracy, one of them known to W&B."""
    folder = tmp_path / "runs"
    make_run(folder, "good", 0.8, wandb="local-team/cifar/good-111111")
    make_run(folder, "better", 0.9)
    make_run(folder, "other", 0.95, recipe="resnet 18")
    return folder


def aliases(lab: Lab, registry_name: str = "model") -> dict[str, list[str]]:
    """COLLECTION:VERSION -> the aliases that were given it, of a registry on the server."""
    start = f"local-org/wandb-registry-{registry_name}/"
    return {
        version["name"].removeprefix(start): [alias for alias in version["aliases"] if alias != "latest"]
        for collection in lab.state()["collections"]
        if collection["collection"].startswith(start)
        for version in collection["versions"]
    }


# Without W&B


def test_help_shows_examples_and_no_arguments_name_the_acts(typed):
    help_text = subprocess.run([sys.executable, "jobs/promote.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert help_text.returncode == 0
    assert "python jobs/promote.py first --to staging" in help_text.stdout
    told = typed(code=2)
    assert "Nothing is asked for" in told
    assert "--rollback" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("good",), "RUN|MODEL is asked for"),
        (("--to", "staging"), "--to is asked for"),
        (("--list", "--sync"), "--list and --sync"),
        (("--sync",), "WANDB_MODE=offline do not speak to it"),
        (("--sync", "--offline"), "--offline and WANDB_MODE=offline"),
        (("good", "--to", "../x"), "'../x' cannot name an alias"),
        (("good", "--to", "v1"), "names of versions"),
        (("god", "--to", "staging"), "Did you mean 'good'"),
        (("--rollback", "staging"), "no alias 'staging'"),
        (("--pull", "staging", "out"), "no alias 'staging'"),
        (("--list", "--registry", "a/b"), "'a/b' cannot name a registry"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(runs, typed, words, told):
    assert told in typed(*words, code=2)
    assert not (runs / ".registry").exists()


def test_promote_refuse_force_roll_back_list_history_and_pull(runs, tmp_path, typed):
    assert "No model has been promoted" in typed("--list")
    assert "production is v1 now. Test accuracy 90 %" in typed("better", "--to", "production")
    assert "production is v1 already" in typed(runs / "better/model", "--to", "production")
    refusal = typed("good", "--to", "production", code=2)
    assert "'good' has a test accuracy of 80 %, less than the 90 % of v1, which is production now" in refusal
    forced = typed("good", "--to", "production", "--force", "--reason", "v1 is [red]slow[/red]")
    assert "production is v2 now by --force; it was v1" in forced
    assert "staging is v2 now" in typed("v2", "--to", "staging")
    listed = typed("--list")
    assert "v1" in listed
    assert "production, staging" in listed
    assert "production is v1 again; it was v2" in typed("--rollback", "production")
    assert "nothing before v1" in typed("--rollback", "production", code=2)
    history = typed("--history")
    for part in ("promote, forced", "v1 -> v2", "v2 -> v1", "v1 is [red]slow[/red]", "rollback"):
        assert part in history

    shutil.rmtree(runs / "better")
    told = typed("--pull", "production", tmp_path / "out")
    lines = told[told.index("from safetensors") :]
    assert lines.count("out/model.safetensors") == 1
    verify(tmp_path / "out", MODEL_FILES)
    assert "not an empty folder" in typed("--pull", "v2", tmp_path / "out", code=2)


def test_the_lines_that_load_a_model_do(runs, tmp_path, capsys):
    from distcifar.tracking.registry.console import pull_text

    registry(runs).promote("good", "staging")
    registry(runs).pull("staging", tmp_path / "it's here")
    _, code = pull_text("v1", str(tmp_path / "it's here")).split("\n\n")
    model = torch.nn.Sequential()
    model.add_module("head", torch.nn.Linear(3, 2, bias=False))
    exec(code, {"model": model})
    assert model.head.weight.equal(load_file(runs / "good/model/model.safetensors")["head.weight"])


def test_without_a_key_nothing_waits_for_one(runs, tmp_path):
    """Nor is it missed, but for what is asked of W&B alone."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    env |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    assert promote("good", "--to", "staging", "--runs", runs, env=env).startswith("staging is v1 now")
    told = promote("--sync", "--runs", runs, env=env, code=2)
    assert "Set WANDB_API_KEY. What was done here stands" in told


# With W&B


SHIPPED = """
import sys, wandb
run = wandb.init(project="cifar", id="good-111111")
artifact = wandb.Artifact("good-111111-model", type="model")
artifact.add_dir(sys.argv[1])
run.log_artifact(artifact, aliases=["latest", "best"]).wait()
run.finish()
"""


@pytest.mark.slow
def test_online_each_act_is_on_the_server_at_once_and_another_machine_pulls_it(runs, tmp_path, lab):
    env, here = lab.client(tmp_path / "home"), ("--runs", runs)
    subprocess.run([sys.executable, "-c", SHIPPED, str(runs / "good/model")], env=env, cwd=tmp_path, check=True)
    told = promote("good", "--to", "production", *here, env=env)
    assert lab.collection("local-team/cifar/good-111111-model")["versions"][0]["aliases"] == ["best", "latest"]
    assert "production is local-org/wandb-registry-model/quick:v0 (v1 here)" in told
    promote("better", "--to", "production", *here, env=env)
    assert aliases(lab) == {"quick:v0": [], "quick:v1": ["production"]}
    before = lab.state()["collections"]
    promote("good", "--to", "production", *here, env=env, code=2)
    assert lab.state()["collections"] == before, "a refused promotion changes nothing"
    assert "quick:v0 (v1 here)" in promote("--rollback", "production", *here, env=env)
    assert aliases(lab) == {"quick:v0": ["production"], "quick:v1": []}

    assert "resnet-18:v0" in promote("other", "--to", "production", *here, env=env)
    assert aliases(lab) == {"quick:v0": [], "quick:v1": [], "resnet-18:v0": ["production"]}, "one model has it"
    sources = [c["collection"] for c in lab.state()["collections"] if c["kind"] == "source"]
    assert sources[0] == "local-team/cifar/good-111111-model", "beside its run"
    assert all(source.startswith("local-team/distcifar/model-") for source in sources[1:])
    assert all(len(c["versions"]) == 1 for c in lab.state()["collections"] if c["kind"] == "source")

    second = lab.client(tmp_path / "second home")
    promote("--pull", "production", tmp_path / "out", "--runs", tmp_path / "empty", env=second)
    verify(tmp_path / "out", MODEL_FILES)
    for name in ("model.safetensors", "README.md", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (runs / "other/model" / name).read_bytes()
    registry(tmp_path / "empty").promote(str(tmp_path / "out"), "staging")
    assert log_lines(tmp_path / "empty")[0]["run"] == "other"
    assert "no model in W&B's registry" in promote(
        "--pull", "nothing", tmp_path / "x", "--runs", tmp_path / "empty", env=second, code=2
    )
    assert not (tmp_path / "x").exists()
    for folder in (runs, tmp_path / "out", tmp_path / "home", tmp_path / "second home"):
        assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_what_was_done_offline_is_done_on_the_server_once_however_the_sync_is_interrupted(runs, tmp_path, lab):
    env, here, found = lab.client(tmp_path / "home"), ("--runs", runs), registry(runs)
    found.promote("good", "staging")
    found.promote("good", "production")
    found.promote("better", "production")
    found.promote("other", "production")
    assert "resnet" not in promote("--rollback", "production", *here, "--offline", env=env)
    assert aliases(lab) == {}
    cursor = runs / ".registry/model/synced.json"
    syncing = start("--sync", *here, env=env)
    while not cursor.exists():
        assert syncing.poll() is None, syncing.communicate()
        time.sleep(0.01)
    syncing.send_signal(signal.SIGKILL)
    syncing.communicate()
    assert sum(json.loads(cursor.read_text())["acts"].values()) < 5, "it was killed in the middle"

    told = promote("--sync", *here, env=env)
    assert "production is local-org/wandb-registry-model/quick:v1 (v2 here)" in told
    assert "staging is local-org/wandb-registry-model/quick:v0 (v1 here)" in told
    expected = {"quick:v0": ["staging"], "quick:v1": ["production"], "resnet-18:v0": []}
    assert aliases(lab) == expected
    collections, runs_there = lab.state()["collections"], {run["path"] for run in lab.state()["runs"]}
    assert told == promote("--sync", *here, env=env)
    cursor.unlink()  # all over again
    assert told == promote("--sync", *here, env=env)
    assert lab.state()["collections"] == collections
    assert {run["path"] for run in lab.state()["runs"]} == runs_there
    assert lab.state()["refusals"] == []


@pytest.mark.slow
def test_what_the_server_refuses_is_told_and_holds_up_nothing_else(runs, tmp_path, lab):
    env, here = lab.client(tmp_path / "home"), ("--runs", runs)
    told = promote("good", "--to", "protected", *here, env=env, code=2)
    assert "protected is v1 now" in told
    assert "alias 'protected' is protected; only registry admins may set it" in told
    assert "What was done here stands" in told
    told = promote("better", "--to", "staging", *here, env=env)
    assert "note: W&B has not all that was done here with protected" in told
    assert aliases(lab) == {"quick:v0": ["staging"]}
    assert "protected" in promote("--sync", *here, env=env, code=2)
    assert registry(runs).state().aliases == {"protected": "v1", "staging": "v2"}
    told = promote("good", "--to", "staging", *here, "--registry", "nowhere", env=env, code=2)
    assert "Failed to load registry 'nowhere'" in told
    assert registry(runs, "nowhere").state().aliases == {"staging": "v1"}


@pytest.mark.slow
def test_a_dead_server_is_told_and_what_was_done_here_stands(runs, tmp_path, lab):
    env, here = lab.client(tmp_path / "home"), ("--runs", runs)
    lab.stop()
    told = promote("good", "--to", "staging", *here, env=env, code=2)
    assert "staging is v1 now" in told
    assert "connection refused" in told
    assert "What was done here stands; python jobs/promote.py --sync" in told
    lab.restart()
    assert "staging is local-org/wandb-registry-model/quick:v0" in promote("--sync", *here, env=env)


def test_of_two_promotions_at_once_the_server_has_the_winner(runs, tmp_path, lab):
    processes = [
        start(name, "--to", "production", "--runs", runs, env=lab.client(tmp_path / f"home of {name}"))
        for name in ("good", "better")
    ]
    told = [process.communicate(timeout=240) for process in processes]
    assert processes[1].returncode == 0, told
    assert processes[0].returncode in (0, 2), told
    assert registry(runs).state().holder("production").run == "better"
    version = registry(runs).state().aliases["production"]
    assert aliases(lab)[f"quick:v{int(version[1:]) - 1}"] == ["production"]


HOSTILE = """
import sys, wandb
from pathlib import Path
from wandb.sdk.artifacts import artifact_manifest
artifact_manifest.validate_artifact_path = lambda path: path
model, secret = map(Path, sys.argv[1:])
run = wandb.init(project="p")
def send(name, change):
    artifact = wandb.Artifact(name, type="model")
    for path in model.iterdir():
        if path.name != change:
            artifact.add_file(str(path), name=path.name)
    if change == "../../escaped":
        artifact.add_file(str(secret), name=change)
    elif change == "extra":
        artifact.add_file(str(secret), name="extra.py")
        artifact.add_file(str(secret), name="below/registry.json")
    elif change == "model.json":
        artifact.add_reference(secret.as_uri(), name=change)
    elif change == "recipe.json":
        artifact.add_file(str(secret), name=change)
    run.log_artifact(artifact).wait()
    run.link_artifact(artifact, "wandb-registry-model/" + name, aliases=[name])
for name, change in (("up", "../../escaped"), ("more", "extra"), ("refers", "model.json"), ("changed", "recipe.json")):
    send(name, change)
more = wandb.Api().artifact("wandb-registry-model/more:more")
run.link_artifact(more, "wandb-registry-model/twice", aliases=["more"])
run.finish()
"""


@pytest.mark.slow
def test_what_a_hostile_server_has_is_not_written_anywhere(runs, tmp_path, lab, monkeypatch):
    env, secret = lab.client(tmp_path / "home"), tmp_path / "secret"
    secret.write_text("secret")
    words = [sys.executable, "-c", HOSTILE, str(runs / "good/model"), str(secret)]
    subprocess.run(words, env=env, cwd=tmp_path / "home", check=True)
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)

    def pull(alias: str, code: int = 2) -> str:
        return promote(
            "--pull", alias, place / alias.replace(":", "-"), "--runs", tmp_path / "none", env=env, code=code
        )

    assert "refers to model.json" in pull("refers")
    assert "recipe.json is damaged" in pull("changed")
    assert any(f"is the alias of {names} in" in pull("more") for names in ("more, twice", "twice, more"))
    pull("more:more", code=0)
    assert sorted(path.name for path in (place / "more-more").iterdir()) == sorted(
        path.name for path in (runs / "good/model").iterdir()
    )
    assert "../../escaped" in lab.collection("local-org/wandb-registry-model/up")["versions"][0]["files"]
    start("--pull", "up", place / "up", "--runs", tmp_path / "none", env=env).communicate()
    assert {path.name for path in place.iterdir()} <= {"up", "more-more"}
    assert not [path for path in tmp_path.rglob("*escaped*") if "wandb-server" not in str(path)]
    assert "secret" not in "".join(path.read_text(errors="ignore") for path in place.rglob("*") if path.is_file())

    monkeypatch.setattr(os, "environ", env)
    with pytest.raises(TrackingError, match="at most 100"):
        registry_pull.pull(registry(tmp_path / "none"), "more:more", place / "big", online=True, most_bytes=100)
    assert not (place / "big").exists()


# What others do in W&B


def replaced(lab: Lab, home: Path, code: str) -> None:
    """Somebody does `code` with W&B's client, in a run of theirs; `api` is its API."""
    code = f"import wandb\napi = wandb.Api()\nrun = wandb.init(project='theirs')\n{code}\nrun.finish()\n"
    subprocess.run([sys.executable, "-c", code], env=lab.client(home), cwd=home, check=True)


@pytest.mark.slow
def test_a_promotion_from_another_runs_folder_is_judged_by_the_model_that_has_the_alias_in_wandb(runs, tmp_path, lab):
    env, there, here = lab.client(tmp_path / "home"), ("--runs", runs), ("--runs", tmp_path / "second")
    promote("better", "--to", "production", *there, env=env)
    make_run(tmp_path / "second", "weak", 0.1)
    make_run(tmp_path / "second", "strange", 0.99, classes=("dog", "cat", "椅子"))
    expected = aliases(lab)

    told = promote("weak", "--to", "production", *here, env=env, code=2)
    assert "production is v1 now" in told, "what is done here stands"
    assert "quick:v0 (run 'better', test accuracy 90 %) has it in W&B, and v1 has a test accuracy of 10 %" in told
    assert "promote.py v1 --to production --force" in told
    assert "(run 'better'" in promote("--sync", *here, env=env, code=2), "nor is it moved later"
    told = promote("strange", "--to", "questions", *here, "--offline", env=env)
    assert "'questions'" not in promote("--sync", *here, env=env, code=2), "no model has that alias"
    promote("better", "--to", "questions", *there, env=env, code=2)
    assert [names for names in aliases(lab).values() if "production" in names] == list(expected.values())

    assert "production is local-org" in promote("v1", "--to", "production", "--force", *here, env=env)
    assert expected != aliases(lab)
    told = promote("--sync", *there, env=env, code=2)
    assert "(run 'weak', test accuracy 10 %) has it in W&B, not v1" in told
    assert "promote.py v1 --to production --force" in told
    told = promote("better", "--to", "production", *there, env=env, code=2)
    assert "production is v1 already" in told
    assert "(run 'weak'" in told
    promote("better", "--to", "production", "--force", *there, env=env)
    assert aliases(lab)["quick:v0"] == ["production"]


@pytest.mark.slow
def test_an_alias_that_was_removed_in_wandb_is_given_again_and_a_model_that_tells_nothing_keeps_it(runs, tmp_path, lab):
    env, here = lab.client(tmp_path / "home"), ("--runs", runs)
    promote("good", "--to", "production", *here, env=env)
    for again in (("--sync",), ("good", "--to", "production")):
        code = "found = api.artifact('wandb-registry-model/quick:production')\nfound.aliases.remove('production')"
        replaced(lab, tmp_path / "home", f"{code}\nfound.save()")
        assert aliases(lab) == {"quick:v0": []}
        promote(*again, *here, env=env)
        assert aliases(lab) == {"quick:v0": ["production"]}
    code = f"a = wandb.Artifact('bare', type='model')\na.add_file({str(runs / 'better/model/recipe.json')!r})\n"
    code += "run.log_artifact(a).wait()\nrun.link_artifact(a, 'wandb-registry-model/quick', aliases=['production'])"
    replaced(lab, tmp_path / "home", code)
    told = promote("better", "--to", "production", *here, env=env, code=2)
    assert "quick:v1 has it in W&B and tells no test accuracy" in told
    assert aliases(lab)["quick:v1"] == ["production"]
    promote("v2", "--to", "production", "--force", *here, env=env)
    assert aliases(lab) == {"quick:v0": [], "quick:v1": [], "quick:v2": ["production"]}


SPIED = """
import sys, wandb
sys.path.insert(0, "jobs")
link = wandb.Run.link_artifact
def spied(self, artifact, target_path, aliases=None, **more):
    print("LINK", target_path.rpartition("/")[2], aliases or "", flush=True)
    return link(self, artifact, target_path, aliases=aliases, **more)
wandb.Run.link_artifact = spied
from promote import main
from program import run_program
run_program(main)
"""


@pytest.mark.slow
def test_a_replay_moves_an_alias_once_and_a_damaged_copy_holds_up_its_own_alias_only(runs, tmp_path, lab):
    env, found = lab.client(tmp_path / "home"), registry(runs)
    digest = found.promote("good", "staging").act.digest
    for name in ("good", "better", "other"):
        found.promote(name, "production")
    found.rollback("production")
    change_a_byte(found.copy(digest) / "model.json")

    def sync() -> list[str]:
        words = [sys.executable, "-c", SPIED, "--sync", "--runs", str(runs)]
        done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2, done
        assert "staging: " in done.stderr
        assert "model.json is damaged" in done.stderr
        assert "production: " not in done.stderr
        return done.stdout.splitlines()

    told = sync()
    assert any(line.startswith("note: v1, which production was once, is not sent to W&B") for line in told)
    assert [line for line in told if "LINK" in line] == ["LINK quick ", "LINK resnet-18 ", "LINK quick ['production']"]
    assert aliases(lab) == {"quick:v0": ["production"], "resnet-18:v0": []}
    assert not [line for line in sync() if "LINK" in line], "each once"
