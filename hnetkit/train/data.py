"""The training data of a run: images and captions, read and checked before anything else, and prompts by templates."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hnetkit.errors import BadPicture, FileChanged, NotFound, UsageError
from hnetkit.files import is_file_at
from hnetkit.images import has_more, has_other_colors, open_with_opacity, read_image
from hnetkit.prompts.tags import Tag, TaggedPrompt, plain_number, split_tags
from hnetkit.text import argument
from hnetkit.train.batching import BatchOrder, random_for
from hnetkit.train.captions import caption_of, read_text, says_file_name
from hnetkit.train.preparing.crops import kept_share
from hnetkit.train.preparing.images import image_files, left_out, left_out_warnings, name_some
from hnetkit.train.preparing.quality import file_name_warnings, further_warnings, profile_warnings
from hnetkit.train.recipe import Recipe

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.train.unet_hooks import NamedStack

_MOST_NAMED = 5  # names in a warning
_MOSTLY = 0.95  # share of an image; a crop that keeps more is not worth a word

# A1111's names; the words are hnetkit's own
_BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "style_filewords": (
        "[filewords], made the way [name] does it",
        "[filewords] in [name] style",
        "[name] style, [filewords]",
        "this is how [name] shows [filewords]",
    ),
    "subject_filewords": (
        "[name], [filewords]",
        "[filewords], and [name] is in it",
        "here is [name]: [filewords]",
        "[name] seen once more, [filewords]",
    ),
    "style": (
        "[name] style",
        "made the way [name] does it",
        "something in [name] style",
        "this is how [name] shows it",
    ),
    "subject": ("[name]", "here is [name]", "[name] seen once more", "this is [name] again"),
    "hypernetwork": ("[filewords]", "this shows [filewords]", "[filewords], as it was made", "here: [filewords]"),
    "none": ("an image",),
}
BUILT_IN_TEMPLATES = tuple(_BUILT_IN)


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """One image that can be read.

    Attributes:
        path: its file.
        caption: may be empty.
        size: (width, height) in pixels that it is trained at.
        sha256: of its file.
        stack: the networks that it shows, in the order in which the caption names them; the trained one is the last, at
            1, if the caption does not name it.
        resized: whether it is brought to `size` first.
        kept: the share of it that `size` shows, 0 to 1.
        has_more: whether its file holds further images, which are not used.
        has_other_colors: whether viewers show it in other colors, by its color profile.
        left_out: tags of its caption that are neither words nor networks of the run, for a person.
        warnings: of the malformed tags of its caption.
    """

    path: Path
    caption: str
    size: tuple[int, int]
    sha256: str
    stack: NamedStack
    resized: bool = False
    kept: float = 1.0
    has_more: bool = False
    has_other_colors: bool = False
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def open(self) -> Image.Image:
        """Returns its pixels at `size`, RGB or RGBA; a resized one is scaled to cover `size` and cropped to its middle.

        Raises:
            FileChanged: the file was replaced since it was first read: the run's record would be wrong.
            NotFound, BadPicture: it is gone, or can no longer be read.
        """
        from PIL import Image, ImageOps

        data = read_image(self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise FileChanged(f"{self.path}: replaced since it was read first", hint="give the same command again")
        image = open_with_opacity(self.path, data)
        return ImageOps.fit(image, self.size, Image.Resampling.LANCZOS) if self.resized else image


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a run.

    Attributes:
        index: in the run, from 0: everything that is random about it comes from this number.
        image: its number among the images.
        prompt: for the UNet.
        stack: of its image.
    """

    index: int
    image: int
    prompt: str
    stack: NamedStack


@dataclass(frozen=True)
class TrainingData:
    """The images of a folder, ready to be drawn as samples.

    Attributes:
        images: in the order of their names.
        template: makes prompts of captions.
        recipe: of the run.
    """

    images: Sequence[TrainingImage]
    template: Template
    recipe: Recipe
    _order: BatchOrder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        order = BatchOrder([image.size for image in self.images], self.recipe.batch_size, self.recipe.seed)
        object.__setattr__(self, "_order", order)

    def step(self, step: int) -> list[list[Sample]]:
        """Returns the batches of the step that makes `step` into `step` + 1; all of a batch are of one size."""
        recipe = self.recipe
        first = step * recipe.accumulation
        return [
            [
                self._sample(number * recipe.batch_size + position, image)
                for position, image in enumerate(self._order.batch(number))
            ]
            for number in range(first, first + recipe.accumulation)
        ]

    def epoch(self, step: int) -> tuple[int, int]:
        """Returns how often all images were seen before a step, and the steps since."""
        per_step, images = self.recipe.samples_per_step, len(self.images)
        epoch = step * per_step // images
        return epoch, step - -(-epoch * images // per_step)

    @cached_property
    def fingerprint(self) -> dict[str, list[str]]:
        """Name -> sha256, caption and stack of each image: a run that is resumed must find the same."""
        return {
            image.path.name: [
                image.sha256,
                image.caption,
                *(f"{name}:{plain_number(strength)}" for name, strength in image.stack),
            ]
            for image in self.images
        }

    def warnings(self) -> Iterator[str]:
        """Yields what is odd about the folder, captions and template, one line each."""
        yield from left_out_warnings(left_out(Path(self.recipe.pictures), used=[Path(self.recipe.template)]))
        yield from further_warnings([image.path.name for image in self.images if image.has_more])
        yield from profile_warnings([image.path.name for image in self.images if image.has_other_colors])
        if cut := [f"{image.path.name} ({image.kept:.0%} of it)" for image in self.images if image.kept < _MOSTLY]:
            yield f"pictures of another shape than --size are cropped to their middle: {name_some(cut)}"
        captions = {image.path.name: image.caption for image in self.images}
        yield from caption_warnings(captions, self.template)
        if tagged := [f"{image.path.name} ({', '.join(image.left_out)})" for image in self.images if image.left_out]:
            yield f"tags in captions have no effect in training and are left out of the text: {name_some(tagged)}"
        malformed = [f"{image.path.name}, {warning}" for image in self.images for warning in image.warnings]
        yield from malformed[:_MOST_NAMED]
        if len(malformed) > _MOST_NAMED:
            yield f"{len(malformed) - _MOST_NAMED:,} more tags in captions are malformed"

    @property
    def prompts_in_all(self) -> int:
        """How many `prompts` there are."""
        return len({image.caption for image in self.images}) * len(set(self.template.lines))

    def prompts(self) -> Iterator[str]:
        """Yields every prompt that samples can have while captions are not varied; there may be millions."""
        for caption in dict.fromkeys(image.caption for image in self.images):
            for line in dict.fromkeys(self.template.lines):
                yield Template(self.template.name, (line,)).prompt(
                    caption, self.recipe.called, random_for(0, "prompts", 0)
                )

    def _sample(self, index: int, image: int) -> Sample:
        recipe, shown = self.recipe, self.images[image]
        draw: random.Random = random_for(recipe.seed, "caption", index)
        caption = vary(shown.caption, draw, shuffle=recipe.shuffle_tags, dropout=recipe.drop_tags)
        return Sample(index, image, self.template.prompt(caption, recipe.called, draw), shown.stack)


def read_data(recipe: Recipe, progress: Callable[[int, int], None] = lambda done, total: None) -> TrainingData:
    """Returns the images of the recipe's folder, each decoded once, with their captions and the template.

    Args:
        progress: called with the images read and the images in all.

    Raises:
        NotFound: no such folder, no image in it, or no such template.
        BadPicture: images that cannot be read; all of them are named.
        UsageError: an image's sides are not multiples of 8.
    """
    template = Template.read(recipe.template)
    folder = Path(recipe.pictures)
    paths = image_files(folder)
    images, unreadable = [], []
    for number, path in enumerate(paths, 1):
        try:
            images.append(_read_image(path, recipe))
        except BadPicture:
            unreadable.append(path.name)
        progress(number, len(paths))
    if unreadable:
        raise BadPicture(
            f"{folder}: not pictures that can be read: {name_some(unreadable)}",
            hint="remove them, or get them again; nothing was trained",
        )
    _require_sizes(folder, images)
    return TrainingData(images, template, recipe)


def fingerprint_changes(before: Mapping[str, Sequence[str]], now: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns how two fingerprints differ, one phrase for each kind of change."""
    both = [name for name in before if name in now]
    kinds = {
        "are gone": [name for name in before if name not in now],
        "are new": [name for name in now if name not in before],
        "have other pixels": [name for name in both if before[name][0] != now[name][0]],
        "have another caption": [name for name in both if before[name][1:] != now[name][1:]],
    }
    return [f"{name_some(names)} {what}" for what, names in kinds.items() if names]


def _read_image(path: Path, recipe: Recipe) -> TrainingImage:
    data = read_image(path)
    own, size = open_with_opacity(path, data).size, recipe.size
    tagged = split_tags(caption_of(path))
    stack = _stack_of(tagged, path, recipe)
    return TrainingImage(
        path=path,
        caption=tagged.text.strip(),
        size=size or own,
        sha256=hashlib.sha256(data).hexdigest(),
        stack=stack,
        resized=size is not None and size != own,
        kept=1.0 if size is None else kept_share(own, size),
        has_more=has_more(path, data),
        has_other_colors=has_other_colors(path, data),
        left_out=(*(f"<lora:{lora.name}>" for lora in tagged.loras), *tagged.unknown),
        warnings=tagged.warnings,
    )


def _stack_of(tagged: TaggedPrompt, path: Path, recipe: Recipe) -> NamedStack:
    """Returns the stack that the tags of a caption mean.

    Raises:
        UsageError: a network that is neither trained nor beside it, one twice, or one with more than a strength.
    """
    known = recipe.networks
    strengths = {tag.name: tag.multiplier for tag in tagged.tags}
    for tag in tagged.tags:
        if tag.name not in known or tag != Tag(tag.name, tag.multiplier) or len(strengths) < len(tagged.tags):
            raise UsageError(
                f"{path.name}: of networks, a caption names {' and '.join(known)} alone, each with a strength alone",
                hint=f"<hypernet:{recipe.called}:0.5>; --prompt-name: what captions call it; --with FILE: another",
            )
    trained = () if recipe.called in strengths else ((recipe.called, 1.0),)
    return (*strengths.items(), *trained)


def _require_sizes(folder: Path, images: Sequence[TrainingImage]) -> None:
    odd = [image for image in images if any(side % 8 for side in image.size)]
    if odd:
        width, height = odd[0].size
        raise UsageError(
            f"{folder}: sides of {len(odd)} pictures are not multiples of 8: {odd[0].path.name} is {width}x{height}",
            hint=f"hnetkit train prepare {argument(folder, is_path=True)} --out FOLDER, or --size 512x512",
        )


def _tags_in(text: str) -> Iterator[str]:
    tagged = split_tags(text)
    yield from map(str, tagged.tags)
    yield from (f"<lora:{lora.name}>" for lora in tagged.loras)
    yield from tagged.unknown


# --- templates


def vary(caption: str, draw: random.Random, *, shuffle: bool, dropout: float) -> str:
    """Returns a caption with some of its tags, in another order; with neither wanted, the caption as it is.

    Args:
        caption: tags separated by commas.
        draw: source of chance; the same state gives the same caption.
        shuffle: put the remaining tags in a random order.
        dropout: probability of dropping each tag, 0 to 1; all of them may be dropped.
    """
    if not shuffle and dropout == 0:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    tags = [tag for tag in tags if draw.random() >= dropout]
    if shuffle:
        draw.shuffle(tags)
    return ", ".join(tags)


@dataclass(frozen=True, slots=True)
class Template:
    """Lines of which one, drawn for each sample, becomes the prompt.

    Attributes:
        name: as given.
        lines: with ``[filewords]`` where the caption goes and ``[name]`` where the network's name goes.
    """

    name: str
    lines: tuple[str, ...]

    @classmethod
    def read(cls, name_or_path: str) -> Template:
        """Returns a built-in template by its name, or the one in a text file.

        Raises:
            NotFound: there is neither.
            UsageError: the file is not UTF-8, is too long, or has no line with text.
            HnetkitError: it cannot be read.
        """
        if name_or_path in _BUILT_IN:
            return cls(name_or_path, _BUILT_IN[name_or_path])
        path = Path(name_or_path)
        if not is_file_at(path):  # False too for what cannot be a path, such as a whole prompt
            raise NotFound(
                f"{name_or_path}: no such template", hint=f"a text file, or one of {', '.join(BUILT_IN_TEMPLATES)}"
            )
        lines = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
        if not lines:
            raise UsageError(f"{path}: a template has at least one line", hint="for example: [filewords], [name] style")
        return cls(name_or_path, lines)

    @property
    def has_filewords(self) -> bool:
        """Whether any line uses the caption."""
        return any("[filewords]" in line for line in self.lines)

    def prompt(self, caption: str, name: str, draw: random.Random) -> str:
        """Returns the prompt of one sample: a line drawn with `draw`, with the caption and the network's name in it."""
        words = {"[filewords]": caption, "[name]": name}
        # in one pass: [name] inside a caption is not filled in again
        return re.sub(r"\[filewords\]|\[name\]", lambda match: words[match[0]], draw.choice(self.lines))


def caption_warnings(captions: Mapping[str, str], template: Template) -> Iterator[str]:
    """Yields what is odd about captions and the template that takes them, one line each.

    Args:
        captions: file name of each image -> its caption.
        template: of the prompts.
    """
    empty = [name for name, caption in captions.items() if not caption.strip()]
    if empty:
        shown = ", ".join(empty[:_MOST_NAMED]) + (", ..." if len(empty) > _MOST_NAMED else "")
        yield f"{len(empty)} of {len(captions)} pictures have no caption: {shown}"
    if template.has_filewords:
        yield from file_name_warnings([name for name, text in captions.items() if says_file_name(text, Path(name))])
    if not template.has_filewords and len(empty) < len(captions):
        yield f"the template {template.name} has no [filewords]: captions are not used"
    if tags := list(dict.fromkeys(tag for line in template.lines for tag in _tags_in(line))):
        where = f"tags in the template {template.name}"
        yield f"{where} have no effect in training and are read as words: {name_some(tags)}"
