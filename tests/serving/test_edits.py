"""Jobs that edit images: in batches with others, after kills, and with files of strangers."""

import base64
import contextlib
import dataclasses
import hashlib
import io
import sqlite3
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from imagen_jax.errors import ConfigError
from imagen_jax.images import png
from imagen_jax.images.grid import decode_png, read_png
from imagen_jax.pipelines import image_record
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.serving.edits import EditFiles, with_edit
from imagen_jax.serving.engine import Engine
from imagen_jax.serving.http_errors import HttpError
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.requests import EditBody
from imagen_jax.serving.store import DATABASE
from imagen_jax.serving.uploads import read_image, read_mask
from tests.serving.jobs import request, until, wait
from tests.serving.test_engine import Held, held, start  # noqa: F401  # fixtures

LIMITS = HttpLimits()
STEPS = [{"num_inference_steps": 4}, {"num_inference_steps": 2}]
PROMPT = "a green ring on a black background"


@pytest.fixture(scope="module")
def image(shapes):
    """A picture of the cascade, uint8 [64, 64, 3]."""
    return shapes("a red circle on a white background", seed=1).images[0]


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((64, 64), np.uint8)
    mask[8:40, 16:56] = 255
    return mask


def file_of(pixels, kind="PNG", **settings):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **settings)
    return data.getvalue()


def edited(pipeline, image, mask=None, seed=0, prompt=PROMPT, count=1, others=None, **fields):
    """Returns a request that edits, and what it edits."""
    body = EditBody(image=None if image is None else "", **fields)
    files = EditFiles(None if image is None else file_of(image), None if mask is None else file_of(mask))
    asked = request(prompt, count=count, seed=seed, **{"settings": STEPS} | (others or {}))
    return with_edit(asked, body, files, pipeline, LIMITS)


def sampled_by_editor(pipeline, method, *arguments, **settings):
    """Returns what a call of the editor alone gives, of an image that is computed by itself."""
    settings = {"num_inference_steps": [4, 2], "seed": [0]} | settings
    prepared = getattr(ImagenEditor(pipeline), f"prepare_{method}")(*arguments, **settings)
    isolated = dataclasses.replace(prepared.request, isolated=True)
    return dataclasses.replace(prepared, request=isolated).sample().images[0]


def test_edits_are_those_of_the_editor(held, shapes, image, mask):  # noqa: F811
    """Jobs of several kinds that wait together: each image is that of a call alone, up to rounding."""
    engine = held.start(batch_sizes=(2,))
    inverted = 255 - image
    cases = [
        edited(shapes, image, kind="image_to_image", strength=0.5, count=2),
        edited(shapes, inverted, kind="image_to_image", strength=0.5, seed=5),
        edited(shapes, image, mask, kind="inpaint", resample=2),
        edited(shapes, inverted, mask.T.copy(), kind="inpaint", resample=2, seed=3, feather=0),
        edited(shapes, image, kind="image_to_image", strength=[0.0, 1.0]),
        edited(shapes, image[16:48, 16:48], kind="outpaint", position=[0, 32], resample=2),
        edited(shapes, image[::2, ::2], kind="upscale"),
        edited(shapes, image, kind="image_to_image", strength=0.5, others={"negative_prompt": "a square"}),
        edited(shapes, image, kind="variations", prompt=""),
    ]
    expected = [
        sampled_by_editor(shapes, "image_to_image", image, PROMPT, 0.5),
        sampled_by_editor(shapes, "image_to_image", inverted, PROMPT, 0.5, seed=[5]),
        sampled_by_editor(shapes, "inpaint", image, mask, PROMPT, resample=2),
        sampled_by_editor(shapes, "inpaint", inverted, mask.T, PROMPT, resample=2, seed=[3], feather=0),
        sampled_by_editor(shapes, "image_to_image", image, PROMPT, [0.0, 1.0]),
        sampled_by_editor(shapes, "outpaint", image[16:48, 16:48], (64, 64), PROMPT, (0, 32), resample=2),
        sampled_by_editor(shapes, "upscale", image[::2, ::2], PROMPT),
        sampled_by_editor(shapes, "image_to_image", image, PROMPT, 0.5, negative_prompt="a square"),
        sampled_by_editor(shapes, "image_to_image", image, "", 0.5),
    ]
    jobs = [engine.submit(asked, f"client {n % 2}", inputs) for n, (asked, inputs) in enumerate(cases)]
    plain = engine.submit(request(PROMPT, settings=STEPS), "client 0")
    held.go()
    done = wait(engine, *(job.id for job in jobs), plain.id)
    for job, one in zip(done, expected, strict=False):
        assert (job.status, job.error) == ("done", None)
        image_of_job = read_png(engine.image_path(job.images[0].file))
        np.testing.assert_allclose(image_of_job.astype(int), one, atol=1)
        assert np.mean(image_of_job != one) < 0.001
    plain_image = read_png(engine.image_path(done[-1].images[0].file))
    np.testing.assert_array_equal(plain_image, shapes(PROMPT, seed=[0], num_inference_steps=[4, 2]).images[0])
    # images of one program share batches, also of several jobs, kinds and clients; those of others do not
    batches = [{*batch} for batch in held.batches]
    ids = [job.id for job in jobs]
    assert {ids[0], ids[1]} in batches
    masked, unlike = {ids[2], ids[3], ids[5]}, [ids[4], ids[6], ids[7], plain.id]
    assert any(len(batch & masked) == 2 for batch in batches)
    assert all({one} in batches for one in unlike)


def test_prompts_change_images(held, shapes, image):  # noqa: F811
    """Each image is walked beside its source, also of several prompts and jobs in one batch."""
    engine = held.start(batch_sizes=(4,))
    source, prompts = "a red circle on a white background", ["a blue circle on a white background", "a red ring"]
    other = edited(shapes, 255 - image, kind="edit", source_prompt="a cross", prompt=prompts[0], strength=[0.6, 0.3])
    asked, inputs = edited(shapes, image, kind="edit", source_prompt=source, count=2, strength=[0.6, 0.3], seed=3)
    asked = dataclasses.replace(asked, prompts=prompts, seeds=[3, 4, 5, 6])
    assert asked.settings[0] == {"sampler": "ddim", "guidance_scale": 2.0} | STEPS[0]
    jobs = [engine.submit(asked, "a", inputs), engine.submit(*other[:1], "b", other[1])]
    held.go()
    done = wait(engine, *(job.id for job in jobs))
    assert [(job.status, job.error) for job in done] == [("done", None)] * 2
    assert any(len({*batch}) == 2 for batch in held.batches)
    images = [read_png(engine.image_path(one.file)).astype(int) for job in done for one in job.images]
    editor, steps = ImagenEditor(shapes), {"num_inference_steps": [4, 2], "strength": [0.6, 0.3]}
    expected = [*editor.edit(image, source, [prompts[0]] * 2 + [prompts[1]] * 2, seed=[3, 4, 5, 6], **steps).images]
    expected += [*editor.edit(255 - image, "a cross", prompts[0], seed=[0], **steps).images]
    for made, one in zip(images, expected, strict=True):
        np.testing.assert_allclose(made, one, atol=1)
        assert np.mean(made != one) < 0.001
    unchanged = (images[0] == image).all(-1)  # what both prompts agree on is kept, to the bit
    assert 0.2 < unchanged.mean() < 1
    record = image_record.read_record(engine.image_path(done[0].images[0].file))
    assert (record.prompt, record.seed) == (prompts[0], 3)
    assert (record.edit.kind, record.edit.source_prompt, record.negative_prompt) == ("edit", source, source)


def test_previews_of_changed_prompts_are_those_of_the_results(held, shapes, image):  # noqa: F811
    engine = held.start()
    fields = {"kind": "edit", "source_prompt": "a red circle on a white background", "prompt": "a red ring"}
    asked, inputs = edited(shapes, image, count=2, **fields)
    job = engine.submit(asked, "a", inputs)
    subscription = engine.events(job.id)
    held.go()
    events = []
    while not events or events[-1].name != "done":
        events.append(subscription.get(60))
    subscription.close()
    shown = {}
    for event in events:
        if event.name == "preview":
            shown |= {one["index"]: decode_png(base64.b64decode(one["png"])) for one in event.data["images"]}
    for one in events[-1].data.images:
        made = read_png(engine.image_path(one.file)).astype(int)
        np.testing.assert_allclose(shown[one.index], made, atol=1)


@pytest.mark.parametrize("ends", [[3, 2**64 - 1], ["a red circle", "a blue ring on a white background"]])
def test_images_between_two_ends(held, shapes, ends):  # noqa: F811
    engine = held.start(batch_sizes=(2,))
    of_seeds = isinstance(ends[0], int)
    fields = {"prompt": PROMPT if of_seeds else "", "count": 3, "ends": ends, "seed": 9}
    asked, inputs = edited(shapes, None, kind="interpolate", others={"seeds_are_random": of_seeds}, **fields)
    assert inputs is None
    job = engine.submit(asked, "a", inputs)
    held.go()
    (job,) = wait(engine, job.id)
    assert (job.status, job.error) == ("done", None)
    others = {} if of_seeds else {"seed": 9}
    expected = ImagenEditor(shapes).interpolate(
        *ends, 3, PROMPT if of_seeds else None, num_inference_steps=[4, 2], **others
    )
    for image, one in zip(job.images, expected.images, strict=True):
        made = read_png(engine.image_path(image.file)).astype(int)
        np.testing.assert_allclose(made, one, atol=1)
        assert np.mean(made != one) < 0.001
        assert image.seed == (3 if of_seeds else 9)
    assert job.images[0].prompt == (PROMPT if of_seeds else "a red circle → a blue ring on a white background")
    assert image_record.read_record(engine.image_path(job.images[1].file)).edit.ends == ends


def test_record_says_what_edited_an_image(start, shapes, image):  # noqa: F811
    engine = start()
    asked, inputs = edited(shapes, image, kind="image_to_image", strength=[0.5, 0.25])
    (job,) = wait(engine, engine.submit(asked, "a", inputs).id)
    record = image_record.read_record(engine.image_path(job.images[0].file))
    assert record.edit == image_record.EditRecord(
        kind="image_to_image", image=hashlib.sha256(file_of(image)).hexdigest(), strength=[0.5, 0.25]
    )
    with pytest.raises(ConfigError, match="made from another one"):
        image_record.like_request(record)


def test_progress_and_previews_of_an_edit(held, shapes, image):  # noqa: F811
    engine = held.start()
    asked, inputs = edited(shapes, image[::2, ::2], kind="upscale", others={"settings": [{}, {}]})
    job = engine.submit(asked, "a", inputs)
    subscription = engine.events(job.id)
    held.go()
    events = []
    while not events or events[-1].name != "done":
        events.append(subscription.get(60))
    steps = [event.data for event in events if event.name == "step"]
    assert {step["stage"] for step in steps} == {1}  # the base stage is not asked
    fractions = [step["fraction"] for step in steps]
    assert fractions == sorted(fractions) and 0 < fractions[0] < fractions[-1] == 1
    assert any(event.name == "preview" for event in events)
    subscription.close()


def test_what_is_edited_survives_and_is_deleted_with_the_job(held, shapes, image, mask, tmp_path):  # noqa: F811
    """An engine that is abandoned before it samples: the next one has the image and the mask."""
    first = held.start(out=tmp_path)
    asked, inputs = edited(shapes, image, mask, kind="inpaint")
    job = first.submit(asked, "a", inputs)
    first.stop(60)
    held.go()
    engine = Engine(shapes, tmp_path, batch_sizes=(1,), warm_up=False)
    engine.start()
    try:
        (job,) = wait(engine, job.id)
        expected = sampled_by_editor(shapes, "inpaint", image, mask, PROMPT)
        np.testing.assert_array_equal(read_png(engine.image_path(job.images[0].file)), expected)
        kept = engine.input_file(f"{job.id}-image.png"), engine.input_file(f"{job.id}-mask.png")
        assert kept == (inputs.image, inputs.mask)
        assert engine.image_owner(f"{job.id}-mask.png") == "a"
        assert engine.delete(job.id)
        assert engine.input_file(f"{job.id}-image.png") is None
    finally:
        engine.stop(60)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        assert database.execute("SELECT count(*) FROM inputs").fetchone() == (0,)


def test_database_of_before_edits_is_opened(shapes, tmp_path):
    engine = Engine(shapes, tmp_path, batch_sizes=(1,), warm_up=False)
    engine.start()
    (before,) = wait(engine, engine.submit(request(settings=STEPS), "a").id)
    engine.stop(60)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.executescript("DROP TABLE inputs; ALTER TABLE images DROP COLUMN flagged; PRAGMA user_version = 1;")
    engine = Engine(shapes, tmp_path, batch_sizes=(1,), warm_up=False)
    engine.start()
    try:
        assert engine.get(before.id) == before
        asked, inputs = edited(shapes, np.zeros((64, 64, 3), np.uint8), kind="image_to_image")
        until(lambda: engine.ready)
        assert engine.submit(asked, "a", inputs).request == asked
    finally:
        engine.stop(60)


def test_an_idempotency_key_is_of_one_image(start, shapes, image):  # noqa: F811
    engine = start()
    key = {"idempotency_key": "k", "settings": STEPS}
    asked, inputs = edited(shapes, image, kind="image_to_image", others=key)
    job = engine.submit(asked, "a", inputs)
    assert engine.submit(asked, "a", inputs).id == job.id
    other, its_inputs = edited(shapes, 255 - image, kind="image_to_image", others=key)
    with pytest.raises(ConfigError, match="idempotency_key"):
        engine.submit(other, "a", its_inputs)


def test_images_of_other_sizes_are_fitted(shapes, image, mask):
    """A photo is kept at the size it is used at; a mask covers whatever it has covered of a pixel."""
    large, large_mask = image.repeat(6, 0).repeat(6, 1), np.zeros((384, 384), np.uint8)
    large_mask[100, 100] = 255
    _, inputs = edited(shapes, large, large_mask, kind="inpaint")
    assert np.abs(decode_png(inputs.image).astype(int) - image).mean() < 2
    assert [*np.argwhere(decode_png(inputs.mask)[..., 0])[0]] == [16, 16]
    _, inputs = edited(shapes, image[::2, ::2], mask[::2, ::2], kind="inpaint")
    assert decode_png(inputs.image).shape == (64, 64, 3)
    np.testing.assert_array_equal(decode_png(inputs.mask)[..., 0], mask)
    _, inputs = edited(shapes, large, kind="upscale")
    assert decode_png(inputs.image).shape == large.shape


def test_another_aspect_is_refused(start, shapes, image):  # noqa: F811
    asked, inputs = edited(shapes, image[:48], kind="image_to_image")
    with pytest.raises(ConfigError, match="crop it, or give height and width"):
        start().submit(asked, "a", inputs)


def test_a_job_without_its_image_is_refused(start, shapes, image):  # noqa: F811
    asked, _ = edited(shapes, image, kind="image_to_image")
    with pytest.raises(ConfigError, match="missing"):
        start().submit(asked, "a")


@pytest.mark.parametrize(
    "field, fields",
    [
        ("mask", {"kind": "inpaint"}),
        ("strength", {"kind": "image_to_image", "strength": 1.5}),
        ("strength", {"kind": "image_to_image", "strength": 0}),
        ("strength", {"kind": "image_to_image", "strength": [0.5]}),
        ("strength", {"kind": "upscale", "strength": 0.5}),
        ("position", {"kind": "image_to_image", "position": [0, 0]}),
        ("resample", {"kind": "outpaint", "resample": 17}),
        ("feather", {"kind": "outpaint", "feather": -1}),
        ("source_prompt", {"kind": "edit"}),
        ("source_prompt", {"kind": "edit", "source_prompt": " "}),
        ("source_prompt", {"kind": "edit", "source_prompt": PROMPT}),
        ("source_prompt", {"kind": "variations", "source_prompt": "a ring"}),
        ("ends", {"kind": "interpolate"}),
        ("ends", {"kind": "image_to_image", "ends": [1, 2]}),
        ("image", {"kind": "interpolate", "ends": [1, 2]}),
    ],
)
def test_wrong_fields_are_named(shapes, image, field, fields):
    with pytest.raises(HttpError) as refused:
        edited(shapes, image, **fields)
    assert (refused.value.status, refused.value.param) == (400, f"edit.{field}")


@pytest.mark.parametrize(
    "param, fields",
    [
        ("count", {"ends": [1, 2], "count": 1}),
        ("seeds", {"ends": [1, 2]}),
        ("prompts", {"ends": [1, 2], "prompt": ""}),
        ("prompts", {"ends": ["a ring", "a cross"]}),
        ("edit.ends[1]", {"ends": ["a ring", " "], "prompt": ""}),
        ("edit.ends[1]", {"ends": [1, -1]}),
    ],
)
def test_wrong_ends_are_named(shapes, param, fields):
    others = {"seeds_are_random": param != "seeds"}
    with pytest.raises(HttpError) as refused:
        edited(shapes, None, kind="interpolate", others=others, **{"count": 3} | fields)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_an_edit_needs_an_image(shapes):
    with pytest.raises(HttpError) as refused:
        edited(shapes, None, kind="image_to_image")
    assert refused.value.param == "edit.image"


@pytest.mark.parametrize("sides", [(65_000, 65_000), (4096, 4097), (1, 2**31 - 1)])
def test_bombs_are_refused_by_their_headers(sides, monkeypatch):
    def decode(*_):
        raise AssertionError("pixels are decoded")

    data = file_of(np.zeros((1, 1), np.uint8))
    bomb = data[:16] + sides[0].to_bytes(4, "big") + sides[1].to_bytes(4, "big") + data[24:]
    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(HttpError, match="pixels") as refused:
        read_image(bomb, "image", 3, LIMITS)
    assert refused.value.status == 400


def test_long_sides_are_refused():
    with pytest.raises(HttpError, match="4,096 on a side"):
        read_image(file_of(np.zeros((1, 4097), np.uint8)), "image", 3, LIMITS)


@pytest.mark.parametrize("cut", [0, 4, 30, 60, -200])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_damaged_files_are_refused(image, kind, cut):
    with pytest.raises(HttpError, match="give a file of PNG, JPEG") as refused:
        read_image(file_of(image, kind)[:cut], "image", 3, LIMITS)
    assert refused.value.param == "image" and " at 0x" not in refused.value.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_files_with_random_bytes_are_read_or_refused(image, kind):
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text" * 9
    file = np.frombuffer(file_of(image, kind, exif=exif), np.uint8)
    for _ in range(200):
        damaged = file.copy()
        places = rng.integers(len(file) if rng.random() < 0.5 else 200, size=rng.integers(1, 9))
        damaged[places] = rng.integers(256, size=len(places))
        with contextlib.suppress(HttpError):
            assert read_image(damaged.tobytes(), "image", 3, LIMITS).pixels.dtype == np.uint8


def test_files_of_every_mode_are_read(image):
    gray = Image.fromarray(image).convert("L")
    for mode in ("L", "P", "CMYK", "1"):
        data = io.BytesIO()
        Image.fromarray(image).convert(mode).save(data, "JPEG" if mode == "CMYK" else "PNG")
        assert read_image(data.getvalue(), "image", 3, LIMITS).pixels.shape == image.shape
    assert (read_image(file_of(np.asarray(gray)), "image", 1, LIMITS).pixels[..., 0] == np.asarray(gray)).all()
    deep = png.encode(np.zeros((4, 4, 1), np.uint16))
    with pytest.raises(HttpError, match="8 bits"):
        read_image(deep, "image", 1, LIMITS)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = read_image(file_of(image, exif=exif), "image", 3, LIMITS).pixels
    np.testing.assert_array_equal(turned, np.rot90(image, -1))


def test_transparent_areas_are_drawn_anew(shapes, image, mask):
    transparent = np.dstack([image, 255 - mask])
    np.testing.assert_array_equal(read_mask(file_of(transparent), "mask", LIMITS), mask)
    np.testing.assert_array_equal(read_mask(file_of(mask), "mask", LIMITS), mask)
    files = EditFiles(file_of(transparent), file_of(transparent))
    body = EditBody(kind="inpaint", image="")
    _, inputs = with_edit(request(PROMPT), body, files, shapes, LIMITS)
    np.testing.assert_array_equal(decode_png(inputs.image), image)
    np.testing.assert_array_equal(decode_png(inputs.mask)[..., 0], mask)
    body = EditBody(kind="image_to_image", image="")
    with pytest.raises(HttpError, match="transparent"):
        with_edit(request(PROMPT), body, EditFiles(file_of(transparent)), shapes, LIMITS)
