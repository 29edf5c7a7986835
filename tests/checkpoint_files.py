"""Checkpoint folders for tests: tiny ones with numbers, and full-size sparse ones (real headers, holes for data)."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ipvg import _core
from ipvg.checkpoint import names
from ipvg.checkpoint.config import LATENT_MEAN, LATENT_STD, DitConfig, TextConfig, VaeConfig
from ipvg.checkpoint.entry import DTYPES, to_bfloat16
from ipvg.checkpoint.safetensors import CODES
from ipvg.checkpoint.shapes import expected
from ipvg.checkpoint.write import save_safetensors
from ipvg.parity import recipe

GOLDEN = Path(__file__).parent / "golden"

DIT = DitConfig(
    dim=24, ffn_dim=40, num_heads=2, num_layers=3, vace_layers=(0, 2), in_dim=4, out_dim=4, vace_in_dim=12,
    freq_dim=16, text_dim=20,
)  # fmt: skip
VAE = VaeConfig(dim=4, num_res_blocks=1)
TEXT = TextConfig(vocab=50, dim=20, dim_attn=12, dim_ffn=30, num_heads=3, num_layers=2)
CONFIGS = {"dit": DIT, "vae": VAE, "text": TEXT}

Tensor = tuple[str, np.ndarray]  # dtype name and its bits
Dtypes = Mapping[str, Mapping[str, str] | str]  # component -> what tensors_of takes
Table = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype name, shape


def tensors_of(component: str, dtypes: Mapping[str, str] | str = "float32") -> dict[str, Tensor]:
    """Official name -> (dtype, array) of a tiny component, by the golden recipe. dtypes: one for all, or by the first
    part of the name ({"vace_blocks": "bfloat16"}), float32 for the others."""
    out = {}
    for name, shape in expected(CONFIGS[component]).items():
        dtype = dtypes if isinstance(dtypes, str) else dtypes.get(name.split(".")[0], "float32")
        out[name] = (dtype, cast(recipe.weight(name, shape), dtype))
    return out


def cast(x: np.ndarray, dtype: str) -> np.ndarray:
    return to_bfloat16(x) if dtype == "bfloat16" else x.astype(DTYPES[dtype][0])


def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays = {name: array for name, (_, array) in tensors.items()}
    save_safetensors(path, arrays, dtypes={name: dtype for name, (dtype, _) in tensors.items()})


def save_shards(folder: Path, stem: str, tensors: Mapping[str, Tensor], count: int, index: bool = True) -> None:
    """`count` shards with every count-th tensor each, and their index."""
    places = {}
    for i in range(count):
        name = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(tensors.items())[i::count])
        save(folder / name, part)
        places |= dict.fromkeys(part, name)
    if index:
        text = json.dumps({"metadata": {"total_size": 0}, "weight_map": places})
        (folder / f"{stem}.safetensors.index.json").write_text(text)


def make_official(root: Path, dtypes: Dtypes | None = None, shards: int = 1, pth: bool = True) -> Path:
    """A tiny checkpoint in the official layout."""
    dtypes = dtypes or {}
    root.mkdir(parents=True)
    config = {"_class_name": "VaceWanModel", "model_type": "vace", "dim": DIT.dim, "ffn_dim": DIT.ffn_dim}
    config |= {"num_heads": DIT.num_heads, "num_layers": DIT.num_layers, "vace_layers": list(DIT.vace_layers)}
    config |= {"in_dim": DIT.in_dim, "out_dim": DIT.out_dim, "vace_in_dim": DIT.vace_in_dim, "freq_dim": DIT.freq_dim}
    (root / "config.json").write_text(json.dumps(config | {"text_len": 512, "eps": 1e-6}))
    _save_set(root, "diffusion_pytorch_model", tensors_of("dit", dtypes.get("dit", "float32")), shards)
    suffix, write = (".pth", save_pth) if pth else (".safetensors", save)
    write(root / f"Wan2.1_VAE{suffix}", tensors_of("vae", dtypes.get("vae", "float32")))
    write(root / f"models_t5_umt5-xxl-enc-bf16{suffix}", tensors_of("text", dtypes.get("text", "bfloat16")))
    _tokenizer(root / "google" / "umt5-xxl")
    return root


def make_diffusers(root: Path, dtypes: Dtypes | None = None, shards: int = 1) -> Path:
    """The same numbers in the diffusers layout."""
    dtypes = dtypes or {}
    folders = {"dit": ("transformer", "diffusion_pytorch_model"), "vae": ("vae", "diffusion_pytorch_model")}
    folders["text"] = ("text_encoder", "model")
    for component, (folder, stem) in folders.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text(json.dumps(diffusers_config(component)))
        tensors = tensors_of(component, dtypes.get(component, "float32"))
        renamed = {names.to_diffusers(component, name, VAE.num_res_blocks): t for name, t in tensors.items()}
        _save_set(root / folder, stem, renamed, 1 if component == "vae" else shards)
    (root / "model_index.json").write_text('{"_class_name": "WanVACEPipeline"}')
    _tokenizer(root / "tokenizer")
    return root


def diffusers_config(component: str) -> dict:
    if component == "dit":
        return {
            "_class_name": "WanVACETransformer3DModel", "attention_head_dim": DIT.dim // DIT.num_heads,
            "num_attention_heads": DIT.num_heads, "ffn_dim": DIT.ffn_dim, "num_layers": DIT.num_layers,
            "vace_layers": list(DIT.vace_layers), "in_channels": DIT.in_dim, "out_channels": DIT.out_dim,
            "vace_in_channels": DIT.vace_in_dim, "freq_dim": DIT.freq_dim, "text_dim": DIT.text_dim,
            "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "cross_attn_norm": True, "eps": 1e-6,
            "added_kv_proj_dim": None, "image_dim": None,
        }  # fmt: skip
    if component == "vae":
        return {
            "_class_name": "AutoencoderKLWan", "base_dim": VAE.dim, "z_dim": VAE.z_dim, "dim_mult": list(VAE.dim_mult),
            "num_res_blocks": VAE.num_res_blocks, "attn_scales": [], "latents_mean": list(LATENT_MEAN),
            "latents_std": list(LATENT_STD), "temperal_downsample": list(VAE.temperal_downsample), "dropout": 0.0,
        }  # fmt: skip
    return {
        "model_type": "umt5", "vocab_size": TEXT.vocab, "d_model": TEXT.dim, "d_kv": TEXT.dim_attn // TEXT.num_heads,
        "d_ff": TEXT.dim_ffn, "num_heads": TEXT.num_heads, "num_layers": TEXT.num_layers,
        "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    }  # fmt: skip


def _save_set(folder: Path, stem: str, tensors: Mapping[str, Tensor], shards: int) -> None:
    if shards == 1:
        save(folder / f"{stem}.safetensors", tensors)
    else:
        save_shards(folder, stem, tensors, shards)


def _tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    data = gzip.decompress((GOLDEN / "tokenizer_standin.json.gz").read_bytes())
    (folder / "tokenizer.json").write_bytes(data)


# ---- full-size files: real headers, holes for data ----


def keys(name: str) -> dict:
    return json.loads(gzip.decompress((GOLDEN / "keys" / f"{name}.json.gz").read_bytes()))


def sparse_safetensors(path: Path, table: Table) -> None:
    """A file of those tensors (name -> dtype name, shape) whose data are a hole."""
    header, at = {}, 0
    for name, (dtype, shape) in table.items():
        end = at + DTYPES[dtype][1] * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


def sparse_shards(folder: Path, stem: str, table: Table, count: int) -> None:
    items = list(table.items())
    places = {}
    for i in range(count):
        name = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = dict(items[i * len(items) // count : (i + 1) * len(items) // count])
        sparse_safetensors(folder / name, part)
        places |= dict.fromkeys(part, name)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


# ---- .pth, as torch.save writes it ----

_STORAGES = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "float16": "HalfStorage"}


def save_pth(path: Path, tensors: Mapping[str, Tensor], prefix: str = "archive") -> None:
    items = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    data = [np.ascontiguousarray(array).tobytes() for _, array in tensors.values()]
    write_pth(path, items, data, prefix)


def write_pth(path: Path, table: Table, data: list[bytes] | None = None, prefix: str = "archive") -> None:
    """A state dict with a storage for each tensor. Without `data` the storages are holes (and zip64 from 4 GB on)."""
    sizes = [DTYPES[dtype][1] * int(np.prod(shape, dtype=np.int64)) for dtype, shape in table.values()]
    with path.open("wb") as f:
        central = []
        pickle = state_dict_pickle(table)
        _record(f, central, f"{prefix}/data.pkl", len(pickle), pickle)
        _record(f, central, f"{prefix}/byteorder", 6, b"little")
        for i, size in enumerate(sizes):
            _record(f, central, f"{prefix}/data/{i}", size, data[i] if data else None)
        _record(f, central, f"{prefix}/version", 2, b"3\n")
        begin = f.tell()
        f.write(b"".join(central))
        length, end = f.tell() - begin, f.tell()
        if begin >= 0xFFFFFFFF:
            counts = len(central), len(central)
            f.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 30, 45, 0, 0, *counts, length, begin))
            f.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        counts = len(central), len(central)
        f.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, *counts, length, min(begin, 0xFFFFFFFF), 0))


def _record(f, central: list[bytes], name: str, size: int, data: bytes | None) -> None:
    at, raw = f.tell(), name.encode()
    padding = -(at + 30 + len(raw) + 4) % 64
    f.write(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), padding + 4))
    f.write(raw + struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
    f.seek(size, 1) if data is None else f.write(data)
    wide = at >= 0xFFFFFFFF
    f.write(struct.pack("<4sIQQ" if wide else "<4sIII", b"PK\7\x08", 0, size, size))
    extra = struct.pack("<HHQ", 1, 8, at) if wide else b""
    head = struct.pack("<4sHHHHHHIII", b"PK\1\2", 0, 0, 0x808, 0, 0, 0, 0, size, size)
    head += struct.pack("<HHHHHII", len(raw), len(extra), 0, 0, 0, 0, 0xFFFFFFFF if wide else at)
    central.append(head + raw + extra)


def state_dict_pickle(table: Table) -> bytes:
    """The pickle of a dict of contiguous tensors, storage i for the i-th; protocol 2, no memo."""
    out = [b"\x80\x02}("]
    for i, (name, (dtype, shape)) in enumerate(table.items()):
        strides = [int(np.prod(shape[d + 1 :], dtype=np.int64)) for d in range(len(shape))]
        count = int(np.prod(shape, dtype=np.int64))
        storage = b"(" + text("storage") + f"ctorch\n{_STORAGES[dtype]}\n".encode()
        storage += text(str(i)) + text("cpu") + integer(count) + b"tQ"
        out += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", storage, b"K\0"]
        out += [integers(shape), integers(strides), b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join(out) + b"u."


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def integer(n: int) -> bytes:
    return b"J" + struct.pack("<i", n) if n < 1 << 31 else b"\x8a\x08" + struct.pack("<q", n)


def integers(values) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


# ---- damage ----

USED = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8")


def check_usable(entries):
    """What a reader accepted must be inside its files, for Python and for C."""
    weights = _core.Weights({name: e.source() for name, e in entries.items() if len(e.shape) <= 5 and e.dtype in USED})
    for name in weights.names():
        assert weights.array(name).tobytes() == entries[name].read().tobytes()


def flips(data: bytes, positions):
    for position in positions:
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            yield bytes(changed)


def refused_or_usable(read, path: Path, data: bytes, checked=None) -> bool:
    """Whether `data` was refused. An accepted file must be usable; every other exception ends the test. checked: a list
    of what was found usable before, to check nothing twice."""
    with path.open("r+b" if path.exists() else "wb") as f:  # in place: emptying a file takes 50 times longer
        f.write(data)
        f.truncate()
    try:
        entries = read(path)
    except _core.FormatError as error:
        assert path.name in str(error)
        return True
    if checked is None or entries not in checked:
        check_usable(entries)
        checked is None or checked.append(entries)
    return False
