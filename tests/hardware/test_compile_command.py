"""`course compile`: real machine code for four chips on a machine that has none of them."""

import json

import pytest

from course.hardware.compile import Refused, compile_command
from course.kernels.catalogue import NAMES, UnknownKernel, example


def told(capsys, *arguments, **settings):
    compile_command(*arguments, as_json=True, **settings)
    return json.loads(capsys.readouterr().out)


def test_a_bf16_product_uses_hopper_s_tensor_cores_and_spills_nothing(capsys):
    found = told(capsys, "matmul")
    assert found["tensor_core"] == {"HGMMA": 4}
    assert list(found["tensor_core_shapes"]) == ["HGMMA.64x256x16.F32.BF16"]
    assert found["spill_bytes"] == 0
    assert found["shared_bytes"] <= found["shared_limit"] == 232_448
    assert found["flops"] == 2 * 8192**3
    assert found["bytes"] == 3 * 2 * 8192**2
    assert found["bound_seconds"] == pytest.approx(2 * 8192**3 / 990e12)
    assert found["limited_by"] == ["registers", "shared memory"]


def test_half_the_warps_have_too_few_registers_and_ptxas_says_what_that_costs(capsys):
    eight, four = told(capsys, "matmul", compare=["num_warps=4"])
    assert eight["spill_bytes"] == 0 < four["spill_bytes"]
    assert four["registers"] == 255
    assert any("serialized due to insufficient register resources" in remark for remark in four["remarks"])
    assert eight["remarks"] == []


def test_descriptors_are_copied_by_tma(capsys):
    found = told(capsys, "matmul", settings={"variant": "descriptors"})
    assert set(found["asynchronous_copies"]) == {"UTMALDG.2D", "UTMASTG.2D"}


def test_one_kernel_four_machines(capsys):
    found = told(capsys, "matmul", "all", settings={"block": "128x128x32", "num_stages": "2"})
    kinds = {its["arch"]: list(its["tensor_core"]) for its in found}
    assert kinds == {
        "sm_80": ["HMMA"],
        "sm_90": ["HGMMA"],
        "sm_100": ["UTCHMMA"],
        "gfx942": ["v_mfma_f32_32x32x8_bf16"],
    }


def test_float32_is_multiplied_without_tensor_cores(capsys):
    assert told(capsys, "matmul", dtype="fp32", settings={"block": "64x64x32"})["tensor_core"] == {}


PRODUCTS = ("matmul", "grouped_gemm", "grouped_gate_up", "grouped_weight_gradient", "grouped_swiglu_backward")
ON_TENSOR_CORES = (*PRODUCTS, "fp8_gemm", "fp8_weight_gradient", "flash_attention", "mla_decode", "indexer")


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_bound_by_tensor_cores_which_they_use_and_spill_nothing(capsys, name):
    found = told(capsys, name)
    assert found["spill_bytes"] == 0
    assert found["bound_by"] != "memory"
    assert set(found["tensor_core"]) == {"HGMMA"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ON_TENSOR_CORES])
def test_every_other_kernel_is_bound_by_memory_and_spills_nothing(capsys, name):
    found = told(capsys, name)
    assert found["spill_bytes"] == 0
    assert found["bound_by"] == "memory"
    assert found["occupancy"] > 0.2


def test_an_fp8_product_counts_against_the_peak_of_fp8_and_is_promoted(capsys):
    found = told(capsys, "fp8_gemm")
    assert found["tensor_core_shapes"] == {"QGMMA.64x128x32.F32.E4M3.E4M3": 4}
    assert found["spill_bytes"] == 0
    assert found["bound_seconds"] == pytest.approx(2 * 8192 * 4096 * 7168 / 1978.9e12, rel=0.01)


def test_the_gradient_of_a_weight_counts_against_the_peak_of_fp8_and_is_promoted(capsys):
    found = told(capsys, "fp8_weight_gradient")
    assert found["tensor_core_shapes"] == {"QGMMA.64x128x32.F32.E4M3.E4M3": 4}
    assert found["spill_bytes"] == 0
    assert found["bound_seconds"] == pytest.approx(2 * 8192 * 4096 * 7168 / 1978.9e12, rel=0.01)


@pytest.mark.parametrize("name", ["flash_attention", "indexer"])
def test_attention_and_its_indexer_are_bound_by_arithmetic_and_spill_nothing(capsys, name):
    found = told(capsys, name)
    assert found["spill_bytes"] == 0
    assert found["bound_by"] == "compute"
    assert set(found["tensor_core"]) == {"HGMMA"}


def test_absorbed_decoding_fills_a_multiprocessor_with_one_block_and_is_still_bound_by_memory(capsys):
    found = told(capsys, "mla_decode")
    assert found["spill_bytes"] == 0
    assert found["bound_by"] == "memory"
    assert found["bytes"] / 128 == pytest.approx(4096 * 576 * 2, rel=0.1)
    assert "HGMMA.64x256x16.F32.BF16" in found["tensor_core_shapes"]


def test_the_table_and_the_hot_loop_are_printed(capsys):
    compile_command("matmul", hot=True)
    out = capsys.readouterr().out
    assert "147,456 of 232,448 bytes" in out
    assert "HGMMA.64x256x16.F32.BF16 R" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kernel": "nothing"}, "there is no kernel 'nothing'"),
        ({"kernel": "matmul", "arch": "sm_12"}, "there is no chip 'sm_12' here"),
        ({"kernel": "matmul", "dtype": "fp4"}, "there is no number format 'fp4' here"),
        ({"kernel": "matmul", "gpu": "tpu"}, "there is no GPU 'tpu' here"),
        ({"kernel": "matmul", "settings": {"block": "128"}}, "a block has three sizes"),
        ({"kernel": "matmul", "settings": {"block": "256x256x128"}}, "needs 393216 bytes of shared memory"),
        ({"kernel": "matmul", "compare": ["foo"]}, "'foo' is neither a kernel nor settings"),
        ({"kernel": "softmax", "settings": {"block": "8x8x8"}}, "softmax has no setting 'block'"),
    ],
)
def test_wrong_requests_get_a_sentence(arguments, says):
    with pytest.raises(Refused, match=says):
        compile_command(**arguments)


def test_an_example_is_planned_and_not_run():
    one = example("rmsnorm", "fp32")
    assert one.launch.grid == (8192,)
    assert one.launch.loads == 0
    with pytest.raises(UnknownKernel, match="no kernel"):
        example("nothing")
