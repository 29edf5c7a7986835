"""What benchmarks/engine.py counts and how it sums up; the measuring itself needs a GPU."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu import floors, work  # noqa: E402
from gpu.parts import part_of, summary  # noqa: E402
from gpu.row import Row  # noqa: E402

TERA, GIGA = 1e12, 1e9
P480, P720 = work.latent(81, 480, 832), work.latent(81, 720, 1280)


@pytest.mark.parametrize(
    "config, size, total, gemm, attention, fused",
    [  # counted apart from this code, when the shapes were first profiled
        (work.B13, P480, 462, 132, 326, 268),
        (work.B14, P480, 2179, 1004, 1158, 868),
        (work.B14, P720, 8519, 2313, 6166, 1958),
    ],
)
def test_transformer(config, size, total, gemm, attention, fused):
    found = work.dit(config, size, residual=4)
    of_itself = sum(n * job.flops for job, n in found.jobs.items() if job.kind == "attention" and job.keys > work.TEXT)
    assert found.flops() / TERA == pytest.approx(total, rel=0.005)
    assert found.flops("gemm") / TERA == pytest.approx(gemm, rel=0.01)
    assert of_itself / TERA == pytest.approx(attention, rel=0.002)
    assert found.fused / GIGA == pytest.approx(fused, rel=0.04)
    assert work.tokens(size) == {P480: 34320, P720: 79200}[size]


@pytest.mark.parametrize("size, decode, encode", [((480, 832), 275, 164), ((720, 1280), 639, 382)])
def test_vae(size, decode, encode):
    assert work.vae_decode(work.VAE, 81, *size).flops() / TERA == pytest.approx(decode, rel=0.005)
    assert work.vae_encode(work.VAE, 81, *size).flops() / TERA == pytest.approx(encode, rel=0.005)


def test_large_shapes_are_nearly_all_of_the_work():
    for name, stage in floors.STAGES.items():
        large = sum(stage.jobs[job] * job.flops for job in stage.large())
        assert large > 0.96 * stage.flops(), name
        assert {job.kind for job in stage.large()} == {job.kind for job in stage.jobs}


def test_sums_and_multiples():
    once = work.umt5(work.UMT5)
    assert work.total([once, once]).jobs == once.times(2).jobs
    assert once.times(3).fused == 3 * once.fused
    assert once.seconds(lambda job: 1.0) == once.flops()


def test_floors_are_printed_for_every_stage_and_card():
    lines = floors.table().splitlines()
    assert len(lines) == 2 + len(floors.STAGES)
    assert {line.count("|") for line in lines} == {4 + len(floors.CARDS)}


@pytest.mark.parametrize(
    "kernel, part",
    [
        # but for Triton's, names that an H100 with cuDNN 9.19 and PyTorch 2.11 gave
        ("Memcpy DtoH (Device -> Pageable)", "copy"),
        ("Memset (Device)", "copy"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_cga1x1x1_0", "attention"),
        ("fmha_cutlassF_bf16_aligned_32x128_gmem_sm80(PyTorchMemEffAttention::AttentionKernel<...>", "attention"),
        ("nvjet_sm90_tst_128x288_64x4_2x1_v_bz_coopA_gelubias_TNT", "gemm"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize128x32x8_stage3_warpsize2x2x1_ffma", "gemm"),
        ("std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float, float>", "gemm"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x32x32_warpgroupsize1x1x1", "conv"),
        ("void implicit_convolveNd_sgemm<__nv_bfloat16, 3, 1024, 5, 5, 3, 3, 3, 1, false, false, true>", "conv"),
        ("void gate_residual_norm_kernel<8>(ipvg_k_array, float*, ipvg_k_array)", "norm"),
        ("void softmax_kernel<8>(ipvg_k_array, ipvg_k_array, ipvg_k_array, float, long)", "norm"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>", "norm"),
        ("triton_red_fused_add_mul_native_layer_norm_0", "norm"),
        ("void element_kernel<8, 2, gate_residual_op>(ipvg_k_array, inputs<2>, ipvg_k_array)", "other"),
        ("void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<...CUDAFunctor_add>", "other"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", "other"),
    ],
)
def test_part_of_a_kernel(kernel, part):
    assert part_of(kernel) == part


def test_own_kernels_are_no_library_s():
    kernel = r"__global__ void\s+(?:(?:__launch_bounds__\(.*?\)|[A-Z_]+)\s+)?(\w+)\("
    texts = [path.read_text() for path in (ROOT / "kernels").glob("*.cu")]
    found = {name: part_of(name) for text in texts for name in re.findall(kernel, text)}
    assert len(found) > 10
    attention = dict.fromkeys(("attention_kernel", "attention_group_kernel"), "attention")
    assert {name: part for name, part in found.items() if part in ("gemm", "attention")} == attention
    assert found["rms_norm_kernel"] == found["gate_residual_norm_kernel"] == found["conv_finish_kernel"] == "norm"


def test_instructions_are_counted_by_kernel():
    from cuda import instructions

    name = "_Z25gate_residual_norm_kernelILi8ELi1ELi1536EEv12ipvg_k_arrayPfS0_fflli"
    told = f"""\t.section\t.text.{name},"ax"
.text.{name}:
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 FADD.FTZ R1, R2, R3 ;
.L_x_1:
        /*0020*/                   FADD R1, R2, R3 ;
        /*0030*/                   NOP ;
"""
    assert instructions.instructions(told) == {name: {"FADD": 2, "LDG": 1}}
    assert instructions.short(name) == "gate_residual_norm_kernel<8, 1, 1536>"
    ptxas = f"""ptxas info    : Compiling entry function '{name}' for 'sm_90a'
    24 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 96 registers, used 0 barriers"""
    assert instructions.registers(ptxas) == {name: (96, 20)}


def test_a_trace_is_summed_by_part():
    events = [
        {"cat": "kernel", "name": "nvjet_sm90", "ts": 0, "dur": 2e5},
        {"cat": "kernel", "name": "nvjet_sm90", "ts": 5e5, "dur": 1e5},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoH", "ts": 2.5e5, "dur": 1e5},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 9e9},
    ]
    found = summary(events, 1.0)
    assert found["parts"] == pytest.approx({"gemm": 0.3, "copy": 0.1})
    assert found["idle"] == pytest.approx(0.6) and found["gaps"] == pytest.approx(0.2)
    assert found["kernels"][0] == ("nvjet_sm90", "gemm", 2, pytest.approx(0.3))


def timing(seconds):
    return SimpleNamespace(seconds=seconds, record=lambda: {"seconds": seconds})


def test_a_row_compares_with_the_floor_and_the_fastest_peer():
    row = Row("forward13", "1.3B forward", timing(0.8), {"eager": timing(1.2), "compiled": timing(1.0)})
    row.floor, row.bytes = {"gemm": 0.2, "attention": 0.5}, {"fused": 0.1, "loose": 0.05}
    found = row.record()
    assert found["fastest"] == "compiled"
    assert found["faster"] == pytest.approx(1.25)
    assert found["x_floor"] == pytest.approx(0.8 / 0.7)
    assert "1.143" in row.line() and "(compiled)" in row.line()
    row.bytes["fused"] = 2.0  # bound by bytes
    assert row.least == 2.0


def test_a_side_that_fails_is_named(capsys):
    row = Row("umt5", "umT5", peers={"eager": timing(0.1)})
    row.attempt("ours", lambda: 1 / 0)
    assert row.errors == {"ours": "ZeroDivisionError: division by zero"}
    assert "failed: ours" in row.line()
    assert row.record()["x_floor"] is None
    assert "ours failed" in capsys.readouterr().out
