"""DeepSpeed around the scorer: ZeRO, precision, optimizer and offload as the settings say, alone or on many ranks."""

import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed as sharding

from components.config import TrainSettings
from components.policy.logprobs import Scorer
from components.policy.model import device, load_config, load_model, weights_at_once
from components.policy.sharded import whole

MERGED = ".base_layer.weight"  # of a layer that carries an adapter
PATIENCE = timedelta(hours=6)  # of a process that waits for the first one to validate


def start_ranks() -> None:
    """Join the processes that a launcher started; without one, be a process group of one."""
    if torch.distributed.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    else:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def end_ranks() -> None:
    """Leave the processes of a launcher: threads that still listen to them would abort this one at its end."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.destroy_process_group()


def load_policy(folder: Path, settings: TrainSettings, *, dtype: str) -> PreTrainedModel:
    """The model to train, on this process's device; with ZeRO 3 each process keeps its shard of a weight as it is read.

    Raises:
        UserError: nothing usable lies in the folder.
    """
    if settings.zero_stage < 3:
        return load_model(folder, dtype=dtype).to(device())
    _prepare()
    # Transformers shards what it loads as long as it knows of a configuration with ZeRO 3.
    known = sharding.HfDeepSpeedConfig(_config(load_config(folder), getattr(torch, dtype), settings))
    try:
        return load_model(folder, dtype=dtype)
    finally:
        del known
        sharding.unset_hf_deepspeed_config()


def open_deepspeed(scorer: Scorer, settings: TrainSettings) -> Any:
    """A DeepSpeedEngine that trains what of the scorer requires a gradient."""
    import deepspeed

    _prepare()
    parameters = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(parameters, eps=settings.adam_epsilon, **options)
    else:
        optimizer = torch.optim.SGD(parameters, **options)
    config = _config(scorer.policy.config, next(scorer.parameters()).dtype, settings)
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=config)
    return engine


def _prepare() -> None:
    import deepspeed

    # On CPU DeepSpeed would compile a shared-memory collective for 45 s; gloo does what is needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that PyTorch is about to give up, and would be told so at every call.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    start_ranks()


def _config(model: PretrainedConfig, dtype: torch.dtype, settings: TrainSettings) -> dict[str, Any]:
    at_once = weights_at_once(model)
    zero: dict[str, Any] = {"stage": settings.zero_stage, "reduce_bucket_size": at_once}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.zero_stage == 3:
        if settings.offload:
            zero["offload_param"] = {"device": "cpu"}
        # By default up to 10^9 weights stay whole, and as many are stepped at once. Matrices have 3 to 5 squares: these
        # are the one in use and the next one.
        zero |= {"stage3_max_live_parameters": 8 * at_once, "stage3_max_reuse_distance": 0}
        zero |= {"stage3_prefetch_bucket_size": at_once, "stage3_param_persistence_threshold": 0}
        zero["sub_group_size"] = at_once
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own AdamW for CPU would be compiled first
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 10**9,
    }


def full_weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight under the name it has in a saved model, tied ones included, adapters merged; all ranks take part.

    Where ZeRO 3 has sharded a weight, it is whole only until the next one is asked for.
    """
    modules = dict(policy.named_modules())
    for name, weight in policy.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        module = modules[name.rpartition(".")[0].removesuffix(".base_layer")]
        adapters = [*module.lora_A.parameters(), *module.lora_B.parameters()] if name.endswith(MERGED) else []
        with whole([weight, *adapters]):
            merged = weight.detach()
            if adapters:
                merged = merged + module.get_delta_weight("default").detach().to(merged.dtype)
            yield name.replace(".base_layer.", "."), merged


def discard_gradients(engine: Any) -> None:
    """Forget what was accumulated, as DeepSpeed itself does after an overflow."""
    optimizer = engine.optimizer
    engine.zero_grad()
    optimizer.zero_grad()
    if hasattr(optimizer, "reset_cpu_buffers") and getattr(optimizer, "cpu_offload", False):
        optimizer.reset_cpu_buffers()
    elif hasattr(optimizer, "all_grad_tensors"):  # ZeRO 1 and 2
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)
        optimizer.all_grad_tensors = dict.fromkeys(optimizer.all_grad_tensors)
    elif hasattr(optimizer, "averaged_gradients"):
        optimizer.averaged_gradients = {}
