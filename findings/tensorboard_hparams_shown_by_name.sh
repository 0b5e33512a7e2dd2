#!/usr/bin/env bash
# tensorboard 2.21.0. The HParams dashboard first shows five settings of an experiment. It does not take the first
# five of the list that the experiment gives (Experiment.hparam_infos): it takes the first five by name, of those
# whose field `differs` is set before all others. torch's SummaryWriter.add_hparams sets no such field, so a
# learning rate named lr or optimizer.lr is hidden behind five names that begin with a to k. Seen, of settings lr,
# a, b, c, d, e in this order:
#   as given: a b c d e;  with lr.differs=True: lr a b c d
# Exits with 1 if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tensorboard==2.21.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import _sort_and_reduce_to_hparams_limit


def shown(differing):
    infos = [
        api_pb2.HParamInfo(name=name, differs=name in differing)
        for name in ("lr", "a", "b", "c", "d", "e")
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos)
    _sort_and_reduce_to_hparams_limit(experiment, 5)
    return [info.name for info in experiment.hparam_infos]


seen = shown(()), shown(("lr",))
print("as given:", *seen[0])
print("with lr.differs=True:", *seen[1])
as_seen = seen == (["a", "b", "c", "d", "e"], ["lr", "a", "b", "c", "d"])
print("as seen" if as_seen else "changed")
sys.exit(not as_seen)
PYTHON
