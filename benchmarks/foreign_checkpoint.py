"""A checkpoint that another library made: `transformers` builds a small DeepSeek-V3, trains it, and writes it.

    python benchmarks/foreign_checkpoint.py [--out benchmarks/results/foreign_deepseek_v3]

Nothing of `course.model` takes part: the model, its gate, its forward and backward pass are the library's. The embedded corpus
and its tokenizer are the course's. After each step the selection biases move by the rule of Wang et al. 2024. The folder then
holds what a published model's folder holds (config.json, shards with an index, tokenizer.json), and in logits.safetensors what
`transformers` computes from these very files for a text that it has not read: lesson and lab 07 compare with it.
"""

import argparse
import shutil
import time
from pathlib import Path

import record
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from course.training import data, tokenizer
from course.training.bpe import PATTERN
from course.training.schedule import learning_rate

VOCAB, CONTEXT, BATCH, PEAK, BIAS_RATE = 512, 128, 16, 3e-3, 0.01
PROBE = 2, 96  # sequences and tokens of the text for the logits
SHARD = "400KB"
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
SPARE = iter(range(256, 512))
LETTERS = [
    chr(byte if byte in PRINTABLE else next(SPARE)) for byte in range(256)
]  # as all byte-level tokenizers have it
CONFIG = dict(
    hidden_size=64, num_hidden_layers=4, intermediate_size=160, num_attention_heads=4, num_key_value_heads=4,
    q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
    n_routed_experts=16, num_experts_per_tok=4, n_shared_experts=1, moe_intermediate_size=32, first_k_dense_replace=1,
    n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True, num_nextn_predict_layers=0,
    max_position_embeddings=256, tie_word_embeddings=False, rms_norm_eps=1e-6,
    rope_parameters=dict(
        rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=64,
        beta_fast=8.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.5,
    ),
)  # fmt: skip


def train(text: data.Data, steps: int) -> tuple[DeepseekV3ForCausalLM, list[dict]]:
    """The library's model after some steps of AdamW, and its loss along the way."""
    torch.manual_seed(7)
    vocab = text.tokenizer.vocab
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(vocab_size=vocab, eos_token_id=vocab - 1, bos_token_id=vocab - 1, **CONFIG)
    )
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    chosen: list[torch.Tensor] = []
    for gate in gates:
        gate.register_forward_hook(lambda _module, _inputs, out: chosen.append(out[2].detach()))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    rows = []
    for step in (bar := tqdm(range(steps))):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, steps, PEAK, warmup=100)
        inputs_BS, targets_BS = data.training_batch(text, CONTEXT, BATCH, seed=7, step=step)
        chosen.clear()
        loss = F.cross_entropy(model(inputs_BS).logits.flatten(0, 1), targets_BS.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for gate, indices_TK in zip(gates, chosen, strict=True):
            counts_E = indices_TK.flatten().bincount(minlength=CONFIG["n_routed_experts"]).float()
            gate.e_score_correction_bias += BIAS_RATE * (counts_E.mean() - counts_E).sign()
        if step % 50 == 0 or step + 1 == steps:
            rows.append({"step": step + 1, "loss": round(loss.item(), 4)})
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval(), rows


def save(model: DeepseekV3ForCausalLM, text: data.Data, folder: Path) -> None:
    """As the library writes it: BF16, the biases in float32, a layer's experts in one tensor, in shards."""
    biases = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("correction_bias")}
    model.to(torch.bfloat16)
    for name, bias_E in biases.items():
        model.get_submodule(name.rpartition(".")[0]).e_score_correction_bias = bias_E
    model.save_pretrained(folder, max_shard_size=SHARD, save_original_format=False)
    (folder / "generation_config.json").unlink(missing_ok=True)
    as_library(text.tokenizer).save(str(folder / "tokenizer.json"))


def as_library(own: tokenizer.Tokenizer) -> Tokenizer:
    """The course's tokenizer in the common byte-level form: text is cut first, then each byte becomes a printable letter.

    Bytes above 127 count as letters in the course's pattern; over text that is every character beyond ASCII.
    """
    names = ["".join(LETTERS[byte] for byte in token) for token in own.tokens]
    library = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)}, merges=[(names[a], names[b]) for a, b in own.merges]
        )
    )
    cut = pre_tokenizers.Split(Regex(PATTERN.replace("\u00ff", "\U0010ffff")), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|end|>"])
    return library


def probe(folder: Path, text: data.Data) -> None:
    """What the library computes from the files it wrote, in float32, for text of the validation part."""
    model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (tokens_BS, _), *_ = data.validation_batches(text, PROBE[1], sequences=PROBE[0])
    with torch.no_grad():
        logits_BSV = model(tokens_BS).logits
    save_file({"tokens": tokens_BS.contiguous(), "logits": logits_BSV.contiguous()}, folder / "logits.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/foreign_deepseek_v3"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--source", default="code", help='"code", "prose", or a text file or folder')
    parser.add_argument("--work", type=Path, default=Path(".cache"), help="where the tokens are kept")
    options = parser.parse_args()
    source = options.source if options.source in ("code", "prose") else Path(options.source)
    text = data.load(source, VOCAB, options.work)
    started = time.perf_counter()
    model, rows = train(text, options.steps)
    seconds = time.perf_counter() - started
    temporary = options.out.with_name(options.out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save(model, text, temporary)
    probe(temporary, text)
    about = record.circumstances() | {
        "transformers": transformers.__version__,
        "tokens": options.steps * BATCH * CONTEXT,
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    record.write(temporary / "record.json", about)
    for path in temporary.iterdir():
        path.chmod(0o644)
    shutil.rmtree(options.out, ignore_errors=True)
    temporary.rename(options.out)
    print(f"{options.out}: loss {rows[-1]['loss']:.3f} after {about['tokens']:,} tokens")


if __name__ == "__main__":
    main()
