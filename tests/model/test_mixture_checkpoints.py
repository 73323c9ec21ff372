"""Checkpoints of mixtures: experts one by one or fused, FP8 with a scale a block, in shards, without holding two copies."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from course.model import ModelConfig, PretrainedError, Transformer, from_pretrained, save_pretrained
from course.model.fp8_blocks import dequantise_blocks
from course.model.hf_names import places

V3 = replace(ModelConfig.preset("tiny-deepseek-v3"), vocab=60, layers=2, width=160, mtp_layers=1)
CONFIGS = {
    "deepseek_v3": V3,
    "mixtral": ModelConfig(vocab=60, layers=2, width=40, experts=4, top_k=2, expert_width=20, balance_weight=0.0),
    "qwen3_moe": ModelConfig(
        vocab=60, layers=2, width=40, qk_norm=True, experts=4, top_k=2, expert_width=20, balance_weight=0.0
    ),
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def model(name="deepseek_v3"):
    torch.manual_seed(0)
    net = Transformer(CONFIGS[name]).eval()
    for mixture in net.mixtures():
        if CONFIGS[name].selection_bias:
            torch.nn.init.normal_(mixture.bias_E)
    return net


def rewrite(folder, change):
    """Change the tensors of a checkpoint of one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def configure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def equal(a, b):
    return all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def quantised(tensors, block, names):
    """These tensors as FP8 codes and scales, and what they then stand for."""
    stands_for = {}
    for name in names:
        weight, codes = tensors[name].float(), torch.zeros(tensors[name].shape, dtype=torch.float8_e4m3fn)
        rows, columns = (-(-size // step) for size, step in zip(weight.shape, block, strict=True))
        scales, meant = torch.zeros(rows, columns), torch.zeros_like(weight)
        for i in range(rows):
            for j in range(columns):
                where = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
                scales[i, j] = weight[where].abs().max() / 448
                codes[where] = (weight[where] / scales[i, j]).to(torch.float8_e4m3fn)
                meant[where] = codes[where].float() * scales[i, j]
        tensors[name], tensors[f"{name}_scale_inv"], stands_for[name] = codes, scales, meant
    return stands_for


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_experts_are_the_same_model_as_experts_one_by_one(name, tmp_path):
    ours = model(name)
    save_pretrained(ours, tmp_path)
    state = ours.state_dict()
    fused = {there: state[place.tensor][place.part].contiguous() for there, place in places(ours.config, True).items()}
    save_file(fused, tmp_path / "model.safetensors")
    assert equal(ours, from_pretrained(tmp_path))


@pytest.mark.parametrize("block", [(128, 128), (16, 32)])
def test_weights_in_fp8_are_their_codes_times_the_scale_of_their_block(block, tmp_path):
    ours, meant = model(), {}
    save_pretrained(ours, tmp_path)
    configure(tmp_path, quantization_config=FP8 | {"weight_block_size": list(block)})
    large = [n for n in places(V3) if n.endswith("_proj.weight") or ".kv_b_proj" in n]

    def change(tensors):
        meant.update(quantised(tensors, block, large))

    rewrite(tmp_path, change)
    loaded = from_pretrained(tmp_path)
    for name, place in places(V3).items():
        got = loaded.state_dict()[place.tensor][place.part]
        assert torch.equal(got, meant.get(name, ours.state_dict()[place.tensor][place.part])), name
    tokens_BS = torch.randint(0, 60, (2, 9))
    assert 0 < (loaded(tokens_BS) - ours(tokens_BS)).norm() / ours(tokens_BS).norm() < 0.1


def test_fused_experts_may_be_fp8(tmp_path):
    codes = torch.randn(3, 20, 40).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, 3)
    got = dequantise_blocks(codes, scales, (16, 16))
    for e in range(3):
        assert torch.equal(got[e], dequantise_blocks(codes[e], scales[e], (16, 16)))
    assert got[1, 17, 33] == codes[1, 17, 33].float() * scales[1, 1, 2]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("no scales", r"missing: model.layers.0.mlp.up_proj.weight_scale_inv"),
        ("misshapen scales", r"of another shape: model.layers.0.mlp.up_proj.weight_scale_inv \[2, 3\] for \[2, 2\]"),
        ("no config", r"has tensors in F8_E4M3, and its config.json no quantization_config: model.layers.0.mlp.up"),
        ("a quantised norm", r"of a type that is not supported: model.norm.weight F8_E4M3"),
        ("other bits", r"quantization_config .* is not supported; it must be fp8 with a weight_block_size"),
    ],
)
def test_what_is_wrong_with_a_quantised_checkpoint_is_said(change, sentence, tmp_path):
    save_pretrained(model(), tmp_path)
    if change != "no config":
        bits = {"other bits": {"quant_method": "awq", "bits": 4}}.get(change, FP8 | {"weight_block_size": [128, 128]})
        configure(tmp_path, quantization_config=bits)
    name = "model.layers.0.mlp.up_proj.weight"

    def spoil(tensors):
        quantised(tensors, (128, 128), [name])
        if change == "no scales":
            del tensors[f"{name}_scale_inv"]
        if change == "misshapen scales":
            tensors[f"{name}_scale_inv"] = torch.ones(2, 3)
        if change == "a quantised norm":
            tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)

    rewrite(tmp_path, spoil)
    with pytest.raises(PretrainedError, match=sentence):
        from_pretrained(tmp_path)


def test_a_selection_bias_stays_in_float32(tmp_path):
    ours = model()
    save_pretrained(ours, tmp_path)
    loaded = from_pretrained(tmp_path, torch.bfloat16)
    assert loaded.head.weight.dtype == torch.bfloat16
    for mine, theirs in zip(ours.mixtures(), loaded.mixtures(), strict=True):
        assert torch.equal(mine.bias_E, theirs.bias_E)


def test_an_embedding_stored_again_for_a_module_is_passed_over(tmp_path):
    ours = model()
    save_pretrained(ours, tmp_path)

    def repeat(tensors):
        tensors["model.layers.2.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.2.shared_head.head.weight"] = tensors["lm_head.weight"].clone()

    rewrite(tmp_path, repeat)
    assert equal(ours, from_pretrained(tmp_path))


PEAK = """
import resource, sys, threading, time, torch
from course.model import from_pretrained

def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

before, peak, done = now(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], now())

watcher = threading.Thread(target=watch)
watcher.start()
model = from_pretrained(sys.argv[1], torch.bfloat16)
done.set()
watcher.join()
size = sum(tensor.nbytes for tensor in model.state_dict().values())
print((max(peak[0], now()) - before) / size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("eight_bits", [False, True])
def test_a_checkpoint_in_shards_is_streamed(eight_bits, tmp_path):
    """Peak memory while loading, over the size of the loaded model: below 1.3."""
    torch.manual_seed(0)
    config = replace(V3, width=512, experts=64, expert_width=512, mlp_width=1024, vocab=2000, layers=3)
    ours = Transformer(config).bfloat16()
    save_pretrained(ours, tmp_path)
    tensors, weights = load_file(tmp_path / "model.safetensors"), {}
    (tmp_path / "model.safetensors").unlink()
    if eight_bits:
        configure(tmp_path, quantization_config=FP8 | {"weight_block_size": [128, 128]})
        quantised(tensors, (128, 128), [name for name in tensors if ".experts." in name])
    names = list(tensors)
    for shard in range(4):
        part = names[shard::4]
        save_file({name: tensors[name] for name in part}, tmp_path / f"shard-{shard}.safetensors")
        weights |= dict.fromkeys(part, f"shard-{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    ratio = float(
        subprocess.run([sys.executable, "-c", PEAK, tmp_path], capture_output=True, text=True, check=True).stdout
    )
    assert 0.9 < ratio < 1.3
