"""Structure across categories: what their circuits share by depth, by unit, and with what it goes.

Each figure stands beside what chance gives: overlap beside independent masks of the same densities
and the noise ceiling of `analysis.resampling`; units that many or one circuit use beside circuits
that choose as many units each at random; agreement with a hierarchy or with confusions beside
categories permuted (Mantel 1967).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binom, rankdata

from circuitcore.analysis import overlap as overlaps
from circuitcore.analysis.across.hierarchy import hierarchy_of, similarity
from circuitcore.analysis.across.usage import usage
from circuitcore.analysis.evaluation import prepared_run
from circuitcore.analysis.resampling.kept import mean_ceilings
from circuitcore.errors import InputError
from circuitcore.inputs.read import InHand
from circuitcore.machine.files import read_sealed, sealed, write_atomically
from circuitcore.progress import Progress
from circuitcore.runs.folder import RunFolder, open_run

FILE = "structure.json"
HUB = 0.9  # of the circuits
PERMUTATIONS = 999
FEWEST = 4  # categories: three have no more than six orders


class SharedRow(BaseModel):
    """Overlap of all pairs in one layer (``layer`` empty: the whole network).

    ``chance``: of independent masks as dense; ``ceiling``: mean overlap of two circuits of one
    category, None where `stability RUN` has not been there.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    mean: float
    min: float
    max: float
    chance: float
    ceiling: float | None


class UnitsRow(BaseModel):
    """Output units (channels) of one layer by how many circuits keep a weight into them.

    ``hubs``: used by at least 90 % of the circuits, ``private``: by one, ``unused``: by none.
    Each beside what is expected where every circuit uses as many units, chosen at random, and the
    chance of as many or more.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    units: int
    used: float
    hubs: int
    hubs_expected: float
    hubs_p: float
    private: int
    private_expected: float
    private_p: float
    unused: int


class AgreementRow(BaseModel):
    """Rank correlation over pairs of overlap above chance with another likeness of categories.

    ``p``: the chance of a correlation as high where categories are permuted, ``permuted`` and
    ``permuted_sd`` its mean and standard deviation then.
    """

    model_config = ConfigDict(frozen=True)

    against: str
    what: str
    categories: int
    spearman: float
    p: float
    permuted: float
    permuted_sd: float


class Structure(BaseModel):
    """All of it, of the ``categories`` of a run that have a circuit."""

    model_config = ConfigDict(frozen=True)

    categories: int
    shared: list[SharedRow]
    units: list[UnitsRow]
    agreement: list[AgreementRow]


def structure(
    folder: Path,
    progress: Progress,
    given: InHand | None = None,
    *,
    hierarchy: Path | None = None,
    confusions: bool = False,
    **engine: Any,
) -> Structure:
    """Compare a run's circuits across categories.

    ``hierarchy``: a file, see `hierarchy_of`; WordNet's where categories are ImageNet's ids.
    ``confusions``: of the unpruned network on the run's images, which are run once for it: two
    passes of them, extraction and held-out.  Raises InputError for fewer than four circuits.
    """
    run = open_run(folder)
    every = run.records()
    records = [record for record in every if record.circuit is not None]
    if len(records) < FEWEST:
        raise InputError(
            f"{folder}: {len(records)} circuits; {FEWEST} or more are needed to compare across "
            "categories"
        )
    units = [record.index for record in records]
    pairs = overlaps.table(run, every)
    names, whole, chance = overlaps.matrix(pairs)
    excess, seed = whole - chance, run.options().seed
    folders = {c["index"]: c["folder"] for c in run.manifest["categories"]}
    labels = [str(folders.get(record.index) or record.category) for record in records]
    agreement = []
    found = hierarchy_of(labels, hierarchy)
    if found is not None:
        near = similarity(found[0], labels)
        agreement.append(_agreement("hierarchy", found[1], excess, near, seed))
    if confusions:
        near = _confusions(folder, units, progress, given, engine)
        agreement.append(_agreement("confusions", "of the unpruned network", excess, near, seed))
    return Structure(
        categories=len(names),
        shared=shared_by_layer(run, pairs),
        units=[units_row(*each) for each in usage(run, units, progress).used.items()],
        agreement=agreement,
    )


def keep_structure(run: RunFolder, found: Structure) -> None:
    """Write ``structure.json`` into the run folder, where the next report finds it."""
    document = {
        "circuits": _stems(run),
        "found": found.model_dump(mode="json"),
    }
    write_atomically(run.folder / FILE, sealed(document))


def kept_structure(run: RunFolder) -> Structure | None:
    """What `keep_structure` wrote; None where that is not of the circuits that are there now."""
    try:
        kept = read_sealed(run.folder / FILE)
        same = kept["circuits"] == _stems(run)
        return Structure(**kept["found"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):  # or damaged
        return None


def _stems(run: RunFolder) -> list[str]:
    return sorted(path.stem for path in run.units().values())


def shared_by_layer(run: RunFolder, pairs: Any) -> list[SharedRow]:
    """From an `overlap.table` by layer in module order, the whole network before.

    None for fewer than two circuits.
    """
    ceilings = mean_ceilings(run.folder)
    rows = []
    for layer in dict.fromkeys(pairs["layer"].to_pylist()):
        names, matrix, chance = overlaps.matrix(pairs, layer)
        upper = np.triu_indices(len(names), k=1)
        values = matrix[upper]
        rows.append(
            SharedRow(
                layer=layer,
                mean=float(values.mean()),
                min=float(values.min()),
                max=float(values.max()),
                chance=float(chance[upper].mean()),
                ceiling=ceilings.get(layer),
            )  # fmt: skip
        )
    return rows


def units_row(layer: str, used: np.ndarray) -> UnitsRow:
    """``used`` bool [circuits, units]."""
    circuits, units = used.shape
    count = used.sum(0)
    least = int(np.ceil(HUB * circuits))
    hubs, private = int((count >= least).sum()), int((count == 1).sum())
    chance = counts_by_chance(used.mean(1))
    hub, one = float(chance[least:].sum()), float(chance[1])
    return UnitsRow(
        layer=layer,
        units=units,
        used=float(used.mean()),
        hubs=hubs,
        hubs_expected=units * hub,
        hubs_p=float(binom.sf(hubs - 1, units, min(hub, 1.0))),
        private=private,
        private_expected=units * one,
        private_p=float(binom.sf(private - 1, units, min(one, 1.0))),
        unused=int((count == 0).sum()),
    )


def counts_by_chance(shares: np.ndarray) -> np.ndarray:
    """Chance that 0, 1, ... of independent events of these chances happen (Poisson binomial)."""
    chance = np.ones(1)
    for share in shares:
        chance = np.convolve(chance, [1 - share, share])
    return chance


def _agreement(
    against: str, what: str, one: np.ndarray, other: np.ndarray, seed: int
) -> AgreementRow:
    found, p, null = mantel(one, other, seed)
    return AgreementRow(
        against=against, what=what, categories=len(one), spearman=found, p=p,
        permuted=float(null.mean()), permuted_sd=float(null.std()),
    )  # fmt: skip


def mantel(one: np.ndarray, other: np.ndarray, seed: int) -> tuple[float, float, np.ndarray]:
    """Spearman's rho of two symmetric [K, K] over pairs, its one-sided p, the permuted ones.

    Categories of ``other`` are permuted, rows and columns alike.  Cost: 999 K^2 products.  NaN and
    p = 1 where one of them is the same for all pairs.
    """
    upper = np.triu_indices(len(one), k=1)
    ranks = []
    for matrix in (one, other):
        values = rankdata(matrix[upper])
        values -= values.mean()
        size = np.sqrt((values**2).sum())
        square = np.zeros_like(matrix, dtype=float)
        square[upper] = values / size if size else np.nan
        ranks.append(square + square.T)
    generator = np.random.default_rng([seed, 67])
    found = float((ranks[0][upper] * ranks[1][upper]).sum())
    null = np.empty(PERMUTATIONS)
    for place in range(PERMUTATIONS):
        order = generator.permutation(len(one))
        null[place] = (ranks[0][upper] * ranks[1][np.ix_(order, order)][upper]).sum()
    above = int((null >= found - 1e-12).sum()) if np.isfinite(found) else PERMUTATIONS
    return found, (1 + above) / (1 + PERMUTATIONS), null


def _confusions(
    folder: Path, units: Sequence[int], progress: Progress, given: InHand | None,
    engine: Mapping[str, Any],
) -> np.ndarray:  # fmt: skip
    """How often the unpruned network takes one category's images for the other's, either way."""
    _, prepared = prepared_run(folder, progress, given, **engine)
    place = {unit: k for k, unit in enumerate(units)}
    found = np.zeros((len(units), len(units)))
    total = np.zeros(len(units))
    for split in (prepared.extraction, prepared.heldout):
        said = split.logits.argmax(1).tolist()
        for label, predicted in zip(split.labels.tolist(), said, strict=True):
            if label in place:
                total[place[label]] += 1
                if predicted in place:
                    found[place[label], place[predicted]] += 1
    rates = found / np.maximum(total, 1)[:, None]
    return rates + rates.T
