"""How often how many scoring images are drawn of which pool, and what that can certify."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from circuitcore.analysis.statistics import least_count, most_replaced
from circuitcore.errors import UsageError

MOST = 255  # resamples: a count is a byte
ERROR = 0.01  # chance that a certificate is wrong: of any weight, or of each


@dataclass(frozen=True)
class Drawing:
    """``resamples`` times ``drawn`` scoring images of a ``pool``; ``replaced`` ones certified."""

    resamples: int
    pool: int
    drawn: int
    replaced: int | None

    def draws(self, seed: int) -> list[np.ndarray]:
        """Places in the pool of the images of each resample, int64 [drawn]."""
        generator = np.random.default_rng([seed, self.pool])
        return [
            np.sort(generator.choice(self.pool, self.drawn, replace=False))
            for _ in range(self.resamples)
        ]

    def check(self, relevant: int) -> None:
        """Raises UsageError where a number does not fit, or nothing could be certified."""
        if not 2 <= self.resamples <= MOST:
            raise UsageError(f"--resamples: {self.resamples}, 2 to {MOST} are possible")
        if self.pool <= self.drawn:
            raise UsageError(
                f"--pool: {self.pool} images, and {self.drawn} (--scoring-images of the run) are "
                "drawn of them each time: give more"
            )
        if self.replaced is None:
            return
        most = most_replaced(self.resamples, self.pool, self.drawn, ERROR / relevant)
        if not 1 <= self.replaced <= most:
            can = f"at most {most}" if most else "none"
            raise UsageError(
                f"--certify: {self.replaced} of {self.pool} images replaced; with {self.resamples} "
                f"resamples of {self.drawn} {can} can be certified over {relevant:,} weights"
            )

    def least(self, relevant: int) -> tuple[int | None, int | None]:
        """Resamples that certify a weight, over all ``relevant`` ones and for each alone."""
        if self.replaced is None:
            return None, None
        numbers = self.resamples, self.pool, self.drawn, self.replaced
        return least_count(*numbers, ERROR / relevant), least_count(*numbers, ERROR)
