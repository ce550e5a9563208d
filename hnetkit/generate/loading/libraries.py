"""What surrounds every call of diffusers and transformers: quiet, with their errors as ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hnetkit.errors import HnetkitError, ModelNotUsable
from hnetkit.generate.memory import is_out_of_memory
from hnetkit.text import shorten

_MOST_REASON = 300  # letters of a library's words, which may repeat a whole file


@contextmanager
def refusing(place: str, hint: str) -> Iterator[None]:
    """Whatever the libraries raise while loading means that this model cannot be used.

    Raises:
        ModelNotUsable: in place of their error; our own errors and a lack of memory stay what they are.
    """
    try:
        yield
    except HnetkitError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelNotUsable(f"{place}: cannot be loaded ({shorten(reason, _MOST_REASON)})", hint=hint) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps diffusers and transformers from talking and drawing bars; errors still come as exceptions."""
    import logging

    # transformers speaks as it is imported: its level must be set before
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    bars = [module.utils.logging for module in (diffusers, transformers)]
    shown = [logger.is_progress_bar_enabled() for logger in bars]
    for logger in bars:
        logger.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # of configurations that are out of date: whole files in one line, for their authors
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, was_shown in zip(bars, shown, strict=True):
            if was_shown:
                logger.enable_progress_bar()
