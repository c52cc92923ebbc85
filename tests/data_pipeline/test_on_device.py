"""Batches on the device that computes: the CPU's, and a GPU's beside them."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch

from data_pipeline import Dataset, Loader
from data_pipeline.augment import Draw, Flip, Mixup, Samples, Shift, Transform
from data_pipeline.batches import Batch
from data_pipeline.heads import Span
from data_pipeline.on_device import OnDevice
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe

NUM_ROWS = 300
DATASET = Dataset.from_arrays(
    {
        "image": np.random.default_rng(0).integers(0, 256, (NUM_ROWS, 3, 16, 16), dtype=np.uint8),
        "label": np.arange(NUM_ROWS) % 3,
    },
    classes={"label": "abc"},
)
CPU = torch.device("cpu")


def spans() -> Iterator[Span]:
    return (Span(0, start, min(start + 32, NUM_ROWS)) for start in range(0, NUM_ROWS, 32))


def prefetcher() -> Prefetcher:
    return Prefetcher(DATASET, Recipe(columns=("image", "label")), spans(), max_rows=32)


def test_on_a_cpu_the_batches_are_passed_on_as_they_are() -> None:
    with prefetcher() as alone, OnDevice(prefetcher(), CPU) as passed:
        for batch, expected in zip(passed, alone, strict=True):
            assert batch.span == expected.span
            assert batch.rows.tolist() == expected.rows.tolist()
            for name, tensor in batch.columns.items():
                assert tensor.device == CPU
                assert torch.equal(tensor, expected.columns[name])


def test_on_a_cpu_nothing_is_copied() -> None:
    with OnDevice(prefetcher(), CPU) as passed:
        places = {batch.columns["image"].data_ptr() for batch in passed}
    assert len(places) == 3  # the prefetcher's buffers


def test_closing_it_closes_the_prefetcher() -> None:
    batches = prefetcher()
    passed = OnDevice(batches, CPU)
    next(passed)
    passed.close()
    assert list(batches) == []
    assert list(passed) == []
    passed.close()


class Stream:
    """A GPU's, as far as it is asked; it is the event that ends each copy as well."""

    def __init__(self) -> None:
        self.under_way = False

    def record_event(self) -> "Stream":
        self.under_way = True
        return self

    def synchronize(self) -> None:
        self.under_way = False

    def wait_stream(self, other: "Stream") -> None:
        assert other is not self


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Prefetcher], OnDevice]:
    """One that copies ahead as for a GPU, though to the CPU."""

    def made(batches: Prefetcher) -> OnDevice:
        passed = OnDevice(batches, CPU)
        monkeypatch.setattr(passed, "_copies", Stream())
        return passed

    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return made


def test_copying_ahead_gives_the_same_batches_and_they_may_be_kept(
    as_on_a_gpu: Callable[[Prefetcher], OnDevice],
) -> None:
    with as_on_a_gpu(prefetcher()) as passed:
        kept = list(passed)
    with prefetcher() as alone:
        for batch, expected in zip(kept, alone, strict=True):
            assert batch.span == expected.span
            for name, tensor in batch.columns.items():
                assert torch.equal(tensor, expected.columns[name])


def test_a_buffer_is_given_up_only_when_the_copy_from_it_has_ended(
    as_on_a_gpu: Callable[[Prefetcher], OnDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way: list[bool] = []
    batches = prefetcher()
    passed = as_on_a_gpu(batches)
    give_up, end = Prefetcher.__next__, Prefetcher.close

    def note_and_give_up(self: Prefetcher) -> Batch:
        under_way.append(passed._copies.under_way)  # type: ignore[union-attr]
        return give_up(self)

    def note_and_end(self: Prefetcher) -> None:
        under_way.append(passed._copies.under_way)  # type: ignore[union-attr]
        end(self)

    monkeypatch.setattr(Prefetcher, "__next__", note_and_give_up)
    monkeypatch.setattr(Prefetcher, "close", note_and_end)
    for _ in range(5):
        next(passed)
    passed.close()
    assert under_way == [False] * 7


def test_an_error_is_raised_where_its_batch_is_asked_for_though_it_comes_a_batch_sooner(
    as_on_a_gpu: Callable[[Prefetcher], OnDevice],
) -> None:
    dataset = Dataset.from_arrays({"row": np.arange(NUM_ROWS)})
    recipe = Recipe(columns=("row",), inputs="row", transforms=(Failing(),))
    passed = as_on_a_gpu(Prefetcher(dataset, recipe, spans(), max_rows=32))
    assert [next(passed).span.start for _ in range(3)] == [0, 32, 64]
    with pytest.raises(ZeroDivisionError, match="row 100"):
        next(passed)
    passed.close()
    assert list(passed) == []


def test_closing_with_a_batch_ahead_gives_no_more(
    as_on_a_gpu: Callable[[Prefetcher], OnDevice],
) -> None:
    passed = as_on_a_gpu(prefetcher())
    next(passed)
    passed.close()
    assert list(passed) == []


class Failing:
    """Refuses the row 100, which is not among the first."""

    def __call__(self, samples: Samples, draw: Draw) -> None:  # noqa: ARG002
        if 100 in samples.arrays["row"]:
            raise ZeroDivisionError("row 100")


def loader(device: str) -> Loader:
    transforms: list[Transform] = [Shift(2), Flip(), Mixup()]
    return Loader(DATASET, 32, transforms=transforms, micro_batch=8, threads=2, device=device)


@pytest.mark.gpu
def test_a_gpus_batches_are_the_cpus_and_may_be_kept_while_it_computes() -> None:
    kept = []
    on_gpu = loader("cuda")
    busy = torch.randn(2048, 2048, device="cuda")
    for _ in range(2):
        for batch in on_gpu:
            busy = (busy @ busy).clamp(-1, 1)  # the next copies are made meanwhile
            assert all(tensor.is_cuda for tensor in batch.values())
            kept.append(batch)
    on_cpu = loader("cpu")
    expected = [{k: t.clone() for k, t in batch.items()} for _ in range(2) for batch in on_cpu]
    assert len(kept) == len(expected) == 20
    for batch, copied in zip(kept, expected, strict=True):
        for name, tensor in batch.items():
            assert torch.equal(tensor.cpu(), copied[name])
    on_gpu.close()
    on_cpu.close()


@pytest.mark.gpu
def test_an_error_on_the_way_to_a_gpu_is_raised_in_its_batch_and_the_place_is_kept() -> None:
    dataset = Dataset.from_arrays({"x": np.zeros((NUM_ROWS, 4)), "row": np.arange(NUM_ROWS)})
    batches = Loader(dataset, 32, sampling="stored", transforms=[Failing()], device="cuda")
    taken = [batch["row"].tolist()[0] for batch in islice(batches, 3)]
    assert taken == [0, 32, 64]
    with pytest.raises(ZeroDivisionError, match="row 100"):
        list(batches)
    assert batches.position == 96


@pytest.mark.gpu
def test_leaving_a_gpus_loop_and_going_on_gives_the_very_next_batch() -> None:
    whole = [{name: tensor.clone() for name, tensor in batch.items()} for batch in loader("cpu")]
    on_gpu = loader("cuda")
    for _ in islice(on_gpu, 3):
        pass
    resumed = loader("cuda")
    resumed.load_state_dict(on_gpu.state_dict())
    for batch, expected in zip(resumed, whole[3:], strict=True):
        for name, tensor in batch.items():
            assert torch.equal(tensor.cpu(), expected[name])
