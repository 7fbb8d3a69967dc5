"""A minimal merger of kohya / LyCORIS files, written from their readers' rules in numpy and float64.

It shares no code with dreamlit, torch or lycoris, so that a file which it merges right is right. W is a layer's weight
[out, in, ...]; the update is alpha / rank times

    lora    up @ down                    (with a core `mid`: up x mid x down)
    loha    (w1_a @ w1_b) * (w2_a @ w2_b)  (with cores t1, t2)
    lokr    w1 kron w2, each whole or a product; two whole factors know no alpha
    glora   W @ a1 @ a2 + b1 @ b2
    oft     (R - 1) W by blocks of outputs, R = (1 + Q)(1 - Q)^-1, Q = B - B^T; no alpha
"""

import json
import struct

import numpy as np


def read(path):
    """{key: float64 array} of a safetensors file with float32 tensors."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    entries.pop("__metadata__", None)
    found = {}
    for key, entry in entries.items():
        assert entry["dtype"] == "F32", key
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        found[key] = np.frombuffer(data[start:end], dtype="<f4").reshape(entry["shape"]).astype(np.float64)
    return found


def merge(weights, path, prefix="lora_unet"):
    """New weights {name: array} for {layer name: weight}; every key of the file must be used.

    Returns the merged weights and the number of keys used.
    """
    file = read(path)
    left = set(file)
    merged = {}
    for name, weight in weights.items():
        start = f"{prefix}_{name.replace('.', '_')}."
        parts = {key[len(start) :]: file[key] for key in file if key.startswith(start)}
        left -= {start + part for part in parts}
        weight = weight.astype(np.float64)
        merged[name] = weight + update(parts, weight) if parts else weight
    assert not left, f"keys that no layer takes: {sorted(left)[:5]}"
    return merged, len(file)


def update(parts, weight):
    flat = {part: value.reshape(value.shape[0], -1) if value.ndim else value for part, value in parts.items()}
    if "lora_up.weight" in parts:
        up, down = flat["lora_up.weight"], flat["lora_down.weight"]
        scale = parts["alpha"] / down.shape[0]
        if "lora_mid.weight" in parts:
            product = np.einsum("or,rshw,si->oihw", up, parts["lora_mid.weight"], down)
        else:
            product = up @ down
    elif "hada_w1_a" in parts:
        scale = parts["alpha"] / parts["hada_w1_b"].shape[0]
        product = half(parts, "hada_w1", "hada_t1") * half(parts, "hada_w2", "hada_t2")
    elif any(part.startswith("lokr") for part in parts):
        ranks = [parts[part].shape[0] for part in ("lokr_w1_b", "lokr_w2_b") if part in parts]
        scale = parts["alpha"] / ranks[0] if ranks else 1.0
        product = kron(half(parts, "lokr_w1", "lokr_t1"), half(parts, "lokr_w2", "lokr_t2"), weight.shape)
    elif "a1.weight" in parts:
        scale = parts["alpha"] / flat["a2.weight"].shape[0]
        product = np.einsum("oi...,ir,rj->oj...", weight, flat["a1.weight"], flat["a2.weight"])
        product = product.reshape(len(weight), -1) + flat["b1.weight"] @ flat["b2.weight"]
    else:
        return turned(parts["oft_blocks"], weight)
    return scale * product.reshape(weight.shape)


def half(parts, name, core):
    if name in parts:
        return parts[name]
    if core in parts:
        return np.einsum("ij...,ip,jr->pr...", parts[core], parts[f"{name}_a"], parts[f"{name}_b"])
    return parts[f"{name}_a"] @ parts[f"{name}_b"]


def kron(first, second, shape):
    """Entry (a p + c, b q + d) is first[a, b] second[c, d]; a second factor may carry the kernel in its columns."""
    second = second.reshape(shape[0] // first.shape[0], shape[1] // first.shape[1], -1)
    blocks = first[:, None, :, None, None] * second[None, :, None, :, :]
    return blocks.reshape(shape)


def turned(blocks, weight):
    """W rotated by blocks of its outputs; four axes are butterfly stages (BOFT), three are diagonal blocks."""
    stages = blocks if blocks.ndim == 4 else blocks[None]
    turned = weight.reshape(len(weight), -1)
    size = stages.shape[-1]
    for index, stage in enumerate(stages):
        q = stage - stage.transpose(0, 2, 1)
        one = np.eye(size)
        rotation = (one + q) @ np.linalg.inv(one - q)
        if blocks.ndim == 3:
            grouped = turned.reshape(len(stage), size, -1)
            turned = np.einsum("knm,kni->kmi", rotation, grouped).reshape(len(weight), -1)
            continue
        order = butterfly(len(weight), 2**index * size // 2)
        grouped = turned[order].reshape(len(stage), size, -1)
        mixed = np.einsum("bij,bjx->bix", rotation, grouped).reshape(len(weight), -1)
        turned = np.empty_like(mixed)
        turned[order] = mixed
    return turned.reshape(weight.shape) - weight


def butterfly(outputs, stride):
    """The order in which outputs that are `stride` apart stand beside each other."""
    return np.arange(outputs).reshape(-1, 2, stride).transpose(0, 2, 1).reshape(-1)
