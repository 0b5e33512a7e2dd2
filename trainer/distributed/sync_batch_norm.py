"""Batch norm over the images of all ranks, by PyTorch's SyncBatchNorm, which needs GPUs."""

from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_synced_batch_norm(model: nn.Module) -> nn.Module:
    """Let the model's batch norm layers normalise over all ranks, in place; returns the model.

    Only the layers' class changes: parameters, buffers, hooks and names stay, and so does the
    activation inside timm's layers, which ``convert_sync_batchnorm`` would lose. Raises ValueError
    for a batch norm class of another library that does more than batch norm.
    """
    for module in model.modules():
        kind = type(module)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        has_act = kind not in BATCH_NORMS
        if has_act and not (hasattr(module, "drop") and hasattr(module, "act")):
            raise ValueError(f"a layer {kind.__name__} cannot be synchronised")
        module.__class__ = _SyncedAct if has_act else nn.SyncBatchNorm
        module.process_group = None  # type: ignore[assignment]
    return model


class _SyncedAct(nn.SyncBatchNorm):
    """The synchronised BatchNormAct2d of timm, which has an activation after batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        """The activation of the batch norm's output."""
        output: Tensor = self.act(self.drop(super().forward(input)))  # type: ignore[operator]
        return output
