"""A run that waits says what it needs, what there is, who holds it, and what to type; alone, and on a real cluster."""

from types import SimpleNamespace

import pytest

from distcifar.cluster import waiting
from distcifar.cluster.session import Workers, fit_workers
from distcifar.cluster.waiting import Holder, Patience, lacks, waiting_words
from distcifar.config import RunSpec
from distcifar.errors import ResourceError

TRAINING = Holder("02000000", {"CPU": 4.0, "GPU": 4.0}, "python jobs/train.py resnet18", "raysubmit_Ab1")


def test_who_holds_what_is_needed_is_named_with_the_command_that_frees_it():
    words = waiting_words(Workers(8, 1, gpu=True), {"CPU": 16.0, "GPU": 8.0}, [TRAINING])
    assert words == (
        "Waiting for places: 8 worker(s) need 8 CPUs and 8 GPUs; the cluster has 16 CPUs of which 12 free, 8 GPUs of "
        "which 4 free. Held: 4 CPUs and 4 GPUs by python jobs/train.py resnet18 (raysubmit_Ab1). To begin with fewer: "
        "--workers 4. To free places: ray job stop raysubmit_Ab1"
    )


def test_what_a_program_has_left_behind_is_not_to_be_stopped_but_freed():
    words = waiting_words(Workers(1, 1, gpu=False), {"CPU": 1.0}, [Holder("01000000", {"CPU": 1.0}, "x", ended=True)])
    assert "by x (job 01000000), which has ended" in words
    assert "doctor.py --address auto --fix" in words
    assert "--workers" not in words


def test_a_cluster_that_is_too_small_waits_for_nodes_whoever_holds_what():
    workers = Workers(count=3, cpus=2, gpu=True)
    assert not lacks(workers, {"CPU": 6.0, "GPU": 3.0})
    assert lacks(workers, {"CPU": 6.0, "GPU": 2.0})
    assert "too small until nodes join" in waiting_words(workers, {"CPU": 4.0}, [TRAINING])
    assert not lacks(Workers(count=3, cpus=2, gpu=False, least=1), {"CPU": 2.0})


def test_places_that_no_single_node_has_are_told():
    words = waiting_words(Workers(1, 4, gpu=False), {"CPU": 4.0}, [])
    assert "No node has room for a worker of 4 CPUs" in words


def test_a_run_that_will_go_on_with_fewer_waits_for_nobody():
    assert waiting_words(Workers(2, 1, gpu=False, least=1), {"CPU": 1.0}, []) == ""


def test_an_autoscaled_cluster_is_not_refused_for_what_it_does_not_have_yet():
    spec = RunSpec(workers=8, address="host:6379", device="cuda", wait_minutes=10.0)
    assert fit_workers(spec, {"CPU": 2.0}) == Workers(8, 1, gpu=True)
    with pytest.raises(ResourceError, match="no GPU"):
        fit_workers(RunSpec(workers=8, address="host:6379", device="cuda"), {"CPU": 2.0})


def group(job: str, state: int, cpus: float) -> SimpleNamespace:
    bundle = SimpleNamespace(unit_resources={"CPU": cpus})
    return SimpleNamespace(creator_job_id=bytes.fromhex(job), state=state, bundles=[bundle])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the head knows, seen by program 02."""
    found = SimpleNamespace(groups=[], free={"CPU": 4.0})
    context = SimpleNamespace(get_job_id=lambda: "02")
    monkeypatch.setattr(waiting.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(waiting.ray, "available_resources", lambda: found.free)
    monkeypatch.setattr(waiting.gcs, "groups", lambda: found.groups)
    monkeypatch.setattr(waiting.gcs, "programs", list)
    return found


def test_what_is_held_without_a_placement_group_is_not_called_free(cluster: SimpleNamespace):
    have = {"CPU": 4.0}
    cluster.groups, cluster.free = [group("01", waiting.gcs.GROUP.CREATED, 1.0)], {"CPU": 1.0}
    held = waiting.holders(have)
    assert [(holder.job, holder.resources) for holder in held] == [("01", {"CPU": 1.0}), ("", {"CPU": 2.0})]
    words = waiting_words(Workers(2, 1, gpu=False), have, held)
    assert "of which 1 free" in words
    assert "2 CPUs by tasks or actors of other programs" in words
    assert "ray list actors" in words
    cluster.groups, cluster.free = [group("02", waiting.gcs.GROUP.CREATED, 4.0)], {}
    assert waiting.holders(have) == [], "its own places"


def test_a_run_of_one_to_two_waits_though_ray_has_not_asked_for_places_yet(cluster: SimpleNamespace):
    """Ray's coordinator gives all of the cluster to the training that is there, and asks for none for the other."""
    have, some = {"CPU": 2.0}, Workers(2, 1, gpu=False, least=1)
    cluster.groups, cluster.free = [group("01", waiting.gcs.GROUP.CREATED, 2.0)], {}
    assert waiting.is_waiting(some, have)
    assert "Held: 2 CPUs by a program (job 01)" in waiting_words(some, have, waiting.holders(have))
    assert not waiting.is_waiting(Workers(2, 1, gpu=False), have)
    cluster.groups = [group("02", waiting.gcs.GROUP.CREATED, 1.0)]
    assert not waiting.is_waiting(some, have)


def test_workers_that_have_places_and_do_not_meet_are_told_once(monkeypatch: pytest.MonkeyPatch):
    clock, told = [0.0], []
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(waiting, "is_waiting", lambda workers, have: False)
    patience = Patience(Workers(2, 1, gpu=False), 0.0, told.append)
    for second in range(200):
        clock[0] = second
        patience.look()
        assert len(told) == (second >= waiting.MEETING_SECONDS + waiting.LOOK_SECONDS)
    patience.sign_of_life()
    clock[0] = 900.0
    patience.look()
    assert len(told) == 1, "a step may take long"


def test_what_is_waited_for_is_told_after_a_while_once_and_not_for_ever(monkeypatch: pytest.MonkeyPatch):
    clock, told = [0.0], []
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(waiting, "holders", lambda have: [])
    monkeypatch.setattr(waiting, "is_waiting", lambda workers, have: True)
    patience = Patience(Workers(2, 1, gpu=False), 1.0, told.append)
    for second in range(60):
        clock[0] = second
        patience.look()
        assert len(told) == (second >= waiting.PATIENCE_SECONDS)
    patience.sign_of_life()
    clock[0] = 70.0
    patience.look()
    with pytest.raises(ResourceError, match="No nodes have come for 1 minutes"):
        for second in range(71, 140):
            clock[0] = second
            patience.look()


def test_a_node_that_is_lost_is_told_once_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    def node(name: str, *, alive: bool, died: str = "") -> dict[str, object]:
        return {"id": name, "host": name, "address": "10.0.0.1", "alive": alive, "died": died}

    clock = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: clock[0])
    now = [node("a", alive=True), node("b", alive=True), node("idle", alive=True), node("old", alive=False, died="x")]
    monkeypatch.setattr(waiting.gcs, "nodes", lambda: now)
    lookout = waiting.Lookout()
    now[1] = node("b", alive=False, died="health check failed. And more")
    now[2] = node("idle", alive=False)  # on purpose
    assert lookout.lost() == [], "it was looked at just now"
    clock[0] = 10.0
    assert lookout.lost() == ["b (10.0.0.1) does not answer any more: health check failed"]
    clock[0] = 20.0
    assert lookout.lost() == []


def test_places_that_nobody_uses_are_told_before_the_start(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    left = Holder("01000000", {"CPU": 2.0}, "python sweep.py", ended=True)
    monkeypatch.setattr(waiting.ray, "cluster_resources", dict)
    monkeypatch.setattr(waiting, "holders", lambda have: [TRAINING, left])
    waiting.warn_of_leaks(told.append)
    assert len(told) == 1
    assert "2 CPUs by python sweep.py (job 01000000), which has ended" in told[0]
    monkeypatch.setattr(waiting, "holders", lambda have: [TRAINING])
    waiting.warn_of_leaks(told.append)
    assert len(told) == 1
