"""Train a network dense and band-limited, and compare.

    python -m experiments.train
    python -m experiments.train --model fcn --data ucr:FiftyWords --data-dir DIR

    python -m experiments.train --resume runs/cnn-digits

Each pair of a band and a seed is one run. A finished run leaves its own JSON file in the output
folder and is not repeated when the same command is started again; one that was stopped goes on from
its last checkpoint. The job ends with a table, a picture of the curves (curves.png) and a summary
of all runs in that folder (summary.json).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

import bandjax
from experiments import data, report
from experiments.bands import SYNTAX, parse_band
from experiments.command import run_command
from experiments.config import (
    Augment,
    Method,
    Optimizer,
    ParamDomain,
    Precision,
    Remat,
    ResidualDtype,
    Schedule,
    Settings,
    settings_for,
)
from experiments.devices import Devices, parse_mesh, split_cpu
from experiments.errors import UserError
from experiments.examples import Examples, Stream, place
from experiments.jobs import open_job, options_as_json, parse_job_options
from experiments.loop import Trainer
from experiments.metrics import import_tensorboard
from experiments.models import MODELS
from experiments.processes import (
    Agreement,
    Cluster,
    check,
    distributed,
    is_main,
    require_same,
    share,
    supervised,
)
from experiments.records import read_runs, run_path, write_json
from experiments.runs import Interval, Keeping, Run, Stop, Stopped, stop_on_sigterm
from experiments.streaming import StreamedExamples

_BANDS = "One or more bands, each a run for every seed. " + " ".join(SYNTAX.split())


def _optional(metavar: str, hint: str = "the model's") -> object:
    """How --help shows an option that may be left out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {hint})")


_Integer = Annotated[int | None, _optional("INT")]
_Number = Annotated[float | None, _optional("FLOAT")]


@dataclass(frozen=True)
class Options:
    """Train a network dense and band-limited, and compare.

    Options that are left out take the paper's setting for the model: fcn Adam 1e-3, batches of
    16, 300 epochs, plateau schedule; lenet SGD with momentum 0.9, 1e-3, batches of 64, 300
    epochs; resnet18, resnet50 and densenet121 SGD with momentum 0.9, 0.01 (resnet50: 0.1), weight
    decay 5e-4 (the latter two: 1e-4), batches of 32, 350 epochs, plateau schedule, flip-crop; cnn
    (not in the paper) Adam 1e-3, batches of 64, 30 epochs, cosine schedule.
    """

    model: str = "cnn"
    """The network: cnn, lenet (images of at least 16x16), resnet18, resnet18-pool (with the paper's
    pooling after the stem), resnet50, densenet121 or densenet121-12 (growth 12), all for images; or
    fcn (time series). resnet50 and densenet121 have the stem for ImageNet."""
    data: str = "digits"
    """The data set: digits (part of scikit-learn), ucr:NAME (UCR archive), cifar10, cifar100, or
    tfds:NAME (images from tensorflow-datasets, such as tfds:imagenet2012), which
    'tfds build NAME --file_format=array_record --data_dir=DIR' prepares."""
    data_dir: Annotated[Path | None, _optional("DIR", "none")] = None
    """Folder that holds UCRArchive_2018/, UCR_TS_Archive_2015/, Univariate_ts/ (or a set's folder
    itself), cifar-10-batches-py/ or cifar-100-python/, as the official archives unpack; or the
    folder of tensorflow-datasets."""
    image_size: Annotated[int | None, _optional("INT", "224 where they have no common size")] = None
    """Height and width to which the images of tfds:NAME are cut."""
    band: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BAND...", help=_BANDS)] = (
        "none",
        "compression=0.5",
        "compression=0.75",
    )
    method: Method = "auto"
    """How the convolutions are computed; auto chooses by cost."""
    residual_dtype: ResidualDtype = "float32"
    """Type in which the convolutions keep spectra for the backward pass; the narrower, the less
    memory."""
    remat: Remat = "none"
    """spectra: keep nothing but the spectra for the backward pass, and recompute the rest from
    them; none: keep everything."""
    param_domain: ParamDomain = "spatial"
    """spectral: the filters' parameters are their spectra on the band; they begin as spatial ones
    do, but are not bound to their taps."""
    precision: Precision = "float32"
    """Type in which the layers compute; parameters, their gradients and batch statistics are
    float32. fp16 scales the loss, as much as no gradient overflows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run per band for each: seeds the initial parameters and the order of the examples."""
    epochs: _Integer = None
    """Passes over the training examples."""
    batch_size: _Integer = None
    """Examples in a step. What is left of an epoch after whole batches is dropped."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step: the step of a batch so many times larger,
    but for batch norm, which normalises each batch by its own statistics."""
    learning_rate: _Number = None
    """Learning rate of the first step; with onecycle the highest."""
    optimizer: Annotated[Optimizer | None, _optional("{adam,sgd}")] = None
    """Adam, or SGD with momentum."""
    momentum: _Number = None
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: _Number = None
    """This times each parameter is added to its gradient (L2)."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in training alone."""
    augment: Annotated[Augment | None, _optional("{none,flip-crop,random-resized-crop}")] = None
    """flip-crop: mirror training images by chance and shift them by up to 4 pixels.
    random-resized-crop, for images of tfds:NAME that are read from the disk: mirror them by chance
    and take a random part of them, the default for tfds:imagenet2012."""
    schedule: Annotated[Schedule | None, _optional("{constant,cosine,onecycle,plateau}")] = None
    """constant; cosine decay to zero; onecycle, a rise over 30 % of the steps, then a fall; or
    plateau, which lowers the learning rate when the training loss has stopped falling."""
    plateau_factor: _Number = None
    """What the plateau schedule multiplies the learning rate by."""
    plateau_patience: _Integer = None
    """Epochs without a better training loss before it does so."""
    limit: Annotated[int | None, _optional("INT", "all")] = None
    """Train on the first so many examples alone."""
    stream: Stream = "auto"
    """always: read the examples of each step, by threads ahead of it, when it is their turn; never:
    keep all of them on the device; auto: stream what takes more than 2 GiB. The results are the
    same."""
    out: Annotated[Path | None, _optional("DIR", "runs/MODEL-DATA")] = None
    """Folder for the results."""
    mesh: Annotated[str | None, _optional("data=N,model=M", "one device")] = None
    """Spread the work over so many devices: data shares out the examples of each batch, model the
    output channels of each layer that it divides. Of several processes the default is data over all
    their devices."""
    cpu_devices: Annotated[int | None, _optional("INT", "1")] = None
    """Split the CPU into so many devices, to try a mesh on."""
    distributed: bool = False
    """This is one of several processes that train together: start the same command on each host.
    On SLURM, Open MPI, Kubernetes and TPU pods they find each other; elsewhere --coordinator,
    --processes and --process-id tell. --out must be a folder that all of them share."""
    coordinator: Annotated[str | None, _optional("HOST:PORT", "of the cluster")] = None
    """Address of the first process."""
    processes: Annotated[int | None, _optional("INT", "of the cluster")] = None
    """How many they are."""
    process_id: Annotated[int | None, _optional("INT", "of the cluster")] = None
    """Which of them this is, from 0."""
    resume: Annotated[Path | None, _optional("DIR", "none")] = None
    """Go on with the job in this folder; its options need not be given again."""
    checkpoint_every: str = "60s"
    """Write a checkpoint every so many epochs (10epochs), steps (500steps) or seconds (60s); one is
    written at the end of a run in any case, never: only then."""
    keep: int = 2
    """How many of a run's latest checkpoints stay, besides the best."""
    tensorboard: bool = False
    """Write event files for TensorBoard too."""

    def settings(self) -> Settings:
        """The settings of every run, the model's defaults filled in."""
        names = {field.name for field in fields(Settings)}
        return settings_for(**{k: v for k, v in asdict(self).items() if k in names})


def run_job(options: Options, console: Console, stop: Stop | None = None) -> bool:
    """Train what is not yet there, then report on every run in the output folder.

    Args:
        options: of the command line.
        console: where progress is shown.
        stop: asked after every step; None for one that SIGTERM asks.

    Returns:
        Whether the job came to its end; False if SIGTERM stopped it.

    Raises:
        UserError: an option, a data file or the output folder is not usable, or a loss diverged.
    """
    settings = options.settings()
    if settings.model not in MODELS:
        raise UserError(f"unknown model {settings.model!r}; known: {', '.join(MODELS)}")
    texts = {parse_band(text)[0]: text for text in options.band}
    bands = {label: parse_band(text)[1] for label, text in texts.items()}
    if not bands or not options.seeds or min(options.seeds) < 0 or max(options.seeds) >= 2**31:
        raise UserError(
            "need at least one --band and one --seeds, and seeds are whole numbers below 2^31"
        )
    if options.keep < 1:
        raise UserError(f"keep must be at least 1, got {options.keep}")
    keeping = Keeping(Interval.parse(options.checkpoint_every), options.keep, options.tensorboard)
    if options.tensorboard:
        import_tensorboard()
    devices = parse_mesh(options.mesh)
    dataset = data.load(settings.data, options.data_dir, settings.image_size)
    examples = place(
        dataset.limited(settings.limit),
        stream=options.stream,
        augment=settings.augment == "random-resized-crop",
        devices=devices,
    )
    common = {**options_as_json(options), **settings.as_dict(), "mesh": devices.describe()["mesh"]}
    common |= {"band": list(texts), "data_sha256": examples.sha256}
    del common["data_dir"]  # It may lie elsewhere on another host.
    require_same(common)
    # Every band is checked here, before the first one trains.
    trainers = {label: _trainer(settings, examples, band, devices) for label, band in bands.items()}

    out = options.out or Path("runs") / f"{settings.model}-{settings.data.replace(':', '-')}"
    job = open_job(out, options_as_json(options), settings.as_dict())
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_on_sigterm())
        share(lambda: stack.enter_context(job))
        try:
            _train_all(trainers, texts, options.seeds, out, keeping, console, stop)
        except Stopped:
            console.print(
                f"stopped by SIGTERM; a checkpoint is written, go on with --resume {out}",
                soft_wrap=True,
                highlight=False,
            )
            return False
        share(lambda: _report(settings, list(bands), out, console))
    return True


def _trainer(
    settings: Settings, examples: Examples | StreamedExamples, band: Any, devices: Devices
) -> Trainer:
    """A trainer that has met every band that is known."""
    if not isinstance(band, bandjax.schedule.Schedule):
        return Trainer(settings, examples, band, devices)
    trainer = Trainer(settings, examples, band(0), devices)
    for each in band.bands:
        trainer.use(each)
    trainer.use(band(0))
    return trainer


def _train_all(
    trainers: dict[str, Trainer],
    texts: dict[str, str],
    seeds: Sequence[int],
    out: Path,
    keeping: Keeping,
    console: Console,
    stop: Stop,
) -> None:
    """Train what has no record yet, seed by seed."""
    settings = next(iter(trainers.values())).settings
    # The data that each was trained on: older records do not tell.
    done = share(
        lambda: [
            [*key, record.get("data_sha256")]
            for key, record in read_runs(out, settings.as_dict()).items()
        ]
    )
    data_of = {(label, seed): digest for label, seed, digest in done}
    here = next(iter(trainers.values())).examples.sha256
    if any(digest not in (None, here) for digest in data_of.values()):
        raise UserError(f"the runs in {out} were trained on other data: choose another --out")
    todo = [(label, seed) for seed in dict.fromkeys(seeds) for label in trainers]
    for number, (label, seed) in enumerate(todo, 1):
        title = f"run {number}/{len(todo)} · {label} · seed {seed}"
        if (label, seed) in data_of:
            console.print(f"{title} · already done", highlight=False)
            continue
        if Agreement().ask(stop.asked, wait=True)[0]:
            raise Stopped
        path = run_path(out, label, seed)
        # A schedule may have a state: each run has its own.
        bands = parse_band(texts[label])[1]
        schedule = bands if isinstance(bands, bandjax.schedule.Schedule) else None
        trainer, folder = trainers[label], path.with_suffix("")
        run = Run(trainer, label, seed, folder, keeping, console, stop, schedule)
        record = run.train(title)
        share(functools.partial(write_json, path, record))


def _report(settings: Settings, order: list[str], out: Path, console: Console) -> None:
    """Table, picture and summary of every run in the folder."""
    runs = read_runs(out, settings.as_dict())
    keys = sorted(
        runs, key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key)
    )
    records = [runs[key] for key in keys]
    summary = report.summarise(records)
    write_json(out / "summary.json", {"settings": settings.as_dict(), "bands": summary})
    title = f"{settings.model} on {settings.data}"
    report.plot(title, records, out / "curves.png")
    console.print(report.table(f"{title}, epoch {settings.epochs}", summary))
    console.print(f"records, summary.json and curves.png: {out}", soft_wrap=True, highlight=False)


@contextmanager
def run_on(options: Options) -> Iterator[None]:
    """Meets the other processes, and splits the CPU, if the options ask for it.

    Raises:
        UserError: they do not come, or the options do not fit together.
    """
    if options.cpu_devices is not None:
        split_cpu(options.cpu_devices)
    cluster = cluster_of(options)
    with distributed(cluster if options.distributed else None):
        yield


def cluster_of(options: Options) -> Cluster:
    """The processes that the options describe.

    Raises:
        UserError: they do, but not that there are several.
    """
    cluster = Cluster(options.coordinator, options.processes, options.process_id)
    if not options.distributed and cluster != Cluster():
        raise UserError("--coordinator, --processes and --process-id are for --distributed")
    return cluster


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments

    def action() -> int | None:
        options = parse_job_options(Options, words, "python -m experiments.train")
        check(cluster_of(options))
        if options.distributed and (status := supervised("experiments.train", words)) is not None:
            return status
        with run_on(options):
            run_job(options, Console(quiet=not is_main()))
        return 0

    return run_command(action, "finished runs and checkpoints are kept")


if __name__ == "__main__":
    sys.exit(main())
