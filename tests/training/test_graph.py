"""A step of recordings is the step that is run: on a CPU over emulated graphs, on a GPU over CUDA's."""

from __future__ import annotations

import contextlib
import copy
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from glyphcrm.configuration import preset
from glyphcrm.glyphs.atlas import GlyphAtlas
from glyphcrm.modeling import GlyphCRMForPreTraining
from glyphcrm.modeling.glyph_vectors import SharedGlyphs, hold_convolutions
from glyphcrm.modeling.hanglyph import GlyphVectors
from glyphcrm.pretraining.ablations import FreeGlyphs, free_glyphs
from glyphcrm.training import graphed_gradients
from glyphcrm.training.character_scaling import CharacterScaling, add_to
from glyphcrm.training.graph import CudaRecorder, Graphs, Recording, Work, in_place_of, no_graph_because
from glyphcrm.training.graphed_gradients import Batch, GraphedGradients
from tests.robustness.processes import run_ranks
from tests.training.emulated_graphs import EmulatedGraphs

Steps = list[list[Batch]]
# Length, distinct characters and predictions of a micro-batch.
SHORT, LONG = (6, 8, 3), (9, 16, 5)
BACKEND = "auto" if torch.cuda.is_available() else "reference"  # the emulator does not see what C kernels write


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host looks into no indices; and a few characters make a size of their own."""
    for name, module in list(sys.modules.items()):
        if name.startswith("glyphcrm_kernels.") and hasattr(module, "check_index"):
            monkeypatch.setattr(module, "check_index", lambda *_: None)
    monkeypatch.setattr(graphed_gradients, "CHARACTERS", 8)


def micro_batch(size: tuple[int, int, int], few: bool, generator: torch.Generator) -> Batch:
    """Two sequences in tensors of a size, of less than 8 or of more characters."""
    length, distinct, predictions = size
    rows = torch.randperm(38, generator=generator)[: 5 if few else distinct - 1] + 1
    ids = rows[torch.randint(0, len(rows), (2, length), generator=generator)]
    glyph_ids, glyph_index = ids.unique(return_inverse=True)
    where = torch.randperm(2 * length, generator=generator)[:predictions].sort().values
    labels = torch.full((2 * length,), -100)
    labels[where[1:]] = ids.flatten()[where[1:]]  # the first one is filling
    return {
        "glyph_ids": torch.cat([glyph_ids, glyph_ids.new_zeros(distinct - len(glyph_ids))]),
        "glyph_index": glyph_index,
        "labels": labels.view(2, length),
        "prediction_index": where,
        "next_sentence_label": torch.randint(0, 2, (2,), generator=generator),
    }


def steps_of(sizes: list[list[tuple[int, int, int]]], few: bool = False, seed: int = 0) -> Steps:
    generator = torch.Generator().manual_seed(seed)
    return [[micro_batch(size, few, generator) for size in step] for step in sizes]


SHORT_OF_MEMORY = "the GPU's memory is short: CUDA graphs are dropped and made again, which takes some seconds"
MIXED = [[SHORT, LONG], [LONG, SHORT, SHORT], [SHORT], [LONG, LONG, SHORT], [SHORT, LONG]]


def small_model(atlas: GlyphAtlas, dropout: float = 0.0, convolves: bool = False) -> GlyphCRMForPreTraining:
    """A model whose glyph vectors are parameters, unless it `convolves` pictures, which takes a second a step here."""
    torch.manual_seed(0)
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = preset("nano", vocab_size=40, kernel_backend=BACKEND, attn_implementation="eager", **dropouts)
    model = GlyphCRMForPreTraining.from_atlas(config, atlas).train()
    if not convolves:
        free_glyphs(model)
    return model


class CountedCudaGraphs(CudaRecorder):
    """CUDA graphs with what the tests ask of emulated ones."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", torch.cuda.current_device()))
        self.recorded = self.replayed = self.recovered = 0
        self.fails_at: int | None = None
        self.failures = 1 << 10

    def record(self, work: Work, pool: Any) -> Work:
        def recorded() -> None:
            work()
            if self.recorded == self.fails_at and self.failures:
                self.failures -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")

        replay = super().record(recorded, pool)
        self.recorded += 1

        def counted() -> None:
            self.replayed += 1
            replay()

        return counted

    def recover(self) -> None:
        super().recover()
        self.recovered += 1


class Place(NamedTuple):
    """Where steps are recorded, and how near they come to those that are run."""

    device: str
    dtype: torch.dtype
    tolerance: float

    def trained(self, model: GlyphCRMForPreTraining, recorder: Any = None, most: int = 24) -> Trained:
        return Trained(model.to(self.device, self.dtype), recorder, most)

    def recorder(self) -> Any:
        return EmulatedGraphs() if self.device == "cpu" else CountedCudaGraphs()


EMULATED = Place("cpu", torch.float64, 1e-12)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available() or torch.version.hip is not None, reason="no NVIDIA GPU")
everywhere = pytest.mark.parametrize(
    "place",
    [
        pytest.param(EMULATED, id="emulated"),
        pytest.param(Place("cuda", torch.float32, 1e-4), id="gpu", marks=on_a_gpu),
    ],
)


class Trained:
    """Plain gradient descent over steps, run or recorded."""

    def __init__(
        self,
        model: GlyphCRMForPreTraining,
        recorder: Any = None,
        most: int = 24,
        scaling: CharacterScaling | None = None,
    ) -> None:
        self.model, self.recorder, self.messages, self.scaling = model, recorder, list[str](), scaling
        self.device = next(model.parameters()).device
        self.losses: list[float] = []
        self.drop = False  # the gradients, instead of setting them to 0
        if recorder is not None:
            graphs = Graphs(recorder, in_place_of(model), self.messages.append, most)
            self.graphed = GraphedGradients(
                self.accumulate, model.glyphcrm, contextlib.nullcontext, self.device, graphs, scaling
            )

    def accumulate(self, batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        outputs = self.model(**inputs)
        labels = (batch["labels"].flatten()[batch["prediction_index"]] != -100).sum()
        loss: Tensor = outputs.mlm_loss * labels / totals[0] + outputs.nsp_loss * 2 / totals[1]
        loss.backward()
        return loss.detach()

    def gradients(self, micro_batches: list[Batch]) -> Tensor:
        counts = [[int((batch["labels"] != -100).sum()), 2] for batch in micro_batches]
        totals = torch.tensor(counts).sum(0).to(self.device, torch.float64)
        if dist.is_initialized():
            dist.all_reduce(totals)
        if self.recorder is not None:
            return self.graphed(micro_batches, totals)
        batches = [{name: value.to(self.device) for name, value in batch.items()} for batch in micro_batches]
        glyphs = SharedGlyphs(self.model.glyphcrm, batches)
        shares = [self.accumulate(batch, glyphs.arguments(batch), totals) for batch in batches]
        glyphs.backward(self.scaling)
        return torch.stack(shares).sum()

    def __call__(self, steps: Steps) -> Trained:
        for micro_batches in steps:
            self.losses.append(float(self.gradients(micro_batches)))
            with torch.no_grad():
                for parameter in self.model.parameters():
                    if parameter.grad is not None:
                        if dist.is_initialized():
                            dist.all_reduce(parameter.grad)
                        parameter -= 0.05 * parameter.grad
            self.model.zero_grad(set_to_none=self.drop)
        return self

    def distance(self, other: Trained) -> float:
        """Return the largest difference of a loss or a weight."""
        losses = torch.tensor(self.losses) - torch.tensor(other.losses)
        pairs = zip(self.model.parameters(), other.model.parameters(), strict=True)
        return max(losses.abs().max().item(), *((a - b).detach().abs().max().item() for a, b in pairs))


@everywhere
@pytest.mark.parametrize("convolves", [False, True])
def test_a_recorded_step_is_the_one_that_is_run(place: Place, atlas: GlyphAtlas, convolves: bool) -> None:
    """Losses and weights in float64, of micro-batches of two sizes in any order."""
    steps = steps_of([[SHORT], [SHORT], [SHORT, SHORT]], few=True) if convolves else steps_of(MIXED)
    expected = place.trained(small_model(atlas, convolves=convolves))(steps)
    recorder = place.recorder()
    found = place.trained(small_model(atlas, convolves=convolves), recorder)(steps)
    assert found.distance(expected) <= place.tolerance
    assert recorder.recorded >= 3 and recorder.replayed >= 4 and not found.messages


@everywhere
def test_gradients_are_scaled_by_character_beside_recordings(place: Place, atlas: GlyphAtlas) -> None:
    """Vectors lie in larger tables then, and the last character fills them up."""
    steps = steps_of(MIXED)

    def trained(recorder: Any, scaled: bool = True) -> Trained:
        model = small_model(atlas).to(place.device, place.dtype)
        optimizer = torch.optim.SGD(model.parameters())
        add_to(optimizer, len(model.glyphcrm.glyph_table.bitmaps), 0.5, torch.device(place.device))
        return Trained(model, recorder, scaling=CharacterScaling.of(optimizer) if scaled else None)(steps)

    expected, recorder = trained(None), place.recorder()
    found = trained(recorder)
    # The squares are in float32, whatever the model is in.
    assert found.distance(expected) <= 1e-5 < 1e-4 < expected.distance(trained(None, scaled=False))
    assert recorder.replayed > 0 and not found.messages


@everywhere
@pytest.mark.parametrize("told", [True, False])
def test_convolutions_that_begin_to_move_are_in_new_recordings(place: Place, atlas: GlyphAtlas, told: bool) -> None:
    """Old ones would go on without them."""
    runs = []
    for recorder in (None, place.recorder()):
        trained = place.trained(small_model(atlas, convolves=True), recorder)
        base = trained.model.glyphcrm
        hold_convolutions(base.hanglyph, base.glyph_table.all_pictures())
        trained(steps_of([[SHORT]] * 3, few=True))
        base.hanglyph.still = None
        if recorder is not None and told:
            assert recorder.replayed > 0
            trained.graphed.begin_anew()
        runs.append(trained(steps_of([[SHORT]] * 3, few=True, seed=1)))
    assert (runs[1].distance(runs[0]) <= place.tolerance) is told


@everywhere
def test_after_a_new_beginning_each_size_is_run_before_it_is_recorded(place: Place) -> None:
    """Other kernels than before may be in it, which no recording may compile."""
    recorder = place.recorder()
    graphs = Graphs(recorder, list, lambda _: None)

    def step(*sizes: str) -> None:
        with graphs.step():
            for size in sizes:
                graphs.run(graphs.of_size(size, lambda: Recording(lambda: None)))

    step("a", "b")
    step("a", "b")
    assert (recorder.recorded, recorder.replayed) == (2, 2)
    graphs.begin_anew()
    step("a")  # the first one again
    step("a", "b")
    assert (recorder.recorded, recorder.replayed) == (3, 3)
    step("b")
    assert (recorder.recorded, recorder.replayed) == (4, 4)


@everywhere
def test_every_size_is_recorded_once(place: Place, atlas: GlyphAtlas) -> None:
    """And no memory is needed any more."""
    recorder, steps = place.recorder(), steps_of(MIXED)
    trained = place.trained(small_model(atlas), recorder)(steps)(steps)(steps)
    recorded, replayed = recorder.recorded, recorder.replayed
    memory = torch.cuda.memory_allocated() if place.device == "cuda" else 0
    trained(steps)
    assert recorder.recorded == recorded
    assert memory == (torch.cuda.memory_allocated() if place.device == "cuda" else 0)
    assert recorder.replayed == replayed + sum(len(step) + 2 for step in MIXED)  # nothing is run any more


@everywhere
def test_dropout_draws_anew_and_as_the_step_that_is_run(place: Place, atlas: GlyphAtlas) -> None:
    """Also where a run continues whose recordings are made later than those of the one that was not interrupted."""
    steps = steps_of([[SHORT, LONG]] + [[SHORT, LONG], [LONG, SHORT]] * 2)
    runs = {}
    for name in ("run", "recorded", "continued"):
        model = small_model(atlas, dropout=0.3)
        torch.manual_seed(1)
        runs[name] = place.trained(model, None if name == "run" else place.recorder())
        if name == "continued":
            before = runs[name](steps[:3])
            state = torch.get_rng_state() if place.device == "cpu" else torch.cuda.get_rng_state()
            torch.manual_seed(2)
            (torch.set_rng_state if place.device == "cpu" else torch.cuda.set_rng_state)(state)
            runs[name] = place.trained(model, place.recorder())
            runs[name].losses = before.losses
            runs[name](steps[3:])
        else:
            runs[name](steps)
    assert runs["recorded"].distance(runs["run"]) <= place.tolerance
    assert runs["continued"].distance(runs["run"]) <= place.tolerance
    again = place.trained(small_model(atlas, dropout=0.3), place.recorder())
    losses = [float(again.gradients(steps[1])) for _ in range(4)]
    assert len(set(losses)) == 4


@everywhere
def test_fonts_are_drawn_anew_and_as_in_the_step_that_is_run(place: Place, atlas: GlyphAtlas) -> None:
    """HanGlyph is a vector for each character and font."""

    def of_two_fonts() -> GlyphCRMForPreTraining:
        model = small_model(atlas)
        model.set_training_fonts([GlyphAtlas(atlas.tokens, atlas.bitmaps[::-1], atlas.fonts, atlas.sources)])
        own = [torch.tanh(vectors) for vectors in model.glyphcrm.hanglyph.before_tanh]
        hanglyph = FreeGlyphs(GlyphVectors(*(torch.cat([vectors, vectors.flip(0)]).detach() for vectors in own)))
        model.glyphcrm.hanglyph = hanglyph  # type: ignore[assignment]
        return model

    runs = []
    for most in (0, 24):  # HanGlyph reads more rows than there are characters, whether it is recorded or not
        trained = place.trained(of_two_fonts(), place.recorder(), most)
        torch.manual_seed(1)
        runs.append(trained(steps_of(MIXED))(steps_of(MIXED)))
    assert runs[1].distance(runs[0]) <= place.tolerance
    assert runs[0].recorder.replayed == 0 < runs[1].recorder.replayed
    again = place.trained(of_two_fonts(), place.recorder())
    losses = [float(again.gradients(steps_of(MIXED)[0])) for _ in range(6)]
    assert len(set(losses)) == 6


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Trained], None]]:
    """What makes a recorded step wrong, by name."""

    def a_number_of_this_step(trained: Trained) -> None:
        accumulate = trained.graphed._accumulate

        def scaled(batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
            return accumulate(batch, inputs, totals * totals[0].numpy().item() / totals[0])

        monkeypatch.setattr(trained.graphed, "_accumulate", scaled)

    def old_inputs(trained: Trained) -> None:
        fill = graphed_gradients._MicroBatch.fill
        monkeypatch.setattr(
            graphed_gradients._MicroBatch,
            "fill",
            lambda self, batch: None if self.recording.replays else fill(self, batch),
        )

    def one_pool(trained: Trained) -> None:
        pool = trained.recorder.new_pool()
        trained.graphed._graphs._pools = {1: pool, 2: pool}

    def gradients_left(trained: Trained) -> None:
        monkeypatch.setattr(torch, "_foreach_zero_", lambda tensors: None)

    return {f.__name__: f for f in (a_number_of_this_step, old_inputs, one_pool, gradients_left)}


@pytest.mark.parametrize("fault", ["a_number_of_this_step", "old_inputs", "one_pool", "gradients_left"])
def test_the_comparison_sees_what_would_be_wrong_on_a_gpu(
    atlas: GlyphAtlas, faults: dict[str, Callable[[Trained], None]], fault: str
) -> None:
    steps = steps_of(MIXED)
    expected = Trained(small_model(atlas).double())(steps)
    found = Trained(small_model(atlas).double(), EmulatedGraphs())
    faults[fault](found)
    with contextlib.suppress(IndexError):  # a row that a CPU, unlike a GPU, refuses to read
        assert not found(steps).distance(expected) <= 1e-6  # also NaN


def test_gradients_that_move_are_refused(atlas: GlyphAtlas) -> None:
    trained = Trained(small_model(atlas), EmulatedGraphs())(steps_of(MIXED[:3]))
    trained.drop = True
    with pytest.raises(RuntimeError, match="has moved"):
        trained(steps_of(MIXED[:2]))


@pytest.mark.parametrize("most", [0, 2])
def test_further_sizes_are_run(atlas: GlyphAtlas, most: int) -> None:
    steps = steps_of(MIXED)
    expected = Trained(small_model(atlas).double())(steps)
    recorder = EmulatedGraphs()
    found = Trained(small_model(atlas).double(), recorder, most)(steps)
    assert found.distance(expected) <= 1e-12 and recorder.recorded <= 2 * most
    assert found.messages == [f"steps have more than {most} sizes: the further ones run without a CUDA graph"]


@everywhere
@pytest.mark.parametrize("fails_at", range(4))
def test_a_failed_recording_leaves_the_run_as_it_was(place: Place, atlas: GlyphAtlas, fails_at: int) -> None:
    """Out of memory in HanGlyph's forward or backward, or in a micro-batch after HanGlyph was replayed."""
    steps = steps_of(MIXED)
    expected = place.trained(small_model(atlas, 0.2))
    torch.manual_seed(1)
    expected(steps)
    recorder = place.recorder()
    recorder.fails_at = fails_at
    found = place.trained(small_model(atlas, 0.2), recorder)
    torch.manual_seed(1)
    found(steps)
    assert found.distance(expected) <= place.tolerance
    tries = 1 if fails_at < 2 else 2  # before the first recording is whole, there is nothing to drop
    end = "no CUDA graph could be made (CUDA out of memory); training goes on without"
    assert found.messages == [*[SHORT_OF_MEMORY] * (tries - 1), end]
    assert recorder.recovered == tries and recorder.recorded == fails_at


@everywhere
@pytest.mark.parametrize("fails_at", [2, 3, 4])
def test_where_memory_was_short_once_recordings_are_made_again(place: Place, atlas: GlyphAtlas, fails_at: int) -> None:
    """Also HanGlyph's, which goes on to its backward while a micro-batch has its memory dropped."""
    steps = steps_of(MIXED)
    expected = place.trained(small_model(atlas, 0.2))
    torch.manual_seed(1)
    expected(steps)(steps)
    recorder = place.recorder()
    recorder.fails_at, recorder.failures = fails_at, 1
    found = place.trained(small_model(atlas, 0.2), recorder)
    torch.manual_seed(1)
    found(steps)(steps)
    assert found.distance(expected) <= place.tolerance
    assert found.messages == [SHORT_OF_MEMORY] and recorder.recovered == 1
    replayed = recorder.replayed
    found(steps)
    assert recorder.replayed == replayed + sum(len(step) + 2 for step in MIXED)  # nothing is run any more


@pytest.mark.parametrize("memory", [30, 35, 45])
def test_recordings_make_room_for_what_is_run(atlas: GlyphAtlas, memory: int) -> None:
    """The first time that a size comes, when the recordings hold more than is left."""
    steps = steps_of(MIXED)
    expected = Trained(small_model(atlas).double())(steps)(steps)
    recorder = EmulatedGraphs()
    recorder.memory = memory
    found = Trained(small_model(atlas).double(), recorder)(steps)(steps)
    assert found.distance(expected) <= 1e-12
    assert found.messages == [SHORT_OF_MEMORY] and recorder.replayed > 0 and recorder.recovered == 0


@everywhere
def test_work_beside_the_steps_takes_the_memory_of_recordings(place: Place, atlas: GlyphAtlas) -> None:
    """A validation; afterwards they are made again."""
    steps = steps_of(MIXED)
    expected = place.trained(small_model(atlas))(steps)(steps)(steps)
    recorder = place.recorder()
    found = place.trained(small_model(atlas), recorder)(steps)(steps)
    graphs, tried = found.graphed._graphs, list[bool]()

    def validate() -> str:
        tried.append(bool(graphs._recordings))
        if tried[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert place.device == "cuda" or recorder.room() == recorder.memory  # nothing holds their memory
        return "scores"

    assert graphs.beside(validate) == "scores" and tried == [True, False]
    recorded = recorder.recorded
    assert found(steps).distance(expected) <= place.tolerance and recorder.recorded > recorded
    assert found.messages == [SHORT_OF_MEMORY]
    graphs.begin_anew()
    with pytest.raises(torch.OutOfMemoryError):  # there is nothing left to drop
        graphs.beside(out_of_memory)


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@everywhere
def test_what_cannot_be_recorded_is_run(place: Place, atlas: GlyphAtlas) -> None:
    """Here a loss that the host reads; dropout goes on as if nothing had been tried."""
    steps = steps_of(MIXED)
    expected = place.trained(small_model(atlas, 0.2))
    torch.manual_seed(1)
    expected(steps)
    found = place.trained(small_model(atlas, 0.2), place.recorder())
    accumulate = found.graphed._accumulate
    read: list[float] = []

    def reading(batch: Batch, inputs: Batch, totals: Tensor) -> Tensor:
        loss = accumulate(batch, inputs, totals)
        read.append(loss.item())
        return loss

    found.graphed._accumulate = reading
    torch.manual_seed(1)
    assert found(steps).distance(expected) <= place.tolerance
    assert len(found.messages) == 1 and "not permitted when stream is capturing" in found.messages[0]


@pytest.mark.parametrize("end", ["whole", "out of memory", "invalid"])
def test_the_pool_of_a_failed_recording_is_given_back(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """To an allocator that counts who uses a pool as PyTorch's does: a capture from its begin, until its graph goes."""
    users, captures = [0], [0]

    class Graph:
        is_whole = False

        def replay(self) -> None: ...

        def __del__(self) -> None:
            users[0] -= self.is_whole

    @contextlib.contextmanager
    def capture(graph: Graph, **_: Any) -> Iterator[None]:
        users[0] += 1
        captures[0] += 1
        try:
            yield
        finally:
            if end == "invalid":
                raise RuntimeError("operation failed due to a previous error during capture")
            end_allocation()
            graph.is_whole = True

    def end_allocation(*_: Any) -> None:
        if not captures[0]:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        captures[0] -= 1

    def release(*_: Any) -> None:
        users[0] -= 1

    def work() -> None:
        if end != "whole":
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_allocation, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    recorder: Any = CudaRecorder.__new__(CudaRecorder)
    recorder._stream = types.SimpleNamespace(device_index=0)
    if end == "whole":
        replay = recorder.record(work, (0, 1))
        assert users == [1]
        del replay
    else:
        with contextlib.suppress(RuntimeError):
            recorder.record(work, (0, 1))
    assert users == [0] and captures == [0]


def one_of_two_processes(rank: int, folder: Path, model: GlyphCRMForPreTraining, steps: list[Steps]) -> None:
    """Train on this process's micro-batches, recorded; the gradients of both are summed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_gpu.__wrapped__(patch)  # type: ignore[attr-defined]
        trained = Trained(copy.deepcopy(model), EmulatedGraphs())  # what it was given is the memory of both
        trained(steps[rank])
    torch.save((trained.losses, trained.model.state_dict(), trained.recorder.replayed), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(atlas: GlyphAtlas, tmp_path: Path) -> None:
    """They have different numbers of micro-batches, and divide the characters of both."""
    sizes = [[SHORT, LONG], [SHORT]], [[SHORT, LONG], [SHORT]], [[SHORT], [SHORT, SHORT]]
    steps = [steps_of([step[rank] for step in sizes], seed=rank) for rank in range(2)]
    expected = Trained(small_model(atlas).double())([first + second for first, second in zip(*steps, strict=True)])
    arguments = (tmp_path, small_model(atlas).double(), steps)
    run_ranks(one_of_two_processes, arguments, 2)
    (first, weights, replays), (second, same, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert replays >= 4
    assert [sum(pair) for pair in zip(first, second, strict=True)] == pytest.approx(expected.losses, abs=1e-12)
    for name, weight in expected.model.state_dict().items():
        assert torch.equal(weights[name], same[name])
        assert (weights[name] - weight).abs().max() <= 1e-12, name


def test_where_there_are_no_graphs() -> None:
    assert "NVIDIA" in no_graph_because(torch.device("cpu"), recomputes=False)
    if torch.cuda.is_available() and not torch.version.hip:
        assert "checkpointing" in no_graph_because(torch.device("cuda"), recomputes=True)
        assert no_graph_because(torch.device("cuda"), recomputes=False) == ""
