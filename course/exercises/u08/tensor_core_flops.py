"""08.6: what the tensor cores do in one pass of a kernel's hot loop, read from its SASS (`nvdisasm -c`)."""

import math
import re

from course.checking.compare import same
from course.checking.exercise import Exercise, Misconception

# Excerpts of what Triton's compiler made of the course's matmul for sm_90 and sm_80, and of loops built like them. `listing`
# puts the addresses in. A line "L1:" is a label.
COPIES = """\
S2R R7, SR_CTAID.X
LDGSTS.E.BYPASS.128 [R160+0x18000], desc[UR14][R10.64], P5
LDGDEPBAR
@!P0 BRA `(.L_x_0)
.L_x_1:
DEPBAR.LE SB0, 0x2
BAR.SYNC.DEFER_BLOCKING 0x0
WARPGROUP.ARRIVE
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR16].tnspB, R24
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24, gsb0
WARPGROUP.DEPBAR.LE gsb0, 0x1
LDGSTS.E.BYPASS.128 [R159+0x18000], desc[UR14][R6.64], P1
LDGSTS.E.BYPASS.128 [R159+0x19000], desc[UR14][R6.64], P1
LDGSTS.E.BYPASS.128 [R159+0x1a000], desc[UR14][R6.64], P1
LDGDEPBAR
@!P0 BRA `(.L_x_1)
.L_x_0:
WARPGROUP.DEPBAR.LE gsb0, 0x0
@P0 STG.E.128 desc[UR14][R4.64], R24
EXIT
.L_x_2:
BRA `(.L_x_2);
NOP;"""
DESCRIPTORS = """\
@UP2 UTMALDG.2D [UR12], [UR16]
@!P0 BRA `(.L_x_0)
.L_x_2:
UIADD3 UR11, UR11, 0x1, URZ
SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR13+0x24000], R6
@!P0 BRA `(.L_x_1)
.L_x_3:
BAR.SYNC.DEFER_BLOCKING 0x0
WARPGROUP.ARRIVE
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR24].tnspB, R24
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR24].tnspB, R24, gsb0
@UP2 UTMALDG.2D [UR12], [UR22]
@UP0 UTMALDG.2D [UR16], [UR24]
@!P0 BRA `(.L_x_2)
.L_x_0:
WARPGROUP.DEPBAR.LE gsb0, 0x0
EXIT
.L_x_1:
SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR13+0x24000], R6
@!P0 BRA `(.L_x_1)
BRA `(.L_x_3)
.L_x_4:
BRA `(.L_x_4)"""
ONE_WARP = """\
LDGSTS.E.BYPASS.128 [R238+0x10000], [R4.64], P1
@P0 BRA `(.L_x_0)
BRA `(.L_x_1)
.L_x_0:
UMOV UR7, 0x1
.L_x_2:
LDSM.16.M88.4 R40, [R235+UR11+0x13000]
LDSM.16.MT88.4 R8, [R232+UR12+0x80]
HMMA.16816.F32.BF16 R124, R40.reuse, R8, R124
HMMA.16816.F32.BF16 R92, R40.reuse, R24, R92
@P2 HMMA.16816.F32.BF16 R160, R36.reuse, R12, R160
LDGSTS.E.BYPASS.128 [R17+0x10000], [R4.64], P0
@!P5 BRA `(.L_x_2)
.L_x_1:
HMMA.16816.F32.BF16 R160, R36.reuse, R12, R160
EXIT"""
FP8 = """\
.L_x_1:
QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR8], RZ, !UPT
QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR12], R24
@P3 QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR16], R24, gsb0
LDG.E R3, desc[UR14][R4.64]
@P1 LDG.E.128 R8, desc[UR14][R6.64]
LDC R40, c[0x0][0x238]
FFMA R88, R24, R3, R88
@P0 BRA `(.L_x_1)
EXIT"""
PERSISTENT = """\
.L_x_0:
LDG.E.64 R2, desc[UR4][R2.64]
.L_x_1:
HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
UTMALDG.3D [UR12], [UR22]
@P0 BRA `(.L_x_1)
HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
STG.E.128 desc[UR14][R4.64], R24
@!P1 BRA `(.L_x_0)
EXIT"""
TWO_LOOPS = """\
.L_x_0:
HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
LDGSTS.E [R1], desc[UR4][R2.64]
@P0 BRA `(.L_x_0)
.L_x_1:
HMMA.1688.F32.TF32 R4, R8, R10, R4
HMMA.1688.F32.TF32 R4, R8, R10, R4
HMMA.16816.F32 R4, R8, R10, R4
LDS.128 R8, [R2]
LDL R5, [R1+0x10]
LDSM.16.M88.4 R40, [R235]
@P0 BRA `(.L_x_1)
.L_x_2:
HMMA.16816.F32 R4, R8, R10, R4
HMMA.16816.F32 R4, R8, R10, R4
HMMA.16816.F32 R4, R8, R10, R4
@P0 BRA `(.L_x_2)
EXIT"""
TF32 = """\
.L_x_1:
LDSM.16.M88.4 R40, [R235]
HMMA.1688.F32.TF32 R4, R8, R10, R4
@!P2 HMMA.1688.F32.TF32 R4, R8, R10, R4
LDGSTS.E.BYPASS.128 [R159], desc[UR14][R6.64], P1
LDG.E R3, desc[UR14][R4.64]
@P0 BRA `(.L_x_1)
EXIT"""
NO_TENSORS = """\
.L_x_0:
LDG.E.128 R8, desc[UR14][R6.64]
FADD R8, R8, R9
@P0 BRA `(.L_x_0)
HMMA.16816.F32 R4, R8, R10, R4
EXIT"""
NO_LOOP = """\
LDG.E.128 R8, desc[UR14][R6.64]
HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_0)
EXIT
.L_x_0:
STG.E.128 desc[UR14][R4.64], R24
EXIT"""
SKIPS = """\
.L_x_0:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_1)
LDG.E.128 R8, desc[UR14][R6.64]
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
.L_x_1:
.L_x_2:
BRA.U UP0, `(.L_x_0)
LDG.E.128 R8, desc[UR14][R6.64]
@P1 BRA `(.L_x_3)
.L_x_4:
HMMA.1688.F32.TF32 R4, R8, R10, R4
@P1 BRA `(.L_x_4)
.L_x_3:
EXIT"""
TEN_LABELS = """\
.L_x_1:
LDG.E.128 R8, desc[UR14][R6.64]
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
.L_x_10:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_10)
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P1 BRA `(.L_x_11)
STG.E.128 desc[UR14][R4.64], R24
.L_x_11:
EXIT"""
TWO_WAYS_BACK = """\
.L_x_0:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
LDG.E.128 R8, desc[UR14][R6.64]
@P1 BRA `(.L_x_0)
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
UTMALDG.2D [UR12], [UR22]
@P0 BRA `(.L_x_0)
EXIT"""
TWO_NAMES = """\
.L_x_1:
.L_x_2:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_{})
EXIT"""
OVERLAP = """\
.L_x_1:
LDG.E R3, desc[UR14][R4.64]
FADD R8, R8, R9
.L_x_2:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_1)
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P1 BRA `(.L_x_2)
EXIT"""
WAITS_INSIDE = """\
.L_x_1:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
LDG.E R3, desc[UR14][R4.64]
.L_x_2:
@P0 BRA `(.L_x_2)
@P1 BRA `(.L_x_1)
EXIT"""
WHAT_COUNTS = """\
.L_x_1:
LDG.E R3, desc[UR14][R4.64]
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
FADD R8, R8, R9
FADD R8, R8, R9
FADD R8, R8, R9
@P0 BRA `(.L_x_1)
.L_x_2:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
CALL.REL.NOINC `(.L_x_2)
.L_x_3:
IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4
IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4
IMMA.16832.S8.S8 R4, R8.ROW, R10.COL, R4
@P0 BRA `(.L_x_3)
.L_x_4:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_4)
EXIT"""
DECOY_LABEL = """\
.L_x_12:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_1)
EXIT
.L_x_1:
EXIT"""
DIGITS = """\
.L_x_1:
HMMA.1688.F32 R4, R8, R10, R4
HGMMA.64x128x8.F32.TF32 R24, gdesc[UR8], R24, gsb0
@P0 BRA `(.L_x_1)
EXIT"""
LOADS = """\
.L_x_1:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24, gsb0
LDG R2, [R4]
UTMALDG [UR12], [UR22]
UTMASTG.2D [UR22], [UR12]
UTMAREDG.2D.ADD [UR22], [UR12]
LD.E R5, desc[UR14][R2.64]
@P0 BRA `(.L_x_1)
EXIT"""
FORM = """\
.L_2:
HGMMA.64x32x16.F32 R24, gdesc[UR8], R24;
//  /*0010*/                   HGMMA.64x32x16.F32 R24, gdesc[UR8], R24 ;
LDG.E R3, desc[UR14][R4.64];
@P0 BRA `(.L_2);"""
EDGES = [  # text, warps, and the first address and the blanks before it where they are others than usual
    (COPIES, 8),
    (DESCRIPTORS, 8),  # a wait outside the loop jumps back into it
    (ONE_WARP, 8),
    (FP8, 4),
    (PERSISTENT, 12),  # a loop in a loop
    (TWO_LOOPS, 4),  # most instructions, not most FLOPs; the first of two with as many
    (TF32, 8),
    (NO_TENSORS, 4),  # a loop without tensor cores
    (NO_LOOP, 4),
    (SKIPS, 4),  # jumps forward, two labels at one place
    (TEN_LABELS, 4),  # one label begins like another
    (TWO_WAYS_BACK, 4),  # two loops from one label
    ("", 4),
    # an HGMMA.64x32x16 is 65,536 FLOPs; what follows makes
    (TWO_NAMES.format(1), 4),  # one of them
    (TWO_NAMES.format(2), 4),  # the same
    (OVERLAP, 4),  # two and no load: neither loop contains the other, the second has more
    (WAITS_INSIDE, 4),  # none: the wait is the innermost loop
    (WHAT_COUNTS, 8),  # four: not by the longest loop, by a call, or by tensor cores for integers
    (DECOY_LABEL, 4),  # none: the jump goes down
    (DIGITS, 8),  # 8 times 2,048 and twice 131,072 FLOPs
    (LOADS, 4),  # one and two loads
    (FORM, 4),  # one and one load
    (FORM, 12, 0x10010, ""),  # three and one load
]
EXAMPLE = """\
HGMMA.64x8x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT
.L_x_1:
@P1 LDG.E.128 R8, desc[UR14][R6.64]
HGMMA.64x8x16.F32.BF16 R24, gdesc[UR8], R24
HGMMA.64x8x16.F32.BF16 R24, gdesc[UR16], R24, gsb0
@!P0 BRA `(.L_x_1)
EXIT"""


def listing(text, address=0, blanks=8 * " "):
    """The form in which `nvdisasm -c` prints: an address before each instruction, a semicolon behind it."""
    lines = ['\t.section\t.text.HGMMA.64x64x16_kernel,"ax",@progbits', ".text.HGMMA.64x64x16_kernel:"]
    for line in text.splitlines():
        if line.endswith(":") or line.startswith("//"):
            lines.append(line)
            continue
        predicate, _, rest = line.partition(" ") if line[0] == "@" else ("", "", line)
        end = "" if rest.endswith(";") else " ;"
        lines.append(f"{blanks}/*{address:04x}*/ {predicate:>17} {rest}{end}")
        address += 16
    return "\n".join(lines) + "\n"


def drawn(rng):
    """Some loops one after the other, some of them with a loop inside, of instructions in any order."""
    tensors = ["HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24", "QGMMA.64x96x32.F32.E4M3.E5M2 R24, gdesc[UR8], R24"]
    tensors += ["HMMA.16816.F32.BF16 R92, R40.reuse, R24, R92", "HMMA.1688.F32.TF32 R4, R8, R10, R4"]
    others = ["LDGSTS.E.BYPASS.128 [R159], desc[UR14][R6.64], P1", "LDG.E.128 R8, desc[UR14][R6.64]", "LDGDEPBAR"]
    others += ["UTMALDG.2D [UR12], [UR22]", "LDS.128 R8, [R2]", "LDSM.16.M88.4 R40, [R235]", "FFMA R8, R9, R10, R11"]

    def some():
        lines = [str(rng.choice(tensors)) for _ in range(int(rng.integers(0, 5)))]
        lines += [str(rng.choice(others)) for _ in range(int(rng.integers(1, 7)))]
        return [
            f"@{rng.choice(['P0', '!P3', 'UP1'])} {line}" if rng.integers(3) == 0 else line
            for line in rng.permutation(lines)
        ]

    lines, label = some(), 0
    for _ in range(int(rng.integers(1, 4))):
        if nested := bool(rng.integers(2)):
            lines += [f".L_x_{label}:", *some()]
        lines += [f".L_x_{label + 1}:", *some(), f"@!P0 BRA `(.L_x_{label + 1})", *some()]
        if nested:
            lines += [f"@P4 BRA `(.L_x_{label})", *some()]
        label += 2
    return "\n".join([*lines, "EXIT"])


def inputs(rng, number):
    if number == 0:  # the example of the text
        return {"sass": listing(EXAMPLE), "warps": 4}
    if number <= len(EDGES):
        text, warps, *form = EDGES[number - 1]
        return {"sass": listing(text, *form), "warps": warps}
    return {"sass": listing(drawn(rng)), "warps": 4 * int(rng.integers(1, 5))}


def compare(inputs, wanted, got):
    """As `same`, and of a wrong answer the text in short: labels, names, and where jumps lead."""
    what = same("flops", "loads")(inputs, wanted, got)
    if what is None or not inputs["sass"]:
        return what
    words = []
    for line in inputs["sass"].splitlines()[2:]:
        if line.startswith("//"):
            continue
        code = re.sub(r"^\s*/\*\w+\*/\s*|\s*;$", "", line)
        name = re.sub(r"^@\S+ ", "", code).split()[0]
        words.append(f"{name} {code.split()[-1].strip('`()')}" if name.startswith("BRA") else name)
    return f"{what}. The text in short: {' | '.join(words)}"


def reference(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def line_by_line(sass, warps):
    instructions, waiting = [], []  # of each: its labels, and name with operands
    for line in sass.split("\n"):
        if line.startswith(".L"):
            waiting.append(line.strip().rstrip(":"))
        elif line.strip().startswith("/*"):
            words = line.split("*/")[1].replace(";", " ").split()
            if words[0].startswith("@"):
                words = words[1:]
            instructions.append((waiting, words))
            waiting = []
    spans = []
    for end, (_, words) in enumerate(instructions):
        if words[0].split(".")[0] == "BRA":
            target = words[-1].strip("`()")
            spans += [(start, end) for start in range(end + 1) if target in instructions[start][0]]
    per_warp = {"16816": 4096, "1688": 2048}
    results = []
    for start, end in spans:
        if any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans):
            continue
        count = flops = loads = 0
        for _, words in instructions[start : end + 1]:
            kind, *rest = words[0].split(".")
            if kind[1:] == "GMMA":
                count += 1
                flops += 2 * math.prod(int(side) for side in rest[0].split("x")) * (warps // 4)
            elif kind == "HMMA":
                count += 1
                flops += per_warp[rest[0]] * warps
            loads += kind in {"LDG", "LDGSTS", "UTMALDG"}
        results.append((count, flops, loads))
    count, flops, loads = max(results, key=lambda result: result[0], default=(0, 0, 0))
    return (flops, loads) if count else (0, 0)


def whole_text(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best = names
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def any_loop(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def first_loop(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count and not most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def last_of_equals(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count and count >= most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def labels_by_their_beginning(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels.setdefault(label[1][:6], len(names))
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0][:6] in labels:
                loops.append((labels[target[0][:6]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def most_flops(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = 0
        for name in body:
            kind, shape = (name + ".").split(".")[:2]
            if kind in ("HGMMA", "QGMMA"):
                count += math.prod(int(size) for size in shape.split("x"))
            if kind == "HMMA":
                count += 4 * 16 * 8 * int(shape[3:])
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def any_loop_for_loads(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most or not best:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def each_warp_alone(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def always_four_together(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps // 4
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def one_block_of_four(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:])
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def one_flop(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += M * N * K * warps // 4
        if kind == "HMMA":
            flops += 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def always_k16(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * 16 * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def without_fp8(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind == "HGMMA":
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def predicates_skipped(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@!P0\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in best)


def barrier_as_load(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.startswith(("LDG", "UTMALDG")) for name in best)


def every_ld(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG", "LDS", "LDSM", "LDL") for name in best)


def ldg_alone(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG",) for name in best)


def without_tma(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS") for name in best)


def loads_of_all(sass, warps):
    import re

    names, labels, loops = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        if found := re.match(r"\s*/\*\w+\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)(.*)", line):
            target = re.search(r"\.L\w+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
            names.append(found[1])
    best, most = [], 0
    for first, last in loops:
        if any(first <= a and b < last for a, b in loops):
            continue
        body = names[first:last]
        count = sum(name.startswith(("HGMMA", "QGMMA", "HMMA")) for name in body)
        if count > most:
            best, most = body, count
    flops = 0
    for name in best:
        kind, shape = (name + ".").split(".")[:2]
        if kind in ("HGMMA", "QGMMA"):
            M, N, K = (int(size) for size in shape.split("x"))
            flops += 2 * M * N * K * warps // 4
        if kind == "HMMA":
            flops += 2 * 16 * 8 * int(shape[3:]) * warps
    return flops, sum(name.split(".")[0] in ("LDG", "LDGSTS", "UTMALDG") for name in names)


EXERCISE = Exercise(
    id="08.6",
    unit="08",
    title="tensor cores in machine code",
    entry="tensor_core_flops",
    points=10,
    minutes=45,
    difficulty=4,
    spine=True,
    cases=29,
    inputs=inputs,
    reference=reference,
    compare=compare,
    misconceptions=(
        Misconception(
            "whole-text",
            whole_text,
            "It looks like all instructions of the text. Only those of one loop count: what stands before and "
            "behind it runs once.",
        ),
        Misconception(
            "any-loop",
            any_loop,
            "It looks like a loop with others inside. Wanted is an innermost one, which contains no other loop.",
        ),
        Misconception(
            "first-loop",
            first_loop,
            "It looks like the first loop that has tensor-core instructions. Take the one with the most of them.",
        ),
        Misconception(
            "last-of-equals",
            last_of_equals,
            "It looks like the last of several loops with equally many. Of equal ones the first counts.",
        ),
        Misconception(
            "labels-by-their-beginning",
            labels_by_their_beginning,
            "It looks like labels compared by their beginning. .L_x_1 and .L_x_10 are two places.",
        ),
        Misconception(
            "most-flops",
            most_flops,
            "It looks like the loop with the most FLOPs. The loop with the most tensor-core instructions is "
            "asked for, whatever their size.",
        ),
        Misconception(
            "any-loop-for-loads",
            any_loop_for_loads,
            "It looks like a loop without tensor-core instructions. Where no innermost loop has any, both "
            "results are 0.",
        ),
        Misconception(
            "each-warp-alone",
            each_warp_alone,
            "It looks like HGMMA and QGMMA counted for each warp. Four warps issue one such product together.",
        ),
        Misconception(
            "always-four-together",
            always_four_together,
            "It looks like HMMA counted for four warps together. Each warp does an HMMA of its own.",
        ),
        Misconception(
            "one-block-of-four",
            one_block_of_four,
            "It looks like an instruction that is done once. All warps of the block pass through the loop, so "
            "warps decide how often it is done.",
        ),
        Misconception(
            "one-flop",
            one_flop,
            "It looks like a multiply and an add counted as one. They are two FLOPs: 2 M N K.",
        ),
        Misconception(
            "always-k16",
            always_k16,
            "It looks like HMMA.1688 with K = 16. Its name says 16 x 8 x 8: half of HMMA.16816.",
        ),
        Misconception(
            "without-fp8",
            without_fp8,
            "It looks like tensor cores without FP8. QGMMA is HGMMA's brother for 8-bit inputs.",
        ),
        Misconception(
            "predicates-skipped",
            predicates_skipped,
            "It looks like lines with a predicate left out. An instruction behind @P1 or @UP2 stands in the "
            "loop and counts.",
        ),
        Misconception(
            "barrier-as-load",
            barrier_as_load,
            "It looks like LDGDEPBAR counted as a load. It closes a group of copies and moves nothing.",
        ),
        Misconception(
            "every-ld",
            every_ld,
            "It looks like loads from shared or local memory as well. From memory load LDG, LDGSTS and UTMALDG.",
        ),
        Misconception(
            "ldg-alone",
            ldg_alone,
            "It looks like LDG alone. LDGSTS and UTMALDG bring data from memory too, without passing the registers.",
        ),
        Misconception(
            "without-tma",
            without_tma,
            "It looks like loads without TMA. UTMALDG brings a whole tile from memory.",
        ),
        Misconception(
            "loads-of-all",
            loads_of_all,
            "It looks like loads of the whole text. Count those of the same loop.",
        ),
    ),
    alternatives=(line_by_line,),
    hints=(
        "Three steps: a list of instruction names with the places of labels; the stretches between a label and "
        "a jump back to it; a count in one stretch.",
        "A line counts if an address in /* */ begins it; drop what starts with @. A BRA whose label was already "
        "seen closes a loop: note first and last place. Drop every loop that has another one between its ends.",
        "Split a name at its points: the first part is the kind, the second the shape. Three sizes with x "
        "between them go times two and times a quarter of the warps; for HMMA M is 16 and N is 8, the digits "
        "behind them are K, and every warp counts.",
    ),
)
