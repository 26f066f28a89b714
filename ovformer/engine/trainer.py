"""The training loop's step: micro-batches, mixed precision, clipping, and stopping at bad losses.

The ``SOLVER.IMS_PER_BATCH`` images of an optimizer step are split among the processes, and the
share of each process into ``SOLVER.ACCUMULATION_STEPS`` micro-batches of equal size. Losses are
averaged over both. For losses that are means over images (the class loss per query), this gives the
loss of the whole batch.

Losses that are sums over instances are divided by a number of instances, and this has to be the
number of the whole batch. The criterion averages it over processes, but can't average it over
micro-batches. So with several micro-batches each record carries ``instance_counts``: the number of
instances of each image, frame or clip of the whole batch, from the model's method of that name.

Each record also carries ``least_size``, the size to which the images of this process would be
padded without accumulation. With both, the gradient is the same as without accumulation. Where all
images are of one size, it is also that of a single process with the whole batch; else each process
pads to its own largest image. Random choices (the points of masks, the classes of the federated
loss) are drawn for each micro-batch.
"""

import contextlib
import logging
import math
import random
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ovformer.d2 import EventStorage, TrainerBase, comm, create_ddp_model
from ovformer.data.samples.broken_samples import BrokenSampleCounter
from ovformer.engine.checkpoint import Checkpointer
from ovformer.engine.interruption import Interrupted, Interruption
from ovformer.engine.nonfinite import stop_at_nonfinite, to_json_number
from ovformer.engine.optimizer import GradientClipper
from ovformer.engine.resume import resume_or_load

AMP_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# A healthy training needs no smaller factor on its losses for gradients to be finite in float16.
MIN_LOSS_SCALE = 2.0**-10
# What a checkpoint has to hold of the trainer, besides the state of hooks.
_STATE = ("optimizer", "grad_scaler", "random_states", "seed")

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
    """Trains a model that returns a dict of losses for a list of records.

    With several micro-batches the model also needs two methods: ``instance_counts`` takes a record
    and returns the number of instances of each part of it that counts as an image; ``least_size``
    takes records and returns the height and width that all their images fit in.

    Args:
        model: on its device.
        optimizer: of its parameters.
        scheduler: of the optimizer.
        build_loader: (first iteration, seed) -> endless iterator over this process's part of each
            batch.
        max_iter: iterations of the whole training.
        seed: of the order of the training images.
        clip_gradients: clips in place and returns the norm.
        accumulation_steps: micro-batches per iteration and process.
        amp_type: float16 (with a loss scale), bfloat16, or None for float32.
        output_dir: folder of the checkpoints.
        class_names: the vocabulary, saved with the model.
        metadata: saved with the model, see :func:`ovformer.engine.checkpoint.collect_metadata`.
        interruption: an open one; without it, the training does not handle signals.
        max_broken: largest share of the samples that the loader may skip; None if it skips none.

    Attributes:
        model: the model, in DistributedDataParallel where there are several processes.
        optimizer: of its parameters.
        scheduler: of the learning rate; stepped by detectron2's ``LRScheduler`` hook.
        checkpointer: saves and loads all of it.
        seed: of the order of the training images.
        is_resumed: whether this run resumes the training in the output folder.
        interruption: knows whether this process got a signal to stop.
        is_interrupted: whether any process had got a signal by the end of the last iteration.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        build_loader: Callable[[int, int], Iterable[list[dict]]],
        *,
        max_iter: int,
        seed: int,
        clip_gradients: GradientClipper,
        accumulation_steps: int = 1,
        amp_type: torch.dtype | None = None,
        output_dir: str = "",
        class_names: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        interruption: Interruption | None = None,
        max_broken: float | None = None,
    ) -> None:
        super().__init__()
        self.device = next(model.parameters()).device
        self.model = create_ddp_model(
            model.train(),
            broadcast_buffers=False,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
        )
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.max_iter = max_iter
        self.seed = seed
        self.is_resumed = False
        self.interruption = interruption or Interruption()
        self.is_interrupted = False
        self.checkpointer = Checkpointer(
            model,
            output_dir,
            class_names=class_names,
            metadata=metadata,
            trainer=weakref.proxy(self),  # a reference would be a cycle, which frees memory late
        )
        self._build_loader = build_loader
        self._clip_gradients = clip_gradients
        self._accumulation_steps = accumulation_steps
        self._amp_type = amp_type
        self._broken = None if max_broken is None else BrokenSampleCounter(max_broken)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp_type == torch.float16)
        self._random_states: list[dict] = []
        self._saved_iter = -1  # the last iteration whose state is in a checkpoint
        self._batches: Iterable[list[dict]] = iter(())

    def resume_or_load(self, weights: str, resume: bool, allow_older: bool = False) -> None:
        """Load weights, or with ``resume`` the last checkpoint of the output folder, if any.

        Args:
            weights: path; see :meth:`Checkpointer.load`.
            resume: continue the training in the output folder.
            allow_older: if its last checkpoint is damaged, take the one before it.
        """
        self.is_resumed = resume
        # Before anything is saved: these files could fill the disk.
        self.checkpointer.remove_leftovers()
        if resume_or_load(self.checkpointer, weights, resume, allow_older):
            self._saved_iter = self.iter
            self.start_iter = self.iter + 1
            self._restore_random_state()
            logger.info("Resuming: %d iterations are done.", self.start_iter)

    def train(self) -> None:
        """Train up to the last iteration, or until a signal. Hooks evaluate, save and write."""
        with self.interruption.delayed():
            if self.start_iter >= self.max_iter:
                self._finish()
                return
            self._batches = iter(self._build_loader(self.start_iter, self.seed))
            try:
                super().train(self.start_iter, self.max_iter)
            finally:
                self._batches = iter(())  # ends the processes that load data

    def _finish(self) -> None:
        """Run what follows the last iteration, for a training that was stopped just before that."""
        logger.info(
            "Nothing to train: the checkpoint is of iteration %d, SOLVER.MAX_ITER is %d.",
            self.start_iter,
            self.max_iter,
        )
        # With a smaller SOLVER.MAX_ITER than before, the checkpoint is not the end of this
        # training.
        if self.start_iter == self.max_iter:
            self.checkpointer.complete()
        self.iter = self.start_iter
        # Hooks may still have to evaluate or to write a line.
        with EventStorage(self.iter) as self.storage:
            self.before_train()
            self.after_train()

    def save(self) -> None:
        """Save everything as ``model_<iteration>.pth``; random states are those collected last."""
        self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
        self._saved_iter = self.iter

    def at_once(self, evaluate: Callable[[], Any]) -> Any:
        """Run an evaluation that a signal ends at once, after a checkpoint was saved. For hooks.

        The training's random numbers are the same with and without it.
        """
        # A signal may end the evaluation in one process only: gather now, while all take part.
        self.collect_random_states()
        state = get_random_state()
        try:
            with self.interruption.at_once():
                return evaluate()
        except Interrupted:
            if self.iter + 1 < self.max_iter and self.iter != self._saved_iter:
                self.save()
            raise
        finally:
            set_random_state(state)

    def run_step(self) -> None:
        """Do one optimizer step: load, forward and backward, check, clip, update, record."""
        begin = time.perf_counter()
        batch = next(self._batches)
        data_time = time.perf_counter() - begin
        broken = self._broken.take(batch) if self._broken else 0
        micro_batches = self._split_batch(batch)

        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for number, records in enumerate(micro_batches, start=1):
            with self._skip_gradient_exchange(number < len(micro_batches)):
                losses = self._forward(records, sums)
                total = sum(losses.values()) / len(micro_batches)
                self._scaler.scale(total).backward()
            for name, loss in losses.items():
                # In float32, because sums of numbers in half precision lose digits.
                sums[name] = sums.get(name, 0.0) + loss.detach().float() / len(micro_batches)
        self.after_backward()

        # Signals and counts go with the losses, so that there is one exchange per iteration. All
        # processes then stop after the same iteration, whichever of them got the signal.
        is_interrupted = float(self.interruption.signal is not None)
        others = {"data_time": data_time, "is_interrupted": is_interrupted, "broken": float(broken)}
        means = self._mean_over_processes(sums | others)
        self.is_interrupted = means.pop("is_interrupted") > 0
        data_time = means.pop("data_time")
        self._count_broken(means.pop("broken"), len(batch))
        # Before the step, so that a bad loss leaves the weights unchanged.
        self._check_losses(means, batch, sums)
        norm = self._step_optimizer(batch, sums)
        self.storage.put_scalars(data_time=data_time, total_loss=sum(means.values()), **means)
        if math.isfinite(norm):  # in float16 an overflow only skips the step
            self.storage.put_scalar("grad_norm", norm)

    def _count_broken(self, mean: float, batch_size: int) -> None:
        """Count the samples that the loader skipped: ``mean`` per process."""
        if self._broken:
            processes = comm.get_world_size()
            loaded = (self.iter + 1) * batch_size * processes
            self._broken.count(round(mean * processes), loaded)
            self.storage.put_scalar("broken_samples", self._broken.total, smoothing_hint=False)

    def _split_batch(self, batch: list[dict]) -> list[list[dict]]:
        steps = self._accumulation_steps
        if steps == 1:
            return [batch]
        model = getattr(self.model, "module", self.model)  # inside DistributedDataParallel
        counts = [count for record in batch for count in model.instance_counts(record)]
        # Of all processes, because losses are divided by the number of the whole batch.
        counts = [count for part in comm.all_gather(counts) for count in part]
        shared = {"instance_counts": counts, "least_size": model.least_size(batch)}
        batch = [{**record, **shared} for record in batch]
        size = len(batch) // steps
        return [batch[start : start + size] for start in range(0, size * steps, size)]

    def _skip_gradient_exchange(self, is_skipped: bool) -> contextlib.AbstractContextManager:
        """Skip the exchange of gradients between processes until the last micro-batch."""
        if is_skipped and isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _forward(self, records: list[dict], so_far: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a micro-batch.

        Args:
            records: the micro-batch.
            so_far: losses of the previous micro-batches, for the report.

        Raises:
            FloatingPointError: the model raised it, in this process or in another one. All
                processes have to stop then: they would wait forever in the backward pass.
        """
        reason = ""
        try:
            with torch.autocast(
                self.device.type, self._amp_type, enabled=self._amp_type is not None
            ):
                losses = self.model(records)
        except FloatingPointError as error:
            reason = str(error)
        if self._in_any_process(bool(reason)):
            self._stop(reason, records, so_far)
        return losses

    def _in_any_process(self, is_true: bool) -> bool:
        if comm.get_world_size() == 1:
            return is_true  # saves a copy to the GPU and back
        return self._mean_over_processes({"is_true": float(is_true)})["is_true"] > 0

    def _mean_over_processes(self, values: dict[str, Tensor | float]) -> dict[str, float]:
        """Return the mean of scalars over all processes."""
        # One tensor: one exchange between processes, and one copy from the GPU.
        stacked = torch.stack([torch.as_tensor(v, device=self.device) for v in values.values()])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(stacked)
            stacked /= comm.get_world_size()
        return dict(zip(values, stacked.tolist(), strict=True))

    def _check_losses(
        self, means: dict[str, float], batch: list[dict], losses: Mapping[str, Tensor]
    ) -> None:
        """Raise FloatingPointError, in all processes, when a loss is not finite."""
        # A mean is not finite in any process if one of its losses is not, so all stop together.
        bad = [f"{name} {value}" for name, value in means.items() if not math.isfinite(value)]
        if bad:
            self._stop(f"losses that are not finite: {', '.join(bad)}", batch, losses)

    def _stop(
        self,
        reason: str,
        records: list[dict],
        losses: Mapping[str, Tensor],
        norm: float | None = None,
    ) -> NoReturn:
        """Write a report and raise FloatingPointError: see :func:`stop_at_nonfinite`.

        Args:
            reason: what is wrong in this process.
            records: the samples that this process was training on.
            losses: the parts of its loss that were computed.
            norm: of the gradient, where that is not finite.
        """
        settings = {
            "grad_norm": None if norm is None else to_json_number(norm),
            "learning_rates": sorted({group["lr"] for group in self.optimizer.param_groups}),
            "precision": str(self._amp_type or torch.float32).removeprefix("torch."),
            "loss_scale": self._scaler.get_scale() if self._scaler.is_enabled() else None,
            "accumulation_steps": self._accumulation_steps,
            "seed": self.seed,
        }
        stop_at_nonfinite(self.iter, reason, records, losses, self.checkpointer, settings)

    def _step_optimizer(self, batch: list[dict], losses: Mapping[str, Tensor]) -> float:
        """Clip and step, and return the gradients' norm before clipping.

        In float16 a norm that is not finite is an overflow: the scaler skips the step and takes a
        smaller factor the next time.

        Raises:
            FloatingPointError: a gradient is not finite, and a smaller factor would not help.
        """
        # First: the limit of clipping is meant for gradients without the loss scale.
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self._clip_gradients(parameters).item()
        hopeless = not self._scaler.is_enabled() or self._scaler.get_scale() < MIN_LOSS_SCALE
        if not math.isfinite(norm) and hopeless:
            self._stop(f"a gradient is not finite (norm of all {norm})", batch, losses, norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint needs to resume as if the training had not stopped."""
        return super().state_dict() | {
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self._scaler.state_dict(),
            "random_states": self._random_states,
            "seed": self.seed,
            "broken_samples": self._broken.total if self._broken else 0,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of :meth:`state_dict`.

        Raises:
            ValueError: it is the state of another trainer.
        """
        missing = [key for key in _STATE if key not in state_dict]
        if missing:
            raise ValueError(
                f"--resume: the checkpoint has no {', '.join(missing)}; it was not saved by this "
                "trainer. To start from its weights, name it in MODEL.WEIGHTS, without --resume."
            )
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        # It is empty if the training was not in float16 until now.
        if self._scaler.is_enabled() and state_dict["grad_scaler"]:
            self._scaler.load_state_dict(state_dict["grad_scaler"])
        self._random_states = state_dict["random_states"]
        self.seed = state_dict["seed"]
        if self._broken:
            self._broken.total = state_dict.get("broken_samples", 0)

    def collect_random_states(self) -> None:
        """Gather the random states of all processes for the next checkpoint. All call it."""
        self._random_states = comm.gather(get_random_state())

    def _restore_random_state(self) -> None:
        if len(self._random_states) != comm.get_world_size():
            logger.warning(
                "The checkpoint is of %d processes, now there are %d: training continues with the "
                "same images, but with other random numbers.",
                len(self._random_states),
                comm.get_world_size(),
            )
            return
        set_random_state(self._random_states[comm.get_rank()])


def get_random_state() -> dict[str, Any]:
    """Return the state of this process's random generators, as types that a checkpoint can hold."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state of :func:`get_random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
