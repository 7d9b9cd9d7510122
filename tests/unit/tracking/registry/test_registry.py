"""The registry of files: what follows from its log, whom it lets in, and that nothing breaks it in the middle."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from distcifar.config import to_dict
from distcifar.errors import RegistryError, StorageError
from distcifar.files import write_json
from distcifar.models import build_model
from distcifar.sealed import MODEL_FILES, seal, verify
from distcifar.tracking.registry.cursor import Cursor
from distcifar.tracking.registry.gates import inspect
from distcifar.tracking.registry.log import Act, append_act, fold, read_acts
from tests.support import small_recipe
from tests.unit.tracking.registry.registry_runs import CLASSES, change_a_byte, log_lines, make_run, registry


def act_of(alias: str, version: str, before: str, digest: str, *, act: str = "promote") -> Act:
    return Act(
        time="2026-01-01T00:00:00+00:00", act=act, alias=alias, version=version, before=before, digest=digest,
        recipe="quick", run=f"run-{digest}", wandb="", test_accuracy=0.5, data_digest="d", class_names=CLASSES,
        who="a@b", forced=False, reason="因为",
    )  # fmt: skip


def refused(call, *parts: str) -> RegistryError:
    """Calls `call`, which must be refused with a message that has all `parts`; nothing is written meanwhile."""
    with pytest.raises(RegistryError) as error:
        call()
    for part in parts:
        assert part in str(error.value)
    assert all(error.value.args), "value, rule and remedy"
    return error.value


# The log and its fold

WISHES = st.lists(
    st.tuples(st.sampled_from(("staging", "production")), st.none() | st.sampled_from("abcd")), max_size=25
)


def acts_for(wishes) -> tuple[list[Act], dict[str, list[str]], list[str]]:
    """Acts that follow from wishes (alias, digest to promote or None to go back), by a model of lists."""
    acts, stacks, digests = [], {}, []
    for alias, digest in wishes:
        stack = stacks.setdefault(alias, [])
        before = f"v{digests.index(stack[-1]) + 1}" if stack else ""
        if digest is None:
            if len(stack) < 2:
                continue
            stack.pop()
            acts.append(act_of(alias, f"v{digests.index(stack[-1]) + 1}", before, stack[-1], act="rollback"))
        elif not stack or stack[-1] != digest:
            stack.append(digest)
            digests += [digest] * (digest not in digests)
            acts.append(act_of(alias, f"v{digests.index(digest) + 1}", before, digest))
    return acts, stacks, digests


@given(WISHES)
def test_the_state_is_what_a_stack_for_each_alias_would_be(wishes):
    acts, stacks, digests = acts_for(wishes)
    state = fold(acts)
    assert [first.digest for first in state.versions.values()] == digests
    assert list(state.versions) == [f"v{number}" for number in range(1, len(digests) + 1)]
    held = {
        alias: [state.versions[version].digest for version in versions] for alias, versions in state.history.items()
    }
    assert held == {alias: stack for alias, stack in stacks.items() if stack}
    assert state.version_of("new") == f"v{len(digests) + 1}"
    for alias, stack in stacks.items():
        assert (state.holder(alias).digest if stack else state.holder(alias)) == (stack[-1] if stack else None)


@given(WISHES, st.data())
def test_a_log_from_which_a_line_is_missing_or_doubled_is_refused_unless_nothing_came_of_it(wishes, data):
    acts, _, _ = acts_for(wishes)
    if not acts:
        return
    at = data.draw(st.integers(0, len(acts) - 1))
    refused(lambda: fold([*acts[: at + 1], *acts[at:]]), f"line {at + 2} ")
    if any(later.alias == acts[at].alias for later in acts[at + 1 :]):
        shorter = [*acts[:at], *acts[at + 1 :]]
        following = next(i for i in range(at, len(shorter)) if shorter[i].alias == acts[at].alias)
        if shorter[following].act == "promote":
            refused(lambda: fold(shorter), "damaged")


def test_a_log_cut_at_any_byte_is_the_log_of_the_acts_before_and_can_be_gone_on_with(tmp_path):
    acts, _, _ = acts_for([("a", "x"), ("b", "x"), ("a", "y"), ("a", None)])
    path = tmp_path / "log.jsonl"
    for act in acts:
        append_act(path, act)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        done = content[:size].count(b"\n")
        assert read_acts(path) == acts[:done]
        if size % 50 == 0 and done < len(acts):
            append_act(path, acts[done])
            assert path.read_bytes() == b"".join(content.splitlines(keepends=True)[: done + 1])


def test_what_a_power_cut_left_behind_the_last_line_is_written_over(tmp_path):
    path = tmp_path / "log.jsonl"
    first, second = act_of("a", "v1", "", "x"), act_of("a", "v2", "v1", "y")
    append_act(path, first)
    with open(path, "ab") as file:
        file.write(b"\0" * 500)
    assert read_acts(path) == [first]
    append_act(path, second)
    assert read_acts(path) == [first, second]
    assert b"\0" not in path.read_bytes()


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"act": "demote"}', "[]", "\udcff"])
def test_a_line_that_is_no_act_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "log.jsonl"
    append_act(path, act_of("a", "v1", "", "x"))
    with open(path, "ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    append_act(path, act_of("a", "v2", "v1", "y"))
    refused(lambda: read_acts(path), "line 2", "backup")


def test_what_a_newer_version_adds_to_a_line_is_passed_over(tmp_path):
    path, act = tmp_path / "log.jsonl", act_of("a", "v1", "", "x")
    append_act(path, act)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"approved_by": ["c"], "": None}) + "\n")
    content = path.read_bytes()
    append_act(path, act_of("a", "v2", "v1", "y"))
    assert read_acts(path)[0] == act
    assert path.read_bytes().startswith(content), "what it says stays"


# What a server has been told


def test_a_server_is_told_each_act_once_whatever_was_refused_between(tmp_path):
    state = fold(acts_for([("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("a", None)])[0])
    assert Cursor(tmp_path, "one").pending(state) == list(state.acts)
    for alias in "aab":
        Cursor(tmp_path, "one").advance(alias, 1)
    assert Cursor(tmp_path, "one").pending(state) == [state.acts[3], state.acts[4]]
    assert Cursor(tmp_path, "two").pending(state) == list(state.acts), "another server has nothing of it"
    for text in ("", "[]", "{}", '{"server": "one", "acts": 3}', '{"server": "one", "acts": {"a": null}}'):
        (tmp_path / "synced.json").write_text(text)
        assert Cursor(tmp_path, "one").pending(state) == list(state.acts), "what was done is done again, to no effect"


# Promotions and their gates


def test_a_promotion_leaves_a_copy_and_a_line_that_tells_all_of_it(tmp_path):
    run = make_run(tmp_path, "first", 0.91, wandb="team/cifar/first-ab12cd")
    done = registry(tmp_path).promote("first", "staging", reason="why not")
    (line,) = log_lines(tmp_path)
    assert done.version == line["version"] == "v1"
    assert line["time"].endswith("+00:00")
    assert "@" in line["who"]
    told = {"act": "promote", "alias": "staging", "before": "", "run": "first", "wandb": "team/cifar/first-ab12cd",
            "test_accuracy": 0.91, "recipe": "quick", "reason": "why not", "forced": False}  # fmt: skip
    assert {key: line[key] for key in told} == told
    assert line["digest"] == json.loads((run / "summary.json").read_text())["model_sha256"]
    copy = tmp_path / ".registry/model/models" / line["digest"][:16]
    verify(copy, MODEL_FILES)
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        [*MODEL_FILES, "README.md", "manifest.json", "registry.json"]
    )
    assert (copy / "model.safetensors").read_bytes() == (run / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("way", ["name", "run", "model", "version", "pulled"])
def test_a_model_is_found_by_its_run_its_folder_its_version_and_where_it_was_pulled_to(tmp_path, way):
    runs = tmp_path / "runs"
    run = make_run(runs, "first", 0.7, wandb="cifar/first-1")
    registry(runs).promote("first", "staging")
    registry(runs).pull("staging", tmp_path / "pulled")
    things = {"name": "first", "run": str(run), "model": str(run / "model"), "version": "v1"}
    registry(runs).promote(things.get(way, str(tmp_path / "pulled")), "production")
    first, second = log_lines(runs)
    assert {**second, "alias": "staging", "time": first["time"]} == first
    assert registry(runs).state().aliases == {"staging": "v1", "production": "v1"}


def test_a_pulled_model_can_be_promoted_in_another_runs_folder(tmp_path):
    make_run(tmp_path / "here", "first", 0.7)
    registry(tmp_path / "here").promote("first", "staging")
    registry(tmp_path / "here").pull("v1", tmp_path / "pulled")
    registry(tmp_path / "there").promote(str(tmp_path / "pulled"), "production")
    (line,) = log_lines(tmp_path / "there")
    assert (line["run"], line["test_accuracy"]) == ("first", 0.7)


def test_what_cannot_be_found_is_told_with_what_can(tmp_path):
    make_run(tmp_path, "first")
    found = registry(tmp_path)
    refused(lambda: found.promote("frist", "staging"), "'frist'", "Did you mean 'first'")
    refused(lambda: found.promote("v1", "staging"), "'v1'", "none")
    refused(lambda: found.rollback("staging"), "'staging'", "none")
    refused(lambda: found.pull("staging", tmp_path / "x"), "'staging'")
    assert not (tmp_path / ".registry").exists(), "asking makes nothing"
    found.promote("first", "staging")
    refused(lambda: found.promote("v2", "staging"), "'v2'", "v1")
    refused(lambda: found.rollback("stagin"), "Did you mean 'staging'")


def test_gate_the_digests_must_match(tmp_path):
    run = make_run(tmp_path, "first")
    change_a_byte(run / "model/model.safetensors")
    refused(lambda: registry(tmp_path).promote("first", "staging", force=True), "model.safetensors is damaged")
    (run / "model/recipe.json").unlink()
    refused(lambda: registry(tmp_path).promote("first", "staging", force=True), "model.safetensors", "digest")
    shutil.rmtree(run / "model")
    refused(lambda: registry(tmp_path).promote("first", "staging", force=True), "manifest.json")
    assert not (tmp_path / ".registry").exists()


def test_gate_a_run_must_be_finished(tmp_path):
    run = make_run(tmp_path, "first")
    (run / "summary.json").unlink()
    for thing in ("first", str(run)):
        refused(
            lambda thing=thing: registry(tmp_path).promote(thing, "staging", force=True), "not finished", "--name first"
        )


@pytest.mark.parametrize("accuracy", [None, "0.9", True, float("nan"), 1.5, -0.1])
def test_gate_a_test_accuracy_must_have_been_measured(tmp_path, accuracy):
    make_run(tmp_path, "first", accuracy)
    refused(
        lambda: registry(tmp_path).promote("first", "staging", force=True),
        "measured test accuracy",
        "a run that is finished",
    )


def test_gate_a_bare_model_directory_has_no_accuracy_and_its_run_is_named(tmp_path):
    """A checkpoint's weights are not those that were measured, though its files look like a model's."""
    run = make_run(tmp_path, "first")
    checkpoint = run / "checkpoints" / "step-00000007"
    shutil.copytree(run / "model", checkpoint)
    refused(lambda: registry(tmp_path).promote(str(checkpoint), "staging", force=True), f"promote.py {run}")


def test_a_bare_model_directory_may_tell_its_accuracy_itself(tmp_path):
    run = make_run(tmp_path, "first")
    model = shutil.copytree(run / "model", tmp_path / "bare")
    summary = json.loads((run / "summary.json").read_text())
    card = json.loads((model / "model.json").read_text())
    write_json(model / "model.json", card | {key: summary[key] for key in ("test_accuracy", "model_sha256")})
    (model / "manifest.json").unlink()
    seal(model)
    registry(tmp_path).promote(str(model), "staging")
    assert log_lines(tmp_path)[0]["test_accuracy"] == 0.9


@pytest.mark.parametrize(("digest", "told"), [(None, "does not tell on which weights"), ("0" * 64, "on other weights")])
def test_gate_the_accuracy_must_be_of_these_very_weights(tmp_path, digest, told):
    make_run(tmp_path, "first", model_sha256=digest)
    refused(lambda: registry(tmp_path).promote("first", "staging", force=True), told)


@pytest.mark.parametrize("classes", [("cat", "dog"), ("dog", "cat", "椅子"), ("cat", "dog", "chair")])
def test_gate_the_classes_must_be_those_of_the_model_before(tmp_path, classes):
    make_run(tmp_path, "first", 0.5)
    make_run(tmp_path, "second", 0.9, classes=classes)
    registry(tmp_path).promote("first", "staging")
    refused(lambda: registry(tmp_path).promote("second", "staging", force=True), "other classes than v1", "instead of")
    registry(tmp_path).promote("second", "other")  # another alias may


def test_gate_the_accuracy_must_be_at_least_that_of_the_model_before_or_forced(tmp_path):
    for name, accuracy in (("first", 0.9), ("equal", 0.9), ("worse", 0.8999)):
        make_run(tmp_path, name, accuracy)
    found = registry(tmp_path)
    found.promote("first", "staging")
    assert not found.promote("equal", "staging", force=True).act.forced, "--force was not needed"
    refused(lambda: found.promote("worse", "staging"), "89.99 %", "90 %", "v2", "--force")
    assert found.state().aliases == {"staging": "v2"}
    assert found.promote("worse", "staging", force=True).act.forced
    assert [line["forced"] for line in log_lines(tmp_path)] == [False, False, True]


def test_gate_a_model_chosen_on_the_test_split_needs_force(tmp_path):
    make_run(tmp_path, "first", selected_on="test")
    refused(lambda: registry(tmp_path).promote("first", "staging"), "chosen on the test split", "--force")
    assert registry(tmp_path).promote("first", "staging", force=True).act.forced


def test_other_data_are_told_and_no_reason_to_refuse(tmp_path):
    make_run(tmp_path, "first", 0.5)
    make_run(tmp_path, "second", 0.6, data="e" * 64)
    assert registry(tmp_path).promote("first", "staging").notes == []
    (note,) = registry(tmp_path).promote("second", "staging").notes
    assert "other data (eeeeeeeee) than v1 (ddddddddd)" in note


def test_the_same_weights_with_other_class_names_are_refused_under_any_alias(tmp_path):
    make_run(tmp_path, "first", weights=1)
    make_run(tmp_path, "second", weights=1, classes=("cat", "dog", "chair"))
    registry(tmp_path).promote("first", "staging")
    refused(lambda: registry(tmp_path).promote("second", "production"), "weights of v1")


def test_promoting_what_the_alias_has_already_adds_no_line(tmp_path):
    make_run(tmp_path, "first")
    assert registry(tmp_path).promote("first", "staging").act is not None
    for thing in ("first", "v1"):
        assert registry(tmp_path).promote(thing, "staging").act is None
    assert len(log_lines(tmp_path)) == 1


def test_what_is_known_of_a_version_does_not_change_without_a_line(tmp_path):
    run = make_run(tmp_path, "first", 0.9)
    found = registry(tmp_path)
    facts = found.copy(found.promote("first", "staging").act.digest) / "registry.json"
    before = facts.read_bytes()
    write_json(run / "summary.json", json.loads((run / "summary.json").read_text()) | {"test_accuracy": 0.5})
    assert found.promote("first", "staging").act is None
    assert facts.read_bytes() == before
    change_a_byte(facts.parent / "model.json")
    assert found.promote("first", "staging").act is None
    assert found.pull("staging", tmp_path / "out").version == "v1", "a damaged copy is mended all the same"


@pytest.mark.parametrize(
    "path", ["a b/c/d", "../c/d", "a/../d", "a/b/c/d", "a", "a/b:latest", "a/b?c", "a/b\n", "a//b"]
)
def test_what_a_model_tells_of_its_place_in_wandb_is_taken_if_it_is_one(tmp_path, path):
    model = make_run(tmp_path, "first") / "model"
    summary = json.loads((tmp_path / "first/summary.json").read_text())
    for told, taken in ((path, ""), ("team/my.project/first-1a", "team/my.project/first-1a"), ("p/first", "p/first")):
        write_json(model / "registry.json", summary | {"wandb": told})
        assert inspect(model).wandb == taken


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "-flag", "ä", "x" * 65, "a\n"])
def test_names_that_could_be_paths_or_flags_are_refused(tmp_path, name):
    make_run(tmp_path, "first")
    refused(lambda: registry(tmp_path, name), "cannot name a registry")
    refused(lambda: registry(tmp_path).promote("first", name), "cannot name an alias")


@pytest.mark.parametrize("name", ["v1", "v20", "latest"])
def test_the_names_of_versions_are_no_aliases(tmp_path, name):
    refused(lambda: registry(tmp_path).promote("first", name), "cannot be an alias")


# Going back


def test_rollbacks_walk_back_through_what_the_alias_was_and_promotions_go_on_from_there(tmp_path):
    for number in range(1, 5):
        make_run(tmp_path, f"run{number}", 0.5 + number / 10)
    found = registry(tmp_path)
    for name in ("run1", "run2", "run3"):
        found.promote(name, "production")
    found.promote("run1", "staging")
    assert [found.rollback("production", reason="broken").version for _ in range(2)] == ["v2", "v1"]
    refused(lambda: found.rollback("production"), "nothing before v1")
    found.promote("run4", "production")
    assert found.rollback("production").version == "v1", "what was rolled back from is not gone back to"
    assert found.state().aliases == {"production": "v1", "staging": "v1"}
    acts = [(line["act"], line["before"], line["version"]) for line in log_lines(tmp_path)]
    assert acts[4:] == [
        ("rollback", "v3", "v2"),
        ("rollback", "v2", "v1"),
        ("promote", "v1", "v4"),
        ("rollback", "v4", "v1"),
    ]
    assert log_lines(tmp_path)[4]["reason"] == "broken"
    assert log_lines(tmp_path)[4]["run"] == "run2"


# Copies


def test_a_deleted_run_loses_nothing_of_what_was_promoted(tmp_path):
    run, other = make_run(tmp_path, "first", 0.5), make_run(tmp_path, "second", 0.6)
    found, tensors = registry(tmp_path), load_file(run / "model/model.safetensors")
    found.promote("first", "production")
    found.promote("second", "production")
    shutil.rmtree(run)
    shutil.rmtree(other)
    found.rollback("production")
    found.promote("v2", "staging")
    assert found.pull("production", tmp_path / "out").version == "v1"
    verify(tmp_path / "out", MODEL_FILES)
    assert load_file(tmp_path / "out/model.safetensors")["head.weight"].equal(tensors["head.weight"])


@pytest.mark.parametrize("damage", ["byte", "gone", "another"])
def test_a_damaged_copy_is_handed_to_nobody_and_mended_by_promoting_its_run_again(tmp_path, damage):
    make_run(tmp_path, "first", 0.5)
    make_run(tmp_path, "second", 0.6)
    found = registry(tmp_path)
    digest = found.promote("first", "production").act.digest
    second = found.promote("second", "production").act.digest
    if damage == "byte":
        change_a_byte(found.copy(digest) / "model.json")
    else:
        shutil.rmtree(found.copy(digest))
    if damage == "another":  # whole, but not what was promoted
        shutil.copytree(found.copy(second), found.copy(digest))
    refused(lambda: found.rollback("production"), str(found.copy(digest)))
    refused(lambda: found.promote("v1", "staging"), str(found.copy(digest)))
    refused(lambda: found.pull("v1", tmp_path / "out"), str(found.copy(digest)))
    assert not (tmp_path / "out").exists()
    assert len(log_lines(tmp_path)) == 2
    found.promote("first", "staging")
    assert found.rollback("production").version == "v1"
    assert found.pull("v1", tmp_path / "out").digest == digest


def test_a_model_is_pulled_into_an_empty_folder_only(tmp_path):
    make_run(tmp_path / "runs", "first")
    found = registry(tmp_path / "runs")
    found.promote("first", "staging")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in ("full", "file"):
        refused(lambda target=target: found.pull("staging", tmp_path / target), "not an empty folder")
    assert (tmp_path / "full/mine").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    found.pull("staging", tmp_path / "empty")
    found.pull("staging", tmp_path / "a/b/new")
    verify(tmp_path / "empty", MODEL_FILES)
    verify(tmp_path / "a/b/new", MODEL_FILES)


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    run = make_run(tmp_path / "runs", "first")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        registry(tmp_path / "file").promote(str(run), "staging")
    registry(tmp_path / "runs").promote("first", "staging")
    with pytest.raises(StorageError):
        registry(tmp_path / "runs").pull("staging", tmp_path / "file/below")


def test_what_a_killed_process_left_half_copied_is_removed(tmp_path):
    make_run(tmp_path, "first")
    left = tmp_path / ".registry/model/models/.aside-1234-abcd"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    registry(tmp_path).promote("first", "staging")
    assert not left.exists()


def test_the_page_loads_a_model(tmp_path, monkeypatch):
    recipe = small_recipe()
    model = build_model(recipe.model, channels=3, size=8, num_classes=2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    write_json(tmp_path / "model.json", {"class_names": ["a", "b"], "input": {"channels": 3, "size": 8}})
    write_json(tmp_path / "recipe.json", to_dict(recipe))
    page = (Path(__file__).parents[4] / "docs/registry.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert all(found["model"].state_dict()[name].equal(value) for name, value in model.state_dict().items())


# Several processes

FORK = multiprocessing.get_context("fork")


def promote_at_once(runs: Path, name: str, go: Any, told: Any) -> None:
    go.wait()
    try:
        told.put((name, registry(runs).promote(name, "production").version))
    except RegistryError as error:
        told.put((name, f"refused: {error}"))


def test_of_promotions_at_once_the_best_wins_whatever_their_order(tmp_path):
    accuracies = {"a": 0.6, "b": 0.9, "c": 0.7, "d": 0.8}
    for name, accuracy in accuracies.items():
        make_run(tmp_path, name, accuracy)
    go, answers = FORK.Event(), FORK.Queue()
    processes = [FORK.Process(target=promote_at_once, args=(tmp_path, name, go, answers)) for name in accuracies]
    for process in processes:
        process.start()
    go.set()
    told = dict(answers.get(timeout=60) for _ in accuracies)
    for process in processes:
        process.join()
    lines = log_lines(tmp_path)
    assert [line["test_accuracy"] for line in lines] == sorted(line["test_accuracy"] for line in lines)
    assert lines[-1]["run"] == "b"
    promoted = {line["run"]: line["version"] for line in lines}
    for name, words in told.items():
        assert words == promoted[name] if name in promoted else "refused:" in words and "less than" in words
    assert registry(tmp_path).state().aliases == {"production": promoted["b"]}


def promote_until(runs: Path, name: str, moment: int, told: Any) -> None:
    """Promotes, and is killed right before the operation on the disk of that number; tells how many there were."""
    count = 0

    def counted(operation: Any) -> Any:
        def call(*words: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*words, **more)

        return call

    for operation in ("rename", "replace", "fsync"):
        setattr(os, operation, counted(getattr(os, operation)))
    registry(runs).promote(name, "production")
    told.put(count)


def test_a_promotion_killed_at_any_moment_has_happened_or_not(tmp_path):
    """And the next one goes on from there. A moment: right before an operation that makes something last."""
    make_run(tmp_path, "first", 0.5)
    registry(tmp_path).promote("first", "production")
    moments, moment, ended = None, 0, []
    while moments is None:
        moment += 1
        make_run(tmp_path, f"next{moment}", 0.5 + moment / 1000)
        told = FORK.SimpleQueue()
        process = FORK.Process(target=promote_until, args=(tmp_path, f"next{moment}", moment, told))
        process.start()
        process.join()
        if process.exitcode == 0:
            moments = told.get()
        found = registry(tmp_path)
        held = found.state().aliases["production"]
        ended.append(found.state().holder("production").run == f"next{moment}")
        assert found.pull(held, tmp_path / f"out{moment}").version == held
    assert moments == moment - 1, "killed before each one"
    assert moments >= 4
    assert ended.index(True) > 0, "before the line there was nothing"
    assert ended[ended.index(True) :] == [True] * (len(ended) - ended.index(True))
    assert len(ended) - ended.index(True) > 1, "none was killed after the line"
    make_run(tmp_path, "last", 0.99)
    registry(tmp_path).promote("last", "production")
    assert not list((tmp_path / ".registry").rglob(".aside-*"))
    assert registry(tmp_path).state().holder("production").run == "last"
