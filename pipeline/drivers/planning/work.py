"""All stages of a run: what each item of them costs, what of it is left, and how many bytes it leaves behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.archives.archive import Window
from pipeline.drivers.planning.batches import BatchPlans
from pipeline.drivers.planning.counts import Item, MergeCounter, evidence_items, method_items
from pipeline.drivers.planning.elapsed import Seconds
from pipeline.drivers.planning.files import FileCost, SetFiles
from pipeline.drivers.planning.heads import HeadPrice, StaticPrice
from pipeline.drivers.planning.sandbox import IngestPrice
from pipeline.drivers.planning.stages import Files, Pricing, Stage, Worked, chore
from pipeline.drivers.planning.subjects import Subject
from pipeline.stages.context import EXACT, RunContext
from pipeline.stages.precompute import STAGE
from pipeline.stages.selection import Selected, embeddings_variant
from pipeline.store.run_directory import Variant
from pipeline.store.tables import PartState, part_state


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds to open the models and to lay them out for scoring; the rest by evaluation set, ``static`` by method."""

    opening: float
    scorer: float
    heads: Mapping[str, HeadPrice]
    static: Mapping[str, StaticPrice]
    files: Mapping[str, SetFiles]
    ingest: Mapping[str, IngestPrice]


@dataclass(frozen=True, slots=True)
class CoefficientFile:
    """Seconds to derive and write a file of λ or batch plans, its bytes, and whether it is there."""

    seconds: float
    bytes: float
    done: bool


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is planned: the run, its sets and batches, the methods to infer and those whose λ is derived, and prices."""

    context: RunContext
    plans: BatchPlans
    subjects: Sequence[Subject]
    inferred: Sequence[Selected]
    derived: Sequence[Selected]
    pricing: Pricing
    costs: Costs

    def stages(self) -> list[Stage]:
        """Stages in the order in which a run goes through them."""
        ingest = [self._ingest()] if self.costs.ingest else []
        precompute, inferring = self._precompute(), self._infer()
        before = [self._heads(), precompute, self._coefficients(), *self._static()]
        commands = [[*before[:3]], [*before[3:], *inferring]]
        return [*ingest, self._start(commands), *before, *inferring]

    def _ingest(self) -> Stage:
        items = []
        for subject in self.subjects:
            for part in sorted(subject.unwritten):
                price, images = self.costs.ingest[subject.name], subject.images(part)
                seconds = Seconds(read=images * price.decode, write=images * price.store)
                items.append(Worked(Item.of_images(subject.name, part, images), seconds))
        return Stage("ingest", None, items, items)

    def _start(self, commands: Sequence[Sequence[Stage]]) -> Stage:
        """Both commands load the models in the driver, to check them, and once more in every worker."""
        load = chore(2 * self.costs.opening + self.costs.scorer)
        left = [load for stages in commands if any(stage.left for stage in stages)]
        return Stage("start", None, left, [load for _ in commands], serial=True)

    def _heads(self) -> Stage:
        everything, left = [], []
        for subject in self.subjects:
            price = self.costs.heads[subject.name]
            work = chore(price.seconds, heads=price.calls, prompts=price.prompts)
            everything.append(work)
            left += [] if self.has_embeddings(subject) else [work]
        return Stage("embed", None, left, everything, serial=True)

    def has_embeddings(self, subject: Subject) -> bool:
        """Whether a set's heads are there."""
        variant = embeddings_variant(subject.name, self.context.manifest.prompts)
        fingerprint = self.context.embeddings_fingerprint(subject.name, subject.archive)
        return part_state(self.context.directory.embeddings(variant), fingerprint) is PartState.COMMITTED

    def _precompute(self) -> Stage:
        items = evidence_items(self.context, self.plans, self.subjects)
        worked = self.pricing.evidence(
            items, {name: (files.evidence, files.beside[STAGE]) for name, files in self.costs.files.items()}
        )
        return Stage(STAGE, None, _left(worked), worked)

    def _coefficients(self) -> Stage:
        """λ and batch plans, which the driver derives; where evidence is to be measured, they are all to be made."""
        everything, left = [], []
        for table in self.coefficient_files():
            work = chore(table.seconds)
            everything.append(work)
            left += [] if table.done else [work]
        return Stage("coefficients", None, left, everything, serial=True)

    def coefficient_files(self) -> list[CoefficientFile]:
        """Every file of λ and of batch plans; rules share the first, groupings of several methods may be one."""
        files: dict[tuple[str, ...], CoefficientFile] = {}
        for selected in self.derived:
            if selected.rule is None or selected.grouping is None:
                continue
            for subject in self.subjects:
                if not selected.weighs_sources:
                    for part in range(subject.archive.parts):
                        key = (selected.rule.folder, subject.name, str(part))
                        files[key] = self._samples_file(subject, part, selected.rule)
                for window in self.context.windows(subject.archive):
                    plan = (selected.rule.folder, selected.grouping.folder, subject.name, str(window.index))
                    files[plan] = self._batches_file(subject, window, selected.rule, selected.grouping)
        return list(files.values())

    def _samples_file(self, subject: Subject, part: int, rule: Variant) -> CoefficientFile:
        cost, images = self.costs.files[subject.name].samples[rule.folder], subject.images(part)
        path = self.context.directory.samples(rule, subject.name, part)
        done = part in self.plans.committed(subject) and path.exists()
        return CoefficientFile(cost.seconds(images), cost.bytes(images), done)

    def _batches_file(self, subject: Subject, window: Window, rule: Variant, grouping: Variant) -> CoefficientFile:
        cost = self.costs.files[subject.name].batches[rule.folder, grouping.folder]
        images = sum(subject.images(part) for part in window.part_numbers)
        path = self.context.directory.batches(rule, grouping, subject.name, window.index)
        done = self.plans.committed(subject).issuperset(window.part_numbers) and path.exists()
        return CoefficientFile(cost.seconds(images), cost.bytes(images), done)

    def _static(self) -> list[Stage]:
        methods = [selected for selected in self.inferred if selected.method.combination == "static"]
        if not methods:
            return []
        everything, left = [], []
        for selected in methods:
            price = self.costs.static[selected.key]
            merge = chore(price.seconds, merges=1)
            everything.append(merge)
            left += [] if self.context.directory.merged(selected.variant).exists() else [merge]
            for subject in self.subjects:
                head = self.costs.heads[subject.name]
                work = chore(price.calls * head.per_call, heads=price.calls, prompts=head.prompts)
                everything.append(work)
                left += [] if self._has_merged_head(subject, selected) else [work]
        return [Stage("merge", None, left, everything, serial=True)]

    def _has_merged_head(self, subject: Subject, selected: Selected) -> bool:
        path = self.context.directory.merged_head(selected.variant, subject.name)
        fingerprint = self.context.merged_head_fingerprint(subject.name, subject.archive, selected)
        return part_state(path, fingerprint) is PartState.COMMITTED

    def _infer(self) -> list[Stage]:
        """Methods as the worker meets them: it keeps what it merged last from one to the next."""
        kinds = (("source", "ensemble"), ("batch",), ("static", "grid"))
        ordered = [item for kind in kinds for item in self.inferred if item.method.combination in kind]
        of_all, of_left = (self.pricing.counter() for _ in range(2))
        return [self._method(selected, of_all, of_left) for selected in ordered]

    def _method(self, selected: Selected, of_all: MergeCounter, of_left: MergeCounter) -> Stage:
        items = method_items(self.context, self.plans, self.subjects, selected)
        exact = self.context.implementation(selected) == EXACT
        files = self.method_files(selected)
        remaining = [item for item in items if not item.done]
        return Stage(
            "infer",
            selected.key,
            self.pricing.inference(remaining, files, of_left, exact=exact),
            self.pricing.inference(items, files, of_all, exact=exact),
            serial=selected.method.combination in {"source", "ensemble"},
        )

    def method_files(self, selected: Selected) -> Files:
        """By set, what the method writes for each of its items."""
        files: dict[str, list[FileCost]] = {}
        for name, known in self.costs.files.items():
            files[name] = [known.predictions[selected.key]]
            if selected.method.combination not in {"source", "ensemble"}:
                files[name].append(known.beside[selected.key])
            if selected.method.combination == "grid":
                files[name].append(known.grids[selected.key])
        return files


def _left(worked: Sequence[Worked]) -> list[Worked]:
    return [work for work in worked if not work.item.done]
