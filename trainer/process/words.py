"""Phrases for messages, and what other programs call what a YAML here names."""

import difflib
from collections.abc import Iterable
from typing import Any

# A name or value of a YAML: other words for it, as ``bare`` gives them.
_NAMES = {
    "CrossEntropyLoss": "ce xent softmax logloss categoricalcrossentropy cceloss",
    "BCEWithLogitsLoss": "bce binarycrossentropy",
    "MSELoss": "l2 l2loss meansquarederror",
    "L1Loss": "mae maeloss meanabsoluteerror",
    "CosineAnnealingLR": "cosine cos cosinedecay cosineannealingwarmrestarts cosinewithwarmup",
    "OneCycleLR": "1cycle",
    "accuracy": "acc top1 top1accuracy top1acc",
    "auroc": "auc rocauc aucroc rocaucscore",
    "calibration_error": "ece",
    "confusion_matrix": "cm",
    "macro_f1": "f1 f1score fscore f1macro",
    "precision": "ppv",
    "recall": "balancedaccuracy balancedacc sensitivity tpr uar",
    "top_k": "top5 topk top5accuracy top5acc",
    "ColorJitter": "colourjitter jitter brightnesscontrast randombrightnesscontrast",
    "Normalize": "normalise standardize normalization",
    "RandomErasing": "cutout coarsedropout",
    "RandomHorizontalFlip": "flip hflip fliplr mirror",
    "RandomRotation": "rotate",
    "RandomVerticalFlip": "vflip flipud",
    "Resize": "scale rescale",
    "Arrays": "npz npy numpy medmnist",
    "CSVImages": "dataframe",
    "ImageFolder": "folder",
    "Parquet": "huggingface hf",
    "Shards": "webdataset wds tar",
    "LeNet": "cnn",
    "EMA": "exponentialmovingaverage modelema",
    "auto": "gpu",  # takes one if there is one
    "cuda": "nvidia",
    "bf16": "bfloat16 bf16mixed amp mixed",
    "fp16": "half float16 16 16mixed",
    "fp32": "float float32 single full 32",
    "ram": "memory",
    "balanced": "weighted",
    "tpe": "bayes bayesian optuna bo",
    "shuffle": "random",
    "kaiming": "he msra",
    "xavier": "glorot",
}
# A setting: other words for it. ``=VALUE`` is what to write, with {} for the value that was given.
_SETTINGS = {
    "train.epochs": "epochs epoch nepochs numepochs maxepochs totalepochs numtrainepochs nbepochs",
    "loader.batch_size": "batch bs batchsize trainbatchsize minibatch minibatchsize "
    "perdevicetrainbatchsize",
    "loader.workers": "numworkers nworkers workers dataloadernumworkers",
    "loader.sampling=balanced": "sampler weightedsampler",
    "optimizer.lr": "learningrate lr lrate baselr initlr initiallr lr0 rate",
    "optimizer.weight_decay": "wd weightdecay l2",
    "seed": "seed randomseed randomstate manualseed",
    "dataset.root": "root path dir folder datadir dataroot datapath datafolder traindir "
    "imagedir imagefolder",
    "dataset": "dataset data datasets",
    "transforms.train=[RandomHorizontalFlip]": "augment augmentation augmentations",
    "transforms.train": "traintransforms traintransform trainaugment",
    "transforms.eval": "valtransforms testtransforms evaltransforms valtransform",
    "transforms": "transforms transform",
    "model": "model arch architecture net network backbone modelname",
    "model.weights=DEFAULT": "pretrained usepretrained pretrainedweights finetune imagenet",
    "model.weights": "checkpointpath initweights weights",
    "loss": "loss criterion lossfn lossfunction losses lossname",
    "loss.label_smoothing": "labelsmoothing smoothing",
    "loss.weight=balanced": "classweight classweights classbalance",
    "optimizer": "optimizer optim optimiser opt optimizers",
    "scheduler": "scheduler lrscheduler schedule sched lrschedule lrpolicy schedulers",
    "scheduler.warmup={}ep": "warmup warmupepochs",
    "scheduler.warmup={}st": "warmupsteps warmupiters",
    "average=EMA": "ema modelema",
    "metrics": "metrics metric",
    "train.device=auto": "gpu gpus cuda gpuid gpuids usegpu usecuda accelerator",
    "train.device=cpu": "cpu usecpu nocuda",
    "train.precision=bf16": "amp useamp mixedprecision bf16 bfloat16",
    "train.precision=fp16": "fp16 half halfprecision",
    "train.clip_grad_norm": "gradclip clipgrad clip clipnorm maxgradnorm gradientclip gradclipnorm "
    "gradientclipval clippinggradnorm gradclipval",
    "train.accumulate": "accumulate gradaccum accumulation accumulationsteps gradientaccumulation "
    "gradientaccumulationsteps accumulategradbatches accumsteps",
    "train.device": "device",
    "train.precision": "precision",
    "train.compile": "compile",
    "optimizer.momentum": "momentum",
    "train.monitor": "monitor metricforbestmodel savebest",
    "early_stop.patience": "patience earlystoppingpatience",
    "early_stop": "earlystopping",
    "split.ratios=[8, 1, 1]": "valsplit testsplit validationsplit valratio testsize valsize "
    "trainratio testratio ratio valfraction val valid test train",
    "split.folds": "kfold numfolds nfolds nsplits cv folds",
    "checkpoint.every={}ep": "savefreq saveevery saveperiod saveinterval",
    "checkpoint.every={}st": "savesteps",
    "log.every={}st": "logevery loginterval printfreq logsteps logfreq loggingsteps logeverynsteps",
}
# A word that is no setting here, and what to do instead.
_NO_SETTINGS = {
    "the data give the number of classes; remove it": "numclasses nclasses classes numlabels nc",
    "the images give the number of channels; remove it": "inchannels inchans channels numchannels "
    "imgchannels",
    "the transforms set the size, as {name: Resize, size: [32, 32]}": "imagesize imgsize imgsz "
    "inputsize resolution inputshape",
    "train.monitor decides whether more or less is better; remove it": "mode",
    "training images are shuffled in every epoch; remove it": "shuffle",
    "training is counted in epochs: train.epochs": "steps maxsteps numsteps iterations maxiter",
    "its keys belong beside 'name'": "args kwargs params opts options",
    "--resume RUN on the command line continues a run": "resume resumefrom",
    "--runs DIR on the command line sets the folder": "logdir outputdir savedir output out outdir "
    "runs runsdir project",
}


def _by_word(table: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for meaning, words in table.items():
        for word in words.split():
            found.setdefault(word, []).append(meaning)
    return found


NAMES, SETTINGS, NO_SETTINGS = map(_by_word, (_NAMES, _SETTINGS, _NO_SETTINGS))


def bare(word: str) -> str:
    """A word for comparison: "nn.Cross_Entropy()" and "cross-entropy" are both "crossentropy"."""
    last = word[:100].partition("(")[0].rpartition("/")[2].rpartition(".")[2]
    return "".join(char for char in last.lower() if char.isalnum())


def nearest(word: str, known: Iterable[Any]) -> str | None:
    """The known word that is most likely meant: the same in other writing, a synonym, or alike."""
    words = [name for name in known if isinstance(name, str)]
    short, pairs = bare(word), [(bare(name), name) for name in words]
    same = [name for text, name in pairs if text == short]
    same += [name for name in NAMES.get(short, ()) if name in words]
    if len(short) > 2:  # "step" begins StepLR
        same += [name for text, name in sorted(pairs, key=_length) if text.startswith(short)]
    if same:
        return same[0]
    nearby = {name.rpartition("/")[2].lower(): name for name in words}
    nearby |= {name.lower(): name for name in words}
    if near := difflib.get_close_matches(word[:100].lower(), nearby, n=1):
        return nearby[near[0]]
    # "plateau" is in ReduceLROnPlateau, and "my_accuracy" holds accuracy.
    holding = [pair for pair in pairs if len(short) > 2 and short in pair[0]]
    held = [pair for pair in pairs if len(pair[0]) > 2 and pair[0] in short]
    found = sorted(holding, key=_length) + sorted(held, key=_length, reverse=True)
    return found[0][1] if found else None


def _length(pair: tuple[str, str]) -> int:
    return len(pair[0])


def suggestion(word: Any, known: Iterable[Any]) -> str:
    """ "; did you mean 'x'?" with the nearest known word, with or without a family; else ""."""
    if isinstance(word, str) and word.lower() in ("none", "null"):
        return "; write null for none"
    near = nearest(word, known) if isinstance(word, str) else None
    return f"; did you mean '{near}'?" if near else ""


def with_value(setting: str, value: str) -> tuple[str, str]:
    """The key of an entry of SETTINGS, and the value to write there: ("log.every", "20st")."""
    key, equals, form = setting.partition("=")
    is_time = form.startswith("{}") and not value.isdecimal()  # 20st has its unit
    return key, form.format(value) if equals and not is_time else value


def listed(words: Iterable[object], joint: str = "and") -> str:
    """The words as a list in a sentence: "a, b and c"; "nothing" if there are none."""
    *most, last = [str(word) for word in words] or ["nothing"]
    return f"{', '.join(most)} {joint} {last}" if most else last


def shortened(text: str, length: int = 60) -> str:
    """The text on one line, shortened to ``length`` characters for a message."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= length else f"{text[: length - 3]}..."


def visible(text: str) -> str:
    """Return text with escapes in place of control characters, which a terminal would act on."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
