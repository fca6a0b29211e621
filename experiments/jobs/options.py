"""The command line of a training job."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from experiments.data.examples import Stream
from experiments.settings.bands import SYNTAX as BAND_SYNTAX
from experiments.settings.codecs import SYNTAX as CODEC_SYNTAX
from experiments.settings.config import (
    Augment,
    Implementation,
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
from experiments.settings.variants import SYNTAX as OPTION_SYNTAX

_BANDS = " ".join(
    f"One or more bands, each a run for every seed. {BAND_SYNTAX} {OPTION_SYNTAX}.".split()
)
_SAVED = " ".join(
    "How what the backward pass needs is kept, the forward pass being exact as ever. "
    f"{CODEC_SYNTAX}.".split()
)


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
    decay 5e-4 (the latter two: 1e-4), batches of 32, 350 epochs, plateau schedule, flip-crop. Not
    in the paper are cnn, Adam 1e-3, batches of 64, 30 epochs, cosine schedule; and resnet8,
    resnet20 and resnet20-projection, SGD with momentum 0.9, 0.1, weight decay 1e-4, batches of
    128, 164 epochs, cosine schedule, flip-crop.
    """

    model: str = "cnn"
    """The network: cnn, lenet (images of at least 16x16), resnet8, resnet20, resnet20-projection
    (whose shortcuts are convolutions where the map shrinks), resnet18, resnet18-pool (with the
    paper's pooling after the stem), resnet50, densenet121, densenet121-12 (growth 12) or
    densenet13-12 (a layer in each block), all for images; or fcn (time series). resnet50 and
    densenet121 have the stem for ImageNet."""
    data: str = "digits"
    """The data set: digits (part of scikit-learn), cbf:SEED (generated time series), ucr:NAME (UCR
    archive; ucr:NAME:halves: its training file alone, split in two), cifar10, cifar100
    (cifar100:first20000: its first training images), or tfds:NAME (images from tensorflow-datasets,
    such as tfds:imagenet2012), which 'tfds build NAME --file_format=array_record --data_dir=DIR'
    prepares."""
    data_dir: Annotated[Path | None, _optional("DIR", "none")] = None
    """Folder that holds UCRArchive_2018/, UCR_TS_Archive_2015/, Univariate_ts/ (or a set's folder
    itself), cifar-10-batches-py/ or cifar-100-python/, as the official archives unpack; or the
    folder of tensorflow-datasets."""
    image_size: Annotated[int | None, _optional("INT", "224 where they have no common size")] = None
    """Height and width to which the images of tfds:NAME are cut, or digits enlarged."""
    band: Annotated[tuple[str, ...], tyro.conf.arg(metavar="BAND...", help=_BANDS)] = (
        "none",
        "compression=0.5",
        "compression=0.75",
    )
    method: Method = "auto"
    """How the convolutions are computed; auto chooses by cost."""
    implementation: Implementation = "auto"
    """native: by the library's own kernels, or not at all; xla: without them; auto chooses."""
    residual_dtype: ResidualDtype = "float32"
    """Type in which the convolutions keep spectra for the backward pass; the narrower, the less
    memory."""
    remat: Remat = "none"
    """spectra: keep nothing but the spectra for the backward pass, and recompute the rest from
    them; blocks: the same, but a block of the network at a time, which needs less memory meanwhile
    and more time; inputs: keep the input of each block, and compute the block again
    (jax.checkpoint); none: keep everything."""
    saved: Annotated[str, tyro.conf.arg(metavar="CODEC", help=_SAVED)] = "none"
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
    tune_allocator: bool = True
    """Keep freed memory in the process (bandjax.tune_allocator), which spares the system's time:
    glibc alone."""
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
