"""`icl-lab report`: real results and run folders become a page; other inputs are refused."""

import html.parser
import json

import matplotlib.figure
import pytest
import yaml

from icl_lab import cli, report
from icl_lab.claims import verify
from icl_lab.claims.check import exact, sampled
from icl_lab.claims.claim import Claim, Source
from icl_lab.claims.setting import Setting, integer
from icl_lab.report import console as present
from icl_lab.runs import records


class Page(html.parser.HTMLParser):
    """The images, the headings of runs, and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.images, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def verified():
    """What `verify` makes of a claim of one exact and one sampled check."""

    class Toy(Setting):
        d: int = integer(3, 1)

    def run(setting):
        """Ones add up to d.

        They are counted.
        """
        return [exact("sum of ones", float(setting.d), 3.0, 1e-12), sampled("mean", [1.1] * 6, [1.0] * 6, [0.05] * 6)]

    toy = Claim("toy.sum", Toy, Source("A paper, arXiv 0000.00000", "Lemma 0"), run)
    return [verify.run_claim(toy, toy.resolve())]


@pytest.fixture
def root(tmp_path):
    """Three runs that differ in the context length, the first of them without figures, and one that failed."""
    root = tmp_path / "runs"
    for length in (80, 5, 20):
        folder = root / "lengths" / f"{length:016x}"
        _configured(folder, length)
        comparison = {"model": {"risk": 1 / length, "standard_error": 0.0}, "ols": {"risk": "nan", "standard_error": None}}
        theory = {"name": "limit", "source": "a theorem", "risk": 1 / length, "weight_distance": 4.2e-9}
        records.write_json(folder / "metrics.json", {"comparison": comparison, "theory": theory, "warnings": ["<too far>"]})
        records.write_json(
            folder / "status.json", {"status": "done", "verdict": "converged", "reason": "small", "seconds": 1.5}
        )
    figure = matplotlib.figure.Figure(figsize=(1, 1))
    (root / "lengths" / f"{20:016x}" / "figures").mkdir()
    report.save(figure, root / "lengths" / f"{20:016x}" / "figures" / "loss.png", 'The "loss" falls – see?', {"x": [1.0]})
    failed = root / "lengths" / f"{0:016x}.failed"
    _configured(failed, 0)
    records.write_json(failed / "status.json", {"status": "failed", "error": "`context_length` must be >= 1", "traceback": "x"})
    return root


def _configured(folder, length):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"experiment": "lengths", "task": {"context_length": length, "dim": 2}}))


def test_verified_claims_become_a_page(verified, tmp_path, capsys):
    (tmp_path / "verify.json").write_text(json.dumps(verified))
    assert cli.main(["report", str(tmp_path / "verify.json"), "-o", str(tmp_path / "new" / "folder")]) == 0
    target = tmp_path / "new" / "folder" / "index.html"
    assert capsys.readouterr().out == f"{target} written, 0.0 MB\n"
    text = Page(target).text
    (entry,) = verified
    for words in ("The claim passed", entry["statement"], entry["source"], *(one["name"] for one in entry["checks"])):
        assert words in text
    assert list(target.parent.iterdir()) == [target]


def test_runs_are_listed_by_what_differs_and_those_that_failed_come_first(root, tmp_path):
    assert cli.main(["report", str(root), "-o", str(tmp_path / "out")]) == 0
    page = Page(tmp_path / "out" / "index.html")
    places = [page.text.index(f"task.context_length = {length}") for length in (0, 5, 20, 80)]
    assert places == sorted(places)
    for words in ("`context_length` must be >= 1", "Outside the theorem's assumption: <too far>"):
        assert words in page.text
    assert "Relative weight distance to the closed form: 4.20e-09 (a theorem)." in page.text
    assert present.LABELS["model"] in page.text
    (image,) = page.images
    assert image["alt"] == 'The "loss" falls – see?'
    assert image["src"].startswith("data:image/png;base64,iVBOR")


def test_results_and_runs_share_a_page(verified, root, tmp_path):
    (tmp_path / "verify.json").write_text(json.dumps(verified))
    assert cli.main(["report", str(tmp_path / "verify.json"), str(root), "-o", str(tmp_path)]) == 0
    text = Page(tmp_path / "index.html").text
    assert "The claim passed" in text
    assert f"Runs in {root}" in " ".join(text.split())


def test_many_runs_are_counted_and_the_first_shown_in_full(tmp_path):
    for length in range(1, 106):
        folder = tmp_path / "runs" / "many" / f"{length:016x}"
        _configured(folder, length)
        records.write_json(folder / "status.json", {"status": "done", "verdict": "converged", "reason": "small"})
    assert cli.main(["report", str(tmp_path / "runs"), "-o", str(tmp_path)]) == 0
    text = Page(tmp_path / "index.html").text
    assert "12 of 105 runs are shown in full" in text
    assert "5 more runs are not listed" in text
    assert "task.context_length = 12" in text
    assert "task.context_length = 13" not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.json", None, "nothing.json' does not exist"),
        (
            "broken.json",
            '[{"id": ',
            "broken.json must be JSON, as `icl-lab verify --json` writes it; reading it says: Expecting",
        ),
        ("image.png", b"\x89PNG\xff", "image.png must be JSON"),
        ("empty.json", "", "empty.json must be JSON"),
        ("none.json", "[]", "none.json must hold at least one claim; got an empty list."),
        ("object.json", "{}", "object.json must hold a list"),
        ("keys.json", '[{"id": "a"}]', "it lacks paper, statement, parameters"),
        ("folder", "folder", "holds no run"),
    ],
)
def test_other_inputs_are_one_sentence_and_exit_with_two(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert cli.main(["report", str(path), "-o", str(tmp_path / "out")]) == cli.MISUSE
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("status.json", '{"status": ', "Expecting value"),
        ("metrics.json", '{"warnings": [], "theory": null}', "it lacks comparison"),
        ("figures/loss.png", "", "cannot identify image file"),
    ],
)
def test_damaged_run_is_named_and_the_others_are_shown(file, content, reason, root, tmp_path, capsys):
    damaged = root / "lengths" / f"{20:016x}" / file
    damaged.write_text(content)
    assert cli.main(["report", str(root), "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"icl-lab: {damaged} is damaged: {reason}")
    assert said.count("\n") == 1
    text = Page(tmp_path / "out" / "index.html").text
    assert "is damaged" in text
    for length in (0, 5, 80):
        assert f"task.context_length = {length}" in text


def test_the_output_is_a_folder(root, tmp_path, capsys):
    (tmp_path / "file.html").write_text("mine")
    assert cli.main(["report", str(root), "-o", str(tmp_path / "file.html")]) == cli.MISUSE
    assert "`-o` must be a folder" in capsys.readouterr().err
    assert (tmp_path / "file.html").read_text() == "mine"
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(root)])
    assert stop.value.code == cli.MISUSE
