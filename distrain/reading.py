"""How a data set's rows become what the model is given: the same in training and afterwards."""

from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.augment import Transform
from data_pipeline.dataset import Dataset
from data_pipeline.recipe import Recipe
from data_pipeline.standardize import Standardization, standardization
from distrain.micro_batch_work import MicroBatchWork


class Reading:
    """Scaling and preparation, as the training part has fitted them.

    Attributes:
        standardize: Whether inputs are scaled by the training part's mean and deviation.
    """

    def __init__(
        self, work: MicroBatchWork, seed: int, prepare: Sequence[Transform], *, standardize: bool
    ) -> None:
        """Nothing is fitted yet: until then a data set is scaled by its own statistics."""
        self._work, self._seed, self.standardize = work, seed, standardize
        self._given = self._prepare = tuple(prepare)
        self._scaling: dict[str, Standardization] = {}

    @property
    def prepare(self) -> tuple[Transform, ...]:
        """The transforms of all inputs, fitted where they have to be."""
        return self._prepare

    def fit(self, train: Dataset) -> None:
        """Takes scaling and preparation from the training part."""
        self._scaling = self._scaling_by(train)
        given = replace(self.recipe(train), transforms=self._given)
        self._prepare = given.fitted(train).transforms

    def recipe(self, dataset: Dataset, *, columns: tuple[str, ...] | None = None) -> Recipe:
        """How a data set's rows are read; a `micro_batch_step` may want any column and gets all."""
        work = self._work
        if work.own is not None:
            columns = tuple(dataset.columns)
        return Recipe(
            columns=columns or (work.inputs, work.target),
            seed=self._seed,
            inputs=work.inputs,
            target=work.target,
            transforms=self._prepare,
            standardized=self._scaling or self._scaling_by(dataset),
        )

    def _scaling_by(self, dataset: Dataset) -> dict[str, Standardization]:
        found = standardization(dataset, self._work.inputs, scaled=self.standardize)
        return {} if found is None else {self._work.inputs: found}
