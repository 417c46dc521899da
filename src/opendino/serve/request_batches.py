"""Joins the images of requests that wait at the same time into one forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

import torch
from torch import Tensor


class RequestBatches:
    """While the network computes one batch, further images wait; they are the next batch. A lone image waits for none.

    Args:
        network: Images float32 `[B C H W]` → rows `[B D]`; called on one thread at a time.
        executor: Where it is called.
        batch: Largest number of images in a forward pass.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], executor: Executor, batch: int) -> None:
        self._network, self._executor, self._batch = network, executor, batch
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Tensor]]] = asyncio.Queue()

    async def row(self, image: Tensor) -> Tensor:
        """The row `[D]` of one image `[C H W]`.

        Raises:
            Exception: What the network raised for its batch.
        """
        answer = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image, answer))
        return await answer

    async def run(self) -> None:
        """Compute batches until the task ends."""
        loop = asyncio.get_running_loop()
        while True:
            taken = [await self._waiting.get()]
            while len(taken) < self._batch and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            images = torch.stack([image for image, _ in taken])
            try:
                rows = await loop.run_in_executor(self._executor, self._network, images)
                results = [*rows]
            except Exception as error:  # the requests of this batch fail, the service continues
                results = [error] * len(taken)
            for (_, answer), result in zip(taken, results, strict=True):
                if answer.done():  # its client is gone
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
