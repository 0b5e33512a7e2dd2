"""The trials of a sweep in an Optuna study, which is a journal file.

A study's trial carries the number that it has in the sweep ("number"), its settings, and the folder
whose workers make its runs. Of two trials of one number the one that was created first counts.
Akiba et al., 2019, "Optuna"; of the Tree-structured Parzen Estimator: Bergstra et al., 2011.
"""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from trainer.config.document import flow
from trainer.process.errors import RunError
from trainer.sweeping.folder import Trial, locked
from trainer.sweeping.plan import Plan
from trainer.sweeping.space import Settings, points

ALIVE_EVERY = 30.0  # seconds between two signs of life, where folders are not shared
LOST_AFTER = 300.0  # seconds without one after which another folder's trial is made anew


class _Lock:
    """A journal's lock that the system takes back from a process that was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        """Wait for it."""
        self.held = locked(self.path)
        self.held.__enter__()
        return True

    def release(self) -> None:
        """Give it back."""
        self.held.__exit__(None, None, None)


class Study:
    """The trials of a study, as ``trainer.sweeping.trials.Trials`` says."""

    def __init__(self, plan: Plan, folder: Path, identity: str) -> None:
        """Open or create it; raises RunError where the storage cannot be reached."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.folder, self.identity = plan, folder, identity
        self.name, self.many = plan.file.name, plan.sweep.trials or 0
        self.listed = [] if plan.sweep.method == "tpe" else points(plan.sweep)
        self.many = len(self.listed) or self.many
        self.signs: dict[int, tuple[Any, float]] = {}  # of others: the last sign, and when seen
        self.told_alive = 0.0
        with self._in_plain_words(), locked(folder / "ask.lock"):
            self.storage = self._storage()
            study = optuna.create_study(
                storage=self.storage,
                study_name=self.name,
                direction="maximize" if plan.sign > 0 else "minimize",
                load_if_exists=True,
            )
            self.id = self.storage.get_study_id_from_name(self.name)
            self._refuse_another(study)

    def _storage(self) -> "optuna.storages.BaseStorage":
        path = Path(self.plan.sweep.storage or self.folder / "study.journal")
        backend = JournalFileBackend(
            str(path),
            lock_obj=_Lock(path.with_name(f"{path.name}.lock")),  # type: ignore[arg-type]
        )
        return optuna.storages.JournalStorage(backend)

    def _refuse_another(self, study: "optuna.Study") -> None:
        """Raise RunError where the study is that of another sweep of this name."""
        dumped = self.plan.file.model_dump(mode="json")["sweep"]
        ours = {key: dumped[key] for key in ("method", "params", "seed", "seeds", "folds")}
        mine = json.dumps([ours, self.plan.monitor], sort_keys=True)
        began = study.user_attrs.get("sweep")
        if began is None:
            study.set_user_attr("sweep", mine)
        elif began != mine:
            raise RunError(
                f"{self.plan.sweep.storage or self.folder} holds a study '{self.name}' of another "
                "sweep, with other params, seeds or folds. Give this one another name."
            )

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        """Raise RunError where the journal cannot be used; keep Optuna's warnings quiet."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (OSError, ValueError) as error:
            said = " ".join(str(error.__cause__ or error).split())[:300]
            where = self.plan.sweep.storage or "study.journal"
            raise RunError(f"sweep.storage {where}: {said}") from None

    def counted(self) -> dict[int, FrozenTrial]:
        """The study's trials by their number in the sweep, without what is lost or one too many."""
        with self._in_plain_words():
            found = self.storage.get_all_trials(self.id, deepcopy=False)
        by_number: dict[int, FrozenTrial] = {}
        for trial in sorted(found, key=lambda one: one.number):
            attrs = trial.user_attrs
            if "number" in attrs and not attrs.get("lost"):
                by_number.setdefault(attrs["number"], trial)
        return dict(sorted(by_number.items()))

    def _trial(self, found: FrozenTrial) -> Trial:
        attrs = found.user_attrs
        return Trial(attrs["number"], json.loads(attrs["settings"]), found._trial_id)

    def _is_mine(self, found: FrozenTrial) -> bool:
        return bool(found.user_attrs.get("folder") == self.identity)

    def known(self) -> Sequence[Trial]:
        """Those of this folder that have not been told."""
        return [
            self._trial(found)
            for found in self.counted().values()
            if found.state == TrialState.RUNNING
            and self._is_mine(found)
            and "settings" in found.user_attrs
        ]

    def ask(self) -> Trial | None:
        """The next trial; one that a killed process had only begun to ask for comes first."""
        with self._in_plain_words(), locked(self.folder / "ask.lock"):
            while True:
                counted = self.counted()
                for found in counted.values():
                    begun = found.state == TrialState.RUNNING and self._is_mine(found)
                    if begun and "settings" not in found.user_attrs:
                        return self._settle(found._trial_id, found.user_attrs["number"])
                free = next((n for n in range(self.many) if n not in counted), None)
                if free is None:
                    return None
                attrs = {"number": free, "folder": self.identity, "alive": time.time()}
                template = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attrs)
                key = self.storage.create_new_trial(self.id, template_trial=template)
                if self.counted()[free]._trial_id == key:
                    return self._settle(key, free)
                self._give_up(key)  # another machine asked in the same moment, and was first

    def _give_up(self, key: int) -> bool:
        """Mark a trial as one that does not count; False where somebody was faster."""
        try:
            self.storage.set_trial_user_attr(key, "lost", True)
            self.storage.set_trial_state_values(key, TrialState.FAIL)
        except RuntimeError:
            return False
        return True

    def _settle(self, key: int, number: int) -> Trial:
        """Give a new trial its settings: those of a lost one of its number, or its own."""
        settings = None
        for found in self.storage.get_all_trials(self.id, deepcopy=False):
            attrs = found.user_attrs
            if attrs.get("number") == number and attrs.get("lost") and "settings" in attrs:
                settings = json.loads(attrs["settings"])
                break
        if settings is None and self.listed:
            settings = self.listed[number]
        settings = self._suggest(key, number, settings)
        self.storage.set_trial_user_attr(key, "settings", json.dumps(settings))
        return Trial(number, settings, key)

    def _suggest(self, key: int, number: int, given: Settings | None) -> Settings:
        """Draw by a sampler whose seed is the trial's own, so that it does not depend on kills."""
        from transforms.keyed import seed_of

        seed = seed_of("sweep", self.plan.sweep.seed, number) % 2**32
        sampler: optuna.samplers.BaseSampler
        if given is None:
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        else:
            fixed = {
                name: flow(given[name]) if isinstance(space, list) else given[name]
                for name, space in self.plan.sweep.params.items()
            }
            inner = optuna.samplers.RandomSampler(seed=seed)
            sampler = optuna.samplers.PartialFixedSampler(fixed, inner)
        trial = optuna.trial.Trial(self._fresh(sampler), key)
        settings: Settings = {}
        for name, space in self.plan.sweep.params.items():
            if isinstance(space, list):
                choices = {flow(choice): choice for choice in space}
                settings[name] = choices[trial.suggest_categorical(name, list(choices))]
            elif space.is_whole:
                settings[name] = trial.suggest_int(
                    name, int(space.low), int(space.high), step=int(space.step or 1), log=space.log
                )
            else:
                settings[name] = trial.suggest_float(
                    name, space.low, space.high, step=space.step, log=space.log
                )
        return settings

    def _fresh(self, sampler: "optuna.samplers.BaseSampler | None" = None) -> "optuna.Study":
        """The study as it is now: one that was read before keeps the trials that it saw."""
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)

    def report(self, trial: Trial, values: dict[int, float]) -> bool:
        """Tell a trial's values after epochs; whether the pruner would stop it."""
        assert trial.key is not None
        with self._in_plain_words():
            known = self.storage.get_trial(trial.key).intermediate_values
            for epoch, value in values.items():
                if epoch not in known:
                    self.storage.set_trial_intermediate_value(trial.key, epoch, value)
            found = self.storage.get_trial(trial.key)
            if not found.intermediate_values:
                return False
            return _pruner(self.plan).prune(self._fresh(), found)

    def tell(self, trial: Trial, rows: Sequence[dict[str, Any]], value: float | None) -> None:
        """Tell how a trial ended; nothing where that was told already."""
        assert trial.key is not None
        states = {row["status"] for row in rows}
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with self._in_plain_words():
            if "pruned" in states:
                reached = self.storage.get_trial(trial.key).intermediate_values
                value = reached[max(reached)] if reached else value
                state = TrialState.PRUNED
            try:
                self.storage.set_trial_user_attr(trial.key, "runs", json.dumps(list(rows)))
                self.storage.set_trial_state_values(
                    trial.key, state, None if value is None else [value]
                )
            except RuntimeError:
                pass  # another worker of this folder, or it was held to be lost

    def alive(self, trials: Sequence[Trial]) -> None:
        """A sign of life for machines that do not see this folder's claims."""
        if self.plan.sweep.storage is None or time.monotonic() - self.told_alive < ALIVE_EVERY:
            return
        self.told_alive = time.monotonic()
        with self._in_plain_words():
            for key in {trial.key for trial in trials if trial.key is not None}:
                try:
                    self.storage.set_trial_user_attr(key, "alive", time.time())
                except RuntimeError:
                    pass

    def others(self) -> int:
        """How many trials other folders work on. One without a sign of life is given up."""
        count, now = 0, time.monotonic()
        for found in self.counted().values():
            if found.state != TrialState.RUNNING or self._is_mine(found):
                continue
            key, sign = found._trial_id, found.user_attrs.get("alive")
            # The other machine's clock may be wrong: what counts is that its sign changes.
            last, seen = self.signs.setdefault(key, (sign, now))
            if last != sign:
                self.signs[key] = sign, now
            elif now - seen > LOST_AFTER:
                with self._in_plain_words():
                    self._give_up(key)
                continue
            count += 1
        return count

    def everything(self) -> list[tuple[Trial, list[dict[str, Any]] | None]]:
        """Every trial; those of other folders with the ends that were told."""
        result: list[tuple[Trial, list[dict[str, Any]] | None]] = []
        for found in self.counted().values():
            if "settings" in found.user_attrs:
                elsewhere = None
                if not self._is_mine(found):
                    elsewhere = json.loads(found.user_attrs.get("runs", "[]"))
                result.append((self._trial(found), elsewhere))
        return result


def _pruner(plan: Plan) -> "optuna.pruners.BasePruner":
    chosen = plan.sweep.prune
    if chosen is None:
        return optuna.pruners.NopPruner()
    arguments = chosen.model_dump(exclude={"name"})
    pruner: optuna.pruners.BasePruner = getattr(optuna.pruners, chosen.name)(**arguments)
    return pruner
