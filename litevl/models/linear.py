"""Linear layers that are faster than what transformers builds; called by `loader.py`.

`pack_linears` replaces every `nn.Linear` below a module by one whose weight oneDNN has packed (1.3
to 4.4 times faster in float32), on the CPU only. `PatchEmbed` takes a vision tower's convolution as
the linear layer that it is, everywhere. Knows nothing of the model around the layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# With AVX-512 oneDNN takes a fifth longer for one row, and a third for two, than for four; with
# AVX2 every row costs more.
LEAST_ROWS = 4 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1


class PackedLinear(nn.Module):
    """`nn.Linear` with a packed copy in place of its weight: float32, CPU, no gradients."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach().contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., rows, in_features) -> (..., rows, out_features)"""
        rows = x.shape[-2]
        if padded := padded_rows(rows) - rows:
            x = F.pad(x, (0, 0, 0, padded))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out[..., :rows, :]


class PatchEmbed(nn.Module):
    """A vision tower's `patch_embed`, whose convolution steps by a whole patch: one product, four
    times faster on the CPU, where oneDNN also compiles a convolution for each count of patches."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        weight = conv.weight.flatten(1)
        self.dtype = weight.dtype
        width, values = weight.shape
        self.proj = nn.Linear(
            values, width, bias=conv.bias is not None, device="meta"
        ).requires_grad_(False)
        self.proj.load_state_dict(conv.state_dict() | {"weight": weight}, assign=True)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, channels * frames * height * width) -> (patches, width of the tower)"""
        out: Tensor = self.proj(patches.to(self.dtype))
        return out


def padded_rows(rows: int) -> int:
    """`rows` rounded up to one of four counts an octave. oneDNN compiles a kernel for each count it
    meets and keeps hundreds of them: milliseconds, and a quarter to half a MiB each."""
    step = 1 << max(rows.bit_length() - 3, 0)
    return max(-(-rows // step) * step, LEAST_ROWS)


def can_pack() -> bool:
    """Whether this build of torch has oneDNN."""
    return bool(torch.backends.mkldnn.is_available())


def pack_linears(module: nn.Module) -> None:
    """Replace every float32 `nn.Linear` below `module` by a `PackedLinear`."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linears(child)
