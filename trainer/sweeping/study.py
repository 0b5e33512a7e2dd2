"""The trials of a sweep in an Optuna study, which is a journal file.

A trial of the study holds its number in the sweep ("number"), its settings, and the folder whose
workers train its runs. If two trials have the same number, the first one counts.
Akiba et al., 2019, "Optuna"; Bergstra et al., 2011, for the Tree-structured Parzen Estimator.
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

ALIVE_EVERY = 30.0  # seconds between two signs of life of a folder
LOST_AFTER = 300.0  # seconds without a sign; then another folder repeats the trial


class _Lock:
    """The lock of a journal. The system frees it if its process is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.held = locked(self.path)
        self.held.__enter__()
        return True

    def release(self) -> None:
        """Free the lock."""
        self.held.__exit__(None, None, None)


class Study:
    """The trials of a study, with the methods of ``trainer.sweeping.trials.Listed``."""

    def __init__(self, plan: Plan, folder: Path, identity: str) -> None:
        """Open or create the study; raises RunError if the storage cannot be reached."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan, self.folder, self.identity = plan, folder, identity
        self.name = plan.file.name
        self.listed = [] if plan.sweep.method == "tpe" else points(plan.sweep)
        self.many = len(self.listed) or plan.sweep.trials or 0
        self.signs: dict[int, tuple[Any, float]] = {}  # key of a trial -> last sign, time
        self.last_sign = 0.0
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
        """Raise RunError if the study belongs to another sweep of the same name."""
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
        """Raise RunError if the journal cannot be used; suppress Optuna's warnings."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except (OSError, ValueError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            where = self.plan.sweep.storage or "study.journal"
            raise RunError(f"sweep.storage {where}: {reason}") from None

    def counted(self) -> dict[int, FrozenTrial]:
        """The study's trials by their number in the sweep, without lost ones and duplicates."""
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
        """The running trials of this folder."""
        return [
            self._trial(found)
            for found in self.counted().values()
            if found.state == TrialState.RUNNING
            and self._is_mine(found)
            and "settings" in found.user_attrs
        ]

    def ask(self) -> Trial | None:
        """The next trial; a half-made one of this folder comes first. None if all are taken."""
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
                self._give_up(key)  # another machine took the number first

    def _give_up(self, key: int) -> bool:
        """Mark a trial as lost; returns False if another process has ended it already."""
        try:
            self.storage.set_trial_user_attr(key, "lost", True)
            self.storage.set_trial_state_values(key, TrialState.FAIL)
        except RuntimeError:
            return False
        return True

    def _settle(self, key: int, number: int) -> Trial:
        """Give a new trial its settings: those of a lost trial of its number, or new ones."""
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
        """Draw settings, or store ``given`` ones. ``number`` is the seed: kills change no draw."""
        from transforms.keyed import seed_of

        seed = seed_of("sweep", self.plan.sweep.seed, number) % 2**32
        sampler: optuna.samplers.BaseSampler
        if given is None:
            # All in full: a default of another version would change the draws of a sweep.
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                multivariate=True,
                constant_liar=True,
                n_startup_trials=10,
                n_ei_candidates=24,
                group=False,
            )
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
        """The study read anew, because an Optuna study caches its trials."""
        return optuna.load_study(study_name=self.name, storage=self.storage, sampler=sampler)

    def report(self, trial: Trial, values: dict[int, float]) -> bool:
        """Store a trial's values by epoch; returns whether the pruner would stop it."""
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
        """Store the end of a trial, unless it is stored already."""
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
                pass  # another worker was first, or the trial was given up

    def alive(self, trials: Sequence[Trial]) -> None:
        """Write a sign of life for machines that cannot read this folder's claims."""
        if self.plan.sweep.storage is None or time.monotonic() - self.last_sign < ALIVE_EVERY:
            return
        self.last_sign = time.monotonic()
        with self._in_plain_words():
            for key in {trial.key for trial in trials if trial.key is not None}:
                try:
                    self.storage.set_trial_user_attr(key, "alive", time.time())
                except RuntimeError:
                    pass

    def others(self) -> int:
        """The number of trials that other folders run. Those without a sign of life are lost."""
        count, now = 0, time.monotonic()
        for found in self.counted().values():
            if found.state != TrialState.RUNNING or self._is_mine(found):
                continue
            key, sign = found._trial_id, found.user_attrs.get("alive")
            # The other machine's clock may be wrong, so only a change of its sign counts.
            last, since = self.signs.setdefault(key, (sign, now))
            if last != sign:
                self.signs[key] = sign, now
            elif now - since > LOST_AFTER:
                with self._in_plain_words():
                    self._give_up(key)
                continue
            count += 1
        return count

    def everything(self) -> list[tuple[Trial, list[dict[str, Any]] | None]]:
        """Every trial; those of other folders with their stored runs."""
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
    # Also in full, with what a YAML cannot set.
    arguments |= {"bootstrap_count": 0} if "min_resource" in arguments else {"n_min_trials": 1}
    pruner: optuna.pruners.BasePruner = getattr(optuna.pruners, chosen.name)(**arguments)
    return pruner
