"""jobs/report.py as it is typed; and its page in a browser: on a phone, on a screen, in the dark."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.insight.report_runs import Page, write_run

REPOSITORY = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DARK, LIGHT = 0, 1  # as Blink numbers the schemes that a user prefers


def report(*words, environment=None):
    command = [sys.executable, "jobs/report.py", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_a_report_of_one_run_and_of_several(tmp_path):
    first, second = (
        write_run(tmp_path / name, group=group) for name, group in (("first", "sweep"), ("second", "sweep"))
    )
    alone = report("first", "--runs", tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert f"Report: {first / 'report.html'}" in alone.stdout
    assert f"The W&B report is kept in {first / 'report.json'}" in alone.stdout
    assert "report.py sync" in alone.stdout
    assert "first" in Page((first / "report.html").read_text()).text
    both = report(first, second, "--runs", tmp_path, "--out", tmp_path / "pages/both.html", "--html-only")
    assert both.stdout.strip() == f"Report: {tmp_path / 'pages/both.html'}"
    assert "second" in Page((tmp_path / "pages/both.html").read_text()).text
    group = report("--group", "sweep", "--runs", tmp_path, "--no-publish")
    assert group.returncode == 0, group.stderr
    assert (tmp_path / "report-sweep.html").exists()
    assert not (tmp_path / "report-sweep.json").exists()


def test_with_a_key_the_report_is_published_and_the_key_is_told_to_nobody(tmp_path, lab):
    environment = lab.client(tmp_path / "home")
    environment.pop("WANDB_MODE", None)
    folder = write_run(tmp_path / "runs/first", group="")
    for _ in range(2):
        done = report("first", "--runs", tmp_path / "runs", environment=environment)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"Report in W&B: {lab.url}/local-team/distcifar/reports/first--\S+", done.stdout)
    assert len(lab.state()["reports"]) == 1
    told = [done.stdout, done.stderr, *(path.read_text() for path in folder.iterdir())]
    assert not any(environment["WANDB_API_KEY"] in text for text in told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "No run is named"),
        (["frist"], "Did you mean 'first'"),
        (["--group", "swep"], "Did you mean 'sweep'"),
        (["broken"], "cannot be read as a run"),
        (["first", "--out", "."], "is a folder"),
        (["first", "--out", "a" * 300], "cannot be written"),
        (["a" * 300], "There is no run"),
    ],
)
def test_mistakes_are_told_without_a_traceback(tmp_path, words, told):
    write_run(tmp_path / "first", group="sweep")
    (write_run(tmp_path / "broken") / "recipe.json").write_text("{")
    result = report(*words, "--runs", tmp_path)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_cannot_be_read_stops_no_other_of_its_group(tmp_path):
    write_run(tmp_path / "first", group="sweep")
    (write_run(tmp_path / "odd") / "tracking.json").write_text("{")
    result = report("--group", "sweep", "--runs", tmp_path, "--html-only")
    assert result.returncode == 0, result.stderr
    assert "odd is left out" in result.stdout
    assert (tmp_path / "report-sweep.html").exists()


def test_sync_tells_of_a_report_that_it_cannot_publish(tmp_path, lab):
    environment = lab.client(tmp_path / "home")
    (tmp_path / "runs").mkdir()
    assert report("sync", "--runs", tmp_path / "runs", environment=environment).returncode == 0
    (tmp_path / "runs/report-a.json").write_text("{}")
    result = report("sync", "--runs", tmp_path / "runs", environment=environment)
    assert result.returncode == 2
    assert "report-a.json is not published" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_examples():
    result = report("--help")
    assert result.returncode == 0
    assert "python jobs/report.py --group" in result.stdout
    assert "--html-only" in result.stdout


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return found


def browse(browser, tmp_path, page, *words):
    """What headless Chromium prints about `page`."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command = [browser, *flags, "--allow-file-access-from-files", *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def wide_page(tmp_path):
    """A comparison and its first run, with everything that could be too wide for a phone."""
    classes = ["a-very-long-name-of-a-class-without-a-space", *(f"class {i}" for i in range(24))]
    events = [("failure", "/a/path/that/is/longer/than/any/phone/is/wide" * 3)]
    name = "a-name-of-seventy-letters-that-is-longer-than-what-a-phone-can-show-ok"
    long = write_run(tmp_path / "runs" / name, classes=classes, events=events, samples=True)
    folders = [long, *(write_run(tmp_path / f"runs/run-{i}", seed=i) for i in range(5))]
    for words in (folders[:1], folders):
        out = tmp_path / f"{len(words)}.html"
        assert report(*words, "--runs", tmp_path / "runs", "--out", out, "--html-only").returncode == 0
        yield out


@pytest.mark.slow
def test_the_page_fits_a_phone_and_a_screen(tmp_path, browser):
    for page in wide_page(tmp_path):
        for width in (390, 1280):
            frame = tmp_path / "frame.html"
            frame.write_text(
                f"<iframe id=f src='{page.name}' style='border:0;width:{width}px;height:900px'></iframe><script>"
                "onload = () => { const page = f.contentDocument; for (const fold of page.querySelectorAll('details'))"
                " fold.open = true; document.title = 'wide: ' + page.documentElement.scrollWidth }</script>"
            )
            found = re.search(r"wide: (\d+)", browse(browser, tmp_path, frame, "--window-size=1400,1000", "--dump-dom"))
            assert found is not None
            assert int(found[1]) <= width, f"{page.name} at {width} pixels"


@pytest.mark.slow
def test_the_page_is_light_or_dark_as_the_user_prefers(tmp_path, browser):
    page, _ = wide_page(tmp_path)
    brightness = {}
    for scheme in (LIGHT, DARK):
        png = tmp_path / f"{scheme}.png"
        words = (f"--screenshot={png}", "--window-size=1280,1400", f"--blink-settings=preferredColorScheme={scheme}")
        browse(browser, tmp_path, page, *words)
        with Image.open(png) as image:
            grey = np.asarray(image.convert("L"), dtype=float)
        assert grey.std() > 10, "the page is blank"
        brightness[scheme] = np.median(grey)
    assert brightness[LIGHT] > 230
    assert brightness[DARK] < 50
