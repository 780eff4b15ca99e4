"""kdkit's distill family: a student learns from a teacher."""

from __future__ import annotations

from collections.abc import Iterable

from kdkit import Stage, hookimpl

kdkit_classes = {
    "SqueezeNet": ["kdkit_distill.students.squeezenet:SqueezeNet"],
    "Fire": ["kdkit_distill.students.squeezenet:Fire"],
    "ShuffleNetV2": ["kdkit_distill.students.shufflenet:ShuffleNetV2"],
    "Unit": ["kdkit_distill.students.shufflenet:Unit"],
    "MnasNet": ["kdkit_distill.students.mnasnet:MnasNet"],
    "Inverted": ["kdkit_distill.students.mnasnet:Inverted"],
    "Xception": ["kdkit_distill.students.xception:Xception"],
    "Block": ["kdkit_distill.students.xception:Block"],
    "TeacherEnsemble": ["kdkit_distill.teachers.sources:TeacherEnsemble", "kdkit_distill.sources:Panel"],
    "Projection": ["kdkit_distill.layers.projections:Projection", "kdkit_distill.projections:Projection"],
    "Bridge": ["kdkit_distill.layers.projections:Bridge", "kdkit_distill.projections:Bridge"],
    "Hook": ["kdkit_distill.layers.matching:_Hook", "kdkit_distill.matching:_Hook"],
}
"""The classes that can be in a saved folder: name -> where it is, then where it was in earlier releases."""


@hookimpl
def kdkit_stages() -> Iterable[type[Stage]]:
    """The family's techniques."""
    from kdkit_distill.feature.attention import Attention
    from kdkit_distill.feature.contrast import Contrast
    from kdkit_distill.feature.hints import Hints
    from kdkit_distill.feature.review import Review
    from kdkit_distill.feature.variational import Variational
    from kdkit_distill.relation.correlation_congruence import CorrelationCongruence
    from kdkit_distill.relation.flow import Flow
    from kdkit_distill.relation.probability import Probability
    from kdkit_distill.relation.relations import Relations
    from kdkit_distill.relation.similarity import Similarity
    from kdkit_distill.response.correlation import Correlation
    from kdkit_distill.response.decoupled import Decoupled
    from kdkit_distill.response.soft import Soft
    from kdkit_distill.response.standardized import Standardized
    from kdkit_distill.scheme.adversarial import Adversarial
    from kdkit_distill.scheme.assistant import Assistant
    from kdkit_distill.scheme.born_again import BornAgain
    from kdkit_distill.scheme.discriminator import Discriminator
    from kdkit_distill.scheme.ensemble import Ensemble
    from kdkit_distill.scheme.merge import Merge
    from kdkit_distill.scheme.multi_task import MultiTask
    from kdkit_distill.scheme.mutual import Mutual
    from kdkit_distill.scheme.pseudo_labels import PseudoLabels
    from kdkit_distill.scheme.self_taught import SelfTaught
    from kdkit_distill.scheme.unlabelled import Unlabelled
    from kdkit_distill.transformer.distilbert import DistilBert
    from kdkit_distill.transformer.layers import Layers
    from kdkit_distill.transformer.minilm import MiniLM

    return [
        *(Soft, Decoupled, Correlation, Standardized),
        *(Hints, Attention, Variational, Contrast, Review),
        *(Similarity, Relations, Probability, CorrelationCongruence, Flow),
        *(Layers, MiniLM, DistilBert),
        *(Unlabelled, PseudoLabels, SelfTaught, Mutual, BornAgain, Ensemble, Merge, Adversarial, Discriminator, MultiTask, Assistant),
    ]
