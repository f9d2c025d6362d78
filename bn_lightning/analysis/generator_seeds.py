"""What random number generators were seeded with; where they stand depends on what drew from them before."""

from typing import Any

import numpy as np
import torch


def torch_seed(generator: torch.Generator) -> tuple[Any, ...]:
    """What a generator of torch was seeded with.

    Args:
        generator: The generator.

    Returns:
        Its device and seed; nothing for torch's global generators, which each run seeds.

    Example:
        >>> torch_seed(torch.Generator().manual_seed(3))
        ('cpu', 3)
    """
    if any(generator is shared for shared in (torch.default_generator, *torch.cuda.default_generators)):
        return ()
    return str(generator.device), generator.initial_seed()


def numpy_seed(generator: Any) -> tuple[Any, ...]:
    """What a generator of NumPy was seeded with.

    Args:
        generator: A Generator, RandomState, BitGenerator or SeedSequence.

    Returns:
        What it was made from, down to the seed; the state of a RandomState that was seeded with a number, as it does
        not keep the number. Nothing for the global one, which each run seeds, and for seeds that NumPy drew, which
        differ between processes; a single number of more than 64 bits counts as drawn.

    Example:
        >>> numpy_seed(np.random.SeedSequence(3))
        (3, ())
        >>> numpy_seed(np.random.SeedSequence())
        ()
    """
    if isinstance(generator, np.random.RandomState):
        is_global = generator is getattr(np.random.get_state, "__self__", None)
        return () if is_global else (generator._bit_generator,)  # there is no public way
    if isinstance(generator, np.random.Generator):
        return (generator.bit_generator,)
    if isinstance(generator, np.random.BitGenerator):
        sequence = generator.seed_seq
        return (generator.state,) if sequence is None else (sequence,)
    entropy = generator.entropy
    drawn = isinstance(entropy, int) and entropy.bit_length() > 64
    return () if drawn else (entropy, generator.spawn_key)
