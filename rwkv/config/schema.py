"""The types of `conf/`: one dataclass a config group, all of them in `TrainConfig`.

Pydantic checks keys, types and ranges when `compose` converts the composed YAML; checks across fields are in `check.py`.
Each field's comment is its documentation, with its unit.
"""

import functools
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(extra="forbid", defer_build=True)
_SUFFIX = {"k": 2**10, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "": 1}


def parse_count(value: object) -> object:
    """An int from "4k" (k = 1024), "1.5M", "3e9" or a whole float; anything else is returned as it is.

    k is 1024, for it names context lengths; M, G (or B) and T are powers of 1000.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([kMGBT]?)\s*", value)
        if not match:
            return value
        value = float(match[1]) * _SUFFIX[match[2]]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _as_text(value: object) -> object:
    """Paths and names may look like numbers in YAML: data.path=2024 is the folder "2024"."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


def _as_kernel(value: object) -> object:
    named = isinstance(value, dict) and value and all(isinstance(x, str) and x for pair in value.items() for x in pair)
    if named or (isinstance(value, str) and value):
        return value
    raise PydanticCustomError("kernel", "takes a backend of the recurrence, or one of each operation named, as model.kernel.norm_mix=torch")


Bool = Annotated[bool, Field(strict=True)]
MOST = 2**53  # up to which every count is a float too, exactly
Count = Annotated[int, BeforeValidator(parse_count), Field(ge=1, le=MOST, strict=True)]
Count0 = Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=MOST, strict=True)]
Extent = Annotated[int, BeforeValidator(parse_count), Field(ge=1, le=2**24, strict=True)]  # of what is there all at once, as a dimension of a tensor
Text = Annotated[str, BeforeValidator(_as_text), Field(min_length=1)]
Keys = Annotated[tuple[Text, ...], BeforeValidator(_as_list), Field(min_length=1)]  # one key, or several in a list
Format = Literal["auto", "text", "lines", "jsonl", "csv", "parquet", "arrow"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1, strict=True)]


@dataclass(config=_STRICT, frozen=True)
class Arch:
    version: Text | None  # an option of the group; v5 is 5.2; null: that of model.path


@dataclass(config=_STRICT, frozen=True)
class LoraRanks:
    w: Extent
    a: Extent
    v: Extent
    g: Extent


@dataclass(config=_STRICT, frozen=True)
class Model:
    path: Text | None  # a model file or run to go on from; null: from scratch
    partial: Bool  # of a file, take what fits: what it lacks is initialised, what it has too much is left out, both listed
    n_layer: Extent | None  # null, as the following: that of the file
    n_embd: Extent | None
    head_size: Extent | None
    vocab_size: Extent | None  # null: the file's, or the tokenizer's
    lora_rank: LoraRanks | None  # of v7; null: the official trainer's rule
    kernel: Annotated[str | dict[str, str], BeforeValidator(_as_kernel)]  # backend of the recurrence, or of operations by name: model.kernel.norm_mix=torch


@dataclass(config=_STRICT, frozen=True)
class Tokenizer:
    kind: Literal["bytes", "world", "neox", "hf"]
    path: Text | None  # hf, neox: the tokenizer.json


@dataclass(config=_STRICT, frozen=True)
class Column:
    """One of the texts of a record of columns: prefix, lead, the column's text, suffix."""

    key: Keys
    prefix: str = ""
    lead: str = ""  # before the text, and trained as it is: a space after "Response:", so that a prompt can end in the colon
    suffix: str = ""
    trained: Bool = True


@dataclass(config=_STRICT, frozen=True)
class Role:
    """How a turn of one speaker is written; {role} in it stands for the speaker as named in the record."""

    prefix: str = ""
    lead: str = ""  # before the text, and trained as it is
    suffix: str = ""
    trained: Bool = True
    aliases: tuple[Text, ...] = ()  # other names of the speaker


@dataclass(config=_STRICT, frozen=True)
class Chat:
    """Conversations: where in a record its turns are, and how they are written."""

    key: Keys | None  # of the list of turns; null: the record itself is the list
    sender: Keys | None  # key of the speaker in a turn; null: each key of a turn is a speaker, its value what is said
    content: Keys  # key of what is said in a turn
    also: dict[str, str]  # further keys of what is said in a turn, and what precedes each instead of prefix and lead
    roles: dict[str, Role]
    other: Role | None  # for speakers not among the roles; null: such a record is bad
    end: str  # after the last turn
    trim: Bool  # white space around what is said is left out


@dataclass(config=_STRICT, frozen=True)
class Record:
    """How a record of a source becomes text, and which of its parts are trained. Keys that are lists: the first that the record has.

    auto goes by the keys that a record has (a key whose value is null, it has not): those of a chat; two or more of the columns; prompt and
    completion; text. The first of these that fits is taken.
    """

    kind: Literal["auto", "text", "prompt", "columns", "chat"]
    text: Keys  # key of the text
    prompt: Keys
    completion: Keys
    train_prompt: Bool  # whether the prompt is trained too; the completion always is
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]  # in the order they are written; empty ones are left out
    separator: str  # between columns
    chat: Chat
    # whether what surrounds the texts of columns and turns is trained. own: suffixes as their text, so that the end of a turn is learnt, prefixes
    # and separators not; trained (as the infctx trainer) and untrained: all of it
    markup: Literal["own", "trained", "untrained"]
    untrained_tokens: Count0  # so many tokens at the start of each document are never trained

    @functools.cached_property
    def telling(self) -> frozenset[str]:
        """The keys by which kind=auto knows forms other than text."""
        columns = (key for column in self.columns for key in column.key)
        return frozenset((*(self.chat.key or ()), *columns, *self.prompt, *self.completion))


@dataclass(config=_STRICT, frozen=True)
class Data:
    kind: Literal["sample", "files", "hub", "tokens", "binidx", "mix"]
    path: Text | None  # files, tokens, binidx: a file, folder or pattern; files: an address such as s3://bucket/folder too
    format: Format  # files: text is a document a file, lines a document a line; auto goes by how names end, each file by its own
    storage: dict[str, Any] | None  # options of the file system behind an address, as fsspec takes them
    name: Text | None  # hub: the dataset's name, as the following
    config: Text | None
    split: Text  # of a folder that datasets.save_to_disk wrote, too
    revision: Text | None
    streaming: Bool  # hub: read while it is downloaded, and only what is used
    record: Record
    min_tokens: Count  # a shorter document is dropped and counted; its end token is one of them
    max_tokens: Count | None  # a longer one too; null: no limit
    first: Count0  # records left out at the beginning
    limit: Count | None  # at most so many records; null: all
    on_error: Literal["drop", "stop"]  # a bad record is counted and left out, or ends the preparation; named either way
    val_share: Fraction  # of the documents (of each document's tail, if they are few) kept for validation
    val_split: Text | None  # hub, save_to_disk: the split that is validation, instead of a share
    val_path: Text | None  # the path that is validation, instead of a share; of the form of data.path, or (hub, sample) files by their endings
    cache: Text | None  # folder of prepared data; null: "data" in the folder of the runs
    processes: Count0  # that prepare data; 0: one a CPU core
    mix: dict[str, "Source"] | None  # mix: sources by name


@dataclass(config=_STRICT, frozen=True)
class Source:
    """A source of a mix: any option of data, its keys changed, and how much of it."""

    data: Data
    weight: Positive  # its share of the tokens is weight / sum of the weights
    epochs: Positive | None  # at most so many times through it; null: as often as its share asks for


@dataclass(config=_STRICT, frozen=True)
class Layout:
    kind: Literal["stream", "document", "fixed", "official"]
    rows: Extent  # rows of a batch, over all ranks: lanes of the stream, or documents or samples side by side
    chunks: Count  # of ctx_len tokens: what a row reads in a batch; document: what a row of packed documents has at least
    accumulate: Count  # batches in one optimizer step
    reset: Bool  # whether the state is cleared at each document's start; official: never
    max_tokens: Count | None  # document: a longer one goes on in the next batches, its state carried, its gradient not; stream: is cut
    window: Count  # document: batches planned together; more fill rows better, and shuffle less of the lengths
    at_once: Count | None  # rows that a process computes side by side: fewer take less memory; null: all it has


@dataclass(config=_STRICT, frozen=True)
class CtxLen:
    tokens: Extent  # tokens of a chunk: what is on the accelerator at once


@dataclass(config=_STRICT, frozen=True)
class Bptt:
    mode: Literal["exact", "truncated", "off"]
    depth: Count  # truncated: chunks that a gradient goes back through
    states: Literal["auto", "device", "host", "disk", "sqrt"]  # exact: where the states at chunk boundaries are kept
    recompute: Bool | Literal["selective"]  # activation checkpointing: one block's graph at a time; or only what is cheap to compute
    graphs: Bool  # on a CUDA device whole chunks are launched as CUDA graphs: faster for small models, more memory


WHOLE = ("auto", "ddp")  # strategies under which every rank holds all


@dataclass(config=_STRICT, frozen=True)
class Strategy:
    kind: Literal["auto", "ddp", "fsdp", "ds1", "ds2", "ds2_offload", "ds3", "ds3_offload", "ds3_nvme"]
    accelerator: Literal["auto", "cpu", "cuda"]
    devices: Extent | Literal["auto"]
    nodes: Extent
    timeout: Positive  # seconds without a sign of life after which a rank is lost, and the others end
    start_timeout: Positive  # seconds in which all ranks must have come
    deepspeed: dict[str, Any]  # ds*: further settings of DeepSpeed's own
    swap: Text | None  # ds3_nvme: a folder on each node's own fast disk; null: the system's temporary folder

    @property
    def sharded(self) -> bool:
        """Whether ranks share what they hold, by PyTorch's process group even where there is but one."""
        return self.kind not in WHOLE


@dataclass(config=_STRICT, frozen=True)
class Precision:
    weights: Literal["fp32", "bf16", "fp64"]  # bf16 keeps fp32 master weights, moments and gradient sums
    residual: Literal["fp32"] | None  # with bf16 weights: what passes from block to block, its sums and norms; null: as the weights


@dataclass(config=_STRICT, frozen=True)
class Optim:
    lr: Positive | None  # peak; null: RWKV's rule of thumb, 0.45 / n_embd
    betas: tuple[Fraction, Fraction]
    eps: Positive
    weight_decay: NonNegative  # on matrices only, decoupled
    clip: NonNegative  # global L2 norm of the gradient; 0: no clipping
    layerwise_lr: Bool  # the generation's own factors, e.g. 2x for the decay w0 of v7
    l2wrap: NonNegative  # factor of the official regulariser of the largest logit: 1e-4 there, 0 for none


@dataclass(config=_STRICT, frozen=True)
class Schedule:
    kind: Literal["cosine", "constant"]
    warmup_steps: Count0
    final: Annotated[float, Field(ge=0, le=1, strict=True)]  # lr at the end, as a share of optim.lr


@dataclass(config=_STRICT, frozen=True)
class Trainer:
    tokens: Count  # budget: training ends at the first optimizer step that reaches it
    val_every: Count0  # optimizer steps between validations; 0: only at the end
    val_tokens: Count  # at most so many tokens a validation
    log_every: Count  # optimizer steps between lines of metrics.jsonl
    self_check: Bool  # before training, certify the gradient of a random document by a freshly made model of these settings
    on_nan: Literal["stop", "skip", "rewind"]  # at a step that is not finite: end; leave it out; go back to the newest checkpoint's weights, and on behind it
    max_bad: Count  # bad steps in a row that end training, whatever on_nan says
    spike: NonNegative  # a step whose gradient norm is above so many medians of the last ones is as bad as one not finite; 0: none is


@dataclass(config=_STRICT, frozen=True)
class Checkpoint:
    every: Count0  # optimizer steps; 0: only at the end and on a signal
    minutes: NonNegative  # also when so many minutes have passed, in the middle of a long document too; 0: never
    keep: Count  # newest checkpoints kept
    keep_every: Count0  # those of every so many optimizer steps are saved and kept for ever; 0: none
    background: Bool  # written beside training, which waits only while it is copied: 12 bytes of host memory for each parameter, shared by the ranks
    best: Count0  # so many of the lowest validation losses are saved and kept too
    new_data: Literal["refuse", "accept"]  # where the data has changed since a checkpoint: accept begins the new data at its start


@dataclass(config=_STRICT, frozen=True)
class Logger:
    kind: Literal["none", "wandb"]
    project: Text
    mode: Literal["online", "offline"]
    group: Text | None  # under which wandb shows runs together; null: the sweep's name, if the run is of one


@dataclass(config=_STRICT, frozen=True)
class Sample:
    prompt: Text
    tokens: Count0  # length of the text generated at the end of a run; 0: none
    temperature: Positive
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)]


@dataclass(config=_STRICT, frozen=True)
class Expect:
    """What a recipe must reach, if its settings are unchanged: the trainer says so, or by how much it is missed."""

    signature: Text  # of the settings it holds for, as in the run folder's name
    data: Text  # fingerprint of the data it holds for, as in summary.json
    train_loss: Positive
    val_loss: Positive
    tolerance: Positive


@dataclass(config=_STRICT, frozen=True)
class TrainConfig:
    name: Text | None  # label of the run folder; null: made of the options chosen
    out: Text  # folder of the runs
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    threads: Annotated[int, BeforeValidator(parse_count), Field(ge=0, le=4096, strict=True)]  # CPU threads of a process; 0: PyTorch's choice
    arch: Arch
    model: Model
    tokenizer: Tokenizer
    data: Data
    layout: Layout
    ctx_len: CtxLen
    bptt: Bptt
    strategy: Strategy
    precision: Precision
    optim: Optim
    schedule: Schedule
    trainer: Trainer
    checkpoint: Checkpoint
    logger: Logger
    sample: Sample
    expect: Expect | None
