"""Known bugs as patches: what harm each would do to a user, and which tests must notice it."""

from typing import NamedTuple


class Sabotage(NamedTuple):
    """In ``file``, ``old`` (which occurs once) becomes ``new``; one of ``tests`` must then fail."""

    name: str
    harm: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CHECKPOINT = ("tests/test_checkpoint.py",)
TRAINING = "tests/test_training.py::"
EXACT = f"{TRAINING}test_a_run_stopped_by_sigterm_and_resumed_equals_one_that_never_stopped"
STOP = "tests/test_stop.py::"
BUDGET = f"{STOP}test_a_budget_that_is_used_up_stops_a_run_as_a_signal_does[1]"
ANY_PHASE = f"{STOP}test_a_signal_in_any_phase_of_a_run_saves_within_a_step_and_tells_how_to_go_on"
GUARD = "tests/test_guard.py::"
NO_TRACE = f"{GUARD}test_a_step_left_out_leaves_no_trace_in_weights_optimizer_or_batch_norm"
NOT_TAKEN = f"{GUARD}test_a_step_that_is_no_number_is_not_taken_and_is_named_with_its_images"
RESUME = "tests/test_resume.py::"
CENSUS = f"{RESUME}test_everything_that_a_run_keeps_in_memory_is_in_its_checkpoint"
THRICE = f"{RESUME}test_stopped_three_times_within_two_epochs_a_run_is_still_the_same"
WORKERS = "tests/test_data_path.py::test_a_signal_to_the_whole_group_leaves_the_workers"
AHEAD = "tests/test_workers.py::test_"
ARCHITECTURE = "tests/test_architecture.py::"
SEVERAL = "tests/test_distributed.py::"
PROCESSES = "tests/test_processes.py::"
ARCHIVE = (
    "tests/test_hostile_archives.py::"
    "test_a_hostile_archive_is_refused_in_one_sentence_at_once_and_leaves_nothing"
)

STORED = "tests/test_store.py::"
FILES = "tests/test_file_index.py::"
KEYS = "tests/test_store_key.py::"
OWN_IMAGE = '    return has_halves and ("image" not in vars(owner) or names <= vars(owner).keys())'

SABOTAGES = [
    # --- on the disk ------------------------------------------------------------------------------
    Sabotage(
        "no fsync of files",
        "a power cut leaves checkpoints of zero bytes",
        "trainer/run/disk.py",
        "                os.fsync(descriptor)\n        finally:",
        "                pass\n        finally:",
        CHECKPOINT,
    ),
    Sabotage(
        "no fsync of the folder of a file",
        "a power cut takes a file's new name away",
        "trainer/run/disk.py",
        "        sync_folder(final.parent)\n    return digest.entry()",
        "        pass\n    return digest.entry()",
        CHECKPOINT,
    ),
    Sabotage(
        "no fsync of the folder of a new folder",
        "a power cut takes a whole run away",
        "trainer/run/disk.py",
        "    os.mkdir(path)\n    sync_folder(path.parent)",
        "    os.mkdir(path)",
        CHECKPOINT,
    ),
    Sabotage(
        "no fsync of the folder of runs",
        "a power cut takes all runs of a new name away",
        "trainer/run/folder.py",
        "        disk.sync_folder(runs)\n",
        "",
        CHECKPOINT,
    ),
    Sabotage(
        "no fsync after a checkpoint's rename",
        "a power cut takes the newest checkpoint after older ones were pruned",
        "trainer/run/checkpoint.py",
        "        disk.sync_folder(folder)\n",
        "",
        CHECKPOINT,
    ),
    Sabotage(
        "file written in place",
        "a kill while a file is written leaves half of it",
        "trainer/run/disk.py",
        '    temporaries = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]\n',
        "    temporaries = paths\n",
        CHECKPOINT,
    ),
    Sabotage(
        "half-written file left behind",
        "a full disk stays full of what could not be written",
        "trainer/run/disk.py",
        "            temporary.unlink(missing_ok=True)\n        if isinstance(error, OSError):",
        "            pass\n        if isinstance(error, OSError):",
        CHECKPOINT,
    ),
    Sabotage(
        "one write taken for all",
        "files are cut where the system takes less than was asked",
        "trainer/run/disk.py",
        "    while view:\n        view = view[os.write(descriptor, view) :]",
        "    os.write(descriptor, view)",
        CHECKPOINT,
    ),
    Sabotage(
        "digest of what the disk holds",
        "a bad write is certified as good",
        "trainer/run/checkpoint.py",
        "        disk.write_json(temporary / MANIFEST, manifest)\n",
        "        for name in files:\n"
        '            files[name] |= {"sha256": disk.sha256_of(temporary / name)}\n'
        '        manifest["sha256"] = digest_of(manifest)\n'
        "        disk.write_json(temporary / MANIFEST, manifest)\n",
        CHECKPOINT,
    ),
    Sabotage(
        "writes follow links",
        "a link in a run folder makes the trainer overwrite any file of the user's",
        "trainer/process/lock.py",
        'PLAIN_FILE = getattr(os, "O_NOFOLLOW", 0) | ',
        "PLAIN_FILE = ",
        CHECKPOINT,
    ),
    # --- checkpoints ------------------------------------------------------------------------------
    Sabotage(
        "rename before manifest",
        "a kill leaves a checkpoint without manifest",
        "trainer/run/checkpoint.py",
        "        disk.write_json(temporary / MANIFEST, manifest)\n"
        "        disk.rename(temporary, final)\n",
        "        disk.rename(temporary, final)\n"
        "        disk.write_json(final / MANIFEST, manifest)\n",
        CHECKPOINT,
    ),
    Sabotage(
        "prune before commit",
        "a kill or a full disk while saving leaves no checkpoint at all",
        "trainer/run/checkpoint.py",
        "        disk.rename(temporary, final)\n",
        "        for old in checkpoints(run):\n"
        "            remove(old)\n"
        "        disk.rename(temporary, final)\n",
        CHECKPOINT,
    ),
    Sabotage(
        "prune by clock",
        "a clock that jumped makes the trainer prune its newest checkpoint",
        "trainer/run/checkpoint.py",
        "for _, _, path in sorted(found)]",
        "for _, _, path in sorted(found, key=lambda item: item[2].stat().st_mtime)]",
        CHECKPOINT,
    ),
    Sabotage(
        "steps sorted as text",
        "from a billion steps on an old checkpoint is taken for the newest",
        "trainer/run/checkpoint.py",
        "for _, _, path in sorted(found)]",
        "for _, _, path in sorted(found, key=lambda item: item[2].name)]",
        CHECKPOINT,
    ),
    Sabotage(
        "the new one pruned",
        "a stale checkpoint of a later step makes the trainer remove what it just saved",
        "trainer/run/checkpoint.py",
        "        if old != final:",
        "        if True:",
        CHECKPOINT,
    ),
    Sabotage(
        "damaged checkpoint accepted",
        "a run goes on from flipped bits",
        "trainer/run/checkpoint.py",
        '        if disk.sha256_of(path) != entry["sha256"]:',
        "        if False:",
        CHECKPOINT,
    ),
    Sabotage(
        "damaged manifest accepted",
        "a run forgets its best weights by one flipped bit",
        "trainer/run/checkpoint.py",
        '    if manifest.get("sha256") != digest_of(manifest):',
        "    if False:",
        CHECKPOINT,
    ),
    Sabotage(
        "begins anew where all are damaged",
        "weeks of training are overwritten without a word",
        "trainer/run/checkpoint.py",
        "    if folders:\n        raise",
        "    if False:\n        raise",
        CHECKPOINT,
    ),
    Sabotage(
        "damaged ones count among those to keep",
        "good checkpoints are pruned in favour of damaged ones",
        "trainer/run/checkpoint.py",
        "                for other in damaged:",
        "                for other in damaged[:0]:",
        CHECKPOINT,
    ),
    Sabotage(
        "a second state replaces the first",
        "a kill while a step is saved again loses both",
        "trainer/run/checkpoint.py",
        "        if not os.path.lexists(final):\n            break\n",
        "        shutil.rmtree(final, ignore_errors=True)\n        break\n",
        CHECKPOINT,
    ),
    Sabotage(
        "checkpoints behind a link",
        "pruning removes folders elsewhere",
        "trainer/run/checkpoint.py",
        "    if folder.is_symlink():",
        "    if False:",
        CHECKPOINT,
    ),
    Sabotage(
        "the last bytes of a file not written",
        "no checkpoint can be read again",
        "trainer/run/disk.py",
        "                digest.flush()\n",
        "",
        CHECKPOINT,
    ),
    # --- the best weights -------------------------------------------------------------------------
    Sabotage(
        "best.pt forgotten",
        "after a kill a run ends with the weights of another epoch than it says",
        "trainer/run/checkpoint.py",
        "        if best_entry and best_entry != weights:",
        "        if False:",
        CHECKPOINT,
    ),
    Sabotage(
        "best.pt is model.pt by a second name",
        "whoever writes into model.pt damages every checkpoint",
        "trainer/run/checkpoint.py",
        '    if disk.copy_file(run / "model.pt", target) != best_entry:\n',
        '    os.link(run / "model.pt", target)\n    if False:\n',
        CHECKPOINT,
    ),
    Sabotage(
        "model.pt not brought back",
        "a resumed run judges weights that are ahead of its state",
        "trainer/run/checkpoint.py",
        "    if damage_of(weights, best_entry):",
        "    if not weights.exists():",
        CHECKPOINT,
    ),
    Sabotage(
        "best metric forgotten on resume",
        "a worse epoch overwrites the best weights",
        "trainer/loop/snapshot.py",
        "    steps = len(job.train_loader)\n",
        "    steps = len(job.train_loader)\n    state.best = {}\n",
        (CENSUS,),
    ),
    # --- exact resume -----------------------------------------------------------------------------
    Sabotage(
        "saved before the scheduler's step",
        "each resume delays the learning rate by a step",
        "trainer/loop/step.py",
        "        task.schedule.after_step()\n        yield guard.images\n",
        "        yield guard.images\n        task.schedule.after_step()\n",
        (f"{EXACT}[1-OneCycleLR]",),
    ),
    Sabotage(
        "optimizer not restored",
        "momentum begins anew with each resume",
        "trainer/loop/snapshot.py",
        "    job.optimizer.load_state_dict(optimizer)\n",
        "",
        (f"{EXACT}[1-LeNet]",),
    ),
    Sabotage(
        "early-stop counters forgotten",
        "a run that is often resumed never stops early",
        "trainer/loop/snapshot.py",
        "    steps = len(job.train_loader)\n",
        "    steps = len(job.train_loader)\n    state.stale_epochs = 0\n",
        (CENSUS,),
    ),
    Sabotage(
        "relative cursor",
        "the second resume within an epoch shows images again",
        "trainer/loop/epochs.py",
        "    stop.check()\n    for num_images in bar(",
        "    state.batch = 0\n    stop.check()\n    for num_images in bar(",
        (f"{THRICE}[batch norm]",),
    ),
    Sabotage(
        "epoch begins anew",
        "each resume shows the epoch's first images again",
        "trainer/loop/epochs.py",
        "job.train_loader.epoch(state.epoch, start=state.batch, then=then)",
        "job.train_loader.epoch(state.epoch, then=then)",
        (f"{EXACT}[1-LeNet]",),
    ),
    Sabotage(
        "dropout not seeded by step",
        "a resumed run draws other dropout",
        "trainer/distributed/micro_batches.py",
        "        reseed(device, seed_at(draws, step))  # a resumed",
        "        # a resumed",
        (f"{EXACT}[1-dropout]",),
    ),
    Sabotage(
        "dropout of micro-batches not seeded alike",
        "a batch in micro-batches draws other dropout than the whole one",
        "trainer/distributed/micro_batches.py",
        "                reseed(device, seed_at(draws, step))\n            forward",
        "            forward",
        (f"{PROCESSES}test_parts_of_a_batch_train_a_model_with_dropout_as_the_whole_one",),
    ),
    Sabotage(
        "augmentation drawn from torch's generator",
        "augmentation depends on workers, batches and resumes",
        "transforms/keyed.py",
        "        return _shift_right(self._next(), 11).to(torch.float64) * 2.0**-53"
        " * (high - low) + low",
        "        return torch.rand(len(self), dtype=torch.float64) * (high - low) + low",
        ("tests/test_keyed.py::test_every_draw_equals_plain_big_integer_arithmetic",),
    ),
    Sabotage(
        "order drawn from torch's generator",
        "a resumed epoch shows some images twice and others never",
        "transforms/keyed.py",
        "    return torch.argsort(words, stable=True)",
        "    return torch.randperm(n)",
        ("tests/test_keyed.py::test_permutation_is_a_function_of_seed_and_epoch",),
    ),
    Sabotage(
        "metrics.jsonl not cut",
        "after a kill lines stand twice",
        "trainer/run/disk.py",
        "        os.ftruncate(self._descriptor, length)\n"
        "        self.length = os.lseek(self._descriptor, length, os.SEEK_SET)",
        "        self.length = os.lseek(self._descriptor, 0, os.SEEK_END)",
        CHECKPOINT,
    ),
    Sabotage(
        "metrics.jsonl not on the disk",
        "a power cut leaves a state that counts on lines that are gone",
        "trainer/run/log.py",
        "        self.metrics.sync()\n",
        "",
        CHECKPOINT,
    ),
    Sabotage(
        "state seen before its metrics",
        "a power cut leaves a state that counts on lines that are gone",
        "trainer/run/saver.py",
        "            self.sync_log()\n",
        "",
        CHECKPOINT,
    ),
    Sabotage(
        "events not cut",
        "after a kill TensorBoard shows points twice",
        "trainer/run/events.py",
        "length if own else 0)",
        "own.stat().st_size if own else 0)",
        (f"{RESUME}test_killed_between_its_test_and_its_end_a_run_shows_the_test_once",),
    ),
    Sabotage(
        "strict=False",
        "a state of another model is loaded in part, the rest stays random",
        "trainer/loop/snapshot.py",
        "    job.model.load_state_dict(model)",
        "    job.model.load_state_dict(model, strict=False)",
        CHECKPOINT,
    ),
    Sabotage(
        "config drift accepted",
        "a resumed run is no longer what its config says",
        "trainer/run/resume.py",
        "        refuse_changes(began, config, MAY_CHANGE)\n",
        "        pass\n",
        (f"{TRAINING}test_resume_refuses_another_setting_and_shows_it",),
    ),
    Sabotage(
        "edited config accepted",
        "a run goes on with another loss than its state was made with",
        "trainer/loop/resume.py",
        "    if refused:",
        "    if False:",
        (f"{TRAINING}test_a_config_that_was_edited_in_the_run_folder_is_refused_on_resume",),
    ),
    Sabotage(
        "another split accepted",
        "after images were added a resumed run tests on what it trained on",
        "trainer/loop/resume.py",
        "    if digest != job.data.split_digest:",
        "    if False:",
        CHECKPOINT,
    ),
    # --- saving beside training -------------------------------------------------------------------
    Sabotage(
        "weights not copied",
        "a checkpoint holds weights of two steps",
        "trainer/loop/snapshot.py",
        "copied(weight, kept) if memory else copied(weight).contiguous()",
        "weight.detach()",
        CHECKPOINT,
    ),
    Sabotage(
        "optimizer not copied",
        "a checkpoint holds momentum of another step than its weights",
        "trainer/loop/snapshot.py",
        'return value.to("cpu", copy=True)',
        'return value.to("cpu")',
        CHECKPOINT,
    ),
    Sabotage(
        "a copy that is still being written is filled anew",
        "a checkpoint holds weights of two steps",
        "trainer/loop/record.py",
        "    saver.wait()  # one copy at a time, always in the same memory\n",
        "",
        CHECKPOINT,
    ),
    Sabotage(
        "errors of the saver swallowed",
        "a run on a full disk trains for days and saves nothing",
        "trainer/run/saver.py",
        "            pending.result()",
        "            pending.exception()",
        CHECKPOINT,
    ),
    Sabotage(
        "non-finite weights saved",
        "NaN rotates the last good checkpoint away",
        "trainer/run/saver.py",
        'tensors = (state["model"], ',
        "tensors = (",
        CHECKPOINT,
    ),
    Sabotage(
        "non-finite optimizer saved",
        "a run can be resumed only into NaN",
        "trainer/run/saver.py",
        'state["optimizer"], state.get',
        "state.get",
        CHECKPOINT,
    ),
    # --- the guard --------------------------------------------------------------------------------
    Sabotage(
        "guard looks after the step",
        "NaN is noticed when it is in the weights",
        "trainer/loop/step.py",
        "if guard.accepts(scaler):",
        "if guard.accepts(scaler) or True:",
        (f"{NO_TRACE}[AdamW-gradient-1]",),
    ),
    Sabotage(
        "guard ignores the gradient",
        "an infinite gradient of a finite loss ruins the weights",
        "trainer/loop/guard.py",
        "            values = [loss.item(), float(norm), ",
        "            values = [loss.item(), 0.0, ",
        (f"{NOT_TAKEN}[3-inf-gradient]",),
    ),
    Sabotage(
        "guard on a GPU ignores the gradient",
        "an infinite gradient of a finite loss ruins the weights",
        "trainer/loop/guard.py",
        "        bad = ~torch.isfinite(row[:2]).all()",
        "        bad = ~torch.isfinite(row[0])",
        (f"{NO_TRACE}[AdamW-gradient-64]",),
    ),
    Sabotage(
        "batch norm not brought back",
        "a step that was left out ruins the model's statistics",
        "trainer/loop/guard.py",
        "        self._buffers = list(model.buffers()) if restore else []",
        "        self._buffers = []",
        (f"{NO_TRACE}[AdamW-loss-1]",),
    ),
    # --- stopping ---------------------------------------------------------------------------------
    Sabotage(
        "handler acts in mid-step",
        "what is saved on a stop is half a step",
        "trainer/process/stop.py",
        "        if self._nothing_to_save:\n",
        "        if True:\n",
        (f"{ANY_PHASE}[Schedule-after_step-3-3-15]",),
    ),
    Sabotage(
        "first signal ignored",
        "a scheduler kills the run before it saves",
        "trainer/process/stop.py",
        "        if asked := self.agree(mine):\n",
        "        if asked := 0 * self.agree(mine):\n",
        (f"{EXACT}[1-LeNet]",),
    ),
    Sabotage(
        "second signal ignored",
        "Ctrl-C twice does not end a run",
        "trainer/process/stop.py",
        "                signal.signal(again, self._at_second)",
        "                signal.signal(again, signal.SIG_IGN)",
        (f"{STOP}test_the_second_signal_ends_the_process_at_once",),
    ),
    Sabotage(
        "budget ignored",
        "a scheduler's time limit kills the run before it saves",
        "trainer/process/stop.py",
        "        if budget is not None:",
        "        if False:",
        (BUDGET,),
    ),
    Sabotage(
        "exit code 0 of a stopped run",
        "a scheduler takes a stopped run for a finished one",
        "trainer/process/exits.py",
        "        return Exit.STOPPED",
        "        return Exit.DONE",
        (BUDGET,),
    ),
    Sabotage(
        "signals reach the workers",
        "Ctrl-C kills the workers, and the run fails instead of stopping",
        "trainer/input/worker.py",
        "        signal.signal(number, signal.SIG_IGN)\n",
        "        pass\n",
        (f"{WORKERS}_to_the_trainer",),
    ),
    Sabotage(
        "workers not ended",
        "a run with workers that fails never ends",
        "trainer/input/workers.py",
        "        connection.close()\n    for process in processes:\n        process.kill()\n",
        "        pass\n",
        (f"{RESUME}test_a_run_with_workers_that_fails_ends",),
    ),
    Sabotage(
        "read ahead for another epoch",
        "after a stop or a resume, batches of another epoch are shown",
        "trainer/input/workers.py",
        "            self._drop_all()\n",
        "            pass\n",
        (f"{AHEAD}no_number_of_workers_no_reading_ahead_and_no_resume_changes_a_bit",),
    ),
    Sabotage(
        "shared memory handed out",
        "a worker overwrites the labels of a batch that is still in use",
        "trainer/input/loader.py",
        "            yield workers.own(images), workers.own(labels)\n",
        "            yield images, labels\n",
        (f"{AHEAD}kept_batches_and_labels_are_not_overwritten",),
    ),
    # --- one folder, one writer -------------------------------------------------------------------
    Sabotage(
        "run folder taken twice",
        "two runs started in one second write into each other",
        "trainer/run/folder.py",
        "                disk.make_folder(run)\n",
        "                run.mkdir(exist_ok=True)\n",
        (f"{TRAINING}test_two_starts_in_one_second_get_two_folders",),
    ),
    Sabotage(
        "lock not taken",
        "two processes write one run",
        "trainer/process/lock.py",
        "else fcntl.LOCK_EX | fcntl.LOCK_NB",
        "else fcntl.LOCK_SH | fcntl.LOCK_NB",
        (f"{TRAINING}test_a_run_has_one_writer",),
    ),
    Sabotage(
        "lock inherited by workers",
        "after a kill a run cannot be resumed until its workers are gone",
        "trainer/run/folder.py",
        "        os.register_at_fork(after_in_child=lock.close)\n",
        "        pass\n",
        (f"{RESUME}test_workers_that_outlive_a_killed_trainer_do_not_hold_its_run",),
    ),
    # --- data -------------------------------------------------------------------------------------
    Sabotage(
        "classes sorted as text",
        "class 10 comes before class 2, and weights of before name the wrong classes",
        "datasets/image_folder.py",
        "sorted({sample.class_name for sample in samples}, key=natural)",
        "sorted({sample.class_name for sample in samples})",
        ("tests/test_datasets.py::test_class_folders_are_in_natural_order_and_may_be_nested",),
    ),
    Sabotage(
        "split by shuffle",
        "one more image moves others between training and test",
        "datasets/split.py",
        '    hashed = hashlib.sha256(f"{seed} {digest}".encode()).digest()\n',
        "    import random\n\n    hashed = random.randbytes(8)\n",
        ("tests/test_split.py::test_adding_files_moves_only_what_was_borrowed",),
    ),
    Sabotage(
        "truncated images loaded",
        "half-copied images are trained on as grey areas",
        "datasets/images.py",
        "FORMATS = (",
        "import PIL.ImageFile\n\nPIL.ImageFile.LOAD_TRUNCATED_IMAGES = True\nFORMATS = (",
        ("tests/test_images.py::test_a_truncated_file_is_broken_and_named",),
    ),
    Sabotage(
        "libjpeg's warnings ignored",
        "half-copied JPEGs are trained on as grey areas",
        "datasets/jpeg.py",
        'content, "RGB", min_height=height, min_width=width\n',
        'content, "RGB", min_height=height, min_width=width, strict=False\n',
        (
            "tests/test_images.py::test_a_truncated_file_is_broken_and_named",
            "tests/test_jpeg.py::test_a_jpeg_cut_off_anywhere_has_pillows_message",
        ),
    ),
    Sabotage(
        "JPEGs reduced below what is needed",
        "fast decoding makes images blurred",
        "datasets/jpeg.py",
        "if side >= max(at_least, _LEAST)",
        "if 2 * side >= max(at_least, _LEAST)",
        ("tests/test_jpeg.py::test_the_reduction_is_the_smallest_that_leaves_the_shorter_side",),
    ),
    Sabotage(
        "digests of new files forgotten",
        "other images are shown in the places of files that were written just now",
        "trainer/input/source.py",
        "            self.digests[new], self.known[new] = digests[new], True\n",
        "            self.digests[:], self.known[:] = digests, known\n",
        (
            "tests/test_source.py::test_each_sample_has_its_own_pixels_and_digest_whatever_it_is_split_by",
        ),
    ),
    # --- what a hostile file may do ---------------------------------------------------------------
    Sabotage(
        "weights_only=False",
        "a checkpoint of others runs its code",
        "models/tensor_file.py",
        'torch.load(file, map_location="cpu", weights_only=True, mmap=False)',
        'torch.load(file, map_location="cpu", weights_only=False, mmap=False)',
        ("tests/test_hostile_checkpoints.py::test_what_is_loaded_is_the_file_that_was_checked",),
    ),
    Sabotage(
        "YAML builds objects",
        "a configuration of others runs its code",
        "trainer/config/yaml_text.py",
        "    forbidden = yaml.reader.Reader.NON_PRINTABLE\n",
        "    yaml.unsafe_load(text)\n    forbidden = yaml.reader.Reader.NON_PRINTABLE\n",
        (f"{ARCHITECTURE}test_no_weights_are_unpickled_and_no_yaml_is_executed",),
    ),
    Sabotage(
        "YAML tags accepted",
        "what a tag asks for is dropped without a word",
        "trainer/config/yaml_text.py",
        "        if event.tag is not None:",
        "        if False:",
        ("tests/test_config.py::test_what_yaml_allows_and_we_do_not_is_told_alone",),
    ),
    Sabotage(
        "unknown keys ignored",
        "a misspelt key is no setting, and nobody says so",
        "trainer/config/settings.py",
        '        extra="forbid",',
        '        extra="ignore",',
        ("tests/test_config.py::test_one_typo_at_every_level_is_located",),
    ),
    Sabotage(
        "archive unpacked as it is",
        "an archive of others writes anywhere",
        "datasets/archive.py",
        "        partial.mkdir(parents=True)\n",
        "        partial.mkdir(parents=True)\n"
        "        if tarfile.is_tarfile(archive):\n"
        '            tarfile.open(archive).extractall(partial, filter="tar")\n',
        (f"{ARCHIVE}[tar: symbolic link, then through it]",),
    ),
    Sabotage(
        "environment dumped",
        "passwords are published with a run",
        "trainer/run/environment.py",
        '        "cpu_count": os.cpu_count(),\n',
        '        "cpu_count": os.cpu_count(),\n        "environment": dict(os.environ),\n',
        ("tests/test_hostile_input.py::test_no_secret_reaches_an_artifact_of_a_run",),
    ),
    # --- several processes, averages, repeated images ---------------------------------------------
    Sabotage(
        "shares of a batch weigh alike",
        "a short batch's images count more in one process than in another",
        "trainer/distributed/micro_batches.py",
        "weight, weight * shares.ranks, size",
        "weight, float(weight > 0), size",
        (f"{SEVERAL}test_a_batch_of_fewer_images_than_processes_counts_each_once",),
    ),
    Sabotage(
        "each process judges all",
        "images are counted twice in the metrics",
        "trainer/distributed/shares.py",
        "        own = batches[self.rank :: self.ranks]\n",
        "        own = batches\n",
        (f"{SEVERAL}test_a_split_is_judged_exactly_as_by_one_process[2]",),
    ),
    Sabotage(
        "a signal is one process's own",
        "the others wait for one that is gone",
        "trainer/distributed/processes.py",
        "    stop.agree = agreed\n",
        "",
        (f"{SEVERAL}test_a_signal_to_any_process_saves_and_stops_all[1]",),
    ),
    Sabotage(
        "starts are not told apart",
        "after a restart a process looks for another at a dead one's address",
        "trainer/distributed/processes.py",
        "        store = of_this_start(store, number, count)\n",
        "",
        (f"{SEVERAL}test_a_rank_of_a_restart_finds_nothing_that_the_start_before_it_left",),
    ),
    Sabotage(
        "average not restored",
        "a resumed run judges another average",
        "trainer/loop/snapshot.py",
        '        job.average.load_state_dict(content["average"])\n',
        "        pass\n",
        (
            "tests/test_averages.py::"
            "test_stopped_in_mid_epoch_and_gone_on_with_a_run_is_the_same"
            "[average={name: EMA, decay: 0.9, every: 3st}]",
        ),
    ),
    Sabotage(
        "visits augmented alike",
        "a class of few images is shown the same crops again and again",
        "trainer/input/subset.py",
        " + (rows // len(self) << 40)",
        "",
        (
            "tests/test_sampling.py::"
            "test_an_image_that_comes_again_is_cropped_otherwise_and_first_as_when_shuffled",
        ),
    ),
    # --- prepared images --------------------------------------------------------------------------
    Sabotage(
        "pixels are not checked",
        "a damaged disk changes images that a run trains on",
        "trainer/input/pool.py",
        '        _check_pixels(pixels, manifest["pixels"])\n',
        "",
        (f"{STORED}test_damage_is_noticed_told_and_made_good[.pixels-flipped]",),
    ),
    Sabotage(
        "the time of any change does not count",
        "pixels that are damaged with their time put back are trained on",
        "trainer/input/pool.py",
        "[found.st_size, found.st_mtime_ns, found.st_ctime_ns]",
        "[found.st_size, found.st_mtime_ns]",
        (f"{STORED}test_damage_is_noticed_told_and_made_good[.pixels-flipped at the same time]",),
    ),
    Sabotage(
        "a file just written is remembered",
        "an image that is written twice within one tick stays the first one for ever",
        "trainer/input/file_index.py",
        " & (states[:, CHANGED] < began - RACY_NS)",
        "",
        (f"{FILES}test_a_file_written_within_two_seconds_before_it_was_read_is_not_remembered",),
    ),
    Sabotage(
        "a file's time of content alone counts",
        "an image that is replaced with its time put back stays the old one",
        "trainer/input/file_index.py",
        "(old_states[rows] == states).all(axis=1)",
        "(old_states[rows, :2] == states[:, :2]).all(axis=1)",
        (f"{FILES}test_a_file_changed_in_place_with_its_time_put_back_is_read_again",),
    ),
    Sabotage(
        "private attributes do not count",
        "a transform of one's own with another setting gets the images of the old one",
        "trainer/input/store.py",
        "        if name in OF_EACH_MODULE:\n",
        '        if name in OF_EACH_MODULE or name.startswith("_"):\n',
        (f"{KEYS}test_all_that_a_transform_holds_counts_private_or_not",),
    ),
    Sabotage(
        "a class's own image() is passed over",
        "a dataset that changes what its base class decodes trains on other images",
        "trainer/input/subset.py",
        OWN_IMAGE,
        "    return has_halves",
        (f"{KEYS}test_a_dataset_that_decodes_in_its_own_way_is_not_stored_and_works",),
    ),
    Sabotage(
        "a living writer's segment is removed",
        "two runs that start together spoil each other's images",
        "trainer/input/pool.py",
        "                hold(file)  # raises OSError while its writer lives\n",
        "",
        (f"{STORED}test_a_half_written_segment_is_ignored_and_removed_once_its_writer_is_gone",),
    ),
    Sabotage(
        "clearing removes the whole folder of indexes",
        "files of a user in a folder of this name are gone",
        "trainer/input/store.py",
        'self.root.glob("files/*.files")',
        'self.root.glob("files/*")',
        (f"{STORED}test_clearing_touches_only_what_the_store_has_made",),
    ),
]
