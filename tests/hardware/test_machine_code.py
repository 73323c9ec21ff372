"""Reading SASS and AMD code: names, counts, labels, loops, and what is said of each instruction."""

import pytest

from course.hardware.machine_code import read_code

SASS = """
	.headerflags	@"EF_CUDA_SM90"
.text.product:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   UMOV UR4, 0x1 ;
.L_x_0:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64] ;
.L_x_1:
        /*0030*/                   WARPGROUP.ARRIVE ;
        /*0040*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24 ;
        /*0050*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8].tnspB, R24, gsb0 ;
        /*0060*/              @!P0 BRA `(.L_x_1) ;
        /*0070*/                   STL [R1+0x4], R9 ;
        /*0080*/               @P1 BRA `(.L_x_0) ;
        /*0090*/              @!P2 BRA `(.L_x_3) ;
        /*00a0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
.L_x_3:
        /*00b0*/                   EXIT ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2);
"""
AMD = """
	.text
product:
.LBB0_0:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
.LBB0_1:                                ; =>This Loop Header: Depth=1
	global_load_dwordx4 v[2:5], v[0:1], off
	v_mfma_f32_32x32x8_bf16 v[16:31], v[66:67], v[52:53], 0 ; a comment
	s_cbranch_scc1 .LBB0_1
; %bb.2:
	s_endpgm
"""


def test_instructions_are_read_with_their_names_operands_predicates_and_labels():
    code = read_code(SASS)
    assert len(code.instructions) == 13
    first, loop = code.instructions[0], code.instructions[3]
    assert (first.address, first.name, first.operands) == (0, "LDC", "R1, c[0x0][0x28]")
    assert loop.label == ".L_x_1"
    assert str(code.instructions[6]) == "@!P0 BRA `(.L_x_1)"


def test_counts_are_by_whole_names_with_their_shapes():
    code = read_code(SASS)
    assert code.tensor_core == {"HGMMA.64x256x16.F32.BF16": 2}
    assert code.asynchronous_copies == {"LDGSTS.E.BYPASS.128": 1}
    assert code.spills == {"STL": 1}
    assert code.count("LDG") == {}, "LDGSTS is another instruction"
    assert code.count("BRA") == {"BRA": 4}


def test_the_hot_loop_is_the_innermost_one_with_the_products():
    code = read_code(SASS)
    assert len(code.loops()) == 2
    assert [one.name.split(".")[0] for one in code.hot_loop()] == ["WARPGROUP", "HGMMA", "HGMMA", "BRA"]


def test_code_without_a_loop_has_no_hot_one():
    assert read_code("        /*0000*/   EXIT ;").hot_loop() == ()
    assert read_code("").instructions == ()


def test_amd_code_is_read_the_same_way():
    code = read_code(AMD)
    assert code.tensor_core == {"v_mfma_f32_32x32x8_bf16": 1}
    assert [one.name for one in code.hot_loop()] == ["global_load_dwordx4", "v_mfma_f32_32x32x8_bf16", "s_cbranch_scc1"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HGMMA.64x256x16.F32.BF16", "tensor cores, four warps together"),
        ("HMMA.16816.F32.BF16", "tensor cores, one warp"),
        ("LDG.E.128", "load from memory"),
        ("LDGSTS.E.BYPASS.128", "asynchronous copy"),
        ("UIADD3", "addition of whole numbers, once for the whole warp"),
        ("UTMALDG.2D", "TMA: a whole tile from memory"),
        ("XYZZY", ""),
    ],
)
def test_an_instruction_says_what_it_does(name, says):
    means = read_code(f"        /*0000*/   {name} R1 ;").instructions[0].means
    assert means.startswith(says)
    assert bool(means) == bool(says)
