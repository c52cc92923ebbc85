"""Batches on the device that computes, copied while the batch before is worked on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch

from data_pipeline.batches import Batch
from data_pipeline.prefetch import Prefetcher


class OnDevice:
    """The batches of a prefetcher, their columns on `device`.

    On a CPU they are passed on as they are. On a GPU the copy of the next batch is put on a stream
    of its own as soon as one is handed out, from pinned memory, so that it overlaps the compute;
    the tensors handed out are new ones, and may be kept.
    """

    def __init__(self, batches: Prefetcher, device: torch.device) -> None:
        """Takes over the prefetcher: closing this closes it."""
        self._batches, self._device = batches, device
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._ahead: Batch | Exception | None = None
        self._copied: torch.cuda.Event | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Itself: it can be gone through once."""
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: there is none.
        """
        if self._copies is None:
            found = next(self._batches)
            if self._device.type == "cpu":
                return found
            columns = {name: one.to(self._device) for name, one in found.columns.items()}
            return replace(found, columns=columns)
        if self._ahead is None:
            self._copy_ahead(self._copies)
        batch = self._ahead
        if batch is None:
            raise StopIteration
        if isinstance(batch, Exception):
            raise batch
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._copies)
        for tensor in batch.columns.values():
            tensor.record_stream(compute)
        self._copy_ahead(self._copies)
        return batch

    def _copy_ahead(self, stream: torch.cuda.Stream) -> None:
        """Starts the copy of one more batch; the buffers of the one before must be free by then."""
        if self._copied is not None:
            self._copied.synchronize()
        try:
            batch = next(self._batches, None)
        except Exception as error:  # noqa: BLE001 - raised where its batch is asked for
            self._ahead = error
            return
        if batch is None:
            self._ahead = None
            return
        with torch.cuda.stream(stream):
            columns = {
                name: tensor.to(self._device, non_blocking=True)
                for name, tensor in batch.columns.items()
            }
            self._copied = stream.record_event()
        self._ahead = replace(batch, columns=columns)

    def close(self) -> None:
        """Ends the prefetcher's threads; may be called more than once."""
        if self._copied is not None:
            self._copied.synchronize()  # pinned memory must outlive the copy from it
        self._ahead = None
        self._batches.close()

    def __enter__(self) -> Self:
        """For `with`: it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()
