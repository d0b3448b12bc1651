"""A PNG file says what made it, and is sampled again from that to the byte."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.cli import sample
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.errors import ConfigError
from imagen_jax.images import png
from imagen_jax.pipelines.image_record import KEYWORD, Recorder, read_record
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from tests.helpers.configs import eight_devices

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "Löwe, 狐 und 🦊", "a ring", 'a "cross" \\ \x07 bell', "an object"]
SEED = 2**63 + 5


@pytest.fixture(scope="module")
def run(base_folder):
    """Runs `imagen sample` into a folder, and returns the folder."""

    def run(out, *arguments):
        args = CommandFlags(sample)
        args.parse([f"--stages={base_folder}", f"--out={out}", *arguments])
        sample.run(args)
        return out

    return run


@pytest.fixture(scope="module")
def sampled(run, tmp_path_factory):
    """A folder of five images whose settings are not the config's, in batches of 8 and 1 with padding."""
    out = tmp_path_factory.mktemp("sampled")
    settings = ["--num_inference_steps=3", "--guidance_scale=1.5;2;3;4;5", "--s_tmax=inf", "--batch_size=3"]
    return run(out, f"--prompts={';'.join(PROMPTS)}", f"--seed={SEED}", "--negative_prompt=Würfel", *settings)


def image(folder, index):
    return folder / "images" / f"{index:04d}.png"


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


@pytest.mark.parametrize("index", [1, 3, 4])
def test_like_is_bit_exact(run, sampled, tmp_path, index):
    run(tmp_path, f"--like={image(sampled, index)}")
    assert image(tmp_path, index).read_bytes() == image(sampled, index).read_bytes()
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"{index:04d}.png"]


def test_like_with_changes(run, sampled, tmp_path):
    path = image(sampled, 1)
    before = read_record(path)
    changes = ["--seed=7", "--prompts=a ring", "--num_inference_steps=2", "--guidance_scale=2"]
    after = read_record(image(run(tmp_path, f"--like={path}", *changes), 1))
    assert (after.seed, after.prompt, after.negative_prompt, after.index) == (7, "a ring", "Würfel", 1)
    assert after.guidance is None and before.guidance == [2.0]
    changed = {key for key, value in after.sampling()[0].items() if value != before.sampling()[0][key]}
    assert changed == {"num_inference_steps", "guidance_scale"}
    assert not np.array_equal(pixels(image(tmp_path, 1)), pixels(path))


def test_like_alone(run, sampled, tmp_path):
    """Equal up to the rounding of another batch size."""
    path = image(run(tmp_path, f"--like={image(sampled, 4)}", "--batch_size=1"), 4)
    assert np.abs(pixels(path).astype(int) - pixels(image(sampled, 4))).max() <= 1
    assert read_record(path).batch.row == 0


def test_files_are_read_by_other_programs(sampled, base_folder):
    with Image.open(image(sampled, 1)) as opened:
        text = opened.text
    lines = text["parameters"].split("\n")
    assert lines[:2] == [PROMPTS[1], "Negative prompt: Würfel"]
    assert lines[2].startswith(f"Steps: 3, Sampler: ddpm, CFG scale: 2, Seed: {SEED}, Size: 8x8, Model hash: ")
    assert json.loads(text[KEYWORD])["prompt"] == PROMPTS[1]
    assert str(base_folder.parent) not in text[KEYWORD]


@pytest.mark.parametrize("prompt", ["nul\0nul", "half \ud83d", "\x1b[31m\u202e\u2028", "#", "x" * 5000])
def test_any_prompt_is_recorded(sampled, cascade, tmp_path, prompt):
    texts = Recorder(cascade, SampleRequest(Texts([prompt]), 3), STAGES).texts(0, 0, (8, 8, 3))
    path = tmp_path / "image.png"
    path.write_bytes(png.with_texts(image(sampled, 0).read_bytes().replace(b"imagen_jax", b"imagen_old"), texts))
    assert read_record(path).prompt == prompt
    assert texts["parameters"].split("\n")[0].isprintable()


def test_a_prompt_too_long_is_not_recorded(cascade, caplog):
    assert Recorder(cascade, SampleRequest(Texts(["x" * 2**20])), STAGES).texts(0, 0, (8, 8, 3)) == {}
    assert "too long" in caplog.text


STAGES = {"0": {"step": 1, "checkpoint": "c", "config": "d", "sampling": {"num_inference_steps": 1, "sampler": "ddim"}}}
STAGES["0"]["sampling"]["guidance_scale"] = 1.0


@pytest.fixture(scope="module")
def cascade(base_folder):
    return ImagenPipeline.from_pretrained([base_folder], eight_devices(), text_encoder=False)


def refused(run, out, like, *arguments):
    """Returns the sentence with which an image is refused."""
    with pytest.raises(ConfigError) as error:
        run(out, f"--like={like}", *arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert not (out / "images").exists()
    return str(error.value)


def with_record(path, sampled, change):
    """Writes an image whose record has changed."""
    with Image.open(image(sampled, 2)) as opened:
        record = json.loads(opened.text[KEYWORD])
        change(record)
        data = io.BytesIO()
        opened.save(data, "PNG")
    plain = data.getvalue()
    path.write_bytes(png.with_texts(plain, {KEYWORD: json.dumps(record)}))
    return path


def test_another_model_is_refused(run, sampled, tmp_path):
    for key, value in (("checkpoint", "0" * 64), ("step", 2), ("config", "\x1b" * 64)):
        like = with_record(tmp_path / "other.png", sampled, lambda r, k=key, v=value: r["stages"][0].update({k: v}))
        message = refused(run, tmp_path / "out", like)
        assert f"stages.0.{key}" in message and message.isprintable()
    run(tmp_path / "out", f"--like={like}", "--other_model")
    np.testing.assert_array_equal(pixels(image(tmp_path / "out", 2)), pixels(image(sampled, 2)))


def test_like_takes_the_recorded_weights(run, sampled, base_folder, tmp_path):
    run(tmp_path / "raw", "--prompts=a ring", "--weights=raw")
    run(tmp_path / "again", f"--like={image(tmp_path / 'raw', 0)}")
    assert image(tmp_path / "again", 0).read_bytes() == image(tmp_path / "raw", 0).read_bytes()
    record = read_record(image(sampled, 0))
    (weights,) = record.weights([base_folder])
    assert weights == {"step": record.stages[0].step, "kind": "ema"}
    gone = record.stages[0].model_copy(update={"step": 10**6})
    assert record.model_copy(update={"stages": [gone]}).weights([base_folder]) == [{"step": None, "kind": "ema"}]


def test_another_number_of_stages_is_refused(run, sampled, tmp_path):
    like = with_record(tmp_path / "other.png", sampled, lambda r: r.update(guidance=None, stages=r["stages"] * 2))
    assert "2 stages" in refused(run, tmp_path / "out", like, "--other_model")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"seed": "1"},
        {"seed": True},
        {"index": 2**32},
        {"prompt": None},
        {"prompt": 5},
        {"guidance": [1.0, 2.0]},
        {"guidance": [float("nan")]},
        {"size": [1]},
        {"size": [10**9, 8]},
        {"stages": []},
        {"stages": 3},
        {"batch": {"size": 8, "row": 8}},
        {"batch": {"size": 10**9, "row": 0}},
        {"format": 2},
        {"format": "1"},
    ],
    ids=str,
)
def test_wrong_records_are_refused(run, sampled, tmp_path, change):
    refused(run, tmp_path / "out", with_record(tmp_path / "wrong.png", sampled, lambda record: record.update(change)))


@pytest.mark.parametrize("key, value", [("num_inference_steps", -1), ("new_setting", 1), ("sampler", "\x1b[0m")])
def test_wrong_settings_are_refused(run, sampled, tmp_path, key, value):
    like = with_record(
        tmp_path / "wrong.png", sampled, lambda record: record["stages"][0]["sampling"].update({key: value})
    )
    assert key in refused(run, tmp_path / "out", like)


def chunk(kind, data, length=None):
    length = len(data) if length is None else length
    return struct.pack(">I", length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    return file.getvalue()


PLAIN = png.encode(np.zeros((4, 4, 3), np.uint8))
BEFORE, AFTER = PLAIN[:33], PLAIN[33:]
BOMB = zlib.compress(b" " * 2**26)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        jpeg(),
        b"\x89PNG\r\n\x1a\n",
        PLAIN,
        PLAIN[:-12],
        BEFORE + chunk(b"tEXt", b"parameters\0a ring\nSteps: 20") + AFTER,
        png.with_texts(PLAIN, {KEYWORD: "{"}),
        png.with_texts(PLAIN, {KEYWORD: "[]"}),
        png.with_texts(PLAIN, {KEYWORD: "[" * 10**5}),
        png.with_texts(PLAIN, {KEYWORD: '{"format": ' + "9" * 5000 + "}"}),
        png.with_texts(PLAIN, {KEYWORD: "x" * (png.MAX_TEXT_BYTES + 1)}),
        BEFORE + chunk(b"zTXt", b"imagen_jax\0\0" + BOMB) + AFTER,
        BEFORE + chunk(b"zTXt", b"imagen_jax\0\0" + b"not compressed") + AFTER,
        BEFORE + chunk(b"iTXt", b"imagen_jax\0\1\0\0\0" + BOMB) + AFTER,
        BEFORE + chunk(b"iTXt", b"imagen_jax\0\0\0no end") + AFTER,
        BEFORE + chunk(b"iTXt", b"imagen_jax\0\0\0\0\0\xff\xfe") + AFTER,
        BEFORE + chunk(b"iTXt", b"imagen_jax\0\0\0\0\0{}", length=2**31 - 1),
        BEFORE + chunk(b"iTXt", b"imagen_jax\0\0\0\0\0{}")[:-1] + b"?" + AFTER,
    ],
    ids=range(18),
)
def test_other_files_are_refused(run, tmp_path, data):
    (tmp_path / "other.png").write_bytes(data)
    refused(run, tmp_path / "out", tmp_path / "other.png")


def test_unreadable_files_are_refused(run, tmp_path):
    refused(run, tmp_path / "out", tmp_path / "absent.png")
    refused(run, tmp_path / "out", tmp_path)


def test_records_in_any_text_chunk(sampled, tmp_path):
    """Programs that write a file anew may choose another kind of chunk, and put it after the pixels."""
    with Image.open(image(sampled, 0)) as opened:
        text = json.dumps(json.loads(opened.text[KEYWORD])).encode()
    end = PLAIN[-12:]
    key = KEYWORD.encode() + b"\0"
    for made in (
        chunk(b"tEXt", key + text),
        chunk(b"zTXt", key + b"\0" + zlib.compress(text)),
        chunk(b"iTXt", key + b"\1\0en\0key\0" + zlib.compress(text)),
    ):
        (tmp_path / "again.png").write_bytes(PLAIN[:-12] + made + end)
        assert read_record(tmp_path / "again.png").prompt == PROMPTS[0]


def test_flags_that_do_not_go_together(run, sampled, tmp_path):
    assert "2 prompts" in refused(run, tmp_path / "out", image(sampled, 0), "--prompts=a;b")
    with pytest.raises(ConfigError, match="--other_model"):
        run(tmp_path / "out", "--prompts=a", "--other_model")


def test_comments_in_files_of_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# a comment\n  # another\na ring # 3\n\n\\#1 ring\n\\\\#2\n\\ring\n#\n")
    assert sample.read_prompts(None, str(file)) == ["a ring # 3", "#1 ring", "\\#2", "\\ring"]
    assert sample.read_prompts("#1 ring; \\# ring", None) == ["#1 ring", "\\# ring"]
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no prompts"):
        sample.read_prompts(None, str(file))
