"""The report of a real evaluation in a real browser."""

import json
from dataclasses import replace

import pytest

from soae_ext.attacks import FGSM, PGD, SOAE
from soae_ext.data import load_digits
from soae_ext.evaluation import Runner, worst_case
from soae_ext.evaluation.curves import CURVE_KEYS, PRESETS, run_curves
from soae_ext.evaluation.document import attack_entries, data_entry, strict
from soae_ext.evaluation.edges import edge_analysis
from soae_ext.evaluation.features import feature_analysis
from soae_ext.evaluation.report import write_report
from soae_ext.models import digits_network
from tests import chromium

pytestmark = pytest.mark.slow

DRAWN = """Promise.all([...document.images].map(image => image.decode().then(() => '', () => image.alt)))
    .then(failed => [document.images.length, failed.filter(alt => alt),
                     [...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length])"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with every section, of an attack that fools some of the images."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    data, attacks = load_digits().first(24), {"FGSM": FGSM(0.36), "PGD-5": PGD(0.36, steps=5), "SOAE": SOAE(0.36)}
    runner = Runner(digits_network(), batch_size=24)
    clean = runner.clean(data)
    runs = [runner.run(name, name, attack, data) for name, attack in attacks.items()]
    moved, success = {m.name: m.x_adv for m in runs}, {m.name: m.success for m in runs}
    few = replace(PRESETS["quick"], radii=(0.0, 1.0), budgets=(1, 4), iterations=(1, 3), fd_steps=(1e-3, 1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", replace(few, thresholds=(1e-2, 1e-1)))
        curves = run_curves(CURVE_KEYS, runner, data, attacks)
    check = {"name": "a check", "value": "3", "limit": "2", "text": "It is too large."}
    document = {
        "command": "soae evaluate",
        "config": {"eps": 0.36, "norm": "Linf"},
        "data": data_entry(data),
        "clean": clean.as_json(),
        "attacks": attack_entries(attacks, runs),
        "worst_case": worst_case(clean, runs).as_json(),
        "curves": [curve.as_json() for curve in curves],
        "edges": [each.as_json() for each in edge_analysis(data.images, moved)],
        "features": feature_analysis(runner.model, data.images, moved, success).as_json(),
        "sanity": [{**check, "verdict": "fail"}, {**check, "verdict": "pass"}],
        "notes": ["A note."],
    }
    write_report(json.loads(json.dumps(strict(document))), runs, data, runner.model, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = chromium.find()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is installed")
    with chromium.page(executable, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375, 320])
def test_the_report_in_chromium(report, browser, width, scheme):
    browser.open(report, width, 800, scheme)
    images, failed, empty = browser.evaluate(DRAWN)
    assert images > 50
    assert (failed, empty) == ([], 0)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(13, 17, 23)" if scheme == "dark" else "rgb(246, 248, 250)"
    )
    # The charts are those for the scheme: a dark one is not drawn on white.
    sources = "[...document.querySelectorAll('picture img')].map(i => i.currentSrc == i.src)"
    assert set(browser.evaluate(sources)) == {scheme == "light"}
    titles = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    assert len(titles) == 12
    assert "PGD-5" in browser.evaluate("document.querySelector('main').innerText")
    # All links of the contents lead somewhere, and every id is there once.
    assert browser.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    assert browser.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == browser.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert browser.evaluate("[...document.images].every(image => image.alt)")
    # Events of the page come in before the answers above.
    assert browser.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
    assert browser.of("Network.loadingFailed") == []
    urls = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert [url for url in urls if not url.startswith("data:")] == [report.as_uri()]


def test_the_browser_would_notice(browser, tmp_path):
    """A broken picture, an error and a request to the network are seen by the checks above."""
    path = tmp_path / "broken.html"
    path.write_text(
        "<!doctype html><img alt='broken' src='data:image/png;base64,AAAA'>"
        "<script>console.error('no'); undefined_name()</script><img alt='far' src='http://127.0.0.1:9/far.png'>"
    )
    browser.open(path, 800, 600, "light")
    images, failed, empty = browser.evaluate(DRAWN)
    assert (images, sorted(failed), empty) == (2, ["broken", "far"], 2)
    assert browser.of("Runtime.consoleAPICalled")
    assert browser.of("Runtime.exceptionThrown")
    assert any(event["request"]["url"].startswith("http:") for event in browser.of("Network.requestWillBeSent"))
