"""A folder of pictures becomes a folder to train on."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image, ImageCms, ImageOps
from support.hostile_images import large_png
from support.killed import Killed, killed_at
from support.odd_images import ADOBE_RGB, DISPLAY_P3, SRGB, color_profile
from support.pictures import different, face, noise, save
from support.training import small_recipe

from hnetkit.errors import BadPicture, MissingPackage, NotFound, OutputExists, UsageError
from hnetkit.image_formats import is_like_srgb
from hnetkit.images import open_rgb, open_with_opacity
from hnetkit.train.data import read_data
from hnetkit.train.preparing.crops import (
    buckets_of,
    crop_window,
    kept_share,
    largest_face,
    nearest,
    parse_training_size,
    windows_along,
)
from hnetkit.train.preparing.folder import (
    PreparationSettings,
    PreparedImage,
    TrainingFolder,
    prepare,
    require_output_folder,
)
from hnetkit.train.preparing.images import image_files, left_out, left_out_warnings
from hnetkit.train.preparing.quality import ImageStats, mixed_ratios, tag_counts, warnings_about
from hnetkit.train.preparing.review import review


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "originals"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "training"
    folder.mkdir()
    return folder


def prepared(
    out: Path, *sources: Path, describe: Callable[[Image.Image], str] | None = None, **settings: object
) -> list[PreparedImage]:
    folder = TrainingFolder(out, PreparationSettings(**{"size": (64, 64), **settings}), describe=describe)  # type: ignore[arg-type]
    return [one for source in sources for one in folder.add(source)]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_a_picture_is_cropped_in_the_middle_and_scaled(source: Path, out: Path) -> None:
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (100, 0, 200, 100))
    image.save(source / "flag.jpg", quality=100)
    (one,) = prepared(out, source / "flag.jpg")
    with Image.open(one.path) as result:
        assert (result.size, result.mode) == ((64, 64), "RGB")
        assert all(result.getpixel(at)[0] > 200 for at in ((2, 2), (61, 61), (2, 61), (61, 2)))  # type: ignore[index]


def test_scaling_is_lanczos(source: Path, out: Path) -> None:
    noise((128, 128)).save(source / "noise.png")
    (one,) = prepared(out, source / "noise.png")
    expected = noise((128, 128)).resize((64, 64), Image.Resampling.LANCZOS)
    assert open_rgb(one.path).tobytes() == expected.tobytes()


def test_the_originals_are_only_read(source: Path, out: Path) -> None:
    path = save(source, "a.png")
    (source / "a.txt").write_text("red", encoding="utf-8")
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in source.iterdir()}
    prepared(out, path, flip=True, describe=lambda image: "new", existing="replace")
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in source.iterdir()} == before


def test_a_picture_is_turned_as_its_camera_says(source: Path, out: Path) -> None:
    image = Image.new("RGB", (80, 80), "blue")
    image.paste("red", (0, 0, 80, 40))  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(source / "turned.jpg", exif=exif, quality=100)
    (one,) = prepared(out, source / "turned.jpg")
    result = open_rgb(one.path)
    assert result.getpixel((60, 32))[0] > 200  # type: ignore[index]
    assert result.getpixel((3, 32))[2] > 200  # type: ignore[index]
    with Image.open(one.path) as written:
        assert not written.getexif().get(0x0112)


@pytest.mark.parametrize("flatten", [False, True])
def test_transparency_stays_with_white_under_it_unless_it_is_flattened(source: Path, out: Path, flatten: bool) -> None:
    save(source, "ghost.png", colour=(0, 0, 0, 0))
    (one,) = prepared(out, source / "ghost.png", flatten=flatten)
    expected = (255, 255, 255) if flatten else (255, 255, 255, 0)
    assert open_with_opacity(one.path).getpixel((5, 5)) == expected


@pytest.mark.parametrize("name", ["grey.png", "palette.png", "deep.png", "cmyk.jpg"])
def test_every_mode_becomes_rgb(source: Path, out: Path, name: str) -> None:
    mode = {"grey": "L", "palette": "P", "deep": "I;16", "cmyk": "CMYK"}[name.split(".")[0]]
    Image.new(mode, (40, 40)).save(source / name)
    (one,) = prepared(out, source / name)
    assert open_with_opacity(one.path).mode == "RGB"


def test_the_mirrored_copy_is_beside_its_picture_with_the_same_caption(source: Path, out: Path) -> None:
    noise((64, 64)).save(source / "a.png")
    (source / "a.txt").write_text("a storm\n", encoding="utf-8")
    prepared(out, source / "a.png", flip=True)
    assert names(out) == ["a-flipped.png", "a-flipped.txt", "a.png", "a.txt"]
    assert open_rgb(out / "a-flipped.png").tobytes() == ImageOps.mirror(open_rgb(out / "a.png")).tobytes()
    assert {(out / name).read_text(encoding="utf-8") for name in ("a.txt", "a-flipped.txt")} == {"a storm\n"}


def test_without_a_caption_the_file_name_goes_on_being_it(source: Path, out: Path) -> None:
    made = prepared(out, save(source, "0007-red house.png"), flip=True)
    assert [one.caption for one in made] == ["red house", "red house"]
    assert names(out) == ["0007-red house-flipped.png", "0007-red house-flipped.txt", "0007-red house.png"]


def test_a_picture_that_gets_a_number_has_the_caption_that_its_own_name_is(source: Path, out: Path) -> None:
    pictures = [save(source, name) for name in ("red house.jpg", "red house.png", "IMG_7.jpg", "IMG_7.png")]
    made = prepared(out, *pictures, flip=True)
    assert [one.path.stem for one in made[:4]] == [
        "red house",
        "red house-flipped",
        "red house-2",
        "red house-flipped-2",
    ]
    assert [one.caption for one in made] == ["red house"] * 4 + ["IMG_7"] * 4
    assert not (out / "red house.txt").exists()


def test_a_long_picture_is_split_into_parts_that_overlap(source: Path, out: Path) -> None:
    save(source, "long.png", (300, 100))
    save(source, "square.png", (100, 90))
    made = prepared(out, source / "long.png", source / "square.png", split=True)
    assert [one.path.name for one in made] == ["long-1.png", "long-2.png", "long-3.png", "long-4.png", "square.png"]
    boxes = windows_along((300, 100), (64, 64), 0.2)
    assert boxes[0][0] == 0
    assert boxes[-1][2] == 300
    assert all(left[2] - right[0] >= 20 for left, right in itertools.pairwise(boxes))


def test_a_tall_picture_is_split_downwards() -> None:
    assert windows_along((100, 200), (64, 64), 0.0) == [(0, 0, 100, 100), (0, 100, 100, 200)]
    assert kept_share((100, 200), (64, 64)) == 0.5


def test_a_picture_is_not_split_into_parts_that_show_nothing(source: Path, out: Path) -> None:
    """A line of 60,000 pixels would become 75,000 pictures."""
    (source / "line.png").write_bytes(large_png(1, 60_000))
    with pytest.raises(BadPicture, match=r"line\.png: a picture of 1x60000 is too narrow") as raised:
        prepared(out, source / "line.png", split=True)
    assert raised.value.command_hint == "without --split, or with a smaller --size"
    assert names(out) == []
    assert len(prepared(out, source / "line.png")) == 1


def test_the_parts_of_a_picture_are_not_more_than_anybody_draws() -> None:
    assert len(windows_along((800, 60_000), (512, 512), 0.2)) == 94
    assert len(windows_along((64, 512), (512, 512), 0.0)) == 8
    with pytest.raises(BadPicture, match=r"1,280 parts; at most 500") as raised:
        windows_along((64, 65_535), (512, 512), 0.2)
    assert raised.value.command_hint == "without --split, or with a smaller --split-overlap"


@pytest.mark.parametrize("letter", ["a", "ä", "画"])
def test_a_name_that_leaves_no_room_for_an_ending_is_shortened(source: Path, out: Path, letter: str) -> None:
    name = letter * (250 // len(letter.encode()))
    made = prepared(out, save(source, f"{name}.png", (200, 64)), flip=True, split=True)
    assert len(made) == len({one.path.name for one in made}) == 8
    assert all(len(one.path.name.encode()) <= 255 for one in made)
    assert {one.caption for one in made} == {name}
    assert made[-1].path.stem.endswith("-4-flipped")


def test_entropy_keeps_the_part_with_most_to_see() -> None:
    for wide, corner in (((400, 100), (300, 0)), ((100, 400), (0, 280))):
        image = Image.new("RGB", wide, "white")
        image.paste(noise((100, 100)), corner)
        box = crop_window(image, (64, 64), "entropy")
        assert abs(box[0] - corner[0]) <= 12
        assert abs(box[1] - corner[1]) <= 12
    assert crop_window(Image.new("RGB", (400, 100)), (64, 64), "entropy") == (150, 0, 250, 100)


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs opencv-python-headless<5")
@pytest.mark.parametrize("at", [120, 300, 470])
def test_a_crop_keeps_the_face(at: int) -> None:
    image = face((600, 300), (at, 150), 80)
    found = largest_face(image)
    assert found
    assert found[0] < at < found[2]
    assert found[1] < 150 < found[3]
    box = crop_window(image, (64, 64), "face")
    assert box[0] <= found[0]
    assert found[2] <= box[2]
    assert box[2] - box[0] == 300


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs opencv-python-headless<5")
def test_without_a_face_the_middle_is_kept() -> None:
    assert crop_window(Image.new("RGB", (300, 100)), (64, 64), "face") == (100, 0, 200, 100)


@pytest.mark.skipif(
    importlib.util.find_spec("cv2") is not None, reason="tries what is said without OpenCV, which is installed"
)
def test_faces_without_opencv_say_what_to_install() -> None:
    with pytest.raises(MissingPackage) as error:
        crop_window(Image.new("RGB", (300, 100)), (64, 64), "face")
    assert error.value.hint == 'pip install "opencv-python-headless<5"'


@pytest.mark.parametrize(("text", "size"), [("512", (512, 512)), ("512x768", (512, 768)), ("64", (64, 64))])
def test_a_size_is_read(text: str, size: tuple[int, int]) -> None:
    assert parse_training_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "500", "512x", "x512", "512x770", "-64", "big", "1e3", "99992"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_training_size(text)


@pytest.mark.parametrize(("side", "step"), [(512, 64), (1024, 64), (256, 32), (64, 8)])
def test_buckets_have_about_the_area_and_sides_that_fit(side: int, step: int) -> None:
    buckets = buckets_of((side, side))
    assert (side, side) in buckets
    assert len(buckets) > 5
    for width, height in buckets:
        assert width % step == height % step == 0
        assert 0.75 * side * side <= width * height <= 1.05 * side * side
        assert max(width, height) <= 2 * min(width, height)
        assert (height, width) in buckets


def test_a_picture_gets_the_bucket_of_its_ratio(source: Path, out: Path) -> None:
    made = prepared(
        out, *(save(source, f"{w}x{h}.png", (w, h)) for w, h in ((300, 200), (200, 300), (90, 90))), buckets=True
    )
    wide, tall, square = (one.size for one in made)
    assert square == (64, 64)
    assert wide == tall[::-1]
    assert wide[0] > wide[1]
    assert nearest((3000, 2000), buckets_of((512, 512))) == (640, 384)


def test_a_caption_of_a_model_is_written_where_there_is_none(source: Path, out: Path) -> None:
    first, second = save(source, "a.png"), save(source, "b.png")
    (source / "a.txt").write_text("by hand", encoding="utf-8")
    made = prepared(out, first, second, describe=lambda image: f"{image.width} wide")
    assert [one.caption for one in made] == ["by hand", "64 wide"]


@pytest.mark.parametrize(
    ("existing", "expected"), [("replace", "new"), ("append", "old, new"), ("prepend", "new, old"), ("keep", "old")]
)
def test_an_existing_caption_is_kept_or_joined_as_asked(source: Path, out: Path, existing: str, expected: str) -> None:
    path = save(source, "a.png")
    (source / "a.txt").write_text("old\n", encoding="utf-8")
    (one,) = prepared(out, path, describe=lambda image: "new", existing=existing)
    assert one.caption == expected == one.path.with_suffix(".txt").read_text(encoding="utf-8").strip()


def test_pictures_of_one_stem_both_stay(source: Path, out: Path) -> None:
    prepared(out, save(source, "a.png"), save(source, "a.jpg"), save(source, "A.bmp"))
    assert names(out) == ["A-3.png", "A-3.txt", "a-2.png", "a-2.txt", "a.png"]


def test_what_is_there_is_not_replaced_unless_asked(source: Path, out: Path) -> None:
    path = save(source, "a.png")
    (out / "a.png").write_bytes(b"mine")
    with pytest.raises(OutputExists):
        prepared(out, path)
    assert (out / "a.png").read_bytes() == b"mine"
    assert names(out) == ["a.png"]
    (out / "a.txt").write_text("of another picture", encoding="utf-8")
    (one,) = TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(path)
    assert one.caption == "a"
    assert names(out) == ["a.png"]


def test_a_place_that_must_not_be_written_to_is_refused(source: Path, out: Path) -> None:
    path = save(source, "a.png")
    require_output_folder(out, source, overwrite=False)
    require_output_folder(out / "new", source, overwrite=False)
    with pytest.raises(UsageError, match="originals"):
        require_output_folder(source / ".." / source.name, source, overwrite=True)
    with pytest.raises(OutputExists):
        require_output_folder(path, source, overwrite=True)
    save(out, "b.png")
    with pytest.raises(OutputExists, match="not empty"):
        require_output_folder(out, source, overwrite=False)
    require_output_folder(out, source, overwrite=True)


def test_a_link_in_the_training_folder_is_replaced_not_followed(source: Path, out: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious.txt"
    outside.write_text("precious", encoding="utf-8")
    (out / "a.txt").symlink_to(outside)
    path = save(source, "a.png")
    (source / "a.txt").write_text("new", encoding="utf-8")
    list(TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(path))
    assert outside.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize("what", ["a.png", "a.txt"])
def test_a_folder_to_which_links_among_the_originals_lead_is_refused(source: Path, out: Path, what: str) -> None:
    save(out, "a.png")
    (out / "a.txt").write_text("mine", encoding="utf-8")
    if what == "a.txt":
        save(source, "a.png")
    (source / what).symlink_to(out / what)
    with pytest.raises(UsageError, match="an original is in it"):
        require_output_folder(out, source, overwrite=True, originals=image_files(source))


@pytest.mark.parametrize("caption", ["", "new"])
def test_a_text_that_is_no_caption_of_an_earlier_picture_is_neither_replaced_nor_removed(
    source: Path, out: Path, caption: str
) -> None:
    path = save(source, "todo.png")
    if caption:
        (source / "todo.txt").write_text(caption, encoding="utf-8")
    (out / "todo.txt").write_text("buy milk", encoding="utf-8")
    with pytest.raises(OutputExists, match="without a picture"):
        list(TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(path))
    assert (out / "todo.txt").read_text(encoding="utf-8") == "buy milk"
    assert names(out) == ["todo.txt"]


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files is POSIX's")
def test_where_a_picture_cannot_be_replaced_its_caption_is_not_either(source: Path, out: Path) -> None:
    import resource

    path = source / "a.png"
    noise((64, 64)).save(path)
    (source / "a.txt").write_text("before")
    prepared(out, path)
    pictures = {path.name: path.read_bytes() for path in out.iterdir()}
    (source / "a.txt").write_text("now")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            list(TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == pictures


def test_the_caption_of_an_earlier_picture_goes_only_once_the_new_picture_is_there(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise((64, 64)).save(source / "a.png")
    number, is_done = 0, False
    while not is_done:
        number += 1
        (out / "a.png").write_bytes(b"before")
        (out / "a.txt").write_text("of before", encoding="utf-8")
        with killed_at(monkeypatch, number) as made, suppress(Killed):
            list(TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(source / "a.png"))
        is_done = len(made) < number
        assert (out / "a.png").read_bytes() != b"before" or (out / "a.txt").read_text() == "of before"
    assert number > 2
    assert not (out / "a.txt").exists()


def test_a_caption_whose_picture_was_not_written_any_more_is_taken_over(source: Path, out: Path) -> None:
    path = save(source, "a.png")
    for folder in (source, out):
        (folder / "a.txt").write_text("a  caption\n", encoding="utf-8")
    list(TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(path))
    assert names(out) == ["a.png", "a.txt"]


def test_a_caption_in_capitals_of_an_earlier_picture_is_replaced_with_it(source: Path, out: Path) -> None:
    for text, names_after in (("new", ["a.TXT", "a.png"]), (None, ["a.png"])):
        path = save(source, "a.png")
        (source / "a.txt").unlink(missing_ok=True)
        if text is not None:
            (source / "a.txt").write_text(text, encoding="utf-8")
        (out / "a.png").write_bytes(b"before")
        (out / "a.TXT").write_text("of before", encoding="utf-8")
        (one,) = TrainingFolder(out, PreparationSettings((64, 64)), overwrite=True).add(path)
        assert one.caption == (text or "a")
        assert names(out) == names_after


def test_a_caption_in_capitals_and_a_picture_called_jfif_count(source: Path, out: Path) -> None:
    save(source, "A.jpg").rename(source / "A.JFIF")
    (source / "A.TXT").write_text("a caption", encoding="utf-8")
    save(source, "b.png").rename(source / "b.heic")
    (path,) = image_files(source)
    (one,) = prepared(out, path)
    assert one.caption == "a caption"
    assert left_out(source) == ["b.heic"]


def test_what_is_no_picture_and_no_caption_is_listed(source: Path) -> None:
    save(source, "a.png")
    for suffix in ("jfif", "jpe"):
        save(source, "b.jpg").rename(source / f"b.{suffix}")
    assert [path.name for path in image_files(source)] == ["a.png", "b.jfif", "b.jpe"]
    assert left_out(source) == []
    for name in ("c.jp2", "d", "e.caption", "a.txt", ".hidden", "Thumbs.db", "desktop.ini"):
        (source / name).write_text("x", encoding="utf-8")
    (source / "below").mkdir()
    (source / "below" / "f.heic").touch()
    assert left_out(source) == ["c.jp2", "d", "e.caption"]
    assert left_out(source, recursive=True) == [os.path.join("below", "f.heic"), "c.jp2", "d", "e.caption"]
    assert left_out(source, recursive=True, excluded=source / "below") == ["c.jp2", "d", "e.caption"]
    (warning,) = left_out_warnings(left_out(source))
    assert warning.startswith("3 files were left out: c.jp2, d, e.caption; pictures are .png, .jpg")
    assert list(left_out_warnings([])) == []


def test_a_folder_of_pictures_below_is_listed_unless_it_is_read(source: Path) -> None:
    save(source, "a.png")
    for name in ("10_ink", ".hidden", "made", "texts"):
        (source / name).mkdir()
        save(source / name, "b.png" if name != "texts" else "b.bmp")
    (source / "texts" / "b.bmp").rename(source / "texts" / "b.md")
    assert left_out(source, excluded=source / "made") == ["10_ink (a folder with pictures)"]
    assert left_out(source) == ["10_ink (a folder with pictures)", "made (a folder with pictures)"]
    (warning,) = left_out_warnings(left_out(source))
    assert warning.endswith(", and folders below are read by `hnetkit train prepare --recursive`")
    assert left_out(source, recursive=True) == [os.path.join("texts", "b.md")]


def test_a_text_whose_name_is_no_pictures_is_listed(source: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(source, name)
    for name in ("a.txt", "b.TXT", "C.txt", "c.png.txt", "other.txt"):
        (source / name).write_text("x", encoding="utf-8")
    folds = (source / "c.txt").exists()  # a file system for which C.txt is the caption of c.png
    names = [*([] if folds else ["C.txt"]), "c.png.txt", "other.txt"]
    assert left_out(source) == [f"{name} (no picture has this name)" for name in names]
    (warning,) = left_out_warnings(left_out(source))
    assert warning.endswith(", and a caption is named as its picture")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_pictures_whose_profile_makes_viewers_show_other_colors_are_told(source: Path, out: Path, suffix: str) -> None:
    """No profile is applied, so what is trained has the colors that programs without profiles show."""
    different(source, 2)
    for name, colorants in (("adobe", ADOBE_RGB), ("p3", DISPLAY_P3), ("srgb", SRGB)):
        noise((64, 64), len(name)).save(source / f"{name}.{suffix}", icc_profile=color_profile(colorants))
    said = f"as sRGB: adobe.{suffix}, p3.{suffix}"
    for warnings in (prepare(source, out, size=64).warnings, review(source).warnings, small_warnings(source)):
        (line,) = [line for line in warnings if "sRGB" in line]
        assert line.startswith("2 files have color profiles other than sRGB")
        assert line.endswith(said)


@pytest.mark.parametrize(
    ("profile", "is_like"),
    [
        (b"", True),
        (b"x" * 200, True),
        (color_profile(space=b"GRAY"), True),
        (color_profile(space=b"CMYK"), False),
        (color_profile(), False),
        (color_profile(SRGB), True),
        (color_profile(ADOBE_RGB), False),
        (color_profile(SRGB)[:-1], False),
        (color_profile(SRGB)[:128], True),
        (color_profile(SRGB)[:128] + b"\xff" * 4, False),
        (color_profile(SRGB)[:128] + b"\xff" * 80, False),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), True),
    ],
)
def test_whether_a_profile_is_like_srgb(profile: bytes, is_like: bool) -> None:
    assert is_like_srgb(profile) == is_like


def small_warnings(folder: Path) -> list[str]:
    return list(read_data(small_recipe(folder)).warnings())


def test_preparing_review_and_training_all_say_what_they_leave_out(source: Path, out: Path) -> None:
    different(source, 2)
    (source / "photo.heic").touch()
    noise((64, 64)).save(source / "pages.tif", save_all=True, append_images=[noise((64, 64), 1)])
    said = {
        "1 file was left out: photo.heic; pictures are .png",
        "1 file holds several pictures, and only the first is used: pages.tif",
    }
    for warnings in (
        prepare(source, out, size=64).warnings,
        review(source).warnings,
        read_data(small_recipe(source)).warnings(),
    ):
        assert {warning.partition(", .jpg")[0] for warning in warnings} >= said


def test_an_edge_that_is_half_transparent_is_put_on_white_once(source: Path, out: Path) -> None:
    cutout = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    cutout.paste((0, 0, 0, 128), (0, 0, 32, 64))
    cutout.save(source / "cutout.png")
    (one,) = prepared(out, source / "cutout.png")
    assert open_rgb(one.path).getpixel((4, 4)) == open_rgb(source / "cutout.png").getpixel((4, 4)) == (127, 127, 127)


def test_folders_below_are_looked_into_only_when_asked_and_never_the_output(source: Path) -> None:
    save(source, "b.png")
    for name in ("deep", "out", ".hidden"):
        (source / name).mkdir()
        save(source / name, "a.png")
    save(source, ".hidden.png")
    (source / "notes.txt").write_text("no picture", encoding="utf-8")
    assert image_files(source) == [source / "b.png"]
    found = image_files(source, recursive=True, excluded=source / "out")
    assert found == [source / "b.png", source / "deep" / "a.png"]
    with pytest.raises(NotFound):
        image_files(source / "nowhere")
    (source / "empty").mkdir()
    with pytest.raises(NotFound):
        image_files(source / "empty")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_picture_is_refused_by_name(source: Path, content: bytes) -> None:
    (source / "broken.png").write_bytes(content)
    with pytest.raises(BadPicture, match=r"broken\.png"):
        open_rgb(source / "broken.png")


def test_a_picture_that_is_cut_short_is_refused(source: Path) -> None:
    noise((64, 64)).save(source / "a.png")
    whole = (source / "a.png").read_bytes()
    (source / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadPicture):
        open_rgb(source / "a.png")


def test_a_picture_of_too_many_pixels_is_refused(source: Path) -> None:
    (source / "bomb.png").write_bytes(large_png(13_300, 13_300))
    with pytest.raises(BadPicture, match=r"bomb\.png: .*megapixels"):
        open_rgb(source / "bomb.png")


def warned(paths: list[Path], **options: object) -> str:
    return "\n".join(warnings_about([ImageStats.of(path) for path in paths], **options))  # type: ignore[arg-type]


def test_enough_good_pictures_give_no_warning(source: Path) -> None:
    paths = different(source, 12)
    for path in paths:
        path.with_suffix(".txt").write_text("a cat")
    assert warned(paths, size=(64, 64)) == ""


def test_few_pictures_are_warned_about(source: Path) -> None:
    assert "9 pictures are few" in warned(different(source, 9))
    assert "few" not in warned(different(source, 10))


def test_pictures_that_are_scaled_up_are_named(source: Path) -> None:
    paths = [*different(source, 12), save(source, "small.png", (63, 200))]
    assert "smaller than 64x64 and scaled up: small.png" in warned(paths, size=(64, 64))
    assert "scaled up" not in warned(paths)


def test_equal_and_nearly_equal_pictures_are_named(source: Path) -> None:
    paths = different(source, 12)
    (source / "copy.png").write_bytes(paths[3].read_bytes())
    assert "picture-03.png is there more than once: copy.png" in warned([*paths, source / "copy.png"])
    open_rgb(paths[5]).resize((200, 200)).save(source / "again.jpg", quality=60)
    assert "picture-05.png is there more than once, or nearly: again.jpg" in warned([*paths, source / "again.jpg"])


def test_pictures_of_other_colours_are_not_taken_for_equal(source: Path) -> None:
    red, blue = save(source, "red.png", colour="red"), save(source, "blue.png", colour="blue")
    assert "more than once" not in warned([red, blue])


def test_mixed_ratios_are_warned_about_without_buckets(source: Path) -> None:
    paths = [*different(source, 11), save(source, "wide.png", (200, 100))]
    assert "2 different ratios" in warned(paths, size=(64, 64))
    assert "ratios" not in warned(paths, size=(64, 64), buckets=True)
    assert mixed_ratios([(100, 100), (102, 100), (100, 102), (200, 100)]) == 2


def test_empty_captions_are_named(source: Path) -> None:
    paths = different(source, 12)
    paths[2].with_suffix(".txt").write_text(" \n", encoding="utf-8")
    assert "1 picture is without a caption: picture-02.png" in warned(paths)


def test_tags_are_counted_once_for_each_picture() -> None:
    assert tag_counts(["a, b, a", "b", "", "c,b "]) == [("b", 3), ("a", 1), ("c", 1)]


def test_names_that_some_file_systems_take_for_one_get_numbers(source: Path, out: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (source / folder).mkdir()
        noise((64, 64)).save(source / folder / ["caf\u00e9.png", "CAFE\u0301.png"][number])
    made = prepared(out, *image_files(source, recursive=True))
    assert [one.path.stem for one in made] == ["caf\u00e9", "CAFE\u0301-2"]


def test_a_mirrored_copy_of_a_name_that_is_no_text_has_a_caption(source: Path, out: Path) -> None:
    noise((64, 64)).save(source / "plain.png")
    (source / "plain.png").rename(source / "a \udcff cat.png")
    made = prepared(out, *image_files(source), flip=True)
    assert [one.caption for one in made] == ["a cat", "a cat"]


def test_the_colours_of_a_lab_picture_are_not_taken_for_transparency(source: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(Image.new("RGB", (16, 16), "red"), to_lab).save(source / "scan.tif")
    image = open_with_opacity(source / "scan.tif")
    red, green, blue = image.getpixel((8, 8))  # type: ignore[misc]
    assert image.mode == "RGB"
    assert red > 240 > 15 > max(green, blue)


def test_a_link_to_what_no_name_can_be_stops_no_other_picture(source: Path, out: Path) -> None:
    good = save(source, "b.png")
    (source / "a.png").symlink_to("n" * 300)
    (source / "b.TXT").symlink_to("n" * 300)
    assert image_files(source) == [good]
    assert left_out(source) == ["a.png (leads to no file)"]
    require_output_folder(out, source, overwrite=False, originals=[good])
    assert [one.caption for one in prepared(out, good)] == ["b"]


def test_a_folder_that_cannot_be_read_is_listed_with_the_end_of_a_long_name(source: Path) -> None:
    good, here = save(source, "b.png"), os.getcwd()
    os.chdir(source)
    try:
        for _ in range(25):  # together longer than any path may be
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    try:
        assert image_files(source, recursive=True) == [good]
        (unreadable,) = left_out(source, recursive=True)
        assert unreadable.endswith("d (a folder that cannot be read)")
        assert len(unreadable) < 300
    finally:
        shutil.rmtree(source / ("d" * 200))


def test_folders_may_be_deeper_than_python_counts(source: Path) -> None:
    good = save(source, "b.png")
    here = os.getcwd()
    os.chdir(source)
    try:
        for _ in range(min(sys.getrecursionlimit(), 1000) + 50):  # a path longer than the system takes is another case
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    try:
        assert image_files(source, recursive=True, excluded=source / "out") == [good]
        assert left_out(source, recursive=True) == []
    finally:
        remove_deep(source / "d")


def remove_deep(folder: Path) -> None:
    """What nobody can do by recursion."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        depth = 0
        while os.path.isdir("d"):
            os.chdir("d")
            depth += 1
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(here)
    folder.rmdir()
