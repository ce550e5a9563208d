"""Errors and messages of torch, diffusers and transformers: their exceptions as ours, their logs switched off."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hnetkit.errors import HnetkitError, ModelNotUsable, OutOfMemory
from hnetkit.text import shorten

_MEMORY_HINT = "--offload (on CUDA), --attention-slicing, --dtype fp16, a smaller --size, or --batch-size 1"
_MEMORY_HINT_IN_PYTHON = (
    'offload=True (on CUDA), attention_slicing=True, dtype="fp16", a smaller width= and height=, or batch_size=1'
)
# wording of the RuntimeErrors that the CPU's allocator and MPS raise
_OOM_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "invalid buffer size")

_MOST_REASON = 300  # characters of a library's message, which may repeat a whole file


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python means that there was not enough memory."""
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error).lower() for message in _OOM_MESSAGES)


@contextmanager
def translating_oom(task: str) -> Iterator[None]:
    """Turns every form of running out of memory inside the block into one error.

    Args:
        task: completes "not enough memory for ...".

    Raises:
        OutOfMemory: instead of torch's or Python's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"not enough memory for {task}", hint=_MEMORY_HINT, python=_MEMORY_HINT_IN_PYTHON) from error


@contextmanager
def translating_errors(source: str, hint: str) -> Iterator[None]:
    """Turns whatever the libraries raise while loading a model into one error.

    Args:
        source: the file or folder that is being loaded.
        hint: the next step.

    Raises:
        ModelNotUsable: instead of the library's error. Our own errors and a lack of memory pass unchanged.
    """
    try:
        yield
    except HnetkitError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelNotUsable(f"{source}: cannot be loaded ({first_line(error)})", hint=hint) from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, of a bounded length, or the name of its class if it has none."""
    return shorten(next(iter(str(error).strip().splitlines()), type(error).__name__), _MOST_REASON)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences the logs and progress bars of diffusers and transformers; errors still come as exceptions.

    What they log of an error repeats names in a stranger's file, as many as there are.
    """
    import logging

    # transformers logs while it is imported, so its level must be set before
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    import diffusers
    import transformers

    loggers = [module.utils.logging for module in (diffusers, transformers)]
    for logger in loggers:
        logger.set_verbosity(logging.CRITICAL)
    had_bars = [logger.is_progress_bar_enabled() for logger in loggers]
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # about outdated configurations: addressed to their authors, and some repeat the whole file
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, had_bar in zip(loggers, had_bars, strict=True):
            if had_bar:
                logger.enable_progress_bar()
