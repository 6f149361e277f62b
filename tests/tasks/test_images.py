"""Folders of images as they come: from scanners, phones, Macs and notebooks. Pixels count by
value.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from node import data
from node.config import TaskSection
from peer.errors import DataError

SIZE = 8
GRAY = TaskSection(classes=2, labels=("cat", "dog"), image_size=SIZE, channels=1)
COLORS = GRAY.model_copy(update={"channels": 3})
RAMP = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
ORIENTATION = 0x0112


def read(folder: Path, task: TaskSection = GRAY) -> Tensor:
    """The images of a folder as the model is fed them, [n, channels, height, width]."""
    return data.own(folder, task).floats().x


def place(folder: Path, label: str = "cat") -> Path:
    (folder / label).mkdir(parents=True, exist_ok=True)
    return folder / label


def png(path: Path, pixels: np.ndarray, kind: int, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG of 16 bits a channel, of which Pillow writes gray only. Kinds: 0 gray, 2 colors, 4 and
    6 with alpha.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("task", [GRAY, COLORS], ids=["gray", "colors"])
def test_16_bit_grays_keep_their_precision(
    tmp_path: Path, ending: str, order: str, task: TaskSection
) -> None:
    Image.fromarray(RAMP.astype(order)).save(place(tmp_path) / f"a.{ending}")
    found = read(tmp_path, task)
    assert found.shape == (1, task.channels, SIZE, SIZE)
    assert torch.allclose(found[0, -1], torch.from_numpy(RAMP / 65535).float(), atol=1e-6)


def test_16_bits_and_8_bits_of_a_picture_are_the_same_up_to_quantization(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    picture = random.integers(0, 256, (30, 20)).astype(np.uint16) * 257
    Image.fromarray(picture).save(place(tmp_path) / "a.png")
    Image.fromarray((picture >> 8).astype(np.uint8)).save(place(tmp_path) / "b.png")
    deep, shallow = read(tmp_path)
    assert torch.allclose(deep, shallow, atol=1 / 255)
    assert deep.std() > 0.05


def test_16_bits_stay_between_black_and_white_when_they_are_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((5, 5), np.uint16)
    pixels[1:4, 1:4] = 65535
    Image.fromarray(pixels).save(place(tmp_path) / "a.png")
    assert [float(end) for end in read(tmp_path).aminmax()] == [0, 1]


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colors_and_alpha_by_their_higher_byte(
    tmp_path: Path, kind: int, channels: int
) -> None:
    pixels = np.full((SIZE, SIZE, channels), 40000, np.uint16)
    pixels[..., -1] = 65535 if kind in (4, 6) else 40000
    png(place(tmp_path) / "a.png", pixels, kind)
    assert read(tmp_path, COLORS).sub(40000 / 65535).abs().max() < 1 / 255


def test_12_bits_and_white_that_is_zero(tmp_path: Path) -> None:
    """As microscopes and fax machines write TIFF: the largest is 4095; 0 is white."""
    packed = bytes.fromhex("fff800" * (SIZE * SIZE // 2))  # 4095 and 2048 in turn
    tiff(place(tmp_path) / "a.tif", packed, bits=12, photometric=1)
    tiff(place(tmp_path) / "b.tif", RAMP.astype("<u2").tobytes(), bits=16, photometric=0)
    twelve, inverted = read(tmp_path)
    assert twelve[0, 0, :2].tolist() == pytest.approx([1, 2048 / 4095])
    assert torch.allclose(inverted[0], 1 - torch.from_numpy(RAMP / 65535).float(), atol=1e-6)


def tiff(path: Path, pixels: bytes, *, bits: int, photometric: int) -> None:
    """Gray, uncompressed."""
    tags = [
        (256, SIZE),
        (257, SIZE),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, SIZE),
    ]
    tags.append((279, len(pixels)))
    folder = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + folder + bytes(4))


def test_floats_are_taken_by_value(tmp_path: Path) -> None:
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(place(tmp_path) / "a.tiff")
    assert torch.allclose(read(tmp_path)[0, 0], torch.from_numpy(RAMP / 65535).float(), atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (RAMP.astype(np.float32), "floats outside of 0 … 1"),
        (np.full((4, 4), -0.5, np.float32), "floats outside of 0 … 1"),
        (np.full((4, 4), np.nan, np.float32), "floats outside of 0 … 1"),
        (RAMP.astype(np.int32), "32-bit integers"),
        (RAMP.astype(np.int32) - 9, "32-bit integers"),
    ],
)
def test_pixels_without_a_defined_range_are_refused(
    tmp_path: Path, pixels: np.ndarray, says: str
) -> None:
    Image.fromarray(pixels).save(place(tmp_path) / "a.tiff")
    with pytest.raises(DataError, match=rf"a\.tiff has {says} as pixels.*save it with 16 bits"):
        read(tmp_path)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    """All eight orientations of EXIF, as a viewer shows them: a bright quarter at the top left."""
    seen = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    seen[:SIZE, :SIZE] = 200
    seen[:4, :SIZE] = 100
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.T, 6: np.rot90(seen), 7: seen[::-1, ::-1].T, 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(
        place(tmp_path) / f"a.{ending}", exif=exif, quality=100
    )
    expected = torch.from_numpy(np.array(Image.fromarray(seen).resize((SIZE, SIZE)))) / 255
    assert torch.allclose(read(tmp_path)[0, 0], expected, atol=0.1)


def test_16_bits_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(RAMP).copy()).save(place(tmp_path) / "a.png", exif=exif)
    assert torch.allclose(read(tmp_path)[0, 0], torch.from_numpy(RAMP / 65535).float(), atol=1e-6)


def test_a_damaged_exif_costs_no_picture(tmp_path: Path) -> None:
    for name, exif in (("a", b"Exif\0\0garbage"), ("b", b"Exif\0\0MM\0*\0\0\0\x08\0\xff")):
        Image.new("L", (SIZE, SIZE), 51).save(place(tmp_path) / f"{name}.jpg", exif=exif)
    damaged = b"Exif\0\0M\xff\0*\0\0\0\x08\0\0"
    Image.new("RGB", (SIZE, SIZE), (51, 51, 51)).save(
        place(tmp_path) / "c.webp", exif=damaged, lossless=True
    )
    assert read(tmp_path).sub(0.2).abs().max() < 0.02


def transparent(folder: Path) -> None:
    """Transparent black (red in the palette's case) but for a blue square, in each way that a file
    can say it.
    """
    alpha = np.zeros((SIZE, SIZE, 4), np.uint8)
    alpha[2:6, 2:6] = (0, 0, 255, 255)
    image = Image.fromarray(alpha)
    image.save(folder / "alpha.png")
    image.save(folder / "alpha.webp", lossless=True)
    image.save(folder / "alpha.tif")
    colors = Image.new("RGB", (SIZE, SIZE), "red")
    colors.paste((0, 0, 255), (2, 2, 6, 6))
    colors.save(folder / "key.png", transparency=(255, 0, 0))
    palette = colors.quantize(2)
    red = palette.getpixel((0, 0))
    palette.save(folder / "palette.gif", transparency=red)
    palette.save(folder / "palette.png", transparency=red)
    palette.save(folder / "bytes.png", transparency=bytes(0 if k == red else 255 for k in range(2)))


def test_what_is_transparent_lies_over_white(tmp_path: Path) -> None:
    transparent(place(tmp_path))
    found = read(tmp_path, COLORS)
    assert len(found) == 7
    assert found[:, :, 0, 0].tolist() == [[1, 1, 1]] * 7
    assert found[:, :, 4, 4].tolist() == [[0, 0, 1]] * 7


def test_what_is_half_transparent_is_half_white_in_grays_too(tmp_path: Path) -> None:
    Image.new("LA", (SIZE, SIZE), (0, 128)).save(place(tmp_path) / "a.png")
    png(
        place(tmp_path) / "b.png",
        np.zeros((SIZE, SIZE), np.uint16),
        0,
        (b"tRNS", struct.pack(">H", 0)),
    )
    colors = np.full((SIZE, SIZE, 3), 9000, np.uint16)
    png(place(tmp_path) / "c.png", colors, 2, (b"tRNS", struct.pack(">HHH", 9000, 9000, 9000)))
    half, keyed, key_of_colors = read(tmp_path)
    assert half.sub(0.5).abs().max() < 0.01
    assert keyed.unique().tolist() == key_of_colors.unique().tolist() == [1]


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, ending: str) -> None:
    more = [Image.new("RGB", (SIZE, SIZE), "blue"), Image.new("RGB", (SIZE, SIZE), "green")]
    first = Image.new("RGB", (SIZE, SIZE), "red")
    first.save(place(tmp_path) / f"a.{ending}", save_all=True, append_images=more, lossless=True)
    assert read(tmp_path, COLORS)[:, :, 4, 4].sub(torch.tensor([1, 0, 0])).abs().max() < 0.02


def shade(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (SIZE, SIZE), value).save(path)


def test_images_in_folders_of_a_class_are_its_own_in_a_fixed_order(tmp_path: Path) -> None:
    for name, value in (
        ("cat/2024-05/b.png", 30),
        ("cat/a.PNG", 40),
        ("cat/2024-05/x/a.png", 20),
        ("dog/9.png", 50),
    ):
        shade(tmp_path / name, value)
    found = data.own(tmp_path, GRAY)
    assert found.x[:, 0, 0, 0].tolist() == [30, 20, 40, 50]
    assert found.y.tolist() == [0, 0, 0, 1]


CLUTTER = [
    ".DS_Store", "cat/.DS_Store", "cat/._3.png", ".ipynb_checkpoints/3.png", "cat/.ipynb_checkpoints/3-checkpoint.png",
    "cat/Thumbs.db", "cat/desktop.ini", "Desktop.ini", "__MACOSX/cat/._3.png", "cat/@eaDir/3.png", ".git/config",
]  # fmt: skip


@pytest.mark.parametrize("name", CLUTTER)
def test_what_systems_leave_behind_is_passed_over(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shade(tmp_path / "cat" / "3.png", 30)
    shade(tmp_path / "dog" / "3.png", 30)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\5\26\7Mac OS X")
    assert len(data.own(tmp_path, GRAY)) == 2
    assert capsys.readouterr().err == ""


def test_what_is_not_used_is_counted_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shade(tmp_path / "cat" / "3.png", 30)
    shade(tmp_path / "dog" / "x" / "3.png", 30)
    for name in (
        "cat/a.heic",
        "cat/b.heic",
        "dog/x/c.HEIC",
        "dog/notes.txt",
        "README",
        "stray.png",
    ):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert data.own(tmp_path, GRAY).y.tolist() == [0, 1]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in ("2 .heic", "1 .HEIC", "1 .txt", "1 no ending", "1 .png", "1 link to a folder"):
        assert part in said


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    shade(tmp_path / "cat" / "x" / "3.png", 30)
    (tmp_path / "cat" / "x").chmod(0)
    with pytest.raises(DataError, match=r"x can't be read .*; check its permissions"):
        data.own(tmp_path, GRAY)
    (tmp_path / "cat" / "x").chmod(0o700)


@pytest.mark.parametrize("name", ["Cat", "cat "])
def test_a_class_by_nearly_its_name_is_one_sentence(tmp_path: Path, name: str) -> None:
    shade(tmp_path / name / "3.png", 30)
    with pytest.raises(DataError, match=f"has a sub-folder '{name}' that is none of task.labels"):
        data.own(tmp_path, GRAY)


def test_a_class_is_found_however_its_name_is_composed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shade(tmp_path / "mu\u0308de" / "3.png", 30)
    shade(tmp_path / "dog" / "3.png", 30)
    for accented in ("m\u00fcde", "mu\u0308de"):
        assert data.own(
            tmp_path, GRAY.model_copy(update={"labels": ("dog", accented)})
        ).y.tolist() == [0, 1]
    assert capsys.readouterr().err == "", "no class lacks images"


def test_a_table_beside_the_images_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shade(tmp_path / "cat" / "3.png", 30)
    (tmp_path / "metadata.parquet").touch()
    assert len(data.own(tmp_path, GRAY)) == 1
    assert "1 .parquet" in capsys.readouterr().err


def test_an_image_that_is_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shade(tmp_path / "cat" / "3.png", 30)
    monkeypatch.setattr("node.data.folders.PIXELS", 9)
    with pytest.raises(DataError, match=r"3\.png has more than 0 million pixels"):
        data.own(tmp_path, GRAY)


def test_what_is_broken_behind_the_pixels_costs_no_picture(tmp_path: Path) -> None:
    shade(tmp_path / "cat" / "3.png", 30)
    content = (tmp_path / "cat" / "3.png").read_bytes()
    (tmp_path / "cat" / "3.png").write_bytes(content.replace(b"IEND", b"\xe7\xbe\xceA"))
    assert data.own(tmp_path, GRAY).x.unique().tolist() == [30]


@pytest.mark.parametrize("content", [b"", b"<html>403</html>", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    shade(tmp_path / "cat" / "3.png", 30)
    (tmp_path / "cat" / "4.png").write_bytes(content)
    with pytest.raises(DataError, match=r"4\.png can't be read as an image; remove or repair it"):
        data.own(tmp_path, GRAY)
