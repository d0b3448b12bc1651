"""A report of real results of each kind, its page and files, and folders that it cannot read."""

import html.parser
import re
import shutil
import subprocess

import pytest

from imagen_jax import ImagenPipeline
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.diagnostics import write_diagnostics
from imagen_jax.evaluation.report.report import report
from imagen_jax.io.paths import as_path
from tests.helpers import evaluations
from tests.helpers.cli import run_command
from tests.helpers.configs import one_device


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with all that a run may have, one with another reference, votes in a file, and a second sweep."""
    root = tmp_path_factory.mktemp("runs")
    stages = ImagenPipeline.from_pretrained("shapes", one_device()).stages
    metrics = {"saturation": 0.1, "saturation_real": 0.2, "validation_loss_at_noise/0.05": 0.003}
    for name, value, wrong in (("base_1", 20.0, 1), ("long", 10.0, 0)):
        folder = root / name
        figures = {"fd_lite0": evaluations.figure(value), "kid_lite0": evaluations.figure(value / 100, std=0.001)}
        evaluations.write_scores(folder, wrong, figures)
        more = {**metrics, "consistency_db": 30 + value, "color_drift/red": 0.5}
        write_diagnostics(folder, stages, [metrics, more])
        evaluations.write_sweep(folder, value)
    figures = {"fd_lite0": evaluations.figure(5.0, reference="aaaaaaaaaaaa")}
    evaluations.write_scores(root / "other", 0, figures)
    evaluations.write_sweep(root / "swept", 0.0, "aaaaaaaaaaaa")
    evaluations.write_benchmark(root / "prompts")
    evaluations.write_fairness(root / "fair")
    evaluations.write_votes(root / "votes.json")
    return [str(root / name) for name in ("base_1", "long", "other", "swept", "prompts", "fair", "votes.json")]


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    return report(runs, tmp_path_factory.mktemp("report") / "all.html", title="Cascades & <b>others</b>")


class PageParts(html.parser.HTMLParser):
    """The sources of a page's images, and whether its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.images, self.open, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values["src"])
            assert "alt" in values
        if "id" in values:
            self.ids.append(values["id"])
        if tag not in ("img", "meta", "br", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)


def test_page_is_whole_and_in_one_file(written):
    text = written.files[0].read_text()
    page = PageParts(text)
    assert not page.open and len(set(page.ids)) == len(page.ids)
    assert all(source.startswith("data:image/") for source in page.images)
    assert "Cascades &amp; &lt;b&gt;others" in text and "<b>others" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "url(" not in text
    # grids of samples: 3 of correct images, 1 of others; 2 plots of diagnostics; 2 of sweeps, those that compare in one
    assert text.count("<figcaption>base_1: ") == 3 and text.count("<figcaption>long: ") == 2
    assert text.count("<figcaption>Trade-off of ") == 2 and "Trade-off of base_1, long<" in text
    assert text.count("a red circle</figcaption>") == 4


def test_every_kind_is_in_every_file(written):
    titles = [
        "Alignment by the judge shapes", "Metrics", "Prompts red_circles: questions answered", "Sweep base_1",
        "Sweep long", "Sweep swept", "Blind comparisons", "Shares of groups", "Diagnostics of the stages",
        "Validation loss by noise level",
    ]  # fmt: skip
    assert [title for title in written.tables if not title.endswith("kind of caption")] == titles
    page, latex, markdown = (file.read_text() for file in written.files)
    for title in written.tables:
        assert f"<h3>{title}</h3>" in page
        assert rf"\caption{{{title.replace('_', chr(92) + '_')}}}" in latex
        assert f"### {title.replace('_', chr(92) + '_')}\n" in markdown
    assert page.count("<pre") == 2 * len(written.tables)


def line_of(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_best_of_what_can_be_compared_is_bold(written):
    latex, markdown = written.files[1].read_text(), written.files[2].read_text()
    assert line_of(markdown, "| FD-lite0 ↓") == "| FD-lite0 ↓ | 20<sup>a</sup> | **10**<sup>a</sup> | 5<sup>b</sup> |"
    assert (
        r"FD-lite0 $\downarrow$ & 20\textsuperscript{a} & \textbf{10}\textsuperscript{a} & 5\textsuperscript{b} \\"
        in latex
    )
    assert line_of(markdown, "| KID-lite0") == "| KID-lite0 ↓ | 0.2 ± 0.001 | **0.1** ± 0.001 | – |"
    assert "- <sup>a</sup> reference: 64 images of real\\_100% (5e1234ffdb62)\n" in markdown
    assert "- <sup>b</sup> reference: 64 images of real\\_100% (aaaaaaaaaaaa)\n" in markdown
    assert r"real\_100\% (5e1234ffdb62)" in latex
    assert "KID-lite0 – network: efficientnet-lite0 (dc78347bfef2); resizing: clean; images: 64; reference:" in markdown
    row = line_of(markdown, "| all ↑")  # three of four, and twice four of four
    assert row.startswith("| all ↑ | 75.0% (30.1–95.4) | **100.0%**") and row.count("**100.0%**") == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, as of Debian's texlive-latex-recommended")
def test_latex_compiles(written, tmp_path):
    lines = [
        r"\documentclass{article}",
        r"\usepackage{booktabs}",
        r"\begin{document}",
        written.files[1].read_text(),
        r"\end{document}",
    ]
    (tmp_path / "paper.tex").write_text("\n".join(lines))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_values_are_those_of_the_files(written):
    markdown = written.files[2].read_text()
    assert "| overall, the mean of categories ↑ | 50.0%" in markdown
    assert "| fidelity, all: A of decided | 66.7%" in markdown and "A is runs/a\\_1, B is runs/b" in markdown
    assert "| red | 66.7%" in markdown and "| images of no group | 1 of 4 |" in markdown
    assert "| 64×64: consistency db | 50 | 40 |" in markdown
    assert "| guidance\\_scale 4, sampler ddpm \\* | 75.0% (65.0–85.0) | 109 |" in markdown


def test_command_and_names(runs, tmp_path, capsys):
    evaluations.write_scores(tmp_path / "a" / "scores", 1)
    evaluations.write_scores(tmp_path / "b" / "scores", 0)
    out = tmp_path / "new" / "report.html"
    assert run_command("report", f"--runs={tmp_path}/a/scores,{tmp_path}/b/scores", f"--out={out}") == 0
    assert str(out) in capsys.readouterr().out
    assert run_command("report", f"--runs={tmp_path}/a/scores,{tmp_path}/b/scores", f"--out={out}") == 0  # again
    assert "| a/scores | b/scores |" in out.with_suffix(".md").read_text()


def test_what_cannot_be_reported(tmp_path):
    def check(match, runs, out="report.html"):
        with pytest.raises(ConfigError, match=match) as caught:
            report([str(run) for run in runs], tmp_path / out)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "report.html").exists()

    good = evaluations.write_scores(tmp_path / "good")
    check("no runs", [])
    check("ends in .html", [good], "report.pdf")
    check("given twice", [good, tmp_path / "good" / ".." / "good"])
    check("there is no folder", [tmp_path / "none"])
    check("there is no file", [tmp_path / "none.json"])
    (tmp_path / "empty").mkdir()
    check("nothing to report", [good, tmp_path / "empty"])
    (tmp_path / "other.json").write_text("{}")
    check("nothing to report", [tmp_path / "other.json"])
    (tmp_path / "report.md").write_text("# Mine")
    check("report.md would be replaced", [good])
    (tmp_path / "report.md").unlink()
    (tmp_path / "cannot").write_text("")
    check("cannot be written", [good], "cannot/report.html")

    def damaged(name, text, match):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        check(match, [folder])
        (folder / name).unlink()

    damaged("scores.json", '{"all": {"rate": 1', "damaged")
    damaged("scores.json", '{"all": {"rate": 1, "total": 2, "low": 0}}', "all.high is missing")
    damaged("scores.json", '{"metrics": {"fid": {"value": "x"}}}', "fid.value is of another type")
    damaged("scores.json", '{"metrics": {"fid": {"value": 1, "images": 3}}}', "fid.images is of another type")
    damaged("scores.json", "[]", "another type")
    damaged("diagnostics.json", "{}", "another type")
    damaged("fairness.json", "{}", "judge is missing")
    damaged("sweep.json", '{"stage": 0, "axes": {}, "captions": {}, "points": []}', "no points")
    damaged("votes.json", '{"models": {}, "raters": {}, "questions": 3}', "missing|another type")
    (good / "correct.png").write_bytes((good / "correct.png").read_bytes()[:100])
    check("correct.png is damaged", [good])


def test_buckets(bucket, tmp_path):
    """Runs and the report are in a bucket: the page is that of the same runs on a disk."""
    for name, wrong in (("a", 1), ("b", 0)):
        folder = evaluations.write_sweep(evaluations.write_scores(tmp_path / name, wrong))
        for file in folder.rglob("*.*"):
            if file.is_file():
                as_path(f"gs://pictures/{name}/{file.relative_to(folder)}").write_bytes(file.read_bytes())
    report(["gs://pictures/a", "gs://pictures/b"], "gs://pictures/out/all.html")
    here = report([tmp_path / "a", tmp_path / "b"], tmp_path / "all.html").files
    for file in here:
        there = as_path(f"gs://pictures/out/{file.name}").read_text()
        assert there.replace("gs://pictures/", f"{tmp_path}/") == file.read_text()
