"""The training loop and the hooks around it."""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ovformer.d2.builtin import comm
from ovformer.d2.builtin.events import EventStorage


class HookBase:
    """Code that runs around the steps of a trainer.

    The calls of one training are::

        before_train()
        for each iteration:
            before_step()
            trainer.run_step()     # which may call after_backward()
            after_step()
        after_train()              # also after an exception

    ``before_step`` should be quick: its time counts as time of the step.
    """

    # A weak reference, set by TrainerBase.register_hooks.
    trainer: "TrainerBase" = None

    def before_train(self) -> None:
        """Run before the first iteration."""

    def after_train(self) -> None:
        """Run after the last iteration, or after an exception."""

    def before_step(self) -> None:
        """Run before each iteration."""

    def after_backward(self) -> None:
        """Run after the backward pass of each iteration."""

    def after_step(self) -> None:
        """Run after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints; a hook with a state also has ``load_state_dict``."""
        return {}


class TrainerBase:
    """A loop over iterations with hooks; a subclass defines the iteration.

    Attributes:
        iter: the present iteration; equal to ``max_iter`` once the training has succeeded.
        start_iter: the first iteration.
        max_iter: the iteration to stop before.
        storage: the :class:`EventStorage` of the training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Append hooks, which are called in this order. None is skipped.

        Raises:
            AssertionError: one of them is not a :class:`HookBase`.
        """
        hooks = [hook for hook in hooks if hook is not None]
        for hook in hooks:
            assert isinstance(hook, HookBase), f"{hook!r} is not a HookBase"
            hook.trainer = weakref.proxy(self)  # no reference cycle
        self._hooks.extend(hooks)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations from ``start_iter`` up to, not including, ``max_iter``."""
        logger = logging.getLogger(__name__)
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # after_train tells success from failure by iter == max_iter.
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Call the hooks before the first iteration."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Call the hooks at the end."""
        # Hooks rely on storage.iter == trainer.iter, which is one more after a success.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Call the hooks before an iteration."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Call the hooks after a backward pass; ``run_step`` calls it."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Call the hooks after an iteration."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """Run one iteration."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration, and the states of hooks by class name (the first of each class)."""
        state: dict[str, Any] = {"iteration": self.iter}
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            if hook_state := hook.state_dict():
                hooks.setdefault(type(hook).__qualname__, hook_state)
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self.iter = state_dict["iteration"]
        by_name: dict[str, HookBase] = {}
        for hook in self._hooks:
            by_name.setdefault(type(hook).__qualname__, hook)
        for name, state in state_dict.get("hooks", {}).items():
            if name in by_name:
                by_name[name].load_state_dict(state)
            else:
                logging.getLogger(__name__).warning(
                    "The checkpoint has a state of the hook %r, but this trainer has no such hook.",
                    name,
                )


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap a model in DistributedDataParallel; in a single process return it unchanged.

    Args:
        model: on this process's device.
        fp16_compression: send gradients as float16.
        **kwargs: more arguments of DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    # On a CPU, DistributedDataParallel takes no device_ids.
    if "device_ids" not in kwargs:
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        kwargs["device_ids"] = [comm.get_local_rank()] if on_gpu else None
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp
