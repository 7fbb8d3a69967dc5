"""Two pipelines in a row, which are called and looked at like one."""

from __future__ import annotations

from typing import Any


class Chain:
    """The last pipeline of a row with what leads up to it; subclasses are called like a pipeline.

    Args:
        last: The pipeline of the denoiser that is trained; everything else that a user asks for is its own.
        first: The one before it, if there is one.
    """

    def __init__(self, last: Any, first: Any = None) -> None:
        self.last, self.first = last, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self.last, name)

    @property
    def scheduler(self) -> Any:
        """The last pipeline's, whose steps end an image."""
        return self.last.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self.last.scheduler = scheduler
        if self.first:
            self.first.scheduler = type(scheduler).from_config(scheduler.config)
