"""The work of a sweep: a worker claims one run after another and starts a process for each.

The process is `python -m trainer.train`; if it crashes, the sweep goes on. Worker and process both
hold the claim to the run: if the worker is killed, no other worker can write to the run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trainer.comparing.listing import inspect_run, read_object, short
from trainer.process.console import Say, duration
from trainer.process.errors import RunError
from trainer.process.exits import Exit
from trainer.process.lock import is_held
from trainer.process.stop import StopRequest
from trainer.process.words import visible
from trainer.run import disk
from trainer.sweeping import process
from trainer.sweeping.folder import Member, Trial, claim, end_of, ended, members_of, newest_run
from trainer.sweeping.hparams import write_hparams
from trainer.sweeping.page import sweep_page
from trainer.sweeping.plan import Plan
from trainer.sweeping.results import Row, sweep_csv, sweep_json, value_of
from trainer.sweeping.trials import Listed, Trials

STARTS = 3  # starts of a run that is killed each time, for example for lack of memory
LOOK_EVERY = 0.1  # seconds between two looks at the processes
LOOK_SOON = 0.02  # seconds, where the next run may begin before one ends
ASK_EVERY = 2.0  # seconds between two searches for runs that other workers have left


def notes_on_data(run: Path) -> list[str]:
    """What a run told of its data: the first line of each note, and how many images it left out."""
    dataset = read_object(run / "result.json")[0].get("dataset")
    if not isinstance(dataset, dict):
        return []
    notes = [str(note).partition("\n")[0] for note in dataset.get("notes") or ()]
    left_out = len(dataset.get("left_out") or ())
    notes += [f"{left_out:,} images could not be read and were left out"] if left_out else []
    return [note for note in notes if not note.startswith("  ")]  # a line of an example


@dataclass
class Slot:
    """A run in progress: its claim, its process, and the size of its metrics.jsonl.

    passed_on: when it had trained and been tested, and so the next run could begin; 0.0 before.
    """

    member: Member
    claim: IO[str]
    process: process.Process
    place: int  # from 0 to jobs - 1; chooses the GPU
    first_length: int  # bytes when the process began
    length: int  # bytes at the last look
    written: int  # when its result.json had been written at the last look
    passed_on: float = 0.0
    began: float = field(default_factory=time.monotonic)
    pruned: bool = False


class Work:
    """One worker of a sweep: does ``starter.jobs`` runs at once until none is left.

    On a CPU, as many more may be at their end: they only draw and write, while the next ones train.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        trials: Trials,
        starter: process.Starter,
        say: Say,
        show: Callable[[Trial], None],
    ) -> None:
        """``show`` is called when a trial has ended."""
        self.plan, self.folder, self.trials, self.starter = plan, folder, trials, starter
        self.say, self.show = say, show
        self.overlaps = isinstance(trials, Listed)  # a search waits for each result
        self.slots: list[Slot] = []
        self.over: set[int] = set()  # numbers of trials that ended
        self.ends: dict[str, dict[str, Any]] = {}  # content of end.json, by the run's name
        self.starts: dict[str, int] = {}  # how often each run was started, by its name
        self.seconds: list[float] = []  # from each run that was done here to the next
        self.wall: dict[str, float] = {}  # seconds of each run's processes here, by its name
        self.asked = 0.0  # time of the last search for runs
        self.waiting = self.said_waiting = False
        self.written = self.writing = 0.0  # when results were last written, and how long it took

    def run(self, stop: StopRequest) -> None:
        """Do runs until all have ended. On a stop, raises Stopped after the runs have saved."""
        try:
            while True:
                stop.check()
                changed = self._look_after()
                while len(self._busy()) < self.starter.jobs and (found := self._next(changed)):
                    self._start(*found)
                    stop.check()
                if not self.slots and not self.waiting and not changed:
                    return
                self.trials.alive([slot.member.trial for slot in self.slots])
                seconds = LOOK_SOON if self.overlaps and self._busy() else LOOK_EVERY
                process.wait_for_one([slot.process for slot in self.slots], seconds)
        except BaseException:
            self._leave()
            raise

    def _busy(self) -> list[Slot]:
        """The runs in progress without those that are at their end."""
        return [slot for slot in self.slots if not slot.passed_on]

    def _next(self, at_once: bool) -> tuple[Member, IO[str]] | None:
        """Claim a run that no worker does; return it and its claim, or None if there is none.

        Also report trials whose runs have all ended, and set ``waiting``: whether other workers
        still do runs. Without ``at_once``, search only every ASK_EVERY seconds.
        """
        if not at_once and time.monotonic() - self.asked < ASK_EVERY and self.asked:
            return None
        self.asked = time.monotonic()
        while True:
            others = 0
            for trial in self.trials.known():
                if trial.number in self.over:
                    continue
                left = self._left(trial)
                if not left:
                    self._report_end(trial)
                for member in left:
                    if (taken := claim(self.folder / member.name)) is None:
                        others += 1
                        continue
                    run = newest_run(self.folder / member.name)
                    if run is not None and is_held(run):  # a person has resumed it by hand
                        others += 1
                    elif self._end(member) is None and not self._is_done(member):
                        return member, taken
                    taken.close()
                if left and not self._left(trial):
                    self._report_end(trial)
            if (asked := self.trials.ask()) is None:
                break
            self.over.discard(asked.number)
        mine = len(self.slots)
        others += self.trials.others() - mine
        self.waiting = others > 0
        if self.waiting and not mine and not self.said_waiting:
            self.said_waiting = True
            self.say(f"note    waiting for {others} run{'s' * (others != 1)} of other workers")
        return None

    def _left(self, trial: Trial) -> list[Member]:
        """The runs of a trial that have not ended and may begin."""
        members = members_of(self.plan, trial)
        if self.plan.sweep.prune is not None:  # the first run decides whether the others begin
            first = self._end(members[0])
            if first is None:
                return members[:1]
            if first["status"] == "pruned":
                return []
        return [member for member in members if self._end(member) is None]

    def _end(self, member: Member) -> dict[str, Any] | None:
        if member.name not in self.ends and (end := ended(self.folder / member.name)):
            self.ends[member.name] = end
        return self.ends.get(member.name)

    def _is_done(self, member: Member) -> bool:
        """Whether a run is done but has no end.json, which is then written."""
        run = newest_run(self.folder / member.name)
        if run is None:
            return False
        if inspect_run(run).status != "done":
            return False
        self._write_end(member, end_of(run, self.plan.monitor, "done"))
        return True

    def _write_end(self, member: Member, end: dict[str, Any]) -> None:
        disk.write_json(self.folder / member.name / "end.json", end)
        self.ends[member.name] = end

    def _report_end(self, trial: Trial) -> None:
        """Report to ``trials`` that a trial has ended; show it if a run of it was done here."""
        rows = [
            {"seed": member.seed, "fold": member.fold, **end}
            for member in members_of(self.plan, trial)
            if (end := self._end(member)) is not None
        ]
        self.trials.tell(trial, rows, value_of(rows))
        self.over.add(trial.number)
        if any(member.name in self.starts for member in members_of(self.plan, trial)):
            self.show(trial)

    def _start(self, member: Member, taken: IO[str]) -> None:
        """Start the process of a run, which begins or resumes the run."""
        folder = self.folder / member.name
        run = newest_run(folder)
        length, written = process.metrics_length(run), process.when_written(run)
        place = min(set(range(self.starter.jobs)) - {slot.place for slot in self._busy()})
        self.starts[member.name] = self.starts.get(member.name, 0) + 1
        command = process.train_command(self.plan, self.folder, member)
        others = [slot.claim for slot in self.slots]
        child = self.starter.start(command, folder / "log.txt", place, taken, others)
        self.slots.append(Slot(member, taken, child, place, length, length, written))

    def _look_after(self) -> bool:
        """Handle processes that ended, and prune trials. Returns whether to search for new runs."""
        changed = not self.asked
        for slot in list(self.slots):
            code = slot.process.poll()
            self._prune(slot, code)
            if code is not None:
                self.slots.remove(slot)
                try:
                    self._ended(slot, code)
                finally:
                    slot.claim.close()
                changed = True
            elif self.overlaps and not slot.passed_on:
                changed = self._pass_on(slot) or changed
        return changed

    def _pass_on(self, slot: Slot) -> bool:
        """Whether the next run may begin, because this one only draws and writes from now on."""
        run = newest_run(self.folder / slot.member.name)
        if run is None or len(self.slots) - len(self._busy()) >= self.starter.jobs:
            return False
        if (written := process.when_written(run)) == slot.written:
            return False  # also what the run itself left when it was killed
        slot.written = written
        if process.only_writes(run) and process.has_room_beside(slot.process):
            slot.passed_on = time.monotonic()
            process.step_back(slot.process)
        return bool(slot.passed_on)

    def _prune(self, slot: Slot, code: int | None) -> None:
        """Report the values of a trial's first run; ask the run to stop if the pruner says so."""
        first = members_of(self.plan, slot.member.trial)[0]
        if self.plan.sweep.prune is None or slot.pruned or slot.member.name != first.name:
            return
        run = newest_run(self.folder / slot.member.name)
        if run is None or process.metrics_length(run) == slot.length and code is None:
            return
        slot.length = process.metrics_length(run)
        stopped = self.trials.report(slot.member.trial, process.values_of(run, self.plan.monitor))
        if stopped and code is None:
            slot.pruned = True
            slot.process.terminate()

    def _ended(self, slot: Slot, code: int) -> None:
        """Write end.json after the process of a run has ended, unless the run will be resumed."""
        member, run = slot.member, newest_run(self.folder / slot.member.name)
        monitor, now = self.plan.monitor, time.monotonic()
        seconds = now - slot.began
        self.wall[member.name] = self.wall.get(member.name, 0.0) + seconds
        if code == 0 and run is not None:
            end = end_of(run, monitor, "done")
            for note in [] if self.seconds else notes_on_data(run):  # each run has the same data
                self.say(f"note    {visible(note)}")
            self.seconds.append((slot.passed_on or now) - slot.began)
            if len(self.plan.members) > 1:
                self.say(f"  {member.name}  {monitor} {short(end['value'])}")
        elif slot.pruned and (code == Exit.STOPPED or code < 0):
            end = end_of(run, monitor, "pruned")
        elif code == Exit.STOPPED or code < 0:
            grown = code == Exit.STOPPED and process.metrics_length(run) > slot.first_length
            self.starts[member.name] = 0 if grown else self.starts[member.name]
            if self.starts[member.name] < STARTS:
                return  # it will be resumed
            what = f"killed by signal {-code}" if code < 0 else "stopped"
            end = end_of(run, monitor, "failed", f"{what}, {STARTS} times")
        else:
            reason = process.reason_of(self.folder / member.name, run, code)
            end = end_of(run, monitor, "failed", f"exit code {code}: {reason}")
            if len(self.plan.members) > 1:  # the trial's line gives the reason
                self.say(f"  {member.name}  failed")
        self._write_end(member, end | {"wall_seconds": self.wall[member.name]})

    def _leave(self) -> None:
        """Ask all processes to save and to end, and wait for them."""
        for slot in self.slots:
            slot.process.terminate()
        if self.slots:
            saving = "1 run saves what it has"
            if (count := len(self.slots)) != 1:
                saving = f"{count} runs save what they have"
            self.say(f"note    stopping; {saving}")
        for slot in self.slots:
            code = slot.process.wait()
            if code == 0 or slot.pruned:
                self._ended(slot, code)
            slot.claim.close()
        self.slots = []

    def time_left(self, runs: int) -> str:
        """The expected duration of ``runs`` more runs, from those done here; "" if none was."""
        if not self.seconds:
            return ""
        each = sum(self.seconds) / len(self.seconds)
        return duration(each * runs / min(self.starter.jobs, max(runs, 1)))


def join_folds(plan: Plan, folder: Path, rows: Sequence[Row]) -> list[str]:
    """Write tNNN/predictions.csv of each trial with folds that is done; return lines on them."""
    from trainer.comparing.head_to_head import NotPaired

    if plan.sweep.folds is None:
        return []
    written: dict[str, list[str]] = {}  # trials by what is told of their files
    for row in rows:
        if row.status == "done":
            try:
                what = join_trial(folder, row)
            except (NotPaired, RunError) as error:
                what = f"not joined: {str(error).rstrip('.')}"
            written.setdefault(what, []).append(f"t{row.number:03d}")
    return [f"folds   {', '.join(names)}: {visible(what)}" for what, names in written.items()]


def join_trial(folder: Path, row: Row) -> str:
    """Write the joined answers of a trial's folds; return what the file holds."""
    from trainer.comparing.folds import answers_in, out_of_fold
    from trainer.comparing.grown import note_on_seen
    from trainer.comparing.predictions import PREDICTIONS, fill_table, read_predictions

    target = folder / f"t{row.number:03d}" / PREDICTIONS
    runs = {(end["seed"], end["fold"]): folder / end["run"] for end in row.runs}
    tables = {key: read_predictions(run / PREDICTIONS) for key, run in runs.items()}
    cards = {key: read_object(run / "model.json")[0] for key, run in runs.items()}
    limits = {key: card.get("thresholds") for key, card in cards.items()}
    table = out_of_fold(tables, limits)
    answers = answers_in(table, has_several=any(limits.values()))
    disk.make_output_folder(target.parent)
    disk.write_with(target, lambda file: fill_table(file, target.suffix, table.classes, answers))
    part, seeds = table.parts[0], len({seed for seed, _ in runs})
    mean = f", the mean over {seeds} seeds" if seeds > 1 else ""
    left_out = "" if part == "test" else "; without the official test images, which no fold has"
    what = f"{len(table):,} images, each once, by the model of the fold that had it in {part}"
    seen = note_on_seen(runs.values(), part)
    return f"tNNN/{PREDICTIONS} has {what}{mean}{left_out}{seen and f'; {seen}'}"


def write_results(plan: Plan, folder: Path, rows: Sequence[Row]) -> None:
    """Write sweep.json, sweep.csv, sweep.html and TensorBoard's HPARAMS table."""
    disk.write_json(folder / "sweep.json", sweep_json(plan, rows))
    disk.write_file(folder / "sweep.csv", sweep_csv(plan, rows))
    disk.write_file(folder / "sweep.html", sweep_page(plan, rows))
    write_hparams(plan, folder, rows)
