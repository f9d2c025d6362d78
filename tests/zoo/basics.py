"""Plain networks: activations, inputs and outputs."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import HEAD, NO_AFFINE, Case, inputs, integers


class Perceptron(nn.Module):
    """Two hidden layers and a head, for one activation function given as an attribute."""

    def __init__(self, act=F.relu) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 2)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.second(self.act(self.first(x)))))


def rare_activations() -> nn.Module:
    acts = (
        nn.CELU(),
        nn.Hardtanh(),
        nn.Hardswish(),
        nn.LogSigmoid(),
        nn.Softsign(),
        nn.Tanhshrink(),
        nn.Softshrink(),
        nn.Hardshrink(),
        nn.Threshold(0.1, 0.0),
        nn.Mish(),
        nn.Hardsigmoid(),
        nn.RReLU(),
    )
    layers = [module for act in acts for module in (nn.Linear(5, 5), act)]
    return nn.Sequential(*layers, nn.Linear(5, 2))


RARE = (
    "celu hardtanh hardswish logsigmoid softsign tanhshrink softshrink hardshrink threshold mish hardsigmoid rrelu"
).split()


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor


class KeywordOnly(nn.Module):
    """Keyword-only tensors in, a dataclass out; the features leave the model and also feed its head."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text, self.head = nn.Linear(5, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, *, image: Tensor, text: Tensor) -> Prediction:
        features = F.relu(self.image(image) + self.text(text))
        return Prediction(self.head(features), features)


class DictInDictOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(11, 4), nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = F.silu(self.mix(torch.cat([self.table(batch["id"]), batch["x"]], dim=1)))
        logits = self.head(hidden)
        return {"logits": logits, "probability": logits.sigmoid()}


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(13, 5), nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(tokens))))


class InputActivation(nn.Module):
    """An activation on the raw input and one on an embedding have no affine layer before them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(9, 5), nn.Linear(10, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        both = torch.cat([torch.tanh(x), F.softsign(self.table(index))], dim=1)
        return self.head(F.relu(self.hidden(both)))


TWO = (("first", "relu"), ("second", "relu"))
CASES = (
    Case("function_as_attribute", Perceptron, inputs((5,)), TWO, (7, 6)),
    Case(
        "rare_activations",
        rare_activations,
        inputs((5,)),
        tuple((str(2 * index), op) for index, op in enumerate(RARE)),
        (5,) * len(RARE),
        random=True,
    ),
    Case(
        "keyword_only",
        KeywordOnly,
        lambda batch: (),
        (("image|text", "relu"),),
        (6,),
        kwargs=lambda batch: dict(zip(("image", "text"), inputs((5,), (4,))(batch), strict=True)),
        exportable=False,
    ),
    Case(
        "dict_in_dict_out",
        DictInDictOut,
        lambda batch: ({"id": integers(11, ())(batch)[0], "x": inputs((5,))(batch)[0]},),
        (("mix", "silu"),),
        (6,),
        (("sigmoid", HEAD),),
    ),
    Case("embedding_bag", Bag, integers(13, (4,)), (("hidden", "relu"),), (7,)),
    Case(
        "input_activation",
        InputActivation,
        lambda batch: (*inputs((5,))(batch), *integers(9, ())(batch)),
        (("hidden", "relu"),),
        (6,),
        (("tanh", NO_AFFINE), ("softsign", NO_AFFINE)),
    ),
)
