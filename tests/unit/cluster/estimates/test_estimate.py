"""What an estimate is made of: formulas written out, what may never shrink, and prices."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distcifar.cluster.estimates.estimate import (
    Figures,
    Workload,
    checkpoint_bytes,
    counted_bytes,
    estimate,
    num_steps,
    pace,
)
from distcifar.cluster.estimates.estimate import training_seconds as seconds_of
from distcifar.cluster.estimates.figures import Measured, foretold, keep, kind, known, machine_of, measured_link
from distcifar.cluster.estimates.offers import NOT_MEASURED, cheapest, offers
from distcifar.cluster.estimates.prices import Card, Instance, PriceTable, instance_types, read_prices
from distcifar.cluster.time_model import StepTime
from distcifar.config import AugmentConfig, DataConfig, ModelConfig, OptimConfig, Recipe, RunSpec, to_dict
from distcifar.errors import ConfigError

WORK = Workload(
    images=1000, validation=200, test=300, pixel_bytes=4_608_000, file_bytes=5_000_000, resident=True,
    parameters=100_000, model_bytes=401_000, optimizer_bytes=800_000, activation_bytes=50_000.0, flops=1e6,
)  # fmt: skip
FIGURES = Figures(
    step=StepTime(0.01, 0.001, 1e-9, 1e-4), paces=(1.0,), evaluation=0.0005, first=0.3, start=4.0,
    overhead_bytes=7e8, host_bytes=9e8, precision="fp32", network=True,
)  # fmt: skip
RECIPE = Recipe(name="r", epochs=3, batch_size=64, data=DataConfig(validation=200))
GROWING = replace(RECIPE, model=ModelConfig(name="resnet"), augment=AugmentConfig(progressive=("24@0.25", "28@0.5")))


def here(machine: str = "NVIDIA A10G", **changes: Any) -> Measured:
    facts = {"recipe": "r", "date": "2026-01-02T03:04:05+00:00", "machine": machine, "ranks": 1, "on_gpu": True}
    return Measured(**{**facts, "work": WORK, "figures": FIGURES, **changes})


def test_the_time_written_out():
    ring = 2 * 1 / 2 * 4e5 * 1e-9 + 2 * 1e-4
    whole, last = 0.01 + 32 * 0.001 + ring, 0.01 + 20 * 0.001 + ring  # of a thousand images 15 batches of 64, and 40
    evaluated = 3 * 100 + 150
    assert seconds_of(RECIPE, WORK, FIGURES, 2) == pytest.approx(0.3 + 3 * (15 * whole + last) + evaluated * 0.0005)
    assert num_steps(RECIPE, 1000) == 48
    assert num_steps(replace(RECIPE, drop_last=True), 1000) == 45


def test_a_recipe_that_is_chosen_by_nothing_evaluates_the_test_images_once():
    chosen = replace(RECIPE, select_on="last")
    assert seconds_of(RECIPE, WORK, FIGURES, 1) - seconds_of(chosen, WORK, FIGURES, 1) == pytest.approx(600 * 0.0005)


def test_hard_images_are_fewer_steps():
    hard = replace(RECIPE, epochs=4, hard_share=0.25, hard_from=0.5)
    assert num_steps(hard, 1000) == 16 + 16 + 4 + 4
    still = replace(FIGURES, evaluation=0.0, first=0.0)
    assert 0.6 < seconds_of(hard, WORK, still, 1) / seconds_of(replace(hard, hard_share=1.0), WORK, still, 1) < 0.65


def test_growing_pictures_take_what_each_phase_takes():
    paces = (0.5, 0.8, 1.0)  # until a quarter of the training, until half of it, then
    assert [pace(replace(GROWING, epochs=4), paces, epoch) for epoch in range(4)] == pytest.approx([0.5, 0.8, 1, 1])
    assert pace(replace(GROWING, epochs=1), paces, 0) == pytest.approx(0.25 * 0.5 + 0.25 * 0.8 + 0.5)


figures = st.builds(
    Figures, step=st.builds(StepTime, *[st.floats(0, 1)] * 4), paces=st.just((1.0,)), evaluation=st.floats(0, 1),
    first=st.floats(0, 9), start=st.none(), overhead_bytes=st.floats(0, 1e9), host_bytes=st.floats(0, 1e9),
    precision=st.just("bf16"), network=st.booleans(),
)  # fmt: skip
recipes = st.builds(
    replace, st.just(RECIPE), epochs=st.integers(1, 9), batch_size=st.integers(1, 300), drop_last=st.booleans(),
    ema_decay=st.sampled_from([0.0, 0.9]), hard_share=st.sampled_from([1.0, 0.3]),
)  # fmt: skip


@given(recipes, figures, st.integers(1, 9), st.integers(300, 3000), st.integers(1, 500))
def test_more_epochs_and_more_images_never_take_less(
    recipe: Recipe, found: Figures, ranks: int, images: int, more: int
):
    spec = RunSpec()
    few = estimate(recipe, spec, replace(WORK, images=images), found, ranks, on_gpu=False)
    longer = replace(recipe, epochs=recipe.epochs + 1)
    wider = replace(WORK, images=images + recipe.batch_size * more)  # whole batches more: a last one may be left out
    for other in (
        estimate(longer, spec, replace(WORK, images=images), found, ranks, on_gpu=False),
        estimate(recipe, spec, wider, found, ranks, on_gpu=False),
    ):
        assert other.training >= few.training * (1 - 1e-9)
        assert other.steps >= few.steps
        assert other.disk_bytes >= few.disk_bytes
        assert other.host_bytes >= few.host_bytes


def test_memory_counts_weights_their_copies_activations_and_images():
    plain = counted_bytes(RECIPE, WORK, 64)
    assert plain == 2 * 401_000 + 400_000 + 800_000 + 64 * 50_000 + 4_608_000
    assert counted_bytes(replace(RECIPE, ema_decay=0.9), WORK, 64) - plain == 401_000
    assert counted_bytes(RECIPE, WORK, 65) - plain == 50_000
    assert counted_bytes(RECIPE, WORK, 64, microbatch=16) == plain - 48 * 50_000
    halves = replace(RECIPE, optim=OptimConfig(accumulate=2))
    assert counted_bytes(halves, WORK, 64) == plain - 32 * 50_000
    assert counted_bytes(RECIPE, replace(WORK, resident=False), 64) == plain - 4_608_000
    assert counted_bytes(replace(RECIPE, hard_share=0.5), WORK, 64) - plain == 8 * 1000


def test_disk_counts_the_checkpoints_that_are_kept():
    few = estimate(RECIPE, RunSpec(keep_last=1), WORK, FIGURES, 1, on_gpu=False)
    many = estimate(replace(RECIPE, epochs=50), RunSpec(keep_last=9, keep_best=3), WORK, FIGURES, 1, on_gpu=False)
    assert (few.checkpoints, many.checkpoints) == (2, 12)
    one = checkpoint_bytes(RECIPE, WORK)
    assert one == 2 * 401_000 + 800_000 + 100_000
    assert many.disk_bytes > 12 * one + WORK.file_bytes
    assert estimate(RECIPE, RunSpec(keep_last=99), WORK, FIGURES, 1, on_gpu=False).checkpoints == 5, "as many as come"


def test_a_gpu_has_the_training_and_its_process_the_rest():
    found = estimate(RECIPE, RunSpec(), WORK, FIGURES, 1, on_gpu=True)
    assert found.device_bytes == pytest.approx(7e8 + counted_bytes(RECIPE, WORK, 64))
    assert found.host_bytes == pytest.approx(9e8 + 2 * checkpoint_bytes(RECIPE, WORK))


# Money

TABLE = PriceTable(
    date="2020-01", source="a test",
    cards=(
        Card(name="A10G", memory_gb=24, fp32_tflops=30, half_tflops=70),
        Card(name="L4", memory_gb=1, fp32_tflops=15, half_tflops=140),
    ),
    instances=(
        Instance(name="cpu", cores=2, memory_gb=4, on_demand=0.1, spot=0.05),
        Instance(name="g5", cores=4, memory_gb=16, gpus=1, card="A10G", on_demand=1.0, spot=0.4),
        Instance(name="g5x4", cores=48, memory_gb=192, gpus=4, card="A10G", on_demand=3.5, spot=2.0),
        Instance(name="g6", cores=4, memory_gb=16, gpus=1, card="L4", on_demand=0.8, spot=0.3),
    ),
)  # fmt: skip
ALL = [instance.name for instance in TABLE.instances]


def test_nothing_is_said_of_machines_that_nobody_has_measured():
    for offer in offers(TABLE, ALL, RECIPE, RunSpec(), [here("2 cores of a CPU", on_gpu=False)], 1):
        assert (offer.seconds, offer.basis, offer.price(1.0)) == (None, NOT_MEASURED, None)


def test_a_measured_card_is_priced_by_the_hour_and_by_the_machine():
    measured = [here("2 cores of a CPU", on_gpu=False, ranks=6), here(ranks=6)]
    g5, many = offers(TABLE, ["g5", "g5x4", "gone"], RECIPE, RunSpec(), measured, 6)
    assert (g5.count, many.count) == (6, 2)
    took = 4.0 + seconds_of(RECIPE, WORK, FIGURES, 6)
    assert g5.seconds == many.seconds == pytest.approx(took)
    assert g5.price(1.0) == pytest.approx(6 * took / 3600)
    assert g5.basis == "measured 2026-01-02 on NVIDIA A10G"


def test_what_was_measured_with_another_number_of_workers_tells_nothing_of_these():
    (offer,) = offers(TABLE, ["g5"], RECIPE, RunSpec(), [here(ranks=2)], 1)
    assert offer.basis == NOT_MEASURED


def test_another_card_is_predicted_by_its_peak_and_says_so():
    (offer,) = offers(TABLE, ["g6"], RECIPE, RunSpec(), [here()], 1)
    assert offer.seconds == pytest.approx((4.0 + seconds_of(RECIPE, WORK, FIGURES, 1)) * 30 / 15)
    share = 3 * 1e6 * 64 / (0.01 + 64 * 0.001) / 30e12
    assert offer.basis == f"predicted: {share:.1%} of the card's fp32 peak, as measured on NVIDIA A10G"


def test_of_each_card_the_cheapest_machines_for_so_many_gpus():
    assert cheapest(TABLE, 1) == ["g5", "g6"]
    assert cheapest(TABLE, 4) == ["g5x4", "g6"]


def test_our_table_knows_every_instance_of_cluster_yaml_and_names_its_date():
    table, repository = read_prices(), Path(__file__).parents[3]
    assert table.date
    assert [name for name in instance_types(repository / "cluster.yaml") if table.instance(name) is None] == []
    assert all(0 < instance.spot < instance.on_demand for instance in table.instances)
    names = [instance.name for instance in table.instances]
    assert len(set(names)) == len(names)
    for device, card in {"NVIDIA A10G": "A10G", "NVIDIA L40S": "L40S", "NVIDIA H100 80GB HBM3": "H100",
                         "NVIDIA A100-SXM4-40GB": "A100", "Tesla V100-SXM2-16GB": "V100"}.items():  # fmt: skip
        assert table.card(device) == next(each for each in table.cards if each.name == card)
    assert table.card("NVIDIA GeForce RTX 4060") is None


def test_instance_types_are_read_from_a_cluster_s_file(tmp_path: Path):
    path = tmp_path / "cluster.yaml"
    path.write_text("a:\n  InstanceType: m7i.large  # c\nb: {InstanceType: 'g5.xlarge'}\n# InstanceType: no\nc:\n"
                    "  InstanceType: m7i.large\n")  # fmt: skip
    assert instance_types(path) == ["m7i.large", "g5.xlarge"]
    assert instance_types(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table["instances"][1].update(card="A99"), "A99"),
        (lambda table: table["instances"][1].update(spot=-1), "spot is -1"),
        (lambda table: table["instances"][0].update(gpus=2), "2 GPU"),
        (lambda table: table.pop("date"), "lacks date"),
        (lambda table: table["cards"][0].update(price=1), "price"),
    ],
)
def test_a_table_that_cannot_be_meant_is_told(tmp_path: Path, change: Any, told: str):
    table = json.loads(json.dumps(to_dict(TABLE)))
    change(table)
    (tmp_path / "prices.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=told):
        read_prices(tmp_path / "prices.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(tmp_path / "gone.json")


# What is kept


def test_what_is_kept_is_found_for_any_seed_and_length_and_for_no_other_speed(tmp_path: Path):
    spec, measured = RunSpec(runs=str(tmp_path)), here()
    keep(tmp_path, kind(RECIPE, spec), measured)
    keep(tmp_path, kind(RECIPE, spec), here("NVIDIA L4"))
    longer = replace(RECIPE, seed=7, epochs=90, early_stop=3)
    assert known(tmp_path, kind(longer, spec)) == sorted(
        [measured, here("NVIDIA L4")], key=lambda m: _file(tmp_path, m)
    )
    for other in (replace(RECIPE, batch_size=32), replace(RECIPE, precision="bf16")):
        assert known(tmp_path, kind(other, spec)) == []
    for other_spec in (replace(spec, workers=2), replace(spec, deterministic=True)):
        assert known(tmp_path, kind(RECIPE, other_spec)) == []


def _file(runs: Path, measured: Measured) -> str:
    found = {path: json.loads(path.read_text())["machine"] for path in (runs / ".estimates").iterdir()}
    return next(path.name for path, machine in found.items() if machine == measured.machine)


def test_a_run_is_told_its_time_where_such_a_machine_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts = {"gpus": [], "processor": "a CPU", "cores": 2}
    monkeypatch.setattr("distcifar.cluster.estimates.figures.hardware", lambda: facts)
    spec = RunSpec(runs=str(tmp_path))
    assert foretold(RECIPE, spec) == {}
    keep(tmp_path, kind(RECIPE, spec), here("2 cores of another CPU", on_gpu=False))
    assert foretold(RECIPE, spec) == {}
    keep(tmp_path, kind(RECIPE, spec), here(machine_of(facts, "auto"), on_gpu=False))
    longer = replace(RECIPE, epochs=40)
    told = foretold(longer, spec)["estimate"]
    assert told["seconds"] == pytest.approx(seconds_of(longer, WORK, FIGURES, 1), abs=1e-3)
    assert (told["start"], told["measured"]) == (4.0, "2026-01-02T03:04:05+00:00")
    assert foretold(RECIPE, replace(spec, address="head:6379")) == {}, "a cluster's machines are not this one"
    for path in (tmp_path / ".estimates").iterdir():
        path.write_text(path.read_text()[: math.ceil(path.stat().st_size / 2)])
    assert foretold(RECIPE, spec) == {}, "of another version, or torn"


def test_the_link_is_the_newest_that_was_measured_with_several_workers_on_such_a_machine(tmp_path: Path):
    def scaling(date: str, cores: int, per_byte: float) -> None:
        facts = {"step_time": {"per_step": 1.0, "per_image": 1.0, "per_byte": per_byte, "per_hop": 0.0}}
        told = {"hardware": {"gpus": [], "processor": "a CPU", "cores": cores},
                "comparisons": [{"facts": {}}, {"facts": facts}]}  # fmt: skip
        (tmp_path / f"scaling-{date}.json").write_text(json.dumps(told))

    scaling("20260101-000000", 2, 1e-9)
    scaling("20260102-000000", 2, 2e-9)
    scaling("20260103-000000", 2, 0.0)  # one worker: nothing of a link
    scaling("20260104-000000", 4, 4e-9)
    (tmp_path / "loader-20260105-000000.json").write_text("{}")
    assert measured_link(tmp_path, "2 cores of a CPU") == (2e-9, 0.0)
    assert measured_link(tmp_path, "8 cores of a CPU") is None
