"""Rules, groupings and methods at the manifest's settings, as the run directory names them."""

from pipeline.manifest.schema import Coefficient, Grouping, Manifest, Prompts
from pipeline.methods import METHODS, GroupingKind, Method
from pipeline.store.run_directory import Variant

EMBEDDING_FIELDS = {"embeddings", "curve_tolerance"}


def rule_variant(coefficient: Coefficient) -> Variant:
    """The manifest's rule with its settings."""
    settings = coefficient.model_dump(exclude={"rule"})
    return Variant(coefficient.rule, settings, is_default=coefficient == Coefficient(rule=coefficient.rule))


def grouping_variant(kind: GroupingKind, grouping: Grouping) -> Variant:
    """A grouping with those of the manifest's settings that it depends on."""
    fields = {
        "arrival": {"batch_size", "window"},
        "lambda": {"batch_size", "window", "tolerance"},
        "sample": {"window"},
    }
    settings, defaults = grouping.model_dump(include=fields[kind]), Grouping().model_dump(include=fields[kind])
    return Variant(kind, settings, is_default=settings == defaults)


def embeddings_variant(evaluation_set: str, prompts: Prompts) -> Variant:
    """Class embeddings of an evaluation set: a curve within its tolerance, or exact heads, each in its own folder."""
    settings, defaults = prompts.model_dump(include=EMBEDDING_FIELDS), Prompts().model_dump(include=EMBEDDING_FIELDS)
    return Variant(evaluation_set, settings, is_default=settings == defaults)


def method_variant(name: str, manifest: Manifest) -> Variant:
    """A method with every setting that its answers depend on, beyond the evidence."""
    method: Method = METHODS[name]
    if method.grouping is None:
        return Variant(name, {}, is_default=True)
    rule = rule_variant(manifest.coefficient)
    grouping = grouping_variant(method.grouping, manifest.grouping)
    embeddings = embeddings_variant(name, manifest.prompts)
    is_default = rule.is_default and grouping.is_default and embeddings.is_default
    settings = {
        "rule": {"name": rule.name, **rule.settings},
        "grouping": {"name": grouping.name, **grouping.settings},
        **embeddings.settings,
    }
    return Variant(name, settings, is_default=is_default)
