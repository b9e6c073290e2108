"""Ctrl-C and SIGTERM: the step is finished and saved, on all ranks, before the run ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_KEY = 1.0  # seconds: the terminal signals every process, and torchrun's agent sends its ranks the same once more


class Interruption(TrainerCallback):
    """Ends training with a checkpoint at the end of the step in which a signal reached any rank.

    A second Ctrl-C ends this process at once, whatever it is doing. SIGTERM only asks: launchers send it to a rank
    that is saving already.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._since = 0.0
        self.signal = 0  # 0 is none
        self.stopped = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are taken inside; Python leaves them to the main thread."""
        self.signal, self.stopped = 0, False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _arrived(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._since = number, now
            if self._accelerator.is_main_process:  # os.write: print could be interrupted by itself here
                os.write(2, b"\ninterrupted: this step is finished and saved; Ctrl-C again leaves at once\n")
        elif number == signal.SIGINT and now - self._since > _SAME_KEY:
            os._exit(128 + number)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """What one rank has heard all ranks do. After the last step the run ends by itself."""
        heard = self._accelerator.gather(torch.tensor([self.signal], device=self._accelerator.device))
        self.stopped = bool(heard.any()) and state.global_step < state.max_steps
        if self.stopped:
            self.signal = int(heard.max())
            control.should_save = control.should_training_stop = True
