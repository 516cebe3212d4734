"""What tensors hold, told in 128 bits: the same on every device and in every process."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

ROW = 2**14  # words of 32 bits that one pair of sums is taken of
# Words at a time: on a CPU what stays in its cache, elsewhere what keeps it busy and takes 64 MB for a moment.
AT_ONCE_ON_CPU, AT_ONCE = 2**18, 2**22


@torch.no_grad()
def checksums(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """For each group of tensors by name 32 hexadecimal digits, over names, dtypes, shapes and every bit of them.

    A tensor is cut into rows of `ROW` words x of 32 bits. Each row gives two sums of w x modulo 2^64, where the w are
    two tables of odd 64-bit numbers that look random: integers, so that no order of adding changes them. Two different
    rows have one such sum in common with a probability of at most 2^-32 over the tables, and 2^-64 both, however they
    differ (Lemire & Kaser 2014, "Strongly universal string hashing is fast", The Computer Journal 57, section 3).
    The sums are hashed by BLAKE2b on the host. They are taken where the tensor lies, and brought over once a device.

    Weights on the meta device have no content; of these names, dtypes and shapes are all there is.
    """
    sums: dict[torch.device, list[Tensor]] = {}
    places: dict[tuple, tuple[torch.device, int, int]] = {}  # of tensors that several names share, once
    counts: dict[torch.device, int] = {}
    parts_by_group: dict[str, list[tuple[str, tuple]]] = {}
    alive = []  # so that what was made on the way is not freed, and its address not used again
    for group, tensors in groups.items():
        parts_by_group[group] = []
        for name, tensor in sorted(tensors.items()):
            for part, plain in _plain(name, tensor):
                alive.append(plain)
                place = plain.data_ptr() or id(plain)  # some kinds of tensors have no address
                key = (place, plain.dtype, plain.shape, plain.stride(), plain.device)
                if key not in places and plain.device.type != "meta" and plain.numel():
                    rows = _sums(plain)
                    start = counts.get(plain.device, 0)
                    counts[plain.device] = start + len(rows)
                    sums.setdefault(plain.device, []).append(rows)
                    places[key] = plain.device, start, start + len(rows)
                parts_by_group[group].append((part, key))
    host_sums = {device: torch.cat(rows).cpu().numpy().astype("<i8") for device, rows in sums.items()}
    out = {}
    for group, parts in parts_by_group.items():
        digest = hashlib.blake2b(digest_size=16)
        for name, key in parts:
            digest.update(repr((name, str(key[1]), tuple(key[2]))).encode())
            if key in places:
                device, start, stop = places[key]
                digest.update(host_sums[device][start:stop].tobytes())
        out[group] = digest.hexdigest()
    return out


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The dense tensors that a tensor is made of, as a quantised or a sharded one is of several."""
    if hasattr(tensor, "__tensor_flatten__"):
        for inner in tensor.__tensor_flatten__()[0]:  # pyright: ignore[reportAttributeAccessIssue]
            yield from _plain(f"{name}.{inner}", getattr(tensor, inner))
        return
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    yield name, tensor


def _sums(tensor: Tensor) -> Tensor:
    """The pair of sums of each row, (rows, 2), int64; the last row may be shorter."""
    words = _words(tensor)
    weights = _weights(tensor.device)
    step = AT_ONCE_ON_CPU if tensor.device.type == "cpu" else AT_ONCE
    whole = len(words) // ROW * ROW
    parts = [_products(words[i : min(i + step, whole)].view(-1, ROW), weights) for i in range(0, whole, step)]
    if whole < len(words):
        parts.append(_products(words[None, whole:], weights[:, : len(words) - whole]))
    return torch.cat(parts)


def _products(rows: Tensor, weights: Tensor) -> Tensor:
    """(rows, words) by (2, words) -> (rows, 2), modulo 2^64."""
    if rows.device.type == "cpu":  # other devices have no product of integer matrices
        wide = rows.long()
        return torch.stack([wide.mv(table) for table in weights], dim=1)
    return (rows[:, None] * weights).sum(-1)


def _words(tensor: Tensor) -> Tensor:
    """The bits of a tensor as int32, (words,), without a copy unless it is laid out in another order."""
    octets = tensor.contiguous().reshape(-1).view(torch.uint8)
    if missing := -octets.numel() % 4:
        octets = nn.functional.pad(octets, (0, missing))
    if octets.storage_offset() % 4:
        octets = octets.clone()
    return octets.view(torch.int32)


@functools.cache
def _weights(device: torch.device) -> Tensor:
    """(2, ROW) of int64, the same in every release of every library."""
    drawn = bytearray(hashlib.shake_128(b"sae_lm_eval").digest(2 * 8 * ROW))
    drawn[::8] = bytes(octet | 1 for octet in drawn[::8])  # odd, so that no change of a single word is lost
    return torch.frombuffer(drawn, dtype=torch.int64).view(2, ROW).to(device)
