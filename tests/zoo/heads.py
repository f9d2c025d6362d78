"""Output heads, distributions and losses in the forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from zoo.case import HEAD, NO_AFFINE, Case, inputs, integers


class Gaussian(nn.Module):
    """Mean and scale of a normal distribution; softplus is the last operation of its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.scale = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.elu(self.body(x))
        return self.mean(hidden), F.softplus(self.scale(hidden))


class GaussianLoss(Gaussian):
    """The same with the likelihood in the forward: an offset and a density lie behind the scale."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        hidden = F.elu(self.body(x))
        scale = F.softplus(self.scale(hidden)) + 1e-3
        return -Normal(self.mean(hidden), scale, validate_args=False).log_prob(target).mean()


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.policy, self.actor, self.critic = (
            nn.Linear(4, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 2),
            nn.Linear(8, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.trunk(x))
        action = 2.0 * torch.tanh(self.actor(torch.tanh(self.policy(hidden))))
        return action, self.critic(hidden)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mu, self.logvar = nn.Linear(9, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 9), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.leaky_relu(self.encoder(x))
        mu, logvar = self.mu(hidden), self.logvar(hidden)
        code = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return self.decoder(code), mu, logvar


class Hinge(nn.Module):
    """The relu of a hinge loss is part of the loss, not of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(5, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.relu(1 - torch.sign(target) * self.score(torch.tanh(self.hidden(x)))).mean()


class BinaryLoss(Hinge):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        probability = torch.sigmoid(self.score(torch.tanh(self.hidden(x))))
        return F.binary_cross_entropy(probability, (target > 0).float())


class Factorisation(nn.Module):
    """Two embeddings and their product: nothing affine, and the one nonlinearity ends the model."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return torch.sigmoid((self.users(users) * self.items(items)).sum(1))


CASES = (
    Case(
        "relu_head",
        lambda: nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3), nn.ReLU()),
        inputs((5,)),
        (("0", "silu"),),
        (7,),
        (("relu", HEAD),),
    ),
    Case("gaussian_head", Gaussian, inputs((5,)), (("body", "elu"),), (8,), (("softplus", HEAD),)),
    Case("gaussian_loss", GaussianLoss, inputs((5,), (2,)), (("body", "elu"),), (8,), (("softplus", HEAD),)),
    Case(
        "actor_critic",
        ActorCritic,
        inputs((4,)),
        (("trunk", "tanh"), ("policy", "tanh")),
        (8, 8),
        (("tanh", HEAD),),
    ),
    Case(
        "vae",
        VAE,
        inputs((9,)),
        (("encoder", "leaky_relu"), ("decoder.0", "relu")),
        (8, 7),
        (("sigmoid", HEAD),),
        random=True,
    ),
    Case("hinge_loss", Hinge, inputs((5,), (1,)), (("hidden", "tanh"),), (6,), (("relu", HEAD),)),
    Case("binary_loss", BinaryLoss, inputs((5,), (1,)), (("hidden", "tanh"),), (6,), (("sigmoid", HEAD),)),
    Case("factorisation", Factorisation, integers(9, (), ()), (), (), (("sigmoid", f"{HEAD}|{NO_AFFINE}"),)),
)
