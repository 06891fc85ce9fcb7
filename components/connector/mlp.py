from torch import Tensor, nn

from aurora.interfaces import Connector
from aurora.options import PositiveInt
from aurora.registry import CONNECTOR
from aurora.types import VisualTokens


@CONNECTOR.register
class MlpConnector(Connector):
    """Each token by itself through two layers, as in the paper.

    `hidden` is the width between them, by default the backbone's.
    """

    def __init__(self, *, in_width: int, out_width: int, hidden: PositiveInt | None = None) -> None:
        super().__init__()
        hidden = out_width if hidden is None else hidden
        self.project = nn.Sequential(nn.Linear(in_width, hidden), nn.GELU(), nn.Linear(hidden, out_width))

    def forward(self, tokens: VisualTokens) -> Tensor:
        projected: Tensor = self.project(tokens.features)
        return projected
