"""metrics.json, TensorBoard and console lines look like detectron2's."""

import re

import pytest
import torch

from ovformer.d2 import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)


def test_storage_keeps_values_by_name_and_iteration() -> None:
    with EventStorage(10) as storage:
        storage.put_scalar("a", torch.tensor(1.0))
        storage.put_scalars(b=2, c=3.0, smoothing_hint=False, cur_iter=7)
        with storage.name_scope("scope"):
            storage.put_scalar("a", 4)
        storage.step()
        storage.put_scalar("a", 5)
        assert storage.iter == storage.iteration == 11
    assert storage.latest() == {"a": (5.0, 11), "b": (2.0, 7), "c": (3.0, 7), "scope/a": (4.0, 10)}
    assert storage.history("a").values() == [(1.0, 10), (5.0, 11)]
    assert set(storage.histories()) == {"a", "b", "c", "scope/a"}
    assert storage.smoothing_hints() == {"a": True, "b": False, "c": False, "scope/a": True}
    with pytest.raises(KeyError, match="nothing_like_it"):
        storage.history("nothing_like_it")
    with pytest.raises(AssertionError):
        storage.put_scalar("b", 1.0, smoothing_hint=True)


def test_storages_nest() -> None:
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    with pytest.raises(AssertionError):
        get_event_storage()


def test_noisy_scalars_are_smoothed_by_a_median_over_iterations() -> None:
    with EventStorage() as storage:
        for storage.iter in range(0, 40, 5):
            storage.put_scalar("noisy", storage.iter)
            storage.put_scalar("exact", storage.iter, smoothing_hint=False)
    # The last 20 iterations, 16 to 35, have the values 20, 25, 30 and 35.
    assert storage.count_samples("noisy", 20) == 4
    assert storage.count_samples("noisy", 1000) == 8
    assert storage.latest_with_smoothing_hint(20) == {"noisy": (27.5, 35), "exact": (35.0, 35)}


def test_json_writer(tmp_path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0}\n')
    with EventStorage() as storage:
        writer = JSONWriter(str(path), window_size=3)
        for storage.iter in range(1, 5):
            storage.put_scalar("total_loss", float(storage.iter**2))
            storage.put_scalar("lr", 0.1 * storage.iter, smoothing_hint=False)
        storage.put_scalar("late", 7.0, cur_iter=3)
        writer.write()
        writer.write()  # nothing new
        storage.iter = 5
        storage.put_scalar("segm/AP", 12.5, smoothing_hint=False)
        writer.write()
        writer.close()
    # 9 is the median of iterations 2, 3 and 4; keys are sorted, one line per iteration.
    assert path.read_text().splitlines() == [
        '{"iteration": 0}',
        '{"iteration": 4, "lr": 0.4, "total_loss": 9.0}',
        '{"iteration": 3, "late": 7.0}',
        '{"iteration": 5, "segm/AP": 12.5}',
    ]


def test_tensorboard_writer(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        TensorboardXWriter(str(tmp_path / "unused")).close()
        writer = TensorboardXWriter(str(tmp_path / "used"))
        for storage.iter in range(3):
            storage.put_scalar("total_loss", float(storage.iter), smoothing_hint=False)
            storage.put_image("sample", torch.zeros(3, 4, 5, dtype=torch.uint8))
            storage.put_histogram("weights", torch.arange(10.0), bins=5)
            writer.write()
            writer.write()  # nothing new
        writer.close()
    assert not (tmp_path / "unused").exists()
    events = EventAccumulator(str(tmp_path / "used"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("total_loss")] == [(0, 0), (1, 1), (2, 2)]
    images = [(e.step, e.width, e.height) for e in events.Images("sample")]
    assert images == [(step, 5, 4) for step in range(3)]
    histogram = events.Histograms("weights")[-1].histogram_value
    assert (histogram.num, histogram.sum, histogram.min, histogram.max) == (10, 45, 0, 9)
    assert sum(histogram.bucket) == 10


def test_metric_printer(lines) -> None:
    with EventStorage(4) as storage:  # no time, no rate, no end
        storage.put_scalar("total_loss", 1.5)
        CommonMetricPrinter().write()
        printer = CommonMetricPrinter(max_iter=1_000_000)
        printer.write()
        storage.iter = 5
        printer.write()
    with EventStorage() as storage:
        printer = CommonMetricPrinter(max_iter=100)
        for storage.iter in range(3):
            loss = 3.0 - storage.iter
            storage.put_scalars(total_loss=loss, loss_ce=0.12345678, time=2.0, data_time=0.25)
            storage.put_scalar("lr", 1e-4, smoothing_hint=False)
            storage.put_scalar("[metric]recall", 0.5)
        printer.write()
        assert storage.latest()["eta_seconds"] == (194.0, 2)
        storage.iter = 100
        printer.write()  # training is over: nothing to say
    # Only machines with a GPU have the last part of a line.
    found = [re.sub(r" max_mem: \d+M$", "", line) for line in lines()]
    assert found[:2] == ["iter: 4 total_loss: 1.5 lr: N/A"] * 2
    # The time between two lines stands in for that of an iteration.
    assert re.fullmatch(r"eta: \d+:\d\d:\d\d iter: 5 total_loss: 1.5 lr: N/A", found[2])
    assert found[3:] == [
        "eta: 0:03:14 iter: 2 total_loss: 2 loss_ce: 0.1235 [metric]recall: 0.5 time: 2.0000 "
        "last_time: 2.0000 data_time: 0.2500 last_data_time: 0.2500 lr: 0.0001"
    ]
