from torch import Tensor, nn

from aurora.interfaces import Connector
from aurora.registry import CONNECTOR
from aurora.types import VisualTokens


@CONNECTOR.register
class LinearConnector(Connector):
    """Each token by itself through one linear layer: the least that joins two widths."""

    def __init__(self, *, in_width: int, out_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(in_width, out_width)

    def forward(self, tokens: VisualTokens) -> Tensor:
        projected: Tensor = self.project(tokens.features)
        return projected
