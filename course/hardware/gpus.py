"""GPUs as data. Each figure says where it comes from and of which kind it is.

Kinds: "published" (by its maker, or by who measured it), "second-hand" (somebody quotes the maker), "computed" (from
other figures here), "unverified" (told everywhere, and no source found), "read" (from the card in this machine).
Units: FLOP/s (dense, not sparse), bytes/s, bytes, counts. Two roofs stand apart: `peak` is what the data sheet promises,
`achieved` what somebody is known to have reached, where there is a source for it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    value: float
    source: str
    kind: str = "published"

    def __float__(self) -> float:
        return float(self.value)


@dataclass(frozen=True)
class Limits:
    """What one SM holds at once, by compute capability, and in what portions it is given out."""

    warps: int
    blocks: int
    registers: int  # of 32 bits
    registers_a_thread: int
    register_unit: int  # registers are given to a warp in multiples of this
    shared: int  # bytes
    shared_a_block: int  # bytes
    shared_unit: int  # bytes
    shared_reserved: int  # bytes that the system keeps of each block
    source: str = "NVIDIA, CCCL, cuda::arch_traits; the units: cuda_occupancy.h"


@dataclass(frozen=True)
class GPU:
    name: str
    arch: str
    sms: Figure
    memory: Figure  # bytes
    bandwidth: Figure  # bytes/s, of the memory
    peak: dict[str, Figure]  # number format -> FLOP/s
    limits: Limits | None  # None: of a chip that is not known here
    cache: Figure | None = None  # bytes, L2
    nvlink: Figure | None = None  # bytes/s, both directions together
    achieved: dict[str, Figure] = field(default_factory=dict)  # number format -> FLOP/s
    achieved_bandwidth: Figure | None = None  # bytes/s

    def roof(self, dtype: str, kind: str = "peak") -> Figure:
        """FLOP/s in a number format. Raises: ValueError for one that has no figure here."""
        roofs = self._roofs(kind)
        if dtype not in roofs:
            known = ", ".join(roofs) or "none"
            raise ValueError(f"{self.name} has no {kind} figure for {dtype!r}; there are: {known}")
        return roofs[dtype]

    def memory_roof(self, kind: str = "peak") -> Figure:
        """Bytes/s of the memory. Raises: ValueError where nobody is known to have measured it."""
        self._roofs(kind)
        figure = self.bandwidth if kind == "peak" else self.achieved_bandwidth
        if figure is None:
            raise ValueError(f"{self.name} has no {kind} figure for its bandwidth")
        return figure

    def _roofs(self, kind: str) -> dict[str, Figure]:
        if kind not in ("peak", "achieved"):
            raise ValueError(f"there are two kinds of roofs, peak and achieved, and not {kind!r}")
        return self.peak if kind == "peak" else self.achieved

    def memory_levels(self) -> list[tuple[str, float]]:
        """Name and bytes of each level of memory on the chip and beside it, the nearest first, all SMs together."""
        sms = int(self.sms.value)
        return [
            ("registers", 4 * self.limits.registers * sms),
            ("shared memory", self.limits.shared * sms),
            *([("L2", self.cache.value)] if self.cache else []),
            ("HBM", self.memory.value),
        ]


AMPERE = Limits(64, 32, 65_536, 255, 256, 167_936, 166_912, 128, 1024)
HOPPER = Limits(64, 32, 65_536, 255, 256, 233_472, 232_448, 128, 1024)
BLACKWELL = Limits(64, 32, 65_536, 255, 256, 233_472, 232_448, 128, 1024)
LIMITS = {
    "sm_75": Limits(32, 16, 65_536, 255, 256, 65_536, 65_536, 256, 0),
    "sm_80": AMPERE,
    "sm_86": Limits(48, 16, 65_536, 255, 256, 102_400, 101_376, 128, 1024),
    "sm_89": Limits(48, 24, 65_536, 255, 256, 102_400, 101_376, 128, 1024),
    "sm_90": HOPPER,
    "sm_100": BLACKWELL,
}

KLOCKWOOD = "glennklockwood.com, processors, citing NVIDIA's data sheets"
HPCTECH = "archive-lib.hpctech.co.jp, NVIDIA H100, after NVIDIA's data sheet"
BEKMAN = "stas00/ml-engineering, when-to-upgrade-gpus"
OPENXLA = "openxla/xla, xla/backends/gpu/target_config/specs/b200.txtpb, read from a card"
DEEP_DIVE = "deepseek-ai/FlashMLA, docs/20250422-new-kernel-deep-dive.md"
PROFILE = "deepseek-ai/profile-data, train.json, deviceProperties"


def _second_hand(value: float, source: str) -> Figure:
    return Figure(value, source, "second-hand")


H100 = GPU(
    name="H100 SXM",
    arch="sm_90",
    sms=_second_hand(132, HPCTECH),
    memory=_second_hand(80e9, HPCTECH),
    bandwidth=_second_hand(3.35e12, HPCTECH),
    cache=_second_hand(50e6, HPCTECH),
    peak={
        dtype: _second_hand(tflops * 1e12, KLOCKWOOD)
        for dtype, tflops in (("fp8", 1978.9), ("bf16", 989.4), ("fp16", 989.4), ("tf32", 494.7), ("fp32", 66.9))
    },
    limits=HOPPER,
    nvlink=_second_hand(900e9, HPCTECH),
)
H800 = GPU(
    name="H800 SXM",
    arch="sm_90",
    sms=Figure(132, PROFILE),
    memory=Figure(84_943_110_144, PROFILE),
    bandwidth=Figure(3.35e12, DEEP_DIVE),
    cache=Figure(H100.cache.value, "the H100's: the same chip", "computed"),
    peak={dtype: Figure(figure.value, "the H100's: the same chip", "computed") for dtype, figure in H100.peak.items()}
    | {"bf16": Figure(990e12, DEEP_DIVE)},
    limits=HOPPER,
    nvlink=_second_hand(
        400e9, "Insights into DeepSeek-V3 (arXiv 2505.09343), section 4: 200 GB/s each way, 160 in use"
    ),
    achieved={
        "bf16": Figure(660e12, "deepseek-ai/FlashMLA, README.md: dense decoding, bound by computation"),
        "fp8": Figure(1550e12, "deepseek-ai/DeepGEMM, README.md, news of 2025-04-18: up to"),
    },
    achieved_bandwidth=Figure(3.0e12, "deepseek-ai/FlashMLA, README.md: dense decoding, bound by memory"),
)
H200 = GPU(
    name="H200 SXM",
    arch="sm_90",
    sms=Figure(132, "the H100's: the same chip", "computed"),
    memory=_second_hand(141e9, BEKMAN),
    bandwidth=_second_hand(4.8e12, BEKMAN),
    cache=Figure(50e6, "the H100's: the same chip", "computed"),
    peak={"bf16": _second_hand(989e12, BEKMAN), "fp8": _second_hand(1979e12, BEKMAN)},
    limits=HOPPER,
    nvlink=Figure(900e9, "mlcommons, inference_results_v4.1, system descriptions"),
)
A100 = GPU(
    name="A100 SXM 80 GB",
    arch="sm_80",
    sms=_second_hand(108, KLOCKWOOD),
    memory=_second_hand(80e9, KLOCKWOOD),
    bandwidth=_second_hand(2.039e12, KLOCKWOOD),
    cache=_second_hand(40e6, KLOCKWOOD),
    peak={"bf16": _second_hand(312e12, KLOCKWOOD), "fp16": _second_hand(312e12, KLOCKWOOD)},
    limits=AMPERE,
    nvlink=_second_hand(600e9, KLOCKWOOD),
)
B200 = GPU(
    name="B200 SXM",
    arch="sm_100",
    sms=Figure(148, OPENXLA),
    memory=Figure(191_514_411_008, OPENXLA),
    bandwidth=_second_hand(8.0e12, BEKMAN),
    cache=Figure(132_644_864, OPENXLA),
    peak={"bf16": _second_hand(2250e12, BEKMAN), "fp8": _second_hand(4500e12, BEKMAN)},
    limits=BLACKWELL,
    nvlink=_second_hand(1800e9, "devidasmishra/ai-inference-hardware-economics-2026, a data set"),
)
REPORTED = {
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H800": H800,
    "NVIDIA H200": H200,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA B200": B200,
}  # what a driver calls them
GPUS = {"h800": H800, "h100": H100, "h200": H200, "a100": A100, "b200": B200}


def your_card() -> GPU | None:
    """The card that torch sees in this machine, with what torch says of it; None where there is none.

    Its roofs are those of the data sheet of the same model, where it is one of GPUS; else it has none.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    told = torch.cuda.get_device_properties(0)
    arch = f"sm_{told.major}{told.minor}"
    known = REPORTED.get(told.name)

    def read(value: float) -> Figure:
        return Figure(value, "torch.cuda.get_device_properties", "read")

    return GPU(
        name=told.name,
        arch=arch,
        sms=read(told.multi_processor_count),
        memory=read(told.total_memory),
        bandwidth=known.bandwidth if known else read(float("nan")),
        peak=known.peak if known else {},
        limits=LIMITS.get(arch),
        cache=read(told.L2_cache_size),
    )
