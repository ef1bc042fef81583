"""A step and its operator as one CUDA graph, replayed for every iteration of a solve."""

from __future__ import annotations

from collections.abc import Callable

import torch

Launch = Callable[[], object]


def captured(launch: Launch) -> Launch:
    """A CUDA graph of what `launch` puts on the current stream, which is not run; calling the result runs it.

    Unlike `torch.cuda.graph` it neither synchronises nor empties the allocator's cache.

    Raises:
        RuntimeError: something in `launch` cannot be captured.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    side = torch.cuda.Stream(current.device)  # type: ignore[no-untyped-call]  # no types in torch
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                launch()
            finally:
                graph.capture_end()
    except RuntimeError as error:
        raise RuntimeError(
            f"gmres: A or M cannot be captured in a CUDA graph ({error}): it must not synchronise, read values, or "
            "change shapes; use a Workspace() without graphs"
        ) from error
    current.wait_stream(side)
    replay: Launch = graph.replay
    return replay


class StepGraph:
    """A step that is launched as it is the first time, which loads libraries and fills caches, and replayed after."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.launched = False
        self.replay: Launch | None = None

    def forget(self) -> None:
        """Capture anew: something that the launches are given has changed."""
        self.replay = None

    def __call__(self) -> None:
        if not self.launched:
            self.launched = True
            self.launch()
            return
        if self.replay is None:
            self.replay = captured(self.launch)
        self.replay()
