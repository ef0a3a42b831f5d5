"""The learned start of every image: K boxes and K query vectors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_drmm import DrmmConfig


class DrmmProposals(nn.Module):
    """Boxes and query features with which every image starts, a further group of them for each query group."""

    def __init__(self, config: DrmmConfig):
        super().__init__()
        self.kind, self.size = config.proposal_init, float(config.proposal_size)
        self.num_proposals, self.num_groups = config.num_proposals, config.num_query_groups
        self.normalize_features = config.decoder == "adamixer"
        total = config.num_proposals * config.num_query_groups
        # (K, 4) center x, center y, width, height as fractions of the un-padded image
        if config.learn_proposal_boxes:
            self.boxes = nn.Parameter(torch.empty(total, 4))
        else:
            self.register_buffer("boxes", torch.empty(total, 4))
        self.features = nn.Parameter(torch.empty(total, config.hidden_size))

    def forward(self, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 2) widths and heights in pixels to boxes (B, K, 4) xyxy in pixels and features (B, K, D).

        While training with query groups, K is num_query_groups * num_proposals; otherwise the first group is used.
        """
        count = len(self.features) if self.training else self.num_proposals
        center, half = self.boxes[:count, :2], self.boxes[:count, 2:] / 2
        corners = torch.cat((center - half, center + half), dim=-1).float()
        boxes = corners * torch.cat((image_sizes, image_sizes), dim=-1).unsqueeze(1)
        features = self.features[:count]
        if self.normalize_features:  # without parameters, as AdaMixer's released code has it
            features = F.layer_norm(features, features.shape[-1:])
        return boxes, features.unsqueeze(0).expand(image_sizes.shape[0], -1, -1)

    def initial_boxes(self) -> Tensor:
        """(K, 4) cxcywh: all the full image, or a row-major grid of about 4:3 (20 x 15 for 300, as released)."""
        if self.kind == "full_image":
            return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(self.features), 1)
        columns = round((self.num_proposals * 4 / 3) ** 0.5)
        rows = -(-self.num_proposals // columns)
        index = torch.arange(self.num_proposals)
        x, y = (index % columns + 0.5) / columns, (index // columns + 0.5) / rows
        grid = torch.stack((x, y, torch.full_like(x, self.size), torch.full_like(x, self.size)), dim=-1)
        return grid.repeat(self.num_groups, 1)
