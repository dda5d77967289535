"""Decode the images of a run ahead of whoever reads them, once, into a memory map."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from circuitcore.errors import InputError
from circuitcore.inputs.image_files import ImageFile, Images, choose_files
from circuitcore.inputs.pixels import Preprocessing
from circuitcore.kernels.spans import span
from circuitcore.machine.scratch import Scratch

PIXELS = "pixels"  # name of the array of decoded images
DECODE_AHEAD = 192  # images: three chunks of a forward pass
MOST_THREADS = 8
WAY_OUT = "--max-bad N leaves out up to N such images"


class Unreadable(InputError):
    """An image that cannot be decoded; there may be others."""


class Decoding:
    """Images being decoded by a few threads into a memory map, ahead of whoever reads them.

    ``pixels``: uint8 [images, channels, height, width]; rows before ``stop`` are whole once
    `wait(stop)` has returned.  At most ``ahead`` images beyond that are begun.  The map is
    ``pixels`` of ``scratch``.  ``waited``: seconds spent in `wait`.
    Raises InputError where an image cannot be read or sizes differ (they must not, without a crop):
    the first such image in order, whichever thread met it.
    """

    def __init__(
        self,
        source: Images,
        images: Sequence[ImageFile],
        preprocessing: Preprocessing,
        scratch: Scratch | None = None,
        ahead: int = DECODE_AHEAD,
    ) -> None:
        if not images:
            raise InputError(f"{source.where()}: no images")
        self.preprocessing = preprocessing
        self._source, self._images = source, images
        first = self._pixels(0)  # its size is everyone's
        shape = len(images), *first.shape
        self.pixels = (scratch or Scratch()).array(PIXELS, shape, first.dtype)
        self.pixels[0] = first
        self.waited = 0.0
        self._whole, self._ahead = 1, ahead
        self._begun: deque[Future[None]] = deque()  # rows from ``_whole`` on
        self._pool = decoders()

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)  # waits for the images being decoded right now

    def wait(self, stop: int) -> None:
        """Return once the images before ``stop`` are decoded; those after them are begun."""
        for row in range(
            self._whole + len(self._begun), min(stop + self._ahead, len(self._images))
        ):
            self._begun.append(self._pool.submit(self._decode, row))
        began = time.perf_counter()
        with span("stage", "wait for images"):
            while self._whole < stop:
                self._begun[0].result()  # stays in the queue where it raises: so will the next call
                self._begun.popleft()
                self._whole += 1
        self.waited += time.perf_counter() - began

    def _pixels(self, row: int) -> np.ndarray:
        try:
            return self._source.pixels(self._images[row].path, self.preprocessing)
        except InputError as error:
            raise Unreadable(f"{error}; {WAY_OUT}") from None

    def _decode(self, row: int) -> None:
        with span("stage", "decode", row):
            pixels = self._pixels(row)
        if pixels.shape != self.pixels.shape[1:]:
            file = self._source.where(self._images[row].path)
            _, _, height, width = self.pixels.shape
            raise InputError(
                f"{file}: {pixels.shape[2]} x {pixels.shape[1]} pixels, the ones "
                f"before {width} x {height}: give --crop to make them equal"
            )
        self.pixels[row] = pixels


def decode_all(
    source: Images, images: Sequence[ImageFile], preprocessing: Preprocessing
) -> np.ndarray:
    """Decode every image once: uint8 [images, channels, height, width], as `Decoding` does."""
    with Decoding(source, images, preprocessing) as decoding:
        decoding.wait(len(images))
    return decoding.pixels


def decoders() -> ThreadPoolExecutor:
    """Threads to decode with: Pillow lets go of Python's lock."""
    threads = min(torch.get_num_threads(), MOST_THREADS)  # the cores this process is to use
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


def unreadable_images(
    source: Images,
    folders: Sequence[tuple[int, str]],
    counts: Sequence[int],
    preprocessing: Preprocessing,
    most: int,
    left_out: Collection[str] = (),
) -> dict[str, str]:
    """Images that a run would take but cannot decode, each with what is wrong with it.

    ``left_out``: names that it does not take anyway.  The next ones in their folders take their
    place, and are tried too.  Cost: decodes every image of the run.  Raises InputError listing them
    where there are more than ``most``.
    """
    bad: dict[str, str] = {}
    tried: set[str] = set()
    with decoders() as pool:
        while True:
            chosen = choose_files(source, folders, counts, {*bad, *left_out})
            new = [name for _, _, name in chosen if name not in tried]
            tried.update(new)
            found = _unreadable(source, new, preprocessing, pool)
            bad |= found
            if len(bad) > most:
                listed = "\n".join(f"  {said}" for said in bad.values())
                raise InputError(
                    f"{len(bad)} unreadable images, --max-bad allows {most}:\n{listed}"
                )
            if not found:
                return bad


def refuse_unreadable(
    source: Images, images: Sequence[ImageFile], preprocessing: Preprocessing
) -> None:
    """Raise InputError listing every image of these that cannot be decoded, if any is.

    Cost: decodes them all.
    """
    with decoders() as pool:
        bad = _unreadable(source, [image.path for image in images], preprocessing, pool)
    if len(bad) == 1:
        raise InputError(f"{next(iter(bad.values()))}; {WAY_OUT}")
    if bad:
        listed = "\n".join(f"  {said}" for said in bad.values())
        raise InputError(f"{len(bad)} unreadable images; {WAY_OUT}:\n{listed}")


def _unreadable(
    source: Images, names: Sequence[str], preprocessing: Preprocessing, pool: ThreadPoolExecutor
) -> dict[str, str]:
    """What is wrong with those of the images that cannot be decoded."""

    def problem(name: str) -> str | None:
        try:
            source.pixels(name, preprocessing)
        except InputError as error:
            return str(error)
        return None

    return {n: said for n, said in zip(names, pool.map(problem, names), strict=True) if said}
