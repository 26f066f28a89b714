"""MODEL.ACTIVATION_CHECKPOINTING: less is kept for the backward pass, with the same gradients."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from support.video_models import CLIPS, TINY, build_small_model, training_batch

SIZES = {
    **TINY,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 3,
    "MODEL.MASK_FORMER.DEC_LAYERS": 5,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,  # the same places are dropped again
}


def step(model, records, precision):
    """Gradients of a training step, and the bytes kept for its backward pass."""
    storages = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # alive, so that no address is used twice
        return tensor

    torch.manual_seed(3)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            losses = model(records)
    for parameter in model.parameters():  # these exist anyway
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients, sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [{}, CLIPS], ids=["frames", "clips"])
def test_same_gradients_from_less_memory(tmp_path, kind, precision) -> None:
    results = []
    for enabled in (False, True):
        options = {"MODEL.ACTIVATION_CHECKPOINTING": enabled, **kind}
        model = build_small_model(tmp_path, sizes=SIZES, **options)
        head = model.sem_seg_head
        assert head.predictor.activation_checkpointing is enabled
        assert head.pixel_decoder.transformer.activation_checkpointing is enabled
        results.append(step(model, training_batch(), precision))
    (expected, plain), (got, checkpointed) = results
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert checkpointed < 0.7 * plain, (checkpointed, plain)
