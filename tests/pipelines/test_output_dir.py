"""A run that draws can be broken off at any moment, and ends with the bytes of one that was not."""

import json
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from imagen_jax.cli import sample
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.imagen import ImagenPipeline
from tests.helpers.configs import ROOT, contents, eight_devices
from tests.helpers.crash import Killed, killing

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "two blue squares", "a ring", "a small green cross", "an object"]
BATCH = 2


@pytest.fixture(scope="module")
def cascade(base_folder):
    return ImagenPipeline.from_pretrained([base_folder], eight_devices())


@pytest.fixture
def draw(base_folder, cascade, monkeypatch):
    """Samples into a folder, by a cascade that is compiled once; returns how many images the cascade sampled."""
    load, counted = ImagenPipeline.from_pretrained, []

    def loaded(folders, mesh, changes, **others):
        return cascade if not any(changes) else load(folders, mesh, changes)

    def counting(request, batch, *rest, sample=cascade._sample_batch):
        counted.append(min(request.batch_size, len(request.texts.prompts)))  # the last one is padded
        return sample(request, batch, *rest)

    monkeypatch.setattr(ImagenPipeline, "from_pretrained", loaded)
    monkeypatch.setattr(cascade, "_sample_batch", counting)

    def draw(out, *arguments, prompts=PROMPTS):
        counted.clear()
        # a later flag takes the place of an earlier one
        usual = [f"--stages={base_folder}", f"--prompts={';'.join(prompts)}", f"--out={out}", f"--batch_size={BATCH}"]
        args = CommandFlags(sample)
        args.parse([*usual, *arguments])
        sample.run(args)
        return sum(counted)

    draw.counted = counted
    return draw


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture
def whole(draw, unbroken):
    """What a run leaves that nobody disturbed."""
    if not contents(unbroken):
        draw(unbroken)
    return contents(unbroken)


@pytest.fixture
def copied(whole, tmp_path):
    """The folder of a whole run, to be spoilt."""
    for name, data in whole.items():
        if data is not False:
            (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / name).write_bytes(data)
    return tmp_path / "out"


def images_in(out):
    return {name for name in contents(out) if name.startswith("images/") and not name.startswith("images/.")}


def killed(draw, out, at):
    """Whether the command was killed before it came to its end."""
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, at)
        try:
            draw(out)
        except Killed:
            return True
    return False


def test_kill_at_any_write_is_resumable(draw, whole, tmp_path):
    assert set(whole) == {"images", *(f"images/{i:04d}.png" for i in range(5)), "samples.json", "samples.png"}
    at = 0
    while killed(draw, out := tmp_path / str(at), at):
        left = images_in(out)
        assert sum(draw.counted) - len(left) <= BATCH
        killed(draw, out, at // 2)
        assert images_in(out) >= left
        draw(out)
        assert contents(out) == whole
        at += 1
    assert at == 4 * 7  # what each of seven files takes
    assert contents(out) == whole


def test_existing_images_are_kept(draw, copied, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in (copied / "images").iterdir()}
    assert draw(copied) == 0
    assert "5 of 5 images existed already" in capsys.readouterr().out
    (copied / "images" / "0001.png").unlink()
    (copied / "images" / "0004.png").write_bytes(whole["images/0004.png"][:-20])
    # the first and the last batch; of the first only what is missing is written
    assert draw(copied) == 2 * BATCH
    assert "3 of 5 images existed already" in capsys.readouterr().out
    assert contents(copied) == whole
    for name in ("0000.png", "0002.png", "0003.png"):
        path = copied / "images" / name
        assert path.stat().st_mtime_ns == before[path]


@pytest.mark.parametrize("place", [40, 60, -30, -6])
def test_flipped_bit_is_repaired(draw, copied, whole, place):
    data = bytearray(whole["images/0002.png"])
    data[place] ^= 4
    (copied / "images" / "0002.png").write_bytes(data)
    assert draw(copied) == BATCH
    assert contents(copied) == whole


def refused(draw, out, *arguments, **settings):
    before = contents(out)
    with pytest.raises(ConfigError) as error:
        draw(out, *arguments, **settings)
    assert contents(out) == before
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert str(error.value).endswith(": give another folder, or --overwrite to remove them")
    return str(error.value)


@pytest.mark.parametrize(
    "arguments, prompts, said",
    [
        (["--seed=1"], PROMPTS, "has images of another run: seed was 0 and is now 1"),
        (["--num_inference_steps=3"], PROMPTS, "stages.0.sampling.num_inference_steps was 2 and is now 3"),
        (["--guidance_scale=1;2;3;4;5"], PROMPTS, "guidance was None and is now [[1.0, 2.0"),
        ([], ["a blue ring", *PROMPTS[1:]], "prompts.0000.png was 'a red circle' and is now 'a blue ring'"),
        ([], PROMPTS[:4], "prompts.0004.png was 'an object' and is now 'absent'"),
        ([], [*PROMPTS, "x" * 5000], "prompts.0005.png was 'absent' and is now 'xxxxxxxxxxxx"),
        ([], ["\x1b\n\u202e"] * 5, r"was 'a red circle' and is now '\x1b\n\u202e'"),
    ],
    ids=str,
)
def test_images_of_another_run_are_refused(draw, copied, arguments, prompts, said):
    (copied / "prompts").write_text("\0".join(prompts))
    assert said in refused(draw, copied, *arguments, prompts=prompts)


def test_changed_stage_is_another_run(draw, copied, cascade, base_folder):
    """The folder says so too, should its step be the same."""
    asked = json.loads((copied / "samples.json").read_text())
    for change, said in (
        ({"step": 3}, "stages.0.step was 3 and is now 6"),
        ({"checkpoint": "0" * 64}, "stages.0.checkpoint was '0000"),
        ({"config": "0" * 64}, "stages.0.config was '0000"),
    ):
        spoilt = asked | {"stages": {"0": asked["stages"]["0"] | change}}
        (copied / "samples.json").write_text(json.dumps(spoilt))
        assert said in refused(draw, copied)


@pytest.mark.parametrize(
    "record, said",
    [
        (None, "has images, and no samples.json"),
        ("{", "has images, and its samples.json is damaged"),
        ("[" * 10**6, "has images, and its samples.json is damaged"),
        ("[]", "has images, and its samples.json is damaged"),
    ],
)
def test_images_without_manifest_are_refused(draw, copied, record, said):
    (copied / "samples.json").unlink()
    if record is not None:
        (copied / "samples.json").write_text(record)
    assert said in refused(draw, copied)


def test_overwrite_is_resumable(draw, copied, tmp_path):
    assert draw(copied, "--overwrite") == 0
    (copied / "images" / "mine.png").write_bytes(b"mine")
    other = ["--overwrite", "--seed=1"]
    assert killed(lambda out: draw(out, *other, prompts=PROMPTS[:3]), copied, 24)
    assert draw(copied, *other, prompts=PROMPTS[:3]) == BATCH
    draw(tmp_path / "fresh", "--seed=1", prompts=PROMPTS[:3])
    found = contents(copied)
    assert found.pop("images/mine.png") == b"mine"
    assert found == contents(tmp_path / "fresh")


HOSTILE = [
    "../../../etc/passwd",
    "/etc/passwd",
    "<script>alert('a')</script>",
    "a\x1b[31mred\x07 bell\x0b\x0c\x85\u2028",
    "nul\0nul",
    "$(touch canary) `touch canary`",
    "x" * 5000,
    "many words " * 500,
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "🦊" * 200,
]


def test_hostile_prompts(draw, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(HOSTILE), encoding="utf-8")
    out = tmp_path / "inner" / "out"
    out.parent.mkdir()
    draw(out, "--prompts=", f"--prompts_file={file}")
    assert set(contents(tmp_path)) == {"prompts.txt", "inner"} | {
        f"inner/{name}" for name in ["out", *(f"out/{name}" for name in contents(out))]
    }
    assert set(contents(out)) == {"images", "samples.json", "samples.png", *(f"images/{i:04d}.png" for i in range(10))}
    written = (out / "samples.json").read_bytes()
    assert max(written) < 127 and min(written) >= 10
    # what is at the ends of a line and blank is not of a prompt
    assert list(json.loads(written)["prompts"].values()) == [prompt.strip() for prompt in HOSTILE]
    said = "".join(capsys.readouterr())
    assert not any(character in said for character in "\x1b\x07\0\u202e")
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width < 1000 and sheet.height < 2000


def test_sigkill_is_resumable(draw, base_folder, tmp_path):
    prompts = [f"{number} rings" for number in range(96)]
    arguments = [f"--stages={base_folder}", f"--prompts={';'.join(prompts)}", "--batch_size=8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imagen_jax", "sample", *arguments, f"--out={tmp_path}/killed"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (tmp_path / "killed" / "images" / "0008.png").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = len(images_in(tmp_path / "killed"))
    assert 8 < left < 96
    assert draw(tmp_path / "killed", "--batch_size=8", prompts=prompts) == 96 - left // 8 * 8
    draw(tmp_path / "whole", "--batch_size=8", prompts=prompts)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
