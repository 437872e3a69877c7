"""Images of any size and mode: the pixels that come out, and what is refused."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gode_zoo.data import DataError
from gode_zoo.images.reading import MAX_PIXELS, is_image, read_image, read_images, refuse_broken
from gode_zoo.images.sources import Sample

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def colour(pixels):
    return tuple(pixels[:, 4, 4].tolist())


def test_the_middle_square_is_resized(tmp_path):
    wide = Image.new("RGB", (60, 20), RED)
    wide.paste((0, 0, 255), (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    image = read_image(tmp_path / "wide.png", (3, 10, 10))
    assert image.shape == (3, 10, 10) and image.dtype == torch.uint8 and image[2].float().mean() > 240
    assert read_image(tmp_path / "wide.png", (1, 28, 28)).shape == (1, 28, 28)


def test_an_image_of_the_right_size_is_left_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    read = read_image(saved(Image.fromarray(pixels)), (3, 28, 28))
    assert torch.equal(read, torch.from_numpy(pixels).permute(2, 0, 1))


def test_modes():
    """Each mode that a file may have, as the colour that a person sees."""
    size = (8, 8)
    half = np.full((8, 8), 32896, np.uint16)  # 128 of 255 in 16 bits
    transparent = Image.new("P", size, 0)
    transparent.putpalette((*RED, 0, 255, 0))
    grey_alpha = Image.merge("LA", (Image.new("L", size, 0), Image.new("L", size, 128)))
    cases = {
        "palette": (saved(Image.new("RGB", size, RED).quantize(4)), RED),
        "palette with a transparent colour": (saved(transparent, transparency=0), WHITE),
        "16 bits": (saved(Image.fromarray(half)), (128, 128, 128)),
        "16 bits, TIFF": (saved(Image.fromarray(half), "TIFF"), (128, 128, 128)),
        "32-bit integers": (saved(Image.fromarray(half.astype(np.int32)), "TIFF"), (128, 128, 128)),
        "floating point": (saved(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), (128, 128, 128)),
        "transparent": (saved(Image.new("RGBA", size, (0, 0, 0, 0))), WHITE),
        "half transparent": (saved(Image.new("RGBA", size, (255, 0, 0, 128))), (255, 127, 127)),
        "grey and alpha": (saved(grey_alpha), (127, 127, 127)),
        "one bit": (saved(Image.new("1", size, 1)), WHITE),
        "CMYK": (saved(Image.new("CMYK", size, (0, 255, 255, 0)), "TIFF"), RED),
        "animated": (
            saved(Image.new("P", size, 1), "GIF", save_all=True, append_images=[Image.new("P", size, 0)]),
            None,
        ),
        "1×1": (saved(Image.new("RGB", (1, 1), RED)), RED),
        "WebP": (saved(Image.new("RGB", size, RED), "WEBP", lossless=True), RED),
    }
    for name, (file, expected) in cases.items():
        content = file.getvalue()
        pixels = read_image(io.BytesIO(content), (3, 8, 8))
        assert pixels.shape == (3, 8, 8), name
        assert expected is None or colour(pixels) == expected, name
        assert read_image(io.BytesIO(content), (1, 8, 8)).shape == (1, 8, 8), name


def test_exif_turns_the_image():
    upright = Image.new("L", (8, 8), 0)
    upright.paste(255, (0, 0, 8, 4))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 6  # what is stored has to be turned a quarter clockwise to be seen upright
    stored = saved(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert torch.equal(read_image(stored, (1, 8, 8))[0], torch.from_numpy(np.array(upright)))


def test_a_large_jpeg_gives_what_its_full_size_gives():
    gradient = np.linspace(0, 255, 1600).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(gradient, (1600, 1600)).copy())
    reduced = read_image(saved(image, "JPEG"), (1, 28, 28)).float()
    assert (reduced - read_image(saved(image), (1, 28, 28)).float()).abs().max() <= 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not an image"),
        (b"some text", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),  # would start Ghostscript
        (saved(Image.effect_noise((64, 64), 50)).getvalue()[:900], "truncated"),
        (saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF").getvalue(), "values from nan"),
    ],
)
def test_what_is_no_image_says_why(content, reason, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.png: .*{reason}"):
        read_image(tmp_path / "a.png", (3, 8, 8))
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png", (3, 8, 8))


def huge_png(width, height):
    """The head of a PNG of that size; there is nothing behind it."""
    content = bytearray(saved(Image.new("L", (1, 1))).getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (15_000, 12_000)])
def test_a_huge_image_is_refused_by_its_header(width, height):
    assert width * height > MAX_PIXELS
    with pytest.raises(DataError, match="178 million pixels, which would fill the memory"):
        read_image(io.BytesIO(huge_png(width, height)), (3, 8, 8), "huge.png")


def sample(name, content):
    return Sample(name, "x", "", lambda: io.BytesIO(content))


def test_all_broken_images_are_named_without_a_warning(caplog):
    good = saved(Image.new("RGB", (9, 9), RED)).getvalue()
    samples = [sample(f"{i}.png", good if i % 3 else b"no") for i in range(70)] + [
        sample("h.png", huge_png(12_000, 9_000))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, kept, broken = read_images(samples, (3, 8, 8), workers=3)
    assert kept == [i for i in range(70) if i % 3] and len(images) == len(kept)
    assert all(colour(image) == RED for image in images)
    assert [b.name for b in broken] == [f"{i}.png" for i in range(0, 70, 3)] + ["h.png"]
    with pytest.raises(DataError, match=r"25 images cannot be read: 0\.png .*and 5 more.*--skip-broken"):
        refuse_broken(broken)
    assert all(each.name in caplog.text for each in broken)
    refuse_broken([])


def test_more_images_than_memory_are_refused_before_any_is_read(monkeypatch):
    monkeypatch.setattr("gode_zoo.images.reading._free_memory", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"1,000 images of 3x64x64 take 0\.0 GiB .*--image-size"):
        read_images([sample("a", b"")] * 1000, (3, 64, 64))


def test_names_of_images():
    assert is_image("a.JPG") and is_image("x/ü.webp")
    assert not is_image(".a.png") and not is_image("a.txt") and not is_image("png") and not is_image("a.eps")
