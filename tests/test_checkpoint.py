"""Checkpoint folders: both layouts, sharded or not, mixed dtypes, full-size files; what is missing is named."""

from __future__ import annotations

import hashlib
import json
import shutil
import time

import checkpoint_files as files
import numpy as np
import pytest

from ipvg import _core, info, memory
from ipvg.checkpoint import Checkpoint, names, save_safetensors
from ipvg.checkpoint.config import infer_text, infer_vae, read_dit, read_text, read_vae
from ipvg.checkpoint.entry import from_bfloat16, to_bfloat16
from ipvg.checkpoint.shapes import expected

MIXED = {"dit": {"vace_blocks": "bfloat16", "vace_patch_embedding": "float16"}, "text": "bfloat16"}
REAL = json.loads((files.GOLDEN / "keys" / "configs.json").read_text())


# ---- names and shapes against every tensor of the real files ----


@pytest.mark.parametrize("key", ["vace_1.3b", "vace_14b", "vae", "umt5_xxl"])
def test_rules_give_the_whole_name_map_in_both_directions(key):
    component = {"vae": "vae", "umt5_xxl": "text"}.get(key, "dit")
    for diffusers, official in files.keys(key)["diffusers_to_official"].items():
        assert names.to_official(component, diffusers) == official
        assert names.to_diffusers(component, official) == diffusers


def test_decoder_blocks_are_placed_by_the_number_of_residual_blocks():
    flat = [f"decoder.upsamples.{i}.residual.2.weight" for i in (0, 1, 3, 4)]
    assert [names.to_diffusers("vae", n, 1).split(".conv1")[0] for n in flat] == [
        "decoder.up_blocks.0.resnets.0",
        "decoder.up_blocks.0.resnets.1",
        "decoder.up_blocks.1.resnets.0",
        "decoder.up_blocks.1.resnets.1",
    ]
    for config in (files.VAE, files.VaeConfig(dim=6, num_res_blocks=3)):
        for name in expected(config):
            blocks = config.num_res_blocks
            assert names.to_official("vae", names.to_diffusers("vae", name, blocks), blocks) == name


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("dit", "blocks.0.self_attn.q.weight"),  # official already: not a diffusers name
        ("dit", "blocks.00.attn1.to_q.weight"),
        ("dit", "blocks.0.attn1.to_q.weight.weight"),
        ("dit", "single_blocks.0.attn1.to_q.weight"),
        ("dit", "blocks.0.proj_in.weight"),
        ("vae", "decoder.up_blocks.0.resnets.3.conv1.weight"),
        ("vae", "decoder.up_blocks.0.resnets.0.resample.1.weight"),
        ("vae", "decoder.up_blocks.0.upsamplers.0.conv1.weight"),
        ("vae", "decoder.up_blocks.0.conv1.weight"),
        ("text", "decoder.block.0.layer.0.layer_norm.weight"),
        ("text", ""),
    ],
)
def test_a_name_that_no_rule_knows_stays_unknown(component, name):
    assert names.to_official(component, name) is None


def real_config(key):
    shapes = {name: tuple(shape) for name, (shape, _) in files.keys(key)["official"].items()}
    if key == "vae":
        return shapes, [infer_vae(shapes, key), read_vae(REAL["diffusers/vae/config.json"], key)]
    if key == "umt5_xxl":
        return shapes, [infer_text(shapes, key), read_text(REAL["diffusers/text_encoder/config.json"], key)]
    size = key.removeprefix("vace_")
    tables = (REAL["official/config.json"][size], REAL["diffusers/transformer/config.json"][size])
    return shapes, [read_dit(table, key, shapes) for table in tables]


@pytest.mark.parametrize("key", ["vace_1.3b", "vace_14b", "vae", "umt5_xxl"])
def test_both_layouts_give_the_same_config_and_it_gives_every_real_tensor(key):
    shapes, configs = real_config(key)
    assert configs[0] == configs[1]
    assert expected(configs[0]) == shapes


# ---- tiny folders with numbers ----


def same_numbers(ckpt, dtypes):
    for component, part in ckpt.components.items():
        wanted = files.tensors_of(component, dtypes.get(component, "float32"))
        assert set(part.entries) == set(wanted)
        weights = part.weights()
        assert len(weights) == len(wanted)
        for name, (dtype, array) in wanted.items():
            assert part.entries[name].dtype == dtype
            np.testing.assert_array_equal(part.entries[name].read(), array)
            np.testing.assert_array_equal(weights.array(name), array)
            assert not weights.array(name).flags.writeable


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("pth", [True, False])
def test_official_layout(tmp_path, shards, pth):
    ckpt = Checkpoint.open(files.make_official(tmp_path / "c", MIXED, shards, pth))
    assert ckpt.layout == "official"
    assert {name: part.config for name, part in ckpt.components.items()} == files.CONFIGS
    assert ckpt.tokenizer_path == tmp_path / "c/google/umt5-xxl/tokenizer.json"
    same_numbers(ckpt, MIXED)


@pytest.mark.parametrize("shards", [1, 3])
def test_diffusers_layout(tmp_path, shards):
    ckpt = Checkpoint.open(files.make_diffusers(tmp_path / "c", MIXED, shards))
    assert ckpt.layout == "diffusers"
    assert {name: part.config for name, part in ckpt.components.items()} == files.CONFIGS
    assert ckpt.tokenizer_path == tmp_path / "c/tokenizer/tokenizer.json"
    same_numbers(ckpt, MIXED)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_dtype(tmp_path, dtype):
    dtypes = dict.fromkeys(("dit", "vae", "text"), dtype)
    same_numbers(Checkpoint.open(files.make_official(tmp_path / "o", dtypes)), dtypes)
    same_numbers(Checkpoint.open(files.make_diffusers(tmp_path / "d", dtypes)), dtypes)


def test_shards_without_an_index_must_be_complete(tmp_path):
    root = files.make_official(tmp_path / "c", shards=3)
    (root / "diffusion_pytorch_model.safetensors.index.json").unlink()
    same_numbers(Checkpoint.open(root, ["dit"]), {})
    (root / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(_core.FormatError, match=r"00002-of-00003\.safetensors is missing"):
        Checkpoint.open(root)


@pytest.mark.parametrize("present", [("shared.weight",), (names.TIED,), ("shared.weight", names.TIED)])
def test_the_text_embedding_may_have_either_name_or_both(tmp_path, present):
    root = files.make_diffusers(tmp_path / "c")
    tensors = files.tensors_of("text")
    renamed = {names.to_diffusers("text", name): tensor for name, tensor in tensors.items()}
    dtype, table = renamed.pop("shared.weight")
    # When both are there shared.weight counts, whatever the order in the file.
    both = {"shared.weight": (dtype, table), names.TIED: (dtype, table if len(present) == 1 else table + 1)}
    files.save(root / "text_encoder/model.safetensors", {**renamed, **{name: both[name] for name in present}})
    part = Checkpoint.open(root, ["text"]).components["text"]
    np.testing.assert_array_equal(part.entries["token_embedding.weight"].read(), table)


def test_components_can_be_opened_alone(tmp_path):
    root = files.make_official(tmp_path / "c")
    (root / "Wan2.1_VAE.pth").unlink()
    assert list(Checkpoint.open(root, ["dit", "text"]).components) == ["dit", "text"]
    with pytest.raises(_core.FormatError, match=r"the VAE is missing: expected Wan2.1_VAE.pth \(official layout\)"):
        Checkpoint.open(root)
    with pytest.raises(ValueError, match="'clip' is none of dit, vae, text"):
        Checkpoint.open(root, ["clip"])


def test_sha256_of_a_component(tmp_path):
    ckpt = Checkpoint.open(files.make_official(tmp_path / "c", shards=2))
    seen = []
    hashes = ckpt.sha256("dit", lambda done, total: seen.append((done, total)))
    assert hashes == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in ckpt.components["dit"].files}
    total = sum(f.stat().st_size for f in ckpt.components["dit"].files)
    assert len(hashes) == 2 and seen[-1] == (total, total)


# ---- full-size files ----


@pytest.fixture(scope="module", params=["1.3b", "14b"])
def full_size(request, tmp_path_factory):
    """Official and diffusers folders of the real sizes: 60 to 150 GB of holes."""
    root = tmp_path_factory.mktemp("full")
    tables = {}
    for component, key in (("dit", f"vace_{request.param}"), ("vae", "vae"), ("text", "umt5_xxl")):
        table = files.keys(key)
        rename = {official: diffusers for diffusers, official in table["diffusers_to_official"].items()}
        dtypes = {"BF16": "bfloat16", "F32": "float32"}
        official = {name: (dtypes[code], tuple(shape)) for name, (shape, code) in table["official"].items()}
        tables[component] = official, {rename[name]: tensor for name, tensor in official.items()}
    official, diffusers = root / "official", root / "diffusers"
    official.mkdir()
    (official / "config.json").write_text(json.dumps(REAL["official/config.json"][request.param]))
    if request.param == "14b":
        files.sparse_shards(official, "diffusion_pytorch_model", tables["dit"][0], 7)
    else:
        files.sparse_safetensors(official / "diffusion_pytorch_model.safetensors", tables["dit"][0])
    files.write_pth(official / "Wan2.1_VAE.pth", tables["vae"][0])
    files.write_pth(official / "models_t5_umt5-xxl-enc-bf16.pth", tables["text"][0], prefix="whatever")
    for component, folder in (("dit", "transformer"), ("vae", "vae"), ("text", "text_encoder")):
        (diffusers / folder).mkdir(parents=True)
        config = REAL[f"diffusers/{folder}/config.json"]
        config = config[request.param] if component == "dit" else config
        (diffusers / folder / "config.json").write_text(json.dumps(config))
        stem = "model" if component == "text" else "diffusion_pytorch_model"
        if component == "vae":
            files.sparse_safetensors(diffusers / folder / f"{stem}.safetensors", tables[component][1])
        else:
            files.sparse_shards(diffusers / folder, stem, tables[component][1], 13 if component == "dit" else 3)
    (diffusers / "model_index.json").write_text(json.dumps(REAL["diffusers/model_index.json"]))
    yield request.param, official, diffusers, tables
    shutil.rmtree(root)


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_full_size_files_open_at_once_and_map_whole(full_size, layout):
    size, official, diffusers, tables = full_size
    start = time.perf_counter()
    ckpt = Checkpoint.open(official if layout == "official" else diffusers)
    seconds = time.perf_counter() - start
    assert seconds < 5  # headers only: 0.1 s on an idle machine, and 60 GB of holes could not be read in 5
    assert ckpt.layout == layout
    for component, part in ckpt.components.items():
        found = {name: (entry.dtype, entry.shape) for name, entry in part.entries.items()}
        assert found == tables[component][0]
        weights = part.weights()
        name = list(part.entries)[-1]
        assert not weights.array(name).any()  # a hole reads as zeros: the last byte of the last file is mapped
    assert sum(e.count for e in ckpt.components["text"].entries.values()) == 5_680_910_336
    assert ckpt.components["dit"].nbytes == files.keys(f"vace_{size}")["bytes"]


def test_the_memory_of_a_full_size_job_is_known_without_reading_weights(full_size):
    official = full_size[1]
    found = info.describe(official, estimate=memory.estimate, sizes=[(832, 480, 81)], dtypes=["float32"])
    (row,) = found["memory"]
    assert row["parts"]["weights"] >= sum(part["bytes"] for part in found["components"].values())
    assert 1e9 < row["total"] - row["parts"]["weights"] < 1e11


# ---- what is missing, extra or misshapen is named ----


def test_missing_extra_and_misshapen_tensors_are_named_with_what_was_expected(tmp_path):
    root = files.make_official(tmp_path / "c")
    tensors = files.tensors_of("dit")
    del tensors["blocks.1.norm3.bias"]
    tensors["img_emb.proj.weight"] = ("float32", np.zeros((2, 3), np.float32))
    tensors["head.head.bias"] = ("float32", np.zeros((7,), np.float32))
    files.save(root / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(_core.FormatError) as error:
        Checkpoint.open(root)
    text = str(error.value)
    assert "diffusion_pytorch_model.safetensors" in text
    assert "1 missing: 'blocks.1.norm3.bias' [24]" in text
    assert "1 extra: 'img_emb.proj.weight'" in text
    assert "1 wrong: 'head.head.bias' has shape [7], expected [16]" in text


def test_many_missing_tensors_are_counted_not_listed(tmp_path):
    root = files.make_official(tmp_path / "c")
    tensors = {name: t for name, t in files.tensors_of("dit").items() if not name.startswith("vace_blocks.1.")}
    files.save(root / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(_core.FormatError, match=r"29 missing: .* and 25 more"):
        Checkpoint.open(root)


def test_a_diffusers_name_that_no_rule_knows_is_an_error(tmp_path):
    root = files.make_diffusers(tmp_path / "c")
    path = root / "text_encoder/model.safetensors"
    renamed = {names.to_diffusers("text", name): tensor for name, tensor in files.tensors_of("text").items()}
    files.save(path, renamed | {"lm_head.weight": ("float32", np.zeros(3, np.float32))})
    with pytest.raises(_core.FormatError, match=r"1 extra: 'lm_head\.weight'"):
        Checkpoint.open(root)


def test_a_dtype_that_no_model_takes_is_an_error(tmp_path):
    root = files.make_official(tmp_path / "c")
    tensors = files.tensors_of("dit")
    tensors["head.head.bias"] = ("float8_e4m3", np.zeros((16,), np.uint8))
    files.save(root / "diffusion_pytorch_model.safetensors", tensors)
    with pytest.raises(_core.FormatError, match=r"'head\.head\.bias' has dtype float8_e4m3; ipvg takes float32"):
        Checkpoint.open(root)


def test_folders_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(_core.FormatError, match="not a checkpoint: found neither"):
        Checkpoint.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(_core.FormatError, match="a checkpoint is a folder"):
        Checkpoint.open(tmp_path / "file")
    root = files.make_official(tmp_path / "c")
    (root / "config.json").unlink()
    with pytest.raises(_core.FormatError, match=r"config\.json is missing"):
        Checkpoint.open(root)


CONFIG_CHANGES = [
    ({"num_layers": 10**9}, "'num_layers' is 1000000000, expected an integer from 1 to 1000"),
    ({"num_layers": 3.0}, "'num_layers' is 3.0"),
    ({"num_layers": True}, "'num_layers' is True"),
    ({"num_layers": None}, "'num_layers' is missing"),
    ({"num_heads": 5}, "dim 24 does not divide into 5 heads"),
    ({"vace_layers": [0, 3]}, "'vace_layers' must ascend"),
    ({"vace_layers": [2, 0]}, "'vace_layers' must ascend"),
    ({"vace_layers": []}, "'vace_layers' must ascend"),
    ({"vace_layers": "0"}, "'vace_layers' is '0', expected a list"),
    ({"vace_layers": [0] * 5}, "expected a list of at most 3"),
    ({"dim": 10**30}, "'dim' is a huge number"),
    ({"eps": -1}, "'eps' is -1"),
    ({"patch_size": [1, 1, 1]}, "ipvg knows .1, 2, 2. only"),
    ({"model_type": "t2v"}, "'model_type' is 't2v'; ipvg knows 'vace' only"),
    ({"_class_name": "WanModel"}, "'_class_name' is 'WanModel'"),
    ({"text_dim": 21}, "'text_embedding.0.weight' has shape"),
    ({"ffn_dim": 41}, "ffn.0.weight' has shape .40, 24., expected .41, 24."),
    ({"vace_layers": [0, 1, 2]}, "missing: 'vace_blocks.2.modulation'"),
    ({"vace_layers": [0]}, "extra: 'vace_blocks.1."),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_CHANGES)
def test_a_config_out_of_range_or_beside_the_tensors_is_refused(tmp_path, change, message):
    root = files.make_official(tmp_path / "c")
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(_core.FormatError, match=message):
        Checkpoint.open(root)


@pytest.mark.parametrize(
    ("component", "change", "message"),
    [
        ("vae", {"dim_mult": [1, 2, 4]}, "'dim_mult' must be four"),
        ("vae", {"temperal_downsample": [True, True, True]}, "two of them true"),
        ("vae", {"temperal_downsample": [0, 1, 1]}, "expected a list"),
        ("vae", {"latents_mean": [0.0] * 15}, "'latents_mean' must be z_dim = 16 numbers"),
        ("vae", {"latents_std": [0.0] * 16}, "'latents_std' must be z_dim = 16 numbers"),
        ("vae", {"is_residual": True}, "'is_residual' is True"),
        ("vae", {"attn_scales": [1.0]}, "'attn_scales' is not empty"),
        ("vae", {"base_dim": 5}, "must be even"),
        ("text", {"model_type": "t5"}, "'model_type' is 't5'"),
        ("text", {"num_heads": 0}, "'num_heads' is 0"),
        ("text", {"d_ff": 31}, "ffn.gate.0.weight' has shape .30, 20., expected .31, 20."),
        ("dit", {"qk_norm": None, "image_dim": 1280}, "'image_dim' is 1280"),
        ("dit", {"attention_head_dim": 4}, "even size of 6 or more"),
    ],
)
def test_diffusers_configs_are_checked_too(tmp_path, component, change, message):
    root = files.make_diffusers(tmp_path / "c")
    folder = {"dit": "transformer", "vae": "vae", "text": "text_encoder"}[component]
    config = files.diffusers_config(component) | change
    (root / folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(_core.FormatError, match=message):
        Checkpoint.open(root)


def test_the_official_layout_has_latent_statistics_for_16_channels_only(tmp_path):
    shapes = expected(files.VaeConfig(dim=4, z_dim=8, mean=(0.0,) * 8, std=(1.0,) * 8))
    with pytest.raises(_core.FormatError, match="8 latent channels"):
        infer_vae(shapes, "x")


# ---- writing ----


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors(path, {"a": np.arange(3, dtype=np.float32)})
    before = path.read_bytes()
    with pytest.raises(TypeError, match="cannot write dtype"):
        save_safetensors(path, {"a": np.zeros(3, np.complex64)})
    with pytest.raises(TypeError, match="elements take 2 bytes"):
        save_safetensors(path, {"a": np.zeros(3, np.float32)}, dtypes={"a": "bfloat16"})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_written_files_read_back_with_every_dtype_order_and_metadata(tmp_path):
    from ipvg.checkpoint.safetensors import read_header, read_metadata

    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "turned": rng.standard_normal((4, 6)).astype(np.float32).T,
        "scalar": np.float64(2.5),
        "none": np.zeros((0, 4), np.float32),
        "ids": np.arange(7, dtype=np.int64)[::2],
        "byte": np.arange(5, dtype=np.uint8),
        "brain": to_bfloat16(rng.standard_normal(9).astype(np.float32)),
        "名前": np.ones(1, np.int32),
    }
    path = tmp_path / "w.safetensors"
    save_safetensors(path, arrays, {"by": "ü"}, {"brain": "bfloat16"})
    entries = read_header(path)
    assert read_metadata(path) == {"by": "ü"}
    assert entries["brain"].dtype == "bfloat16" and entries["ids"].dtype == "int64"
    for name, array in arrays.items():
        np.testing.assert_array_equal(entries[name].read(), array)
        assert entries[name].offset % array.itemsize == 0


def test_bfloat16_rounds_to_nearest_even_and_keeps_what_is_special():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, -np.inf, np.nan, 1e-45, -0.0], np.float32)
    y = from_bfloat16(to_bfloat16(x))
    # ties to even: 1 + 2^-8 lies between 1 and 1 + 2^-7
    np.testing.assert_array_equal(y[:4], np.float32([1.0, 1.0, 1 + 2**-6, 1 + 2**-7]))
    assert y[4] == np.inf and y[5] == -np.inf and np.isnan(y[6]) and y[7] == 0 and np.signbit(y[8])
    assert np.isnan(from_bfloat16(to_bfloat16(np.array([0x7F800001], np.uint32).view(np.float32))))
    everything = np.arange(1 << 16, dtype=np.uint16)
    again = to_bfloat16(from_bfloat16(everything))
    numbers = ~np.isnan(from_bfloat16(everything))
    np.testing.assert_array_equal(again[numbers], everything[numbers])
