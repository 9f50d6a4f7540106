"""Strict picture decoding and the padded square."""

import io

import numpy as np
import pytest
from PIL import Image

from data_pipelines import images
from data_pipelines.images import ImageError, exif_orientation, load_image, to_square
from data_pipelines.records import MediaRef


def picture(width=40, height=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def record(data=None, width=40, height=30, path="a/b.png"):
    return MediaRef(path=path, width=width, height=height, data=data)


def test_bytes_and_files_decode_alike(tmp_path):
    image = picture()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.png").write_bytes(encoded(image))
    assert (load_image(record(encoded(image)), tmp_path) == image).all()
    loaded = load_image(record(), tmp_path)
    assert loaded.dtype == np.uint8 and (loaded == image).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    stream = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(stream, "TIFF")
    assert load_image(record(stream.getvalue()), tmp_path).shape == (30, 40, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cut_files_are_refused(kind, tmp_path):
    data = encoded(picture(), kind)
    for length in (0, 3, len(data) // 3, len(data) * 2 // 3):
        with pytest.raises(ImageError, match=r"a/b\.png"):
            load_image(record(data[:length]), tmp_path)


def test_missing_file_names_the_path(tmp_path):
    with pytest.raises(ImageError, match=r"b\.png.*check the image root"):
        load_image(record(), tmp_path)
    (tmp_path / "a" / "b.png").mkdir(parents=True)
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(record(), tmp_path)


def test_garbage_is_refused(tmp_path):
    with pytest.raises(ImageError, match="not a picture"):
        load_image(record(b"<html>not found</html>"), tmp_path)


def test_size_must_match_the_record(tmp_path):
    with pytest.raises(ImageError, match="40 x 30, the record says 30 x 40"):
        load_image(record(encoded(picture()), 30, 40), tmp_path)
    with pytest.raises(ImageError, match="too small"):
        load_image(record(encoded(picture(40, 15)), 40, 15), tmp_path)


def test_bombs_are_refused(tmp_path, monkeypatch):
    data = encoded(picture(400, 300))
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    with pytest.raises(ImageError, match="exceeds 100000 pixels"):
        load_image(record(data, 400, 300), tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="decompression bomb"):
        load_image(record(data, 400, 300), tmp_path)


def test_exif_orientation_is_reported_and_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(picture(), "JPEG", exif=exif))
    assert exif_orientation(path) == 6
    assert load_image(record(path="turned.jpg"), tmp_path).shape == (30, 40, 3)
    path.write_bytes(encoded(picture(), "JPEG"))
    assert exif_orientation(path) == 1
    with pytest.raises(ImageError, match="cannot be read"):
        exif_orientation(tmp_path / "absent.jpg")


@pytest.mark.parametrize(("width", "height", "left", "top"), [(40, 25, 0, 7), (25, 40, 7, 0)])
def test_padding_is_centred_and_coloured(width, height, left, top):
    image = picture(width, height)
    square = to_square(image, 40)
    inside = np.zeros((40, 40), bool)
    inside[top : top + height, left : left + width] = True
    assert (square[inside].reshape(image.shape) == image).all()
    assert (square[~inside] == (122, 116, 104)).all()


def test_resize_is_bicubic_after_padding():
    image = picture(64, 48)
    padded = np.empty((64, 64, 3), np.uint8)
    padded[:] = (122, 116, 104)
    padded[8:56] = image
    expected = np.array(Image.fromarray(padded).resize((28, 28), Image.Resampling.BICUBIC))
    assert (to_square(image, 28) == expected).all()
