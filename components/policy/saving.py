"""Writing a policy as a Hugging Face folder, weight by weight: a model that many processes share is whole nowhere."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE_BYTES = 5 * 10**9  # the most of a file of weights, and so of a model, that is held in memory at once


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Iterable[tuple[str, Tensor]] | None = None,
) -> None:
    """Write a Hugging Face folder, the weights as safetensors.

    weights: those of the saved model, by its names, asked for one after the other; None: the model's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    # Code of others that somebody might let run: the model was loaded without it.
    for described in (vars(model.config), tokenizer.init_kwargs):
        described.pop("auto_map", None)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tied = set(model.all_tied_weights_keys)  # stored once, under the name of what they are tied to
    own = model.state_dict().items() if weights is None else weights
    write_weights((item for item in own if item[0] not in tied), folder)
    tokenizer.save_pretrained(folder)


def write_weights(weights: Iterable[tuple[str, Tensor]], folder: Path, file_bytes: int = FILE_BYTES) -> None:
    """Write weights as the safetensors files of a model, of at most file_bytes each where one weight is not larger."""
    files, size = [], 0
    for file in _by_file(weights, file_bytes):
        save_file(file, folder / f"model-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(file))
        size += sum(weight.nbytes for weight in file.values())
    if len(files) == 1:
        (folder / "model-0.safetensors").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(files):
        called = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"model-{number}.safetensors").rename(folder / called)
        places |= dict.fromkeys(names, called)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _by_file(weights: Iterable[tuple[str, Tensor]], file_bytes: int) -> Iterator[dict[str, Tensor]]:
    file: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights:
        if file and size + weight.nbytes > file_bytes:
            yield file
            file, size = {}, 0
        file[name] = weight.detach().cpu().contiguous()
        size += weight.nbytes
    yield file
