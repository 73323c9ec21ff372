# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 07 · DeepSeek-V3
#
# Everything comes together here. You write what stands between a folder of published weights and a model that runs: names, fused experts, FP8 blocks. And what
# stands between logits and text: sampling, guesses, their acceptance, and the loss that teaches a model to guess. Then a checkpoint that another library made, trained and wrote runs on
# **your own parts of labs 01 to 07**, and its logits are the other library's.
#
# How a lab works:
#
# - Replace the two lines `# YOUR CODE HERE` and `raise NotImplementedError` in an answer cell, run it, then run the check
#   below it. You may check as often as you like.
# - **An answer cell stands alone.** The check copies that one cell, adds the imports of the set-up cell, and runs it in a
#   process of its own. Helper functions belong in the same cell.
# - Leave the inputs as they are: an answer that changes one of its arguments in place does not pass.
# - Names carry their shape: **B** sequences of **S** positions, **V** vocabulary, **D** width, **E** experts, **I** hidden width of an expert, **N** rows, **M** columns (in 07.1: modules).
# - Stuck? `course hint 07.1` in a terminal gives a nudge, then a bigger one. Hints cost nothing.

# %% tags=["setup"]
try:
    from course import check, mine
except ModuleNotFoundError:  # on Colab: install the course once
    get_ipython().run_line_magic("pip", "install -q moe-to-metal")
    from course import check, mine

import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# %% [markdown]
# ## 07.1 · The loss of several tokens ahead
#
# A language model's head predicts, at position $i$, token $i + 1$. DeepSeek-V3 trains small modules behind it that look further (report, section 2.2): **module $k$**, counted from 1, predicts at position $i$ token
# $i + k + 1$. Module 1 predicts the token after the next. Their losses are averaged and join the main loss with a weight:
#
# $$\mathcal L_{k} = \operatorname*{mean}_{i\ \text{counted}} \bigl(-\log p_{k,i}(t_{i+k+1})\bigr) \qquad \text{total} = \frac{\textit{weight}}{M} \sum_{k=1}^{M} \mathcal L_k$$
#
# Which positions are counted? Training packs several documents into one sequence, and the end of one says nothing about the next. So position $i$ of module $k$ counts **if token $i + k + 1$ exists and belongs to the same document as position $i$**.
# `document_BS` holds a number for each token's document; equal numbers side by side are one document, and within a sequence no number comes back.
#
# - The mean is over all counted positions of the batch, each with the same weight. (The report divides by the whole length instead, a small difference.)
# - A module with no counted position has loss 0. It is still one of the M.
# - Logits may be bfloat16: widen them before the softmax. Logits at positions that do not count are there, mean nothing, and may even be NaN.
# - The last cells of this lab train with your loss, so stay in PyTorch: a gradient has to find its way back.
#
# The example is case 1. One sequence with the tokens `0 1 1 0 1`, of the documents `3 3 3 3 8`, two modules, weight 0.3:
#
# - Module 1 is held against the tokens two places ahead. Position 0: token 1; position 1: token 0; position 2 would cross into document 8. Its logits are `[ln 3, 0]` and `[0, 0]`: the losses
#   are ln 4 and ln 2, their mean 1.0397.
# - Module 2 looks three places ahead. Position 0 alone is counted: token 0, logits `[ln 4, 0]`, loss -ln 0.8 = 0.2231.
# - total = 0.3 / 2 · (1.0397 + 0.2231) = 0.1894.
#
# | | shape | |
# |---|---|---|
# | `logits_MBSV` | `[M, B, S, V]` float32 or bfloat16 | of M modules at every position |
# | `tokens_BS` | `[B, S]` int64 | |
# | `document_BS` | `[B, S]` int64 | |
# | `weight` | float | the report's λ |
# | returns `losses_M` | `[M]` float32 | |
# | returns `total` | float32 tensor without dimensions | |
#
# **Exercise 07.1** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:07.1"]
# exercise 07.1
def mtp_loss(logits_MBSV: Tensor, tokens_BS: Tensor, document_BS: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The loss of each module that predicts further ahead, and their weighted mean."""
    ### BEGIN SOLUTION
    losses = []
    for ahead, logits_BSV in enumerate(logits_MBSV.float(), start=2):
        targets_BN = tokens_BS[:, ahead:]
        N = targets_BN.shape[1]
        same_BN = document_BS[:, ahead:] == document_BS[:, :N]
        log_p_BNV = logits_BSV[:, :N].log_softmax(dim=-1)
        nats_K = -log_p_BNV.gather(2, targets_BN.unsqueeze(2)).squeeze(2)[same_BN]
        losses.append(nats_K.mean() if len(nats_K) else nats_K.sum())
    losses_M = torch.stack(losses)
    return losses_M, weight * losses_M.mean()
    ### END SOLUTION


# %% tags=["check:07.1", "nbval-check-output"]
check("07.1", mtp_loss)

# %% [markdown]
# ## 07.2 · What the tensors are called
#
# A checkpoint is a dictionary from names to tensors, and each program has names of its own. Write the translation from the published names of a DeepSeek-V3 into ours. `layers` is the number of blocks,
# `num_hidden_layers` of the config.
#
# | published | ours |
# |---|---|
# | `model.embed_tokens.weight` | `embedding` |
# | `model.norm.weight` | `norm` |
# | `lm_head.weight` | `head` |
# | `model.layers.N.` REST, with N below `layers` | `blocks.N.` PLACE |
# | `model.layers.N.` REST, with N from `layers` on | `mtp.` (N - layers) `.` PLACE |
#
# The second kind of layer is not a block: behind the last block published checkpoints keep the multi-token modules. REST and PLACE are:
#
# | REST | PLACE |
# |---|---|
# | `input_layernorm.weight`, `post_attention_layernorm.weight` | `attention_norm`, `feed_forward_norm` |
# | `self_attn.q_a_proj.weight`, `self_attn.q_a_layernorm.weight`, `self_attn.q_b_proj.weight` | `attention.query_down`, `attention.query_norm`, `attention.query_up` |
# | `self_attn.kv_a_proj_with_mqa.weight`, `self_attn.kv_a_layernorm.weight`, `self_attn.kv_b_proj.weight` | `attention.kv_down`, `attention.kv_norm`, `attention.kv_up` |
# | `self_attn.o_proj.weight` | `attention.output` |
# | `mlp.gate.weight`, `mlp.gate.e_score_correction_bias` | `router.gate`, `router.bias` |
# | `mlp.X_proj.weight`, where X is gate, up or down | `feed_forward.X` |
# | `mlp.shared_experts.X_proj.weight` | `shared.X` |
# | `mlp.experts.E.X_proj.weight`, where E is a number | `experts.E.X` |
# | `mlp.experts.gate_up_proj`, `mlp.experts.down_proj` | `experts.gate_up`, `experts.down` |
# | in a module only: `enorm.weight`, `hnorm.weight`, `eh_proj.weight`, `shared_head.norm.weight` | `embedding_norm`, `hidden_norm`, `projection`, `norm` |
#
# Three rules more:
#
# - A name that ends in `_scale_inv` holds the scales of the weight whose name stands before that ending: its place is the weight's place with `.scale` behind it. (The scales of a weight that is left out, or unknown, are so too.)
# - Two kinds of tensors are **left out**: a module's copies of what the main model has (`embed_tokens.weight` and `shared_head.head.weight`, in a module only), and whatever ends in `rotary_emb.inv_freq`, which follows from the config.
# - Everything else is **unknown**, also a known name with something before it, behind it or in between. A loader must not drop a tensor in silence: return these names, in the order in which they came.
#
# For example, with `layers` = 3 (case 1): `lm_head.weight` is `head`, `model.layers.1.mlp.experts.12.up_proj.weight` is `blocks.1.experts.12.up`, `model.layers.3.hnorm.weight` is `mtp.0.hidden_norm`,
# `model.layers.3.shared_head.head.weight` is left out, and `model.layers.1.mlp.bias` is unknown.
#
# | | |
# |---|---|
# | `names` | list of strings |
# | `layers` | int |
# | returns `ours` | dict: published name to place |
# | returns `unknown` | list of names |
#
# **Exercise 07.2** · difficulty 2 of 5 · 20 minutes · 10 points


# %% tags=["exercise:07.2"]
# exercise 07.2
def map_names(names: list[str], layers: int) -> tuple[dict[str, str], list[str]]:
    """Published tensor names as places in our model; and those that nobody knows."""
    ### BEGIN SOLUTION
    block = {
        "input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "feed_forward_norm",
        "mlp.gate.weight": "router.gate", "mlp.gate.e_score_correction_bias": "router.bias",
        "mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down",
    }  # fmt: skip
    attention = {"q_a_proj": "query_down", "q_a_layernorm": "query_norm", "q_b_proj": "query_up", "o_proj": "output"}
    attention |= {"kv_a_proj_with_mqa": "kv_down", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_up"}
    block |= {f"self_attn.{theirs}.weight": f"attention.{own}" for theirs, own in attention.items()}
    for part in ("gate", "up", "down"):
        block[f"mlp.{part}_proj.weight"] = f"feed_forward.{part}"
        block[f"mlp.shared_experts.{part}_proj.weight"] = f"shared.{part}"
        block[f"mlp.experts.#.{part}_proj.weight"] = f"experts.#.{part}"
    module = {"enorm": "embedding_norm", "hnorm": "hidden_norm", "eh_proj": "projection", "shared_head.norm": "norm"}
    module = block | {f"{theirs}.weight": own for theirs, own in module.items()}
    module |= {"embed_tokens.weight": None, "shared_head.head.weight": None}
    ours, unknown = {}, []
    for name in names:
        weight = name.removesuffix("_scale_inv")
        table = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "norm", "lm_head.weight": "head"}
        start, key, expert = "", weight, ""
        number, _, rest = weight.removeprefix("model.layers.").partition(".")
        if weight.startswith("model.layers.") and number.isdigit():
            key = rest
            in_module = int(number) >= layers
            table, start = (module, f"mtp.{int(number) - layers}.") if in_module else (block, f"blocks.{number}.")
            pieces = key.split(".")
            if pieces[:2] == ["mlp", "experts"] and pieces[2].isdigit():
                expert, pieces[2] = pieces[2], "#"
                key = ".".join(pieces)
        if weight.endswith("rotary_emb.inv_freq") or table.get(key, "") is None:
            continue
        if key in table:
            ours[name] = start + table[key].replace("#", expert) + (".scale" if weight != name else "")
        else:
            unknown.append(name)
    return ours, unknown
    ### END SOLUTION


# %% tags=["check:07.2", "nbval-check-output"]
check("07.2", map_names)

# %% [markdown]
# ## 07.3 · All experts in one tensor
#
# For speed, programs keep the experts of a layer in two tensors: one with gate and up projections, one with down projections. Three layouts are in use:
#
# | `layout` | `gate_up` | gate and up | `down` | found in |
# |---|---|---|---|---|
# | `"rows"` | `[E, 2I, D]` | the first I rows are the gate's, the last I up's | `[E, D, I]` | `transformers` for DeepSeek-V3, Mixtral, Qwen3-MoE |
# | `"columns"` | `[E, D, 2I]` | the first I columns are the gate's, the last I up's | `[E, I, D]` | Llama 4 |
# | `"alternating"` | `[E, D, 2I]` | columns 0, 2, 4, ... are the gate's, columns 1, 3, 5, ... up's | `[E, I, D]` | gpt-oss |
#
# Take them apart into single matrices, in the form that one-by-one checkpoints have: gate and up `[I, D]`, down `[D, I]`. Return a dictionary with the names `{prefix}.{e}.gate_proj.weight`, `{prefix}.{e}.up_proj.weight` and
# `{prefix}.{e}.down_proj.weight` for the experts e = 0 to E - 1, in the dtype that they have.
#
# Beware of sizes with which a wrong answer has the right shapes (D = 2I, for one): a shape alone proves nothing. Case 1 is one expert, D = 1 and I = 2, alternating: `gate_up` is `[[[1, 2, 3, 4]]]`, `down` is `[[[5], [6]]]`. The gate is
# `[[1], [3]]`, up is `[[2], [4]]`, and down is `[[5, 6]]`.
#
# | | |
# |---|---|
# | `gate_up`, `down` | tensors as above, float32 or bfloat16 |
# | `layout` | `"rows"`, `"columns"` or `"alternating"` |
# | `prefix` | string, such as `model.layers.3.mlp.experts` |
# | returns | dict: name to matrix |
#
# **Exercise 07.3** · difficulty 2 of 5 · 10 minutes · 5 points


# %% tags=["exercise:07.3"]
# exercise 07.3
def unpack_experts(gate_up: Tensor, down: Tensor, layout: str, prefix: str) -> dict[str, Tensor]:
    """The matrices of all experts of a layer under the names of single experts."""
    ### BEGIN SOLUTION
    if layout != "rows":
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    if layout == "alternating":
        gate_up = torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], dim=1)
    hidden = down.shape[2]
    matrices = {}
    for e in range(len(down)):
        matrices[f"{prefix}.{e}.gate_proj.weight"] = gate_up[e, :hidden].contiguous()
        matrices[f"{prefix}.{e}.up_proj.weight"] = gate_up[e, hidden:].contiguous()
        matrices[f"{prefix}.{e}.down_proj.weight"] = down[e].contiguous()
    return matrices
    ### END SOLUTION


# %% tags=["check:07.3", "nbval-check-output"]
check("07.3", unpack_experts)

# %% [markdown]
# ## 07.4 · One byte a weight
#
# DeepSeek-V3's weights are published in FP8: each number is one byte, a **code** of the format E4M3 (`torch.float8_e4m3fn`: a sign, four bits of exponent, three of fraction, at most 448, codes 127 and 255 are NaN). So few bits cannot
# cover large and small weights alike; therefore every block of a matrix, 128 rows by 128 columns, has a scale of its own (report, section 3.3).
#
# Turn codes back into weights. The weight in row $n$ and column $m$ is
#
# $$w_{n,m} = \mathrm{number}(\mathrm{code}_{n,m}) \cdot s_{\lfloor n / b_0 \rfloor,\ \lfloor m / b_1 \rfloor} \qquad s = \text{scale inv}, \quad b = \text{block}$$
#
# - The name in the checkpoints is `weight_scale_inv`, and in spite of it the scale is **multiplied**. (It is the inverse of what the weights were multiplied with to become codes.)
# - Blocks start at row 0 and column 0; the last ones may be cut short. `block` is `[rows, columns]` and need not be square.
# - There may be a dimension of experts in front, in codes and scales alike.
# - The result is float32 and computed in float32, with the scales as they are, however small. NaN stays NaN.
#
# The example is case 1. Codes `[[56, 64, 184], [48, 1, 126]]` stand for `[[1, 2, -1], [0.5, 0.001953125, 448]]`. With blocks of 2 by 2 and the scales `[[2, 0.5]]` the weights are
# `[[2, 4, -0.5], [1, 0.00390625, 224]]`.
#
# | | shape |
# |---|---|
# | `codes` | `[N, M]` or `[E, N, M]` uint8 |
# | `scale_inv` | `[n, m]` or `[E, n, m]` float32, where n = ⌈N / block[0]⌉ and m = ⌈M / block[1]⌉ |
# | `block` | list of two ints |
# | returns | shape of codes, float32 |
#
# **Exercise 07.4** · difficulty 2 of 5 · 15 minutes · 10 points


# %% tags=["exercise:07.4"]
# exercise 07.4
def dequantise(codes: Tensor, scale_inv: Tensor, block: list[int]) -> Tensor:
    """The weights that FP8 codes and one scale a block stand for."""
    ### BEGIN SOLUTION
    which_N = torch.arange(codes.shape[-2]).div(block[0], rounding_mode="floor")
    which_M = torch.arange(codes.shape[-1]).div(block[1], rounding_mode="floor")
    scales = scale_inv.index_select(-2, which_N).index_select(-1, which_M)
    return scales * codes.view(torch.float8_e4m3fn).to(torch.float32)
    ### END SOLUTION


# %% tags=["check:07.4", "nbval-check-output"]
check("07.4", dequantise)

# %% [markdown]
# ## 07.5 · A nucleus
#
# Drawing from all of a softmax draws nonsense now and then: a long tail of bad tokens adds up. *Nucleus sampling* (Holtzman et al. 2020) draws from the fewest tokens, the most probable first, whose probabilities reach `top_p`.
#
# 1. Divide the logits by the temperature; softmax over the vocabulary.
# 2. Order the tokens of a row by probability, largest first; of equal ones the lower id comes first.
# 3. Keep tokens from the front until their sum **reaches** `top_p`: the one that reaches it is kept, and the first always is. With `top_p` = 1 all of a probability above 0 stay, also where rounding makes the sum 1 before the last. A token of probability 0 (logit minus infinity) is never kept.
# 4. Divide what was kept by its sum, and draw by the given number $u$ from 0 to 1: add up from the front, **in the order of step 2**, and take the first token with which the sum is above $u$.
#
# With temperature 0 take the largest logit, of equal ones the lower id, and say that 1 was kept. Any temperature above 0 divides, however small it is.
#
# The example is case 1: temperature 1, `top_p` 0.7, two rows with the probabilities `[0.2, 0.5, 0.3]` and `[0.05, 0.05, 0.9]`, and u = `[0.6, 0.99]`. In row 0 ids 1 and 2 are kept, 0.5 + 0.3; of their sum they are 0.625 and 0.375, and 0.6
# falls to id 1. In row 1 id 2 alone is kept. So `ids` is `[1, 2]` and `kept` is `[2, 1]`.
#
# | | shape | |
# |---|---|---|
# | `logits_BV` | `[B, V]` float32 | may be minus infinity, not a whole row |
# | `temperature` | float | 0 or more |
# | `top_p` | float | above 0, at most 1 |
# | `uniform_B` | `[B]` float32 | from 0 up to, not including, 1 |
# | returns `ids` | `[B]` int64 | |
# | returns `kept` | `[B]` int64 | how many tokens were kept |
#
# (No sum of the cases lies so near to `top_p` or to u that rounding would decide.)
#
# **Exercise 07.5** · difficulty 3 of 5 · 20 minutes · 10 points


# %% tags=["exercise:07.5"]
# exercise 07.5
def top_p_sample(logits_BV: Tensor, temperature: float, top_p: float, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """A token of each row out of its nucleus, and the size of the nucleus."""
    ### BEGIN SOLUTION
    ordered_BV, ids_BV = torch.sort(logits_BV, dim=1, descending=True, stable=True)
    if temperature == 0:
        return ids_BV[:, 0], torch.ones_like(ids_BV[:, 0])
    p_BV = F.softmax(ordered_BV / temperature, dim=1)
    sums_BV = F.pad(p_BV.cumsum(dim=1), (1, 0))[:, :-1]  # of the tokens before each
    needed_BV = (sums_BV < top_p) if top_p < 1 else torch.ones_like(p_BV, dtype=torch.bool)
    kept_B = (needed_BV & (p_BV > 0)).sum(dim=1)
    nucleus_BV = p_BV.where(torch.arange(p_BV.shape[1]) < kept_B.unsqueeze(1), 0)
    reach_BV = nucleus_BV.cumsum(dim=1)
    above_BV = reach_BV > uniform_B.unsqueeze(1) * reach_BV[:, -1:]
    return ids_BV.gather(1, above_BV.int().argmax(dim=1, keepdim=True)).squeeze(1), kept_B
    ### END SOLUTION


# %% tags=["check:07.5", "nbval-check-output"]
check("07.5", top_p_sample)

# %% [markdown]
# ## 07.6 · Which guesses may stay?
#
# A small model, or a module, has guessed the next N tokens. The large model computes all of these positions in one run. Which guesses may stay, so that what comes out is distributed **exactly** as if the large model had drawn every
# token itself? (Leviathan et al. 2023.)
#
# At place $n$ the guess $g_n$ was drawn from the draft's distribution $q_n$; the target's is $p_n$. Go along the row from the first:
#
# - Keep $g_n$ with probability $\min\bigl(1,\ p_n(g_n) / q_n(g_n)\bigr)$: if $u_n \cdot q_n(g_n) < p_n(g_n)$, with the given random number $u_n$.
# - At the **first** guess that is not kept, stop. Draw one token in its place from what the draft has left over: $\max(p_n - q_n, 0)$, divided by its sum. The guesses behind it are gone.
# - If all were kept, draw one token more from the target's next distribution: it has N + 1 rows.
#
# So a run brings from 1 to N + 1 tokens. The last one is drawn with the number `last`: add up the distribution from token 0 on, and take the first token with which the sum is above `last`.
#
# The example is case 1. Two guesses, `[0, 2]`, and three tokens:
#
# | | draft | target | guess | u · q | p | |
# |---|---|---|---|---|---|---|
# | place 0 | 0.5, 0.5, 0 | 0.25, 0.5, 0.25 | 0 | 0.3 · 0.5 = 0.15 | 0.25 | kept |
# | place 1 | 0.2, 0, 0.8 | 0.4, 0.2, 0.4 | 2 | 0.6 · 0.8 = 0.48 | 0.4 | not kept |
# | next | | 1, 0, 0 | | | | not needed |
#
# At place 1 the draft leaves over 0.2, 0.2 and 0, divided by their sum 0.5, 0.5 and 0; `last` = 0.7 falls to token 1. The tokens are `[0, 1]`, and 1 guess was right.
#
# | | shape | |
# |---|---|---|
# | `draft_NV` | `[N, V]` float64 | each row adds up to 1; N may be 0 |
# | `target_MV` | `[N + 1, V]` float64 | |
# | `drafted_N` | `[N]` int64 | the guesses; the draft gave each a probability above 0 |
# | `uniforms_N` | `[N]` float64 | from 0 up to, not including, 1 |
# | `last` | float | from 0 up to, not including, 1 |
# | returns `tokens` | int64, 1 to N + 1 of them | |
# | returns `right` | int | how many guesses were kept |
#
# **Exercise 07.6** · difficulty 3 of 5 · 25 minutes · 10 points


# %% tags=["exercise:07.6"]
# exercise 07.6
def accept_guesses(
    draft_NV: Tensor, target_MV: Tensor, drafted_N: Tensor, uniforms_N: Tensor, last: float
) -> tuple[Tensor, int]:
    """The guesses that stay and one token behind them; and how many stayed."""
    ### BEGIN SOLUTION
    right = 0
    for q_V, p_V, guess, u in zip(draft_NV, target_MV, drafted_N, uniforms_N, strict=False):
        if u * q_V[guess] >= p_V[guess]:
            rest_V = F.relu(p_V - q_V)
            break
        right += 1
    else:
        rest_V = target_MV[len(drafted_N)]
    reach_V = torch.cumsum(rest_V, dim=0)
    drawn_1 = (reach_V > last * reach_V[-1]).int().argmax(dim=0, keepdim=True)
    return torch.cat([drafted_N[:right], drawn_1]), right
    ### END SOLUTION


# %% tags=["check:07.6", "nbval-check-output"]
check("07.6", accept_guesses)

# %% [markdown]
# ## Somebody else's checkpoint
#
# No exercise from here on: run the cells. `mine("07.2")` is your own function once it has passed, and the course's until then.
#
# The folder below was not made by this course's model. Hugging Face's `transformers` built a DeepSeek-V3 of 0.5 million parameters, trained it on the Python of the standard library, and wrote it, in three shards and with fused experts. Nothing of
# `transformers` is needed to read it.

# %%
import json

import course
from safetensors.torch import load_file

course.recorded("foreign_deepseek_v3/record")
folder = course.recorded_folder("foreign_deepseek_v3")
config = json.loads((folder / "config.json").read_text())
stored = {}
for shard in sorted(folder.glob("model-*.safetensors")):
    stored |= load_file(shard)
    print(f"{shard.name}: {shard.stat().st_size / 1000:.0f} kB")
print(f"{len(stored)} tensors, {sum(tensor.numel() for tensor in stored.values()):,} numbers")

# %% [markdown]
# Your unpacking gives every expert matrix a name of its own, and your translation gives every name a place:

# %%
unpack, translate = mine("07.3"), mine("07.2")
for layer in range(config["first_k_dense_replace"], config["num_hidden_layers"]):
    experts = f"model.layers.{layer}.mlp.experts"
    stored |= unpack(stored.pop(f"{experts}.gate_up_proj"), stored.pop(f"{experts}.down_proj"), "rows", experts)
ours, unknown = translate(list(stored), config["num_hidden_layers"])
assert not unknown
weights = {ours[name]: tensor.float() for name, tensor in stored.items()}
print(f"{len(weights)} tensors, none unknown; some of them:")
for name in list(ours)[:2] + list(ours)[-2:]:
    print(f"{name:48s} {ours[name]:28s} {list(stored[name].shape)}")

# %% [markdown]
# Now the model, out of your parts. Nothing below comes from `course.model`: the norm is 02.1, SwiGLU 02.4, the expert loop 04.2, the groups 05.2, the scores with two parts 06.4, YaRN 06.7. What remains is written out: looking up an embedding, a few matrix
# products, a softmax, the residual connections.

# %%
parts = {name: mine(name) for name in ("02.1", "02.4", "04.2", "05.2", "06.4", "06.5", "06.7")}
c = config
H, O, r, R = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]  # noqa: E741
y = c["rope_parameters"]
speeds_P, table_factor, softmax_scale = parts["06.7"](
    r, O, y["rope_theta"], y["factor"], y["original_max_position_embeddings"], y["beta_fast"], y["beta_slow"],
    y["mscale"], y["mscale_all_dim"], True,
)  # fmt: skip
angles_TP = torch.arange(c["max_position_embeddings"])[:, None] * speeds_P
cos_TP, sin_TP = table_factor * angles_TP.cos(), table_factor * angles_TP.sin()
sharper = softmax_scale * (O + r) ** 0.5  # 06.4 and 06.5 divide by sqrt(O + r) themselves


def linear(w, name, x):
    return x @ w[name].T


def norm(w, name, x, eps=c["rms_norm_eps"]):
    return parts["02.1"](x, w[name], eps, False)


# %%
def queries_and_latent(w, at, x_BSD):
    """Queries of all heads, unturned; the latent; the shared key, unturned. Latents are normed with 1e-6, whatever the config says."""
    q_BSF = linear(w, f"{at}.query_up", norm(w, f"{at}.query_norm", linear(w, f"{at}.query_down", x_BSD), 1e-6))
    latent_BSR, k_rope_BSr = linear(w, f"{at}.kv_down", x_BSD).split([R, r], dim=-1)
    return q_BSF.unflatten(-1, (H, O + r)).transpose(1, 2), norm(w, f"{at}.kv_norm", latent_BSR, 1e-6), k_rope_BSr


def attention(w, at, x_BSD):
    """All positions at once, expanded."""
    q_BHSC, latent_BSR, k_rope_BSr = queries_and_latent(w, at, x_BSD)
    kv_BHSF = linear(w, f"{at}.kv_up", latent_BSR).unflatten(-1, (H, -1)).transpose(1, 2)
    positions_BS = torch.arange(x_BSD.shape[1]).expand(x_BSD.shape[:2])
    scores = parts["06.4"](sharper * q_BHSC, kv_BHSF[..., :O], k_rope_BSr, positions_BS, cos_TP, sin_TP)
    mixed_BHSV = scores.softmax(dim=-1) @ kv_BHSF[..., O:]
    return linear(w, f"{at}.output", mixed_BHSV.transpose(1, 2).flatten(2))


def swiglu(w, at, x):
    return parts["02.4"](x, torch.cat([w[f"{at}.gate"], w[f"{at}.up"]]), w[f"{at}.down"], "gate_up")


def mixture(w, at, x_TD):
    """Sigmoid scores, your groups, your loop over experts, and the shared one."""
    scores_TE = torch.sigmoid(linear(w, f"{at}.router.gate", x_TD))
    groups = c["n_group"], c["topk_group"], 2, c["num_experts_per_tok"]
    indices_TK, _ = parts["05.2"](scores_TE + w[f"{at}.router.bias"], *groups)
    chosen_TK = scores_TE.gather(1, indices_TK)
    weights_TK = c["routed_scaling_factor"] * chosen_TK / chosen_TK.sum(dim=1, keepdim=True)
    experts = [
        torch.stack([w[f"{at}.experts.{e}.{part}"] for e in range(c["n_routed_experts"])])
        for part in ("gate", "up", "down")
    ]
    return parts["04.2"](x_TD, indices_TK, weights_TK, *experts) + swiglu(w, f"{at}.shared", x_TD)


# %%
def feed_forward(w, layer, x_BSD):
    if layer < c["first_k_dense_replace"]:
        return swiglu(w, f"blocks.{layer}.feed_forward", x_BSD)
    return mixture(w, f"blocks.{layer}", x_BSD.flatten(0, 1)).view_as(x_BSD)


def my_model(w, tokens_BS):
    """Logits of the next token at every position."""
    x_BSD = w["embedding"][tokens_BS]
    for layer in range(c["num_hidden_layers"]):
        at = f"blocks.{layer}"
        x_BSD = x_BSD + attention(w, f"{at}.attention", norm(w, f"{at}.attention_norm", x_BSD))
        x_BSD = x_BSD + feed_forward(w, layer, norm(w, f"{at}.feed_forward_norm", x_BSD))
    return linear(w, "head", norm(w, "norm", x_BSD))


theirs = load_file(folder / "logits.safetensors")  # what transformers computed from these files, in float32
with torch.no_grad():
    logits_BSV = my_model(weights, theirs["tokens"])
apart = (logits_BSV - theirs["logits"]).abs().max() / theirs["logits"].abs().max()
print(
    f"{logits_BSV.numel():,} logits, yours against those of transformers: largest difference {apart:.0e} of the largest"
)
assert apart < 1e-5

# %% [markdown]
# That is the moment this course has been working towards: weights that were made elsewhere, by code that you have never run, and functions that you wrote one by one, agree to the last digits of float32. Hardly any
# mistake survives such a comparison. Look at it:

# %%
import matplotlib.pyplot as plt

plt.style.use("course.lesson")
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2))
sample_N = torch.randperm(logits_BSV.numel(), generator=torch.Generator().manual_seed(0))[:3000]
left.plot(theirs["logits"].flatten()[sample_N], logits_BSV.flatten()[sample_N], ".", markersize=2)
left.set(xlabel="transformers", ylabel="yours", title="3,000 of the logits")
middle.hist((logits_BSV - theirs["logits"]).flatten() * 1e6, bins=80)
middle.set(xlabel="difference (millionths)", yticks=[], title="All differences")
loss = mine("01.4")
tokens_BS = theirs["tokens"]
nats_BS = loss(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten(), -1)[1].view(2, -1)
right.plot(nats_BS.cumsum(1)[0] / torch.arange(1, nats_BS.shape[1] + 1), label="text 1")
right.plot(nats_BS.cumsum(1)[1] / torch.arange(1, nats_BS.shape[1] + 1), label="text 2")
right.axhline(math.log(c["vocab_size"]), color="black", linestyle="--", linewidth=1)
right.set(xlabel="tokens read", ylabel="mean loss so far (nats)", title="Two unseen texts", ylim=(0, 7))
right.legend()
plt.show()

# %% [markdown]
# *Figure: three panels. Left, your logits against the other library's: points on the diagonal. Middle, a histogram of their differences, a narrow peak at zero, some millionths wide. Right, the mean loss over two texts, well
# below the dashed line of a model that guesses evenly.*
#
# ## It writes
#
# For writing, a cache of latent rows, your absorbed attention of 06.5, and your nucleus of 07.5:

# %%
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
draw = mine("07.5")


def turn(x, positions):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_TP[positions], sin_TP[positions]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def step(w, tokens_BS, rows):
    """Logits behind new tokens; `rows` holds each layer's cache and grows."""
    x_BSD = w["embedding"][tokens_BS]
    for layer in range(c["num_hidden_layers"]):
        at, before = f"blocks.{layer}", rows[layer].shape[1]
        positions = torch.arange(before, before + tokens_BS.shape[1])
        here = queries_and_latent(w, f"{at}.attention", norm(w, f"{at}.attention_norm", x_BSD))
        q_BHSC, latent_BSR, k_rope_BSr = here
        rows[layer] = torch.cat([rows[layer], torch.cat([latent_BSR, turn(k_rope_BSr, positions)], -1)], 1)
        q_BHSC = sharper * torch.cat([q_BHSC[..., :O], turn(q_BHSC[..., O:], positions)], dim=-1)
        y_BHSV = parts["06.5"](q_BHSC, rows[layer], w[f"{at}.attention.kv_up"], O)
        x_BSD = x_BSD + linear(w, f"{at}.attention.output", y_BHSV.transpose(1, 2).flatten(2))
        x_BSD = x_BSD + feed_forward(w, layer, norm(w, f"{at}.feed_forward_norm", x_BSD))
    return linear(w, "head", norm(w, "norm", x_BSD))


# %%
@torch.no_grad()
def write(prompt, count, temperature, top_p, seed=0):
    """A continuation, and how large the nucleus was for each token."""
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    ids, sizes = tokenizer.encode(prompt).ids, []
    rows, new = [torch.zeros(1, 0, R + r) for _ in range(c["num_hidden_layers"])], ids
    for u in uniforms:
        token, kept = draw(step(weights, torch.tensor([new]), rows)[:, -1], temperature, top_p, u[None])
        new = token.tolist()
        ids, sizes = ids + new, [*sizes, int(kept)]
    return ids, sizes


ids, sizes = write("def read(self, path):\n", 90, 0.8, 0.9)
with torch.no_grad():
    rows = [torch.zeros(1, 0, R + r) for _ in range(c["num_hidden_layers"])]
    one_by_one = torch.cat([step(weights, torch.tensor([[token]]), rows) for token in ids[:40]], dim=1)
    torch.testing.assert_close(one_by_one, my_model(weights, torch.tensor([ids[:40]])), atol=1e-4, rtol=1e-4)
print(tokenizer.decode(ids))
print(
    f"\nnucleus of 1 to {max(sizes)} tokens, {sorted(sizes)[len(sizes) // 2]} in the middle; cached steps equal all at once"
)

# %% [markdown]
# It has the gestures of Python, and no idea: half a million parameters and four million tokens. Change temperature and `top_p` and look what they do.
#
# ## In one byte
#
# V3 is published in FP8. Here is the same model stored so, in blocks of several sizes, and read back with your 07.4. Norms, biases and the router stay as they are, as in V3.

# %%
back = mine("07.4")


def quantise(weight_NM, block):
    """FP8 codes and one scale a block: the largest entry of each block becomes 448."""
    (N, M), (rows, columns) = weight_NM.shape, block
    padded = F.pad(weight_NM, (0, -M % columns, 0, -N % rows))
    blocks = padded.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).abs()
    scale_inv = blocks.amax((1, 3)).clamp(min=1e-12) / 448
    wide = scale_inv.repeat_interleave(rows, 0)[:N].repeat_interleave(columns, 1)[:, :M]
    return (weight_NM / wide).to(torch.float8_e4m3fn).view(torch.uint8), scale_inv


def loss_of(w):
    logits_BSV = my_model(w, tokens_BS)
    return loss(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten(), -1)[0].item(), logits_BSV


kinds = ("query", "kv_down", "kv_up", "output", "feed_forward.", "experts", "shared")
stays = {name: w for name, w in weights.items() if w.ndim < 2 or not any(kind in name for kind in kinds)}
with torch.no_grad():
    full, full_logits = loss_of(weights)
    print(f"as published: {full:.4f} nats a token")
    for block in ([128, 128], [16, 16], [1, 16]):
        packed = {name: quantise(w, block) for name, w in weights.items() if name not in stays}
        read = stays | {name: back(*pair, block) for name, pair in packed.items()}
        in_fp8, logits = loss_of(read)
        size = sum(codes.numel() + 4 * scales.numel() for codes, scales in packed.values())
        was = sum(2 * weights[name].numel() for name in packed)
        off = ((logits - full_logits).norm() / full_logits.norm()).item()
        print(f"blocks of {block!s:10s} {in_fp8:.4f} nats, logits {off:.1%} off, {size / was:.2f} of the bytes in BF16")

# %% [markdown]
# Half the bytes, logits off by a few percent, and a loss that hardly moves. Smaller blocks gain little: as the lesson showed, a floating format forgives much before it needs a scale nearby (unit 13 goes on from here).
#
# ## It guesses
#
# `transformers` writes no multi-token modules, so this checkpoint has none. Let us grow one: `course.model`'s module behind the frozen model, trained with **your loss** of 07.1, some seconds.

# %%
from course.model import MTPModule, from_pretrained
from course.training import corpus

whole = from_pretrained(folder)  # the same model, ready-made: quicker for training
torch.manual_seed(7)
module, loss_ahead = MTPModule(whole.config), mine("07.1")
for weight in (p for p in module.parameters() if p.ndim > 1):
    torch.nn.init.normal_(weight, std=0.05)
documents, _ = corpus.split(corpus.embedded("code"))
ends = [c["eos_token_id"]]
text_N = torch.tensor([i for document in documents[:60] for i in tokenizer.encode(document.text).ids + ends])
optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, weight_decay=0.0)


def ahead(tokens_BS):
    """The module's logits at every position but the last, which knows no next token."""
    with torch.no_grad():
        hidden_BSD = whole.features(tokens_BS).hidden_BSD[:, :-1]
        embedded_BSD, (cos, sin) = whole.embedding(tokens_BS[:, 1:]), whole.rope(torch.arange(tokens_BS.shape[1] - 1))
    return module(embedded_BSD, hidden_BSD, cos, sin).hidden_BSD @ whole.head.weight.T


history, draws = [], torch.Generator().manual_seed(7)
for _ in range(120):
    starts = torch.randint(len(text_N) - 64, (16, 1), generator=draws)
    tokens = text_N[starts + torch.arange(64)]
    logits = F.pad(ahead(tokens), (0, 0, 0, 1))[None]
    document_BS = (tokens == c["eos_token_id"]).cumsum(1)
    _, total = loss_ahead(logits, tokens, document_BS, 1.0)
    assert total.requires_grad, "no gradient reaches the module: your loss leaves PyTorch (NumPy? item?)"
    total.backward()
    optimizer.step()
    optimizer.zero_grad()
    history.append(total.item())
now, even = sum(history[-20:]) / 20, math.log(c["vocab_size"])
print(f"loss two tokens ahead: {history[0]:.2f} at first, {now:.2f} now; an even guess has {even:.2f}")

# %% [markdown]
# Now it may guess for the large one, and **your acceptance** of 07.6 decides. A round is one run of the model over what is there and one guess. Two ways: greedy, where both distributions put everything on their first choice; and drawn, at temperature 1.
#
# **Predict:** in which way are more guesses right?


# %%
@torch.no_grad()
def speculate(ids, count, greedy, generator):
    """Tokens, and of the guesses how many were kept."""
    accept, start, kept, guessed, draft_NV = mine_accept, len(ids), 0, 0, None
    while len(ids) - start < count:
        drafted = [] if draft_NV is None else [int(torch.multinomial(draft_NV[0], 1, generator=generator))]
        tokens = torch.tensor([ids + drafted])
        features = whole.features(tokens).hidden_BSD
        target_MV = whole.head(features)[0, len(ids) - 1 :].double().softmax(-1)
        if greedy:
            target_MV = F.one_hot(target_MV.argmax(-1), target_MV.shape[1]).double()
        draft = target_MV[:0] if draft_NV is None else draft_NV
        uniforms = torch.rand(len(drafted) + 1, generator=generator, dtype=torch.float64)
        new, right = accept(
            draft, target_MV, torch.tensor(drafted, dtype=torch.int64), uniforms[:-1], uniforms[-1].item()
        )
        ids, kept, guessed = ids + new.tolist(), kept + right, guessed + len(drafted)
        draft_NV = ahead(torch.tensor([ids]))[0, -1:].double().softmax(-1)
        if greedy:
            draft_NV = F.one_hot(draft_NV.argmax(-1), draft_NV.shape[1]).double()
    return ids[: start + count], kept / guessed


mine_accept = mine("07.6")
prompt = tokenizer.encode("class Reader:\n    def __init__(self, path):\n").ids
generator = torch.Generator().manual_seed(1)
for greedy in (True, False):
    ids, rate = speculate(prompt, 100, greedy, generator)
    print(f"{'greedy' if greedy else 'drawn ':6s} {rate:4.0%} of the guesses kept: {1 + rate:.2f} tokens a run")
    if greedy:
        plain, _ = write("class Reader:\n    def __init__(self, path):\n", 100, 0.0, 1.0)
        assert ids == plain, "speculation must not change what a greedy model writes"
        print(f"       the same {len(ids) - len(prompt)} tokens as without guesses")

# %% [markdown]
# Drawn, a guess is kept with probability $\sum_v \min(p_v, q_v)$: what the two distributions have in common. Greedy, everything hangs on one question, whether the first choices agree; for a young module the two answers
# can lie far apart.
#
# DeepSeek reports that 85 to 90 % of V3's guesses of the second token are kept (report, section 5.4.3, *quoted*), from a module trained along with the model on 14.8 trillion tokens. Yours had a few seconds.
#
# And is the distribution really the target's? A small trial, on random distributions, with your function a few thousand times:

# %%
draft_V, target_V = torch.tensor([0.5, 0.3, 0.15, 0.05]).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
generator = torch.Generator().manual_seed(2)
first = []
for _ in range(4000):
    guess = torch.multinomial(draft_V, 1, generator=generator)
    u, last = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    tokens, _ = mine_accept(draft_V[None], target_V.expand(2, 4), guess, torch.tensor([u]).double(), last)
    first.append(int(tokens[0]))
seen_V = torch.bincount(torch.tensor(first), minlength=4) / len(first)
figure, axis = plt.subplots(figsize=(6, 2.8))
for shift, (values, label) in enumerate([(draft_V, "draft"), (target_V, "target"), (seen_V, "what came out")]):
    axis.bar(torch.arange(4) + 0.27 * (shift - 1), values, width=0.25, label=label)
axis.set(xticks=range(4), xlabel="token", ylabel="probability", title="4,000 guesses, accepted or replaced")
axis.legend()
axis.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# *Figure: for four tokens the draft's probabilities, which fall, the target's, which rise, and the frequencies of the first token that came out: they stand beside the target's, although every guess was drawn from the draft.*
#
# From a blank cell to this: a tokenizer, a transformer, its training, a mixture of experts, latent attention, and a checkpoint from elsewhere that runs on all of it. What you do not know yet is what it *costs*: from the next unit on you look at the machine.
#
# **Next:** lesson 08, where a product of two matrices meets the roof of a GPU.
