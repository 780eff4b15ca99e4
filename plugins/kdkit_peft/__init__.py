"""kdkit's peft family: small adapters on frozen weights."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import Stage, hookimpl

kdkit_classes = {
    "Adapted": ["kdkit_peft.bottleneck:Adapted"],
    "Bottleneck": ["kdkit_peft.bottleneck:Bottleneck"],
    "LowRank": ["kdkit_peft.low_rank:LowRank"],
    "Prompted": ["kdkit_peft.prompted:Prompted"],
}
"""The classes that can be in a saved folder: name -> where it is."""


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The techniques of the family."""
    from kdkit_peft.adalora import AdaLora
    from kdkit_peft.bottleneck_adapters import Adapters
    from kdkit_peft.ia3 import Ia3
    from kdkit_peft.lora import Lora
    from kdkit_peft.merge import Merge
    from kdkit_peft.oft import Oft
    from kdkit_peft.prompt import Prompt, PTuning
    from kdkit_peft.vera import Vera

    return [Lora, AdaLora, Ia3, Vera, Oft, Adapters, Prompt, PTuning, Merge]
