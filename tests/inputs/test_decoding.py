"""Loading: images are decoded ahead of the forward pass, in bounds, and fail as they always did."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from circuitcore.engine import runner, unpruned
from circuitcore.engine.prepare import prepare
from circuitcore.errors import InputError
from circuitcore.inputs import image_files
from circuitcore.inputs.decoding import Decoding, decode_all
from circuitcore.inputs.image_files import Folder, ImageFile
from circuitcore.inputs.pixels import Preprocessing, decode, to_input
from circuitcore.inputs.read import read_inputs
from circuitcore.machine.chunks import Ahead, in_chunks
from circuitcore.machine.device import machine
from circuitcore.options import Options
from circuitcore.progress import Silent

PLAIN = Preprocessing(None, None, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
PATIENCE = 30.0  # seconds after which a wait that should not be one gives up


@pytest.fixture
def folder(tmp_path):
    """Forty images of 9 x 7 pixels of noise, and their list."""
    random = np.random.default_rng(0)
    files = []
    for number in range(40):
        path = f"{number:02}.png"
        Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).save(tmp_path / path)
        files.append(ImageFile(number, path, 0, "extraction", ""))
    return tmp_path, files


@pytest.fixture
def slow(monkeypatch):
    """Lets the test hold back or watch each decode: assign ``slow.hook`` a function of the path."""

    class Slow:
        hook = staticmethod(lambda path: None)
        begun: list[str] = []

    own = decode
    Slow.begun = []

    def watched(file, preprocessing):
        Slow.begun.append(file.name)
        Slow.hook(file)
        return own(file, preprocessing)

    monkeypatch.setattr(image_files, "decode", watched)
    return Slow


def test_every_row_is_its_image(folder):
    root, files = folder
    pixels = decode_all(Folder(root), files, PLAIN)
    assert pixels.dtype == np.uint8
    for row, file in enumerate(files):
        assert np.array_equal(pixels[row], decode(root / file.path, PLAIN))


def test_no_more_is_begun_than_asked_for_and_a_bound_ahead(folder, slow):
    root, files = folder
    with Decoding(Folder(root), files, PLAIN, ahead=5) as decoding:
        decoding.wait(10)
        decoding._pool.shutdown()  # whatever was begun ends
        assert sorted(slow.begun) == [f"{row:02}.png" for row in range(15)]


def test_the_first_bad_image_in_order_is_the_one_named(folder, slow):
    root, files = folder
    (root / "07.png").write_bytes(b"no image")
    Image.new("RGB", (3, 3)).save(root / "08.png")
    later = threading.Event()

    def hook(path):  # 07 fails after 08 has
        if path.name == "07.png":
            assert later.wait(PATIENCE)
        elif path.name == "09.png":
            later.set()

    slow.hook = hook
    with Decoding(Folder(root), files, PLAIN) as decoding:
        decoding._pool._max_workers = 4  # 08 and 09 pass 07 on a machine of one core too
        decoding.wait(7)  # those before it are whole
        for _ in range(2):  # asked again, as where memory ran out, it fails again
            with pytest.raises(InputError, match=r"07\.png: not a readable image"):
                decoding.wait(40)


def test_sizes_that_differ_are_refused(folder):
    root, files = folder
    Image.new("RGB", (5, 3)).save(root / "20.png")
    with pytest.raises(InputError, match=r"20\.png: 5 x 3 pixels, the ones before 9 x 7: give --c"):
        decode_all(Folder(root), files, PLAIN)
    cropped = replace(PLAIN, crop=3)
    assert decode_all(Folder(root), files, cropped).shape == (40, 3, 3, 3)


def test_no_images_at_all(tmp_path):
    with pytest.raises(InputError, match="no images"):
        decode_all(Folder(tmp_path), [], PLAIN)


def test_an_interruption_ends_the_decoding(folder, slow):
    root, files = folder
    with (
        pytest.raises(KeyboardInterrupt),
        Decoding(Folder(root), files, PLAIN, ahead=40) as decoding,
    ):
        slow.hook = lambda path: time.sleep(0.02)
        decoding.wait(2)
        raise KeyboardInterrupt
    begun = len(slow.begun)
    assert begun < 40
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]
    assert len(slow.begun) == begun


def test_the_network_runs_while_later_images_are_decoded(slow, tmp_path, monkeypatch):
    """A trace of one run: each forward pass after its images, and some decoding during one.

    Images of the third chunk on are held back until a forward pass runs, and that one until such
    an image is being decoded: were all decoded first, both would wait in vain.
    """
    options = Options(
        scoring_images=1, extraction_images=2, heldout_images=2, device="cpu", out=tmp_path
    )
    inputs = read_inputs(options)
    chunk = 4
    order = [image.path for name in ("extraction", "heldout") for image in inputs.split(name)]
    late = {str(inputs.source.root / path) for path in order[2 * chunk :]}
    running, decoding = threading.Event(), threading.Event()
    decoded: dict[str, tuple[float, float]] = {}
    passes: list[tuple[float, float]] = []
    own_decode, own_forward = image_files.decode, unpruned.forward

    def traced_decode(file, preprocessing):
        began = time.monotonic()
        if str(file) in late:
            decoding.set()
            assert running.wait(PATIENCE), "no forward pass began before all images were decoded"
        pixels = own_decode(file, preprocessing)
        decoded[file.relative_to(inputs.source.root).as_posix()] = began, time.monotonic()
        return pixels

    def traced_forward(*arguments, **named):
        began = time.monotonic()
        running.set()
        assert decoding.wait(PATIENCE), "nothing was decoded during the first forward pass"
        values = own_forward(*arguments, **named)
        passes.append((began, time.monotonic()))
        return values

    monkeypatch.setattr(image_files, "decode", traced_decode)
    monkeypatch.setattr(unpruned, "forward", traced_forward)
    monkeypatch.setattr(runner, "FORWARD_CHUNK", chunk)
    prepare(inputs, options, machine(options), Silent())

    assert len(decoded) == len(order) == chunk * len(passes)
    for number, (began, _) in enumerate(passes):
        for path in order[number * chunk : (number + 1) * chunk]:
            assert decoded[path][1] <= began
    overlaps = [
        1 for began, ended in decoded.values() for start, stop in passes
        if began < stop and start < ended
    ]  # fmt: skip
    assert overlaps


def double(part):
    return {"x": torch.arange(part.start, part.stop) * 2}


@pytest.mark.parametrize("background", [False, True])
def test_chunks_loaded_ahead_are_those_asked_for(background):
    seen, most = [], 7

    def work(part):
        nonlocal most
        values = chunks.take(part)["x"]
        if part.stop - part.start > most or (part.start == 14 and most == 7):
            most = 3
            raise MemoryError
        seen.extend(values.tolist())

    with Ahead(double, 40, torch.device("cpu"), background) as chunks:
        in_chunks(40, 20, work)
    assert seen == list(range(0, 80, 2))


def test_the_next_chunk_is_loaded_during_the_work_on_one():
    begun = {start: threading.Event() for start in range(0, 40, 10)}

    def load(part):
        begun[part.start].set()
        return double(part)

    def work(part):
        chunks.take(part)
        if part.stop < 40:
            assert begun[part.stop].wait(PATIENCE), part

    with Ahead(load, 40, torch.device("cpu"), background=True) as chunks:
        in_chunks(40, 10, work)


@pytest.mark.parametrize("background", [False, True])
def test_an_error_of_loading_comes_with_its_own_chunk(background):
    done = []

    def load(part):
        if part.start == 20:
            raise InputError("image 20")
        return double(part)

    def work(part):
        chunks.take(part)
        done.append(part.start)

    chunks = Ahead(load, 40, torch.device("cpu"), background)
    with chunks, pytest.raises(InputError, match="image 20"):
        in_chunks(40, 10, work)
    assert done == [0, 10]


@pytest.mark.parametrize("channels", [1, 3])
def test_network_input_is_normalised_and_channels_last(channels):
    own = Preprocessing(None, None, PLAIN.mean[:channels], PLAIN.std[:channels], channels)
    pixels = np.random.default_rng(1).integers(0, 256, (5, channels, 6, 4), dtype=np.uint8)
    found = to_input(pixels, own, torch.device("cpu"))
    mean, std = (np.float32(each).reshape(1, -1, 1, 1) for each in (own.mean, own.std))
    assert np.array_equal(found.numpy(), (pixels / np.float32(255) - mean) / std)
    assert found.stride(1) == 1
