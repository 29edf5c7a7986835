"""LoRA: every key format against W + s (alpha / r) B A written out here; merged, added up, taken away again."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from ipvg import FormatError, Pipeline, _core, lora
from ipvg.checkpoint import Checkpoint, expected, from_bfloat16, names, save_safetensors, to_bfloat16
from ipvg.guidance import none

RANK, ALPHA = 4, 2.0
LAYERS = ("blocks.0.self_attn.q", "blocks.3.ffn.2", "blocks.1.cross_attn.o", "head.head", "text_embedding.0")


@pytest.fixture(scope="module")
def dit(small_checkpoint):
    return Checkpoint.open(small_checkpoint, components=["dit"]).components["dit"]


@pytest.fixture
def pipe(small_checkpoint):
    return Pipeline.load(small_checkpoint, threads=1)


def pairs(dit, layers=LAYERS, seed=0, rank=RANK):
    """official module -> (down, up), float32"""
    rng, out = np.random.default_rng(seed), {}
    for module in layers:
        rows, *columns = expected(dit.config)[f"{module}.weight"]
        out[module] = (rng.standard_normal((rank, *columns), np.float32),
                       rng.standard_normal((rows, rank), np.float32))  # fmt: skip
    return out


def original(dit, name):
    entry = dit.entries[name]
    return (from_bfloat16(entry.read()) if entry.dtype == "bfloat16" else entry.read()).astype(np.float64)


def oracle(dit, parts, factor):
    """float64: module -> W + factor B A"""
    return {
        f"{m}.weight": original(dit, f"{m}.weight") + factor * (up.astype(np.float64) @ down.astype(np.float64))
        for m, (down, up) in parts.items()
    }


def check(dit, loras, expected_weights):
    merged = lora.merged(dit, loras)
    assert set(merged) == set(expected_weights)
    for name, want in expected_weights.items():
        assert merged[name].dtype == np.float32
        # float32 sums of a few terms around |W| + |delta|: a few roundings of the largest.
        assert np.abs(merged[name] - want).max() <= 8 * 2.0**-24 * max(np.abs(want).max(), 30), name


def diffusers(module):
    return names.to_diffusers("dit", f"{module}.weight").removesuffix(".weight")


FORMATS = {
    "official, down and up": (lambda m: f"diffusion_model.{m}", ".lora_down.weight", ".lora_up.weight"),
    "official, A and B": (lambda m: f"diffusion_model.{m}", ".lora_A.weight", ".lora_B.weight"),
    "official, no prefix": (lambda m: m, ".lora_A.weight", ".lora_B.weight"),
    "nested": (lambda m: f"model.diffusion_model.{m}", ".lora_A.weight", ".lora_B.weight"),
    "kohya": (lambda m: "lora_unet_" + m.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
    "diffusers": (lambda m: f"transformer.{diffusers(m)}", ".lora_A.weight", ".lora_B.weight"),
    "kohya of diffusers": (lambda m: "lora_unet_" + diffusers(m).replace(".", "_"), ".lora_down.weight",
                           ".lora_up.weight"),
    "PEFT": (lambda m: f"base_model.model.{m}", ".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers through PEFT": (lambda m: f"transformer.{diffusers(m)}", ".lora_A.default.weight",
                               ".lora_B.default.weight"),
}  # fmt: skip


def save(path, parts, key, down, up, alpha=None, extra=None):
    tensors = dict(extra or {})
    for module, (a, b) in parts.items():
        tensors[key(module) + down], tensors[key(module) + up] = a, b
        if alpha is not None:
            tensors[key(module) + ".alpha"] = np.array(alpha, np.float32)
    save_safetensors(path, tensors)
    return path


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("name", FORMATS)
def test_every_key_format(dit, tmp_path, name, alpha):
    parts = pairs(dit)
    path = save(tmp_path / "a.safetensors", parts, *FORMATS[name], alpha)
    opened = lora.Lora.open(path, dit.config, strength=0.7)
    assert opened.rank == RANK and set(opened.tensors) == {f"{m}.weight" for m in LAYERS} and opened.skipped == ()
    check(dit, [opened], oracle(dit, parts, 0.7 * (1 if alpha is None else alpha / RANK)))


def test_every_layer_of_the_model_is_reached(dit, tmp_path):
    layers = [n.removesuffix(".weight") for n, s in expected(dit.config).items() if n.endswith("weight") and len(s) > 1]
    for name in ("kohya", "diffusers", "official, A and B"):
        save(tmp_path / "a.safetensors", pairs(dit, layers, rank=1), *FORMATS[name])
        opened = lora.Lora.open(tmp_path / "a.safetensors", dit.config)
        assert set(opened.tensors) == {f"{layer}.weight" for layer in layers}
    patch = "patch_embedding.weight"  # a convolution: down is (rank, 16, 1, 2, 2)
    down, up = pairs(dit, ["patch_embedding"], rank=1)["patch_embedding"]
    want = original(dit, patch) + np.einsum("or,rcthw->octhw", up.astype(float), down.astype(float))
    save(tmp_path / "b.safetensors", {"patch_embedding": (down, up[..., None, None, None])}, *FORMATS["kohya"])
    check(dit, [lora.Lora.open(tmp_path / "b.safetensors", dit.config)], {patch: want})


def test_whole_differences_of_weights_biases_norms_and_modulation(dit, tmp_path):
    shapes, rng = expected(dit.config), np.random.default_rng(1)
    keys = {
        "diffusion_model.blocks.0.norm3.diff": "blocks.0.norm3.weight",
        "diffusion_model.blocks.0.norm3.diff_b": "blocks.0.norm3.bias",
        "diffusion_model.head.head.diff": "head.head.weight",
        "diffusion_model.head.head.diff_b": "head.head.bias",
        "diffusion_model.blocks.1.self_attn.norm_q.diff": "blocks.1.self_attn.norm_q.weight",
        "diffusion_model.blocks.2.modulation.diff": "blocks.2.modulation",
        "transformer.blocks.1.attn1.to_q.diff_b": "blocks.1.self_attn.q.bias",
        "lora_unet_blocks_1_ffn_0.diff_b": "blocks.1.ffn.0.bias",
    }
    deltas = {key: rng.standard_normal(shapes[name], np.float32) for key, name in keys.items()}
    save_safetensors(tmp_path / "d.safetensors", deltas)
    opened = lora.Lora.open(tmp_path / "d.safetensors", dit.config, strength=-0.5)
    check(dit, [opened], {name: original(dit, name) - 0.5 * deltas[key] for key, name in keys.items()})


def test_half_precision_files_and_bfloat16_weights(dit, tmp_path):
    parts = pairs(dit, ["vace_blocks.0.after_proj"])  # bfloat16 in the checkpoint
    (down, up) = parts["vace_blocks.0.after_proj"]
    key = "diffusion_model.vace_blocks.0.after_proj"
    save_safetensors(
        tmp_path / "h.safetensors",
        {f"{key}.lora_down.weight": to_bfloat16(down), f"{key}.lora_up.weight": up.astype(np.float16)},
        None,
        {f"{key}.lora_down.weight": "bfloat16"},
    )
    rounded = {"vace_blocks.0.after_proj": (from_bfloat16(to_bfloat16(down)), up.astype(np.float16))}
    check(dit, [lora.Lora.open(tmp_path / "h.safetensors", dit.config)], oracle(dit, rounded, 1.0))


def test_several_add_up_and_blocks_choose(dit, tmp_path):
    one, two = pairs(dit), pairs(dit, ["blocks.0.self_attn.q", "blocks.2.ffn.0"], seed=5)
    a = save(tmp_path / "a.safetensors", one, *FORMATS["kohya"])
    b = save(tmp_path / "b.safetensors", two, *FORMATS["PEFT"])
    first = lora.Lora.open(a, dit.config, strength=2.0, blocks={0: 0.5, 1: 0.25})
    second = lora.Lora.open(b, dit.config, strength=3.0, blocks=range(1))
    want = oracle(dit, {"blocks.0.self_attn.q": one["blocks.0.self_attn.q"]}, 1.0)
    want |= oracle(dit, {"blocks.1.cross_attn.o": one["blocks.1.cross_attn.o"]}, 0.5)
    down, up = two["blocks.0.self_attn.q"]
    want["blocks.0.self_attn.q.weight"] = want["blocks.0.self_attn.q.weight"] + 3.0 * up.astype(float) @ down
    check(dit, [first, second], want)


def forward(model, dit):
    rng = np.random.default_rng(3)
    text = model.text(rng.standard_normal((7, dit.config.text_dim), np.float32))
    context = model.context(rng.standard_normal((96, 2, 6, 8), np.float32))
    return model.forward(rng.standard_normal((16, 2, 6, 8), np.float32), 500.0, text, context)


def test_the_pipeline_computes_with_it_and_without_it_again(pipe, dit, tmp_path):
    before = forward(pipe.dit, dit)
    one, two = pairs(dit), pairs(dit, ["blocks.2.ffn.0"], seed=5)
    first = pipe.load_lora(save(tmp_path / "a.safetensors", one, *FORMATS["diffusers"]), strength=0.1)
    second = pipe.load_lora(save(tmp_path / "b.safetensors", two, *FORMATS["kohya"]), 0.1)
    assert pipe.loras == (first, second)
    arrays = {n: (from_bfloat16(e.read()) if e.dtype == "bfloat16" else e.read()) for n, e in dit.entries.items()}
    for name, want in {**oracle(dit, one, 0.1), **oracle(dit, two, 0.1)}.items():
        arrays[name] = want.astype(np.float32)
    exact = _core.Dit(_core.Device("cpu", 1), asdict(dit.config), _core.Weights(arrays))
    got, want = forward(pipe.dit, dit), forward(exact, dit)
    assert np.linalg.norm(got - before) > 1e-2 * np.linalg.norm(before)
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)  # weights differ by their last bit
    pipe.unload_lora(first)
    assert pipe.loras == (second,) and not np.array_equal(forward(pipe.dit, dit), before)
    pipe.unload_lora()
    assert pipe.loras == () and np.array_equal(forward(pipe.dit, dit), before)
    with pytest.raises(ValueError, match="does not act"):
        pipe.unload_lora(first)


def test_strength_zero_changes_nothing(pipe, dit, tmp_path):
    before = forward(pipe.dit, dit)
    opened = pipe.load_lora(save(tmp_path / "a.safetensors", pairs(dit), *FORMATS["kohya"]), strength=0)
    assert opened.tensors == () and np.array_equal(forward(pipe.dit, dit), before)


def test_the_distilled_recipe_is_one_forward_a_step(pipe, dit, tmp_path):
    pipe.load_lora(save(tmp_path / "a.safetensors", pairs(dit), *FORMATS["kohya"]), strength=0.01)
    settings = lora.distilled(steps=4, shift=8)
    assert settings["guidance"] == none() and settings["steps"] == 4 and settings["shift"] == 8
    text = pipe.encode_text({"cond": "A woman smiles."})
    run = pipe.sampler(text, pipe.encode_source(size=(32, 32), frames=1), **settings)
    run.run()
    assert run.forwards == 4
    assert pipe.generate("A woman.", size=(32, 32), frames=1, **lora.distilled()).size == (32, 32)


# ---- files that do not fit ----


def bad(dit, change):
    key = "diffusion_model.blocks.0.self_attn.q"
    down, up = pairs(dit)["blocks.0.self_attn.q"]
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    change(tensors, key)
    return tensors


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("1 keys fit no tensor.*k_img", lambda t, k: t.update({"blocks.0.cross_attn.k_img.diff": np.zeros(3, "f4")})),
        ("1 keys fit no tensor.*blocks.99", lambda t, k: t.update({"blocks.99.ffn.0.alpha": np.zeros(1, "f4")})),
        ("dora_scale", lambda t, k: t.update({f"{k}.dora_scale": np.zeros(3, "f4")})),
        (r"self_attn.q.weight.*\[256, 256\] has down \[4, 255\]",
         lambda t, k: t.update({f"{k}.lora_down.weight": np.zeros((4, 255), "f4")})),
        ("up .5, 256", lambda t, k: t.update({f"{k}.lora_up.weight": np.zeros((5, 256), "f4")})),
        ("a lora_up alone", lambda t, k: t.pop(f"{k}.lora_down.weight")),
        ("a lora_down alone", lambda t, k: t.pop(f"{k}.lora_up.weight")),
        ("an alpha alone", lambda t, k: t.update({"blocks.0.ffn.0.alpha": np.zeros(1, "f4")})),
        ("alpha of .2.", lambda t, k: t.update({f"{k}.alpha": np.zeros(2, "f4")})),
        ("diff of .7.", lambda t, k: t.update({"blocks.0.norm3.diff": np.zeros(7, "f4")})),
        ("a second down", lambda t, k: t.update({"blocks.0.self_attn.q.lora_A.weight": np.zeros((4, 256), "f4")})),
        ("changed by int32", lambda t, k: t.update({f"{k}.alpha": np.zeros(1, "i4")})),
        ("no key of a LoRA", lambda t, k: t.clear()),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_named(dit, tmp_path, words, change):
    save_safetensors(tmp_path / "bad.safetensors", bad(dit, change))
    with pytest.raises(FormatError, match=words) as caught:
        lora.Lora.open(tmp_path / "bad.safetensors", dit.config)
    assert "bad.safetensors" in str(caught.value)


def test_unknown_keys_may_be_skipped(dit, tmp_path):
    tensors = bad(dit, lambda t, k: t.update({"blocks.0.cross_attn.k_img.diff": np.zeros(3, "f4")}))
    save_safetensors(tmp_path / "a.safetensors", tensors)
    opened = lora.Lora.open(tmp_path / "a.safetensors", dit.config, skip_unknown=True)
    assert opened.skipped == ("'blocks.0.cross_attn.k_img.diff'",)
    assert opened.tensors == ("blocks.0.self_attn.q.weight",)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (TypeError, "strength", {"strength": "1"}),
        (ValueError, "strength", {"strength": float("nan")}),
        (ValueError, "blocks: expected 0 to 3", {"blocks": [4]}),
        (TypeError, "blocks", {"blocks": 3}),
        (TypeError, "blocks", {"blocks": "0"}),
        (ValueError, r"blocks\[1\]", {"blocks": {1: float("inf")}}),
    ],
)
def test_wrong_arguments_are_named(dit, tmp_path, error, words, options):
    path = save(tmp_path / "a.safetensors", pairs(dit), *FORMATS["kohya"])
    with pytest.raises(error, match=words):
        lora.Lora.open(path, dit.config, **options)


def test_an_overflow_is_named(dit, tmp_path):
    parts = {m: (a * 1e30, b * 1e30) for m, (a, b) in pairs(dit, LAYERS[:1]).items()}
    opened = lora.Lora.open(save(tmp_path / "a.safetensors", parts, *FORMATS["kohya"]), dit.config)
    with np.errstate(all="ignore"), pytest.raises(FormatError, match="infinite or NaN"):
        lora.merged(dit, [opened])


def test_a_model_of_other_sizes_is_refused(dit, tmp_path):
    path = save(tmp_path / "a.safetensors", pairs(dit), *FORMATS["kohya"])
    with pytest.raises(FormatError, match=r"blocks\.3\.ffn\.2"):
        lora.Lora.open(path, replace(dit.config, ffn_dim=512))
