"""What a kernel does, by its name: the class it is counted in.

Communication is what moves data between GPUs: dispatch and combine of expert parallelism, the notify kernels by which
ranks tell each other counts and wait, and collectives. Finding out where tokens go (DeepEP's get_dispatch_layout) is
computation: it moves nothing. A transfer is a copy by a copy engine, within a GPU or to and from the host: neither.
"""

import re
from functools import cache

COMMUNICATION = ("dispatch", "combine", "notify", "collective")
TRANSFER = "transfer"
_EXPERT_PARALLEL = r"(deep_ep|dpsk::ep|\bep)::.*"
_PATTERNS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("routing", r"get_dispatch_layout"),
        ("notify", _EXPERT_PARALLEL + r"(notify|barrier|clean_low_latency_buffer)"),
        ("dispatch", _EXPERT_PARALLEL + r"::dispatch"),
        ("combine", _EXPERT_PARALLEL + r"::combine"),
        (
            "collective",
            r"^nccl|\bgloo:|\bc10d::|^record_param_comms|nvshmem|mscclpp|cross_device_reduce|"
            r"(all|one_shot_all|two_shot_all)_?reduce_?(kernel|fusion)|all_?gather_?kernel|reduce_?scatter_?kernel",
        ),
        ("attention", r"flash|fmha|attn|attention|\bmla_|mla::"),
        ("activation", r"swiglu|silu|gelu|act_and_mul"),
        ("norm", r"rms_?norm|layer_?norm|\bln_(fwd|bwd)"),
        ("quantize", r"quant|_cast_|cast_back|cast_to_fp8|special_fmt"),
        ("copy", r"copy|transpose|mem(cpy|set)|::cat\b|CatArray|fill_?|::contiguous"),
        ("gemm", r"gemm|nvjet|xmma|aten::(mm|addmm|bmm|baddbmm|_grouped_mm|mv|dot|_scaled_mm)\b|matmul|cublas|mkldnn"),
        ("rope", r"rotary|rope"),
        ("routing", r"top_?k|sort|expert|fused_mapping|expand_to_fused|reduce_fused|moe_align|scan|histogram|permut"),
        ("optimizer", r"adam|multi_tensor_apply|_foreach_"),
        ("elementwise", r"elementwise|reduce|softmax|aten::|triton_"),
    )
)


@cache
def kernel_class(name: str) -> str:
    """The class of a kernel or operator; "other" where its name says nothing."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")
