"""The HTML report and the figure files, without a browser."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from soae_ext.attacks import FGSM, PGD
from soae_ext.data import load_digits
from soae_ext.evaluation import Runner, worst_case
from soae_ext.evaluation.curves import Curve, Series
from soae_ext.evaluation.document import attack_entries, data_entry, strict
from soae_ext.evaluation.edges import edge_analysis
from soae_ext.evaluation.features import feature_analysis
from soae_ext.evaluation.report import collect_pictures, save_figures, write_html
from soae_ext.evaluation.report.markup import Markup, element, table
from soae_ext.evaluation.report.page import page
from soae_ext.evaluation.report.pictures import picture
from soae_ext.models import digits_network

VOID = {"img", "link", "meta", "source"}
WITHOUT_CHARTS = {"curves": [], "edges": [], "features": None}


class Reader(HTMLParser):
    """Elements with their attributes, and the text of the page; insists on balanced tags."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evaluated():
    data, attacks = load_digits().first(10), {"FGSM": FGSM(0.4), "PGD": PGD(0.4, steps=3)}
    runner = Runner(digits_network(), batch_size=10)
    runs = [runner.run(name, name, attack, data) for name, attack in attacks.items()]
    moved, success = {m.name: m.x_adv for m in runs}, {m.name: m.success for m in runs}
    clean = runner.clean(data)
    line = Series("PGD", [0.0, 0.4], [1.0, 0.125], [0.9, 0.1], [1.0, 0.2], {"seconds": [0.5, float("nan")]})
    document = {
        "command": "soae evaluate --eps 0.4",
        "config": {"eps": 0.4, "norm": "Linf", "seed": 3},
        "model": {"name": "digits"},
        "data": data_entry(data),
        "versions": {"torch": "2.13.0", "commit": "abc"},
        "hardware": {"cpu": "a CPU", "gpu": {"name": "none"}},
        "clean": clean.as_json(),
        "attacks": attack_entries(attacks, runs),
        "worst_case": worst_case(clean, runs).as_json(),
        "curves": [Curve("eps", "Against the radius", "eps", "robust accuracy", False, [line], "A remark.").as_json()],
        "edges": [each.as_json() for each in edge_analysis(data.images, moved)],
        "features": feature_analysis(runner.model, data.images, moved, success).as_json(),
        "sanity": [
            {"name": "first check", "verdict": "pass", "value": "1", "limit": "2", "text": "Good."},
            {"name": "second check", "verdict": "fail", "value": "9", "limit": "2", "text": "Bad.", "group": "solver"},
        ],
        "notes": ["The sign is plus."],
    }
    document = json.loads(json.dumps(strict(document)))
    pictures = collect_pictures(runner.model, data, runs, layer=document["features"]["layer"], count=4)
    return document, pictures, runs, data, runner.model


@pytest.fixture(scope="module")
def read(evaluated):
    return Reader(page(*evaluated[:2]))


def test_every_section_and_the_contents(read, evaluated):
    ids = [attributes["id"] for attributes in read.all("section")]
    assert ids == [
        "summary", "results", "notes", "worst-case", "sanity", "examples", "perturbations", "curves", "edges",
        "features", "setup",
    ]  # fmt: skip
    links = [attributes["href"] for attributes in read.all("a")]
    curves = [f"#curve-{curve['key']}" for curve in evaluated[0]["curves"]]
    assert links == ["#main", *(f"#{name}" for name in ids), *curves]
    targets = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(set(targets)) == len(targets)
    assert {link[1:] for link in links} <= set(targets)
    assert read.all("html") == [{"lang": "en"}]
    assert len(read.all("main")) == len(read.all("nav")) == len(read.all("h1")) == 1


def test_the_numbers_of_the_document_are_there(read, evaluated):
    document = evaluated[0]
    for each in document["attacks"]:
        low, high = (100 * bound for bound in each["robust"]["interval_95"])
        assert f"{100 * each['robust']['accuracy']:.1f} % ({low:.1f} to {high:.1f})" in read.text
    for words in ("The sign is plus.", "soae evaluate --eps 0.4", "a CPU", "abc", "12.5 % (10.0 to 20.0)", "A remark."):
        assert words in read.text
    assert "points (" in read.text  # a paired difference
    assert "features.2" in read.text


def test_failures_stand_above_all_numbers(read, evaluated):
    text = read.text
    assert text.index("Sanity checks failed") < text.index("second check") < text.index("Clean accuracy")
    for word in ("solver", "Bad."):
        assert word in text[text.rindex("second check") :]
    assert text.rindex("second check") < text.rindex("first check")
    quiet = {**evaluated[0], **WITHOUT_CHARTS, "sanity": evaluated[0]["sanity"][:1]}
    assert "Sanity checks: no failure (1 pass)" in Reader(page(quiet, evaluated[1])).text
    assert "No sanity checks were run" in Reader(page({**quiet, "sanity": []}, evaluated[1])).text


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(read):
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in read.elements}
    for tag, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
        if tag != "a":
            assert attributes.get("href", "data:,") == "data:,"
    assert all(attributes["alt"] for attributes in read.all("img"))


def test_sections_without_data_are_left_out(evaluated):
    document, pictures = evaluated[:2]
    least = {"clean": document["clean"], "attacks": []}
    none = collect_pictures(evaluated[4], evaluated[3], [])
    read = Reader(page(least, none))
    assert [attributes["id"] for attributes in read.all("section")] == ["summary", "results", "setup"]
    assert read.all("img") == []
    assert pictures.maps  # and those with data have pictures
    assert "SSIM" not in Reader(page({**least, "attacks": [{**document["attacks"][0], "ssim": None}]}, none)).text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_text_stays_text(text):
    text = text.replace("\r", "").replace("\0", "")
    read = Reader(element("p", text, title=text, class_="a"))
    assert (read.text, read.all("p")) == (text, [{"title": text, "class": "a"}])
    assert "".join(Reader(table("", [text], [[text]])).text.split()) == "".join((text * 2).split())
    assert element("p", Markup("<b>")) == "<p><b></p>"


def test_hostile_names_are_shown_as_they_are(evaluated):
    document, pictures = evaluated[:2]
    evil = "<img src=x onerror=alert(1)>\"'&"

    def poison(value):
        if isinstance(value, dict):
            # Names of attacks are keys too.
            return {evil + key if key in ("FGSM", "PGD") else key: poison(part) for key, part in value.items()}
        if isinstance(value, list):
            return [poison(part) for part in value]
        return evil + value if isinstance(value, str) and value not in ("fail", "pass", "eps") else value

    tags = [tag for tag, _ in Reader(page(document, pictures)).elements]
    read = Reader(page(poison(document), pictures))
    assert [tag for tag, _ in read.elements] == tags
    assert read.text.count(evil) > 50


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7), (5, 7)])
def test_pictures_are_the_images_pixel_for_pixel(shape):
    image = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255
    source = re.search(r'src="data:image/png;base64,([^"]+)"', picture(image, "alt")).group(1)
    drawn = imread(BytesIO(base64.b64decode(source)))[..., :3]
    want = np.broadcast_to(image.reshape(-1, 5, 7).permute(1, 2, 0).numpy(), (5, 7, 3))
    np.testing.assert_allclose(drawn, want, atol=1.01 / 255)


def test_shown_images_are_half_fooled_half_not(evaluated):
    _, pictures, runs, data, _ = evaluated
    fooled = torch.stack([m.success for m in runs]).any(0)
    want = min(2, int(fooled.sum())), min(2, int((~fooled).sum()))
    assert int(fooled[pictures.rows].sum()) >= want[0]
    assert int((~fooled[pictures.rows]).sum()) >= want[1]
    for m in runs:
        moved, predictions = pictures.adversarial[m.name]
        assert torch.equal(moved, m.x_adv[pictures.rows])
        assert torch.equal(predictions != data.labels[pictures.rows], m.success[pictures.rows])


def test_the_file_appears_whole_or_not_at_all(evaluated, tmp_path, monkeypatch):
    document, pictures = evaluated[:2]
    path = tmp_path / "report.html"
    document = {**document, "edges": [], "features": None}
    write_html(document, pictures, path)
    before = path.read_bytes()
    write_html(document, pictures, path)
    assert path.read_bytes() == before, "equal documents give equal bytes"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("soae_ext._files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_html(document, pictures, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_figures_for_other_documents(evaluated, tmp_path):
    files = save_figures(evaluated[0], evaluated[1], tmp_path)
    names = {"accuracy", "examples", "curve-eps", "edges", "features", "feature-maps"}
    assert {file.stem for file in files} == names
    for file in files:
        assert file.read_bytes().startswith(b"\x89PNG")
        assert imread(file).std() > 0.01
