"""A stage of the engine: a thread with work of its own, which shares only `Requests` with the others."""

import threading
from abc import ABC, abstractmethod

import torch

from blip3o.device import own_stream
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.requests import Requests


class Stage(ABC):
    """Runs `work` while there is some, until the requests are closed. Then all requests that are left fail.
    An error that `work` raises closes them."""

    name: str

    def __init__(self, pipeline: Blip3oPipeline, requests: Requests) -> None:
        self._pipeline, self._requests = pipeline, requests
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def join(self) -> None:
        """Waits until the thread has ended: after its current pass, once the requests are closed."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @abstractmethod
    def has_work(self) -> bool:
        """Whether `work` would do something. Called with the lock held."""

    @abstractmethod
    def work(self) -> None:
        """One bounded piece of work: at most one pass of a network."""

    def _run(self) -> None:
        try:
            with torch.inference_mode(), own_stream(self._pipeline.device):
                while self._requests.wait_for(self.has_work):
                    self.work()
        finally:
            self._requests.close()
            self._requests.fail_all()  # whoever waits for a stage that has ended would wait for ever
