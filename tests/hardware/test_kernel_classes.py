import pytest

from course.hardware.kernel_classes import COMMUNICATION, kernel_class

NAMES = {
    "void deep_ep::internode::dispatch<false, 8, false, 8>(int4*, float*)": "dispatch",
    "void deep_ep::intranode::combine<__nv_bfloat16, 8, 768>(__nv_bfloat16*)": "combine",
    "void deep_ep::internode_ll::dispatch<true, 3, 10, 7168>(void*, float*)": "dispatch",
    "void deep_ep::internode::cached_notify<false>(int, int)": "notify",
    "void deep_ep::intranode::notify_dispatch<8>(int const*, int*)": "notify",
    "void deep_ep::internode::get_dispatch_layout<256, 32, 8>(long const*)": "routing",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "collective",
    "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)": "collective",
    "gloo:all_to_all": "collective",
    "c10d::alltoall_base_": "collective",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(vllm::RankData*)": "collective",
    "void flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128>>(Flash_fwd_params)": "attention",
    "flash_fwd_mla_combine_kernel": "attention",
    "void cutlass::device_kernel<flash::FlashAttnBwd<flash::CollectiveMainloopBwd<2>>>(Params)": "attention",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x64": "gemm",
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT": "gemm",
    "void deep_gemm::fp8_gemm_kernel<4096u, 7168u, 128u>(float*)": "gemm",
    "aten::addmm": "gemm",
    "void cuda::per_token_cast_to_fp8_with_channels<__nv_bfloat16, 128>(__nv_bfloat16 const*)": "quantize",
    "swiglu_forward_and_cast_to_fp8": "activation",
    "void layer_norm::ln_fwd_kernel<layer_norm::Kernel_traits<__nv_bfloat16>>(Params)": "norm",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)": "elementwise",
    "rotary_kernel": "rope",
    "_ZN2something": "other",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_name_has_its_class(name, kind):
    assert kernel_class(name) == kind


def test_combining_the_parts_of_attention_is_no_communication():
    assert kernel_class("flash_fwd_splitkv_combine_kernel") not in COMMUNICATION


def test_finding_out_where_tokens_go_is_no_communication():
    assert kernel_class("void deep_ep::internode::get_dispatch_layout<256>(long const*)") not in COMMUNICATION
