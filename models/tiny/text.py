"""The small umT5: its tokenizer, and its forward pass for training (transformers' parameters, our walk).

Cross-attention looks at 512 text positions, nearly all of them padding. Padding rows are equal, so training keeps one
of them and adds log(how many) to its score: the same numbers at a tenth of the cost.
"""

import math
import random
import re
from collections import Counter

import torch
import torch.nn.functional as F

LENGTH, FULL = 48, 512  # tokens kept in training; what the model is made for
CONFIG = {
    "vocab_size": 512,
    "d_model": 128,
    "d_kv": 64,
    "d_ff": 256,
    "num_layers": 3,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def make_tokenizer(path, count=20000, seed=71):
    """A unigram tokenizer of umT5's make (no normaliser, no bytes; pad 0, eos 1, unk 3) of the captions' words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    import captions
    import people
    import scenes

    rng = random.Random(seed)
    who, scene = people.sample(count, seed), scenes.sample(count, seed + 1)
    lines = [captions.caption(who, scene, i, rng, face=0.7) for i in range(count)]
    found = Counter(p for line in lines for p in re.findall(r"▁?[A-Za-z'-]+|▁|[^\w▁]", "▁" + line.replace(" ", "▁")))
    for word in list(found):  # the same word in the middle and at the start of a sentence
        for other in (word.lower(), word[:1] + word[1:].capitalize(), word.removeprefix("▁")):
            found.setdefault(other, 1)
    # Letters, digits and marks, so that words which captions lack become pieces, not <unk>.
    letters = {chr(c) for c in range(33, 127)} | {"▁"}
    total = sum(found.values())
    pieces = sorted(((w, math.log(n / total)) for w, n in found.items() if len(w) > 1), key=lambda p: (-p[1], p[0]))
    pieces += [(c, -12.0) for c in sorted(letters)]
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    tok = Tokenizer(models.Unigram([*((s, 0.0) for s in special), *pieces], unk_id=3))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    assert tok.get_vocab_size() <= CONFIG["vocab_size"]
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    tok.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tok.save(path)
    return tok


def encode(tokenizer, texts):
    """int16 (n, LENGTH), padded with 0; the end token always stays."""
    rows = torch.zeros(len(texts), LENGTH, dtype=torch.int16)
    for row, e in zip(rows, tokenizer.encode_batch(texts)):
        ids = e.ids if len(e.ids) < LENGTH else [*e.ids[: LENGTH - 2], 1]
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int16)
    return rows


def build():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**CONFIG))


def rms(norm, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight


def states(net, ids):
    """ids int (B, LENGTH) -> states (B, LENGTH, d_model), zero on padding, and the cross-attention bias (B, LENGTH)."""
    real = ids != 0
    count = real.sum(1, keepdim=True)
    x = F.embedding(ids.long(), net.shared.weight)
    n, heads, size = ids.shape[1], CONFIG["num_heads"], CONFIG["d_kv"]
    mask = torch.where(real, 0.0, -1e9)[:, None, None]
    for block in net.encoder.block:
        a = block.layer[0].SelfAttention
        bias = a.compute_bias(n, n, device=ids.device) + mask
        h = rms(block.layer[0].layer_norm, x)
        q, k, v = (F.linear(h, m.weight).unflatten(-1, (heads, size)).transpose(1, 2) for m in (a.q, a.k, a.v))
        w = (q @ k.transpose(-1, -2) + bias).softmax(-1)
        x = x + F.linear((w @ v).transpose(1, 2).flatten(2), a.o.weight)
        f = block.layer[1].DenseReluDense
        h = rms(block.layer[1].layer_norm, x)
        x = x + F.linear(
            F.gelu(F.linear(h, f.wi_0.weight), approximate="tanh") * F.linear(h, f.wi_1.weight), f.wo.weight
        )
    x = rms(net.encoder.final_layer_norm, x) * real[..., None]
    place = torch.arange(n, device=ids.device)
    bias = torch.where(real, 0.0, torch.where(place == count, (FULL - count).float().log(), -1e4))
    return x, bias


assert math.isclose(CONFIG["d_model"], CONFIG["d_kv"] * CONFIG["num_heads"])
