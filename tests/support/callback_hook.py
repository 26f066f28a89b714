"""A hook made of functions, for tests that act at one moment of a training."""

from collections.abc import Callable

from ovformer.d2 import HookBase, TrainerBase


class CallbackHook(HookBase):
    """Calls functions with the trainer.

    Args:
        before_step: called before each iteration.
        after_step: called after each iteration.
    """

    def __init__(
        self,
        before_step: Callable[[TrainerBase], None] = lambda trainer: None,
        after_step: Callable[[TrainerBase], None] = lambda trainer: None,
    ) -> None:
        self._before_step, self._after_step = before_step, after_step

    def before_step(self) -> None:
        self._before_step(self.trainer)

    def after_step(self) -> None:
        self._after_step(self.trainer)
