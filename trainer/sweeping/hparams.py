"""Writes TensorBoard's HPARAMS table of a sweep: one row per trial, with params and results."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from trainer.process.words import visible
from trainer.run.disk import sync_folder
from trainer.run.events import Events
from trainer.sweeping.plan import Plan
from trainer.sweeping.results import Row
from trainer.sweeping.space import display_value

ENDED = ("done", "pruned", "failed")


def write_hparams(plan: Plan, folder: Path, rows: Sequence[Row]) -> None:
    """Write the folder hparams/experiment, and hparams/tNNN for each trial that ended."""
    place = folder / "hparams"
    place.mkdir(exist_ok=True)
    _add(place / "experiment", [_experiment_summary(plan)], {})
    for row in rows:
        if row.status in ENDED:
            numbers = {} if row.mean is None else {f"{plan.monitor} (mean)": row.mean}
            if row.std is not None:
                numbers |= {
                    f"{plan.monitor} (std)": row.std,
                    f"{plan.monitor} (min)": min(row.values),
                    f"{plan.monitor} (max)": max(row.values),
                }
            _add(place / f"t{row.number:03d}", _session(plan, row), numbers)


def _add(folder: Path, summaries: Sequence[Summary], numbers: dict[str, float]) -> None:
    """Make a folder with one event file, atomically; replace a folder with other content."""
    content = b"".join(s.SerializeToString(deterministic=True) for s in summaries)
    digest = hashlib.sha256(content + repr(numbers).encode()).hexdigest()
    named = folder / "content.sha256"
    if named.exists() and named.read_text() == digest:
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        events = Events(temporary)
        for summary in summaries:
            events.add(0, summary=summary)
        if numbers:
            events.scalars(numbers, 0)
        events.sync()
        events.close()
        (temporary / named.name).write_text(digest)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another worker was faster
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well
    sync_folder(folder.parent)


def _experiment_summary(plan: Plan) -> Summary:
    several = len(plan.members) > 1
    kinds = ["mean", "std", "min", "max"] if several else ["mean"]
    infos = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"{plan.monitor} ({kind})"))
        for kind in kinds
    ]
    params = [
        api_pb2.HParamInfo(name=key, type=_hparam_type(plan.sweep.params[key]))
        for key in plan.sweep.params
    ]
    about = api_pb2.Experiment(hparam_infos=params, metric_infos=infos)
    return _summary(metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=about))


def _hparam_type(space: object) -> int:
    numbers = not isinstance(space, list) or all(type(choice) in (int, float) for choice in space)
    hparam_type: int = api_pb2.DATA_TYPE_FLOAT64 if numbers else api_pb2.DATA_TYPE_STRING
    return hparam_type


def _session(plan: Plan, row: Row) -> list[Summary]:
    start = plugin_data_pb2.SessionStartInfo(group_name=f"t{row.number:03d}")
    for key, space in plan.sweep.params.items():
        value = row.settings[key]
        if _hparam_type(space) == api_pb2.DATA_TYPE_FLOAT64:
            start.hparams[key].number_value = value
        else:
            start.hparams[key].string_value = visible(display_value(value))
    failed = row.status == "failed"
    status = api_pb2.STATUS_FAILURE if failed else api_pb2.STATUS_SUCCESS
    end = plugin_data_pb2.SessionEndInfo(status=status)
    data = plugin_data_pb2.HParamsPluginData
    return [
        _summary(metadata.SESSION_START_INFO_TAG, data(session_start_info=start)),
        _summary(metadata.SESSION_END_INFO_TAG, data(session_end_info=end)),
    ]


def _summary(tag: str, content: object) -> Summary:
    about = metadata.create_summary_metadata(content)
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])
