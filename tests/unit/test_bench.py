"""What `refvlm data bench` measures, and pictures decoded otherwise than by default."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines.bench import Stage, measure_index, slowest
from data_pipelines.bench_data import HEIGHT, WIDTH, write_bench_data
from data_pipelines.images import (
    Decoding,
    ImageError,
    load_image,
    load_scaled,
    load_square,
    to_square,
)
from data_pipelines.records import MediaRef
from data_pipelines.shards import DialogStore
from refvlm_jax.cli import main as cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    return write_bench_data(root, 3), root / "images"


def large(tmp_path, width, height):
    """A JPEG of soft colours and its record."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=92)
    return MediaRef(path="a.jpg", width=width, height=height)


def test_every_stage_is_printed_and_the_slowest_named(made, capsys):
    folder = str(made[0])
    code = cli.main(["data", "bench", folder, "--samples", "4", "--index-entries", "5000"])
    shown = capsys.readouterr().out
    assert code == 0 and shown.count("slowest") == 1
    for name in (
        "read",
        "decode",
        "resize",
        "rasterise",
        "tokenise",
        "assemble",
        "whole",
        "loader",
    ):
        assert name in shown, name
    assert "index of 5000 records: open in" in shown and "token efficiency" in shown


def test_the_slowest_is_a_part_not_the_whole():
    stages = [
        Stage(name=name, samples=2, images=0, wall=cpu, cpu=cpu)
        for name, cpu in (("read", 1.0), ("decode", 3.0), ("whole", 4.0))
    ]
    assert slowest(stages).name == "decode" and slowest(stages).cpu_ms == 1500.0


def test_the_made_up_data_is_what_it_says(made):
    store = DialogStore(made[0])
    assert len(store) == 6 and {dialog.task_id for dialog in store} == {"T13", "T14"}
    picture = load_image(store[0].image, made[1])
    assert picture.shape == (HEIGHT, WIDTH, 3)


def test_an_index_is_measured(tmp_path):
    opened, drawn = measure_index(tmp_path / "index", 1000)
    assert opened > 0 and drawn > 0


def test_default_decoding_changes_nothing(made):
    media = DialogStore(made[0])[0].image
    wanted = to_square(load_image(media, made[1]), 100)
    assert np.array_equal(load_square(media, made[1], 100, Decoding()), wanted)


@pytest.mark.parametrize("jpeg", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("size", [(1600, 1200), (803, 1601), (64, 48)])
@pytest.mark.parametrize("scaled", [False, True])
def test_other_decodings_are_close(tmp_path, jpeg, size, scaled):
    if jpeg == "simplejpeg":
        pytest.importorskip("simplejpeg")
    media = large(tmp_path, *size)
    wanted = to_square(load_image(media, tmp_path), 100).astype(int)
    found = load_square(media, tmp_path, 100, Decoding(jpeg=jpeg, scaled=scaled))
    assert found.shape == (100, 100, 3) and np.abs(found - wanted).mean() < 1.5


def test_scaled_decoding_reads_fewer_pixels(tmp_path):
    media = large(tmp_path, 1600, 1200)
    assert load_scaled(media, tmp_path, 100, Decoding(scaled=True)).size == (200, 150)
    assert load_scaled(media, tmp_path, 300, Decoding(scaled=True)).size == (800, 600)
    odd = large(tmp_path, 803, 1601)
    assert load_scaled(odd, tmp_path, 100, Decoding(scaled=True)).size == (101, 201)
    media = large(tmp_path, 1600, 1200)
    assert load_scaled(media, tmp_path, 900, Decoding(scaled=True)).size == (1600, 1200)


@pytest.mark.parametrize("jpeg", ["pillow", "simplejpeg"])
def test_cut_pictures_are_refused_by_both(tmp_path, jpeg):
    if jpeg == "simplejpeg":
        pytest.importorskip("simplejpeg")
    media = large(tmp_path, 200, 200)
    path = tmp_path / "a.jpg"
    data = path.read_bytes()
    assert Image.open(io.BytesIO(data)).size == (200, 200)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"a\.jpg: damaged or cut"):
        load_square(media, tmp_path, 50, Decoding(jpeg=jpeg, scaled=True))


def test_a_missing_decoder_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"install refvlm_jax\[jpeg\]"):
        Decoding(jpeg="simplejpeg")
