"""What a run says on the screen, and that it says it plainly where there is no terminal."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from distcifar.config import AugmentConfig, DataConfig, Recipe, RunSpec
from distcifar.tracking import console as module
from distcifar.tracking.console import Display, clock, epoch_line, loader_advice, result_table

RECIPE = Recipe(name="small", epochs=12)

EPOCH_ROW = {
    "kind": "epoch", "step": 30, "epoch": 3, "train/loss": 1.23456, "train/accuracy": 0.4321, "train/lr": 0.05,
    "validation/loss": 1.5, "validation/accuracy": 0.5, "best_epoch": 3, "seconds": 99.0,
}  # fmt: skip

SUMMARY = {
    "recipe": "small", "test_accuracy": 0.81234, "test_loss": 0.6, "selected_on": "validation",
    "select_metric": "accuracy", "best_metric": 0.82, "best_epoch": 3, "epochs": 12, "steps": 12345,
    "outcome": "finished", "seconds": 3725.0, "images_per_s": 1234.5, "parameters": 1234567, "workers": 2,
    "device": "cpu", "precision": "fp32", "per_class_accuracy": {"cat": 0.5, "dog": 1.0},
}  # fmt: skip


class Clock:
    """time.monotonic for the display, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def step_row(epoch: float, *, speed: float = 1000.0) -> dict[str, Any]:
    return {
        "kind": "step", "step": round(epoch * 100), "epoch": epoch, "train/loss": 1.5, "train/lr": 0.1,
        "train/grad_norm": 1.0, "perf/images_per_s": speed, "perf/data_wait": 0.0, "perf/memory_bytes": 1,
    }  # fmt: skip


def shown(rows: list[dict[str, Any]], *, terminal: bool = False, recipe: Recipe = RECIPE) -> str:
    out = io.StringIO()
    with Display(recipe, Console(file=out, force_terminal=terminal, width=200, highlight=False)) as display:
        for row in rows:
            display.show(row)
    return out.getvalue()


def table_text(summary: dict[str, Any], **options: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(result_table(summary, **options))
    return out.getvalue()


def class_lines(text: str, names: list[str]) -> list[str]:
    """The lines of the table that begin with one of `names`, as "name value"."""
    cells = [re.sub(r"[│┃|]", " ", line).split() for line in text.splitlines()]
    return [" ".join(words) for words in cells if words and words[0] in names]


# Lines


def test_an_epoch_is_one_line_of_all_its_numbers():
    assert epoch_line(EPOCH_ROW, 12, 7.25) == (
        "epoch  3/12  train loss 1.2346 acc  43.21%  validation loss 1.5000 acc  50.00%  lr 0.05  7.2 s  * best"
    )


def test_an_epoch_that_is_not_the_best_has_no_star_and_a_test_split_is_named():
    row = {**EPOCH_ROW, "best_epoch": 2, "test/loss": 2.0, "test/accuracy": 1.0}
    del row["validation/loss"], row["validation/accuracy"]
    assert epoch_line(row, 3, 100) == (
        "epoch 3/3  train loss 1.2346 acc  43.21%  test loss 2.0000 acc 100.00%  lr 0.05  100.0 s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (-3, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (3599.7, "1:00:00"),
        (3661, "1:01:01"),
        (360000, "100:00:00"),
    ],
)
def test_seconds_are_shown_as_a_clock(seconds: float, text: str):
    assert clock(seconds) == text


# Waiting for data


def waiting_row(epoch: float, wait: float, speed: float = 1000.0) -> dict[str, Any]:
    return {**step_row(epoch, speed=speed), "perf/data_wait": wait}


def test_an_epochs_wait_is_the_mean_over_its_time_without_the_opening():
    """Two steps of a second, one of four: 0.1, 0.1 and 0.4 of them are 1.8 of 6 seconds."""
    rows = [waiting_row(2.1, 0.9, 10.0), *[waiting_row(2.2, 0.1, 100.0)] * 2, waiting_row(2.3, 0.4, 25.0), EPOCH_ROW]
    assert "data wait 30%" in shown(rows)
    assert "data wait" not in shown([waiting_row(2.1, 0.9, 10.0), EPOCH_ROW]), "the first report is not typical"


def test_a_run_that_waits_for_its_data_is_told_once_what_helps():
    epoch = [waiting_row(2.5, 0.5), EPOCH_ROW]
    text = shown([waiting_row(2.1, 0.0), *epoch, *epoch])
    assert text.count("Bound by its data: 50% of epoch 3 went by waiting.") == 1
    assert text.count("data wait 50%") == 2
    assert "Bound" not in shown([waiting_row(2.1, 0.0), waiting_row(2.5, 0.1), EPOCH_ROW])


def test_each_advice_fits_the_run():
    plain = loader_advice(0.2, 3, RECIPE, RunSpec())
    assert "--loader resident" in plain
    for words in ("--loader-threads", "--cpus-per-worker", "--data.storage", "--augment"):
        assert words not in plain
    spec = RunSpec(loader="resident", loader_threads=2, cpus_per_worker=3)
    recipe = Recipe(name="x", data=DataConfig(storage="jpeg"), augment=AugmentConfig(rotation=5))
    text = loader_advice(0.2, 3, recipe, spec)
    for words in ("--loader-threads above 2", "--cpus-per-worker above 3", "--data.storage raw", "--augment"):
        assert words in text
    assert "--loader resident" not in text
    assert loader_advice(0.1, 3, recipe, spec) == ""


def test_the_result_names_the_wait_of_the_whole_run():
    out = io.StringIO()
    with Display(RECIPE, Console(file=out, width=200)) as display:
        assert display.data_wait is None
        for row in (waiting_row(2.1, 0.9), waiting_row(2.2, 0.1), EPOCH_ROW, waiting_row(3.5, 0.3)):
            display.show(row)
    assert display.data_wait == pytest.approx(0.2)
    assert "20% of the time" in table_text(SUMMARY, data_wait=display.data_wait)
    assert "waiting for data" not in table_text(SUMMARY)


# Not on a terminal


def test_without_a_terminal_there_are_whole_lines_only(monkeypatch):
    Clock(monkeypatch)
    text = shown([*(step_row(e / 100) for e in range(1, 101)), EPOCH_ROW])
    assert re.fullmatch(r"epoch  3/12  train loss .*\* best\n", text), "one line an epoch, no line a step"
    assert "\x1b" not in text
    assert "\r" not in text


def test_of_a_long_epoch_a_line_is_said_now_and_then(monkeypatch):
    moment = Clock(monkeypatch)
    out = io.StringIO()
    with Display(RECIPE, Console(file=out, width=200, highlight=False)) as display:
        for step in range(1, 101):
            moment.now += 1.0
            display.show(step_row(step / 100))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3, "100 seconds, a line in more than 30"
    assert re.fullmatch(r"epoch 0\.31/12  loss 1\.500  lr 0\.1  1,000 images/s  left \d+:\d\d(:\d\d)?", lines[0])


def test_brackets_in_a_sentence_are_said_as_they_are():
    out = io.StringIO()
    Display(RECIPE, Console(file=out, width=200)).say("runs/[bold]a[/x] is [/] done")
    assert out.getvalue() == "runs/[bold]a[/x] is [/] done\n"


def test_a_long_sentence_is_not_broken_into_lines_by_the_own_console(capsys):
    """Lines that are cut at 80 characters cannot be searched or copied."""
    Display(RECIPE).say("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


# The time that remains


def left_after(rows: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch) -> str:
    """What is shown as left after rows at (moment, epoch), in seconds."""
    moment = Clock(monkeypatch)
    out = io.StringIO()
    with Display(RECIPE, Console(file=out, width=200, highlight=False)) as display:
        for now, epoch in rows:
            moment.now = 1000.0 + now
            display.show(step_row(epoch))
        moment.now += 1e-3
        text = display._bar.tasks[0].fields["text"]
    return text.rsplit("left ", 1)[1]


def test_the_time_that_remains_is_that_of_the_epochs_that_remain(monkeypatch):
    rows = [(second, second / 60) for second in range(1, 121)]  # an epoch a minute, two of twelve done
    assert left_after(rows, monkeypatch) == "10:00"


def test_a_run_that_goes_on_counts_from_where_it_starts(monkeypatch):
    rows = [(second, 10 + second / 60) for second in range(1, 61)]  # epochs 1 to 10 cost this start nothing
    assert left_after(rows, monkeypatch) == "1:00"


def test_epochs_over_the_hardest_images_are_short_and_told_where_they_begin(monkeypatch):
    """Of twelve epochs nine go over a third: 3 + 9 / 3 = 6 passes, of which half are over after three epochs."""
    clock_ = Clock(monkeypatch)
    recipe = replace(RECIPE, hard_share=1 / 3, hard_from=0.25)

    def moving(rows):
        for seconds, row in rows:
            clock_.now = 1000.0 + seconds
            yield row

    rows = [(0, step_row(0.0)), (300, EPOCH_ROW), (301, step_row(3.0)), (400, step_row(6.0))]
    text = shown(moving(rows), recipe=recipe)
    assert text.count("From here on the hardest 33% of the images") == 1
    assert "left 3:20" in text  # four passes in 400 s
    assert "From here on" not in shown([EPOCH_ROW])


def test_nothing_is_promised_after_one_row(monkeypatch):
    assert left_after([(10, 0.01)], monkeypatch) == "--:--"


def test_rows_that_come_in_bursts_do_not_promise_the_end_in_no_time(monkeypatch):
    """On a GPU twenty steps are told at once: here 0.2 of an epoch every 10 s, so 12 epochs take ten minutes."""
    burst = [(10 + i * 1e-5, (i + 1) / 100) for i in range(20)]
    left = left_after(burst, monkeypatch)
    if left != "--:--":
        minutes, seconds = map(int, left.split(":"))
        assert 60 * minutes + seconds > 200


def test_an_epoch_that_is_told_again_after_a_restart_is_no_error(monkeypatch):
    assert left_after([(10, 2.0), (20, 3.0), (50, 1.5), (60, 2.0)], monkeypatch) in ("--:--", "0:00")


def test_a_terminal_is_given_a_bar_and_the_epochs_as_lines():
    text = shown([step_row(0.5), EPOCH_ROW], terminal=True)
    assert "epoch  3/12" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "\x1b" in text


# The result


def test_the_result_names_accuracy_choice_time_and_classes():
    text = table_text(SUMMARY)
    for words in (
        "small: test accuracy 81.23%", "epoch 3 of 12, by validation accuracy 0.8200", "1:02:05 (12,345 steps)",
        "1,234 images/s", "fp32 on 2 x cpu", "1,234,567",
    ):  # fmt: skip
        assert words in text
    assert class_lines(text, ["cat", "dog"]) == ["cat 50.00%", "dog 100.00%"]


def test_a_class_without_images_is_said_to_have_none():
    text = table_text({**SUMMARY, "per_class_accuracy": {"cat": 0.5, "unseen": None}})
    assert class_lines(text, ["cat", "unseen"]) == ["cat 50.00%", "unseen no images"]


def test_of_many_classes_the_worst_twenty_are_shown_worst_first():
    accuracies = {f"c{i}": ((i * 37) % 100) / 100 for i in range(100)}
    text = table_text({**SUMMARY, "per_class_accuracy": accuracies})
    lines = class_lines(text, list(accuracies))
    assert [line.split()[1] for line in lines] == [f"{i}.00%" for i in range(20)]
    assert "the 20 worst classes" in text


def test_twenty_classes_are_all_shown_in_their_own_order():
    accuracies = {f"c{i}": ((i * 7) % 20) / 20 for i in range(20)}
    assert [
        line.split()[0]
        for line in class_lines(table_text({**SUMMARY, "per_class_accuracy": accuracies}), list(accuracies))
    ] == list(accuracies)


def test_classes_without_images_among_many_are_no_error_and_do_not_disturb_the_order():
    accuracies: dict[str, float | None] = {f"c{i}": ((i * 37) % 100) / 100 for i in range(100)}
    accuracies |= {"c3": None, "c50": None, "c99": None}
    lines = class_lines(table_text({**SUMMARY, "per_class_accuracy": accuracies}), list(accuracies))
    measured = [float(line.split()[1].rstrip("%")) for line in lines if "no images" not in line]
    assert measured == sorted(measured)
    assert measured[0] == min(a for a in accuracies.values() if a is not None) * 100
    assert len(measured) >= 17


@pytest.mark.parametrize("name", ["[bold]cat", "[/]", "[/cat]", "a[b]c", ":smile:"])
def test_class_names_are_shown_as_they_are(name: str):
    """They come from the names of the user's folders."""
    text = table_text({**SUMMARY, "per_class_accuracy": {name: 0.25}})
    assert name in text


def test_a_result_chosen_on_test_is_marked():
    assert "optimistic" in table_text({**SUMMARY, "selected_on": "test"})
    assert "optimistic" not in table_text(SUMMARY)


def test_a_run_without_a_metric_is_chosen_by_its_last_epoch():
    text = table_text({**SUMMARY, "selected_on": "last", "best_metric": None, "best_epoch": 12})
    assert re.search(r"epoch 12 of 12\s", text)


def test_the_table_tells_how_far_an_estimate_was_off():
    assert "estimated" not in table_text(SUMMARY)
    assert re.search(
        r"estimated +│ +50:00, took 1:02:05 \(\+24%\)", table_text(SUMMARY | {"estimated_seconds": 3000.0})
    )
    assert "(-7%)" in table_text(SUMMARY | {"estimated_seconds": 4000.0})
