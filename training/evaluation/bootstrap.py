"""Means with their uncertainty: a bootstrap that draws patients, not images.

Slices of one patient resemble each other. Drawing single images would call them independent and give intervals that are
too narrow; so whole clusters (patients, video sequences) are drawn, within each stratum (data set) as many as it has.
The same draw serves all groups (data set and target), for the masks of one image rise and fall together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsight_core.errors import MedSightError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        value: The mean; None where nothing was measured.
        interval: Lower and upper bound; None where fewer than two clusters leave nothing to draw from.
        count: How many measurements went in.
    """

    value: float | None
    interval: tuple[float, float] | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """Ready for ``json.dumps``, to four decimals."""
        return {
            "value": None if self.value is None else round(self.value, 4),
            "interval": None if self.interval is None else [round(bound, 4) for bound in self.interval],
            "count": self.count,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        replicates: Number of draws.
        seed: Of numpy's generator; the same seed gives the same interval.
        level: Coverage of the interval.
    """

    replicates: int = 2000
    seed: int = 0
    level: float = 0.95

    def macro_mean(
        self,
        values: Sequence[float],
        *,
        groups: Sequence[Hashable],
        clusters: Sequence[Hashable],
        strata: Sequence[Hashable],
    ) -> Estimate:
        """Mean over the means of the groups; with a single group, the plain mean.

        Args:
            values: One figure per measurement.
            groups: Whose mean it enters, such as (data set, target).
            clusters: What was drawn together, such as (data set, patient). A cluster lies in one stratum.
            strata: What keeps its size in every draw, such as the data set.
        """
        if not len(values) == len(groups) == len(clusters) == len(strata):
            lengths = [len(values), len(groups), len(clusters), len(strata)]
            raise MedSightError("bad_bootstrap", f"Values, groups, clusters and strata differ in length: {lengths}.")
        if not values:
            return Estimate(None, None, 0)
        group_of, group_count = _numbers(groups)
        cluster_of, cluster_count = _numbers(clusters)
        sums = np.zeros((cluster_count, group_count))
        counts = np.zeros((cluster_count, group_count))
        np.add.at(sums, (cluster_of, group_of), np.asarray(values, dtype=np.float64))
        np.add.at(counts, (cluster_of, group_of), 1.0)
        value = float(np.mean(sums.sum(axis=0) / counts.sum(axis=0)))
        if cluster_count < 2:
            return Estimate(value, None, len(values))

        weights = self._draws(cluster_of, _numbers(strata)[0], cluster_count)
        drawn = weights @ counts
        # A group of few patients can be missing from a draw; the macro mean of that draw goes over the others.
        means = np.divide(weights @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)
        replicates = np.nanmean(means[np.isfinite(means).any(axis=1)], axis=1)
        tail = (1.0 - self.level) / 2.0
        low, high = np.quantile(replicates, [tail, 1.0 - tail])
        return Estimate(value, (float(low), float(high)), len(values))

    def _draws(
        self, cluster_of: NDArray[np.int64], stratum_of: NDArray[np.int64], cluster_count: int
    ) -> NDArray[np.float64]:
        """How often each cluster was drawn, (replicates, clusters)."""
        stratum = np.zeros(cluster_count, dtype=np.int64)
        stratum[cluster_of] = stratum_of
        if (stratum[cluster_of] != stratum_of).any():
            raise MedSightError(
                "bad_bootstrap", "A cluster lies in two strata; its name must hold that of its stratum."
            )
        generator = np.random.default_rng(self.seed)
        weights = np.zeros((self.replicates, cluster_count))
        for number in range(int(stratum.max()) + 1):
            members = np.flatnonzero(stratum == number)
            weights[:, members] = generator.multinomial(
                len(members), np.full(len(members), 1.0 / len(members)), size=self.replicates
            )
        return weights


def _numbers(names: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Names as numbers from 0 in order of first appearance, so that results do not depend on hashing."""
    order: dict[Hashable, int] = {}
    numbers = [order.setdefault(name, len(order)) for name in names]
    return np.asarray(numbers, dtype=np.int64), len(order)
