"""What PyTorch users switch on: each feature either gives the plain run's numbers, or says why it cannot."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from imachsr import Cosine, ExplicitStandard, IMacHSR, Linear, Ohem, StopAt, Warmup
from imachsr.core.entropy import Regularizer
from imachsr.core.losses import SideLoss
from imachsr.core.types import Losses
from tests.core import nets
from tests.processes import leave

STAGES = ExplicitStandard(layers=("stage1", "stage2"))
SIDES = get_args(SideLoss)


def build(model: nn.Module | None = None, dtype: torch.dtype = torch.float32, **knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    given = {"example": nets.images().to(dtype), "num_classes": nets.NUM_CLASSES, "standard": STAGES, "heterogeneity": "off", **knobs}
    return IMacHSR((nets.Encoder() if model is None else model).to(dtype), **given)


def unet(**knobs: Any) -> IMacHSR:
    torch.manual_seed(0)
    return IMacHSR(smp.Unet("resnet18", encoder_weights=None, classes=3), example=nets.images(2, 64, 64), num_classes=3, **knobs)


def batch(size: int = 32, count: int = 2) -> tuple[Tensor, Tensor]:
    return nets.images(count, size, size), nets.labels(count, size, size, void=0.2)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


def assert_same_step(ours: Losses, theirs: Losses, net: nn.Module, plain: nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(ours.total, theirs.total, **tolerance)
    assert list(ours.terms) == list(theirs.terms)
    for name, value in theirs.terms.items():
        torch.testing.assert_close(ours.terms[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
    expected = gradients(plain)
    assert gradients(net).keys() == expected.keys()
    for name, grad in gradients(net).items():
        torch.testing.assert_close(grad, expected[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# ---- torch.compile --------------------------------------------------------------------------------------------------------------------------


def graph_counter() -> Any:
    from torch._dynamo.testing import CompileCounterWithBackend  # heavy, and spawned processes import this file

    torch.compiler.reset()
    return CompileCounterWithBackend("aot_eager")


def assert_compiles(net: IMacHSR, size: int = 32) -> None:
    plain = copy.deepcopy(net)
    counter = graph_counter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    frames = []
    for step in range(3):
        images, labels = nets.images(2, size, size, seed=step), nets.labels(2, size, size, seed=step, void=0.2)
        ours, theirs = compiled(images, labels), plain(images, labels)
        net.zero_grad()
        plain.zero_grad()
        ours.total.backward()
        theirs.total.backward()
        assert_same_step(ours, theirs, net, plain, rtol=1e-4, atol=1e-5)
        assert {name: float(weight) for name, weight in ours.weights.items()} == pytest.approx(
            {name: float(weight) for name, weight in theirs.weights.items()}
        )
        frames.append(counter.frame_count)
    assert frames[0] == 1, "the graph breaks"
    assert len(set(frames[1:])) == 1, f"it is compiled again: {frames}"
    assert net.num_steps == 3


@pytest.mark.long
@pytest.mark.parametrize(
    "side", [pytest.param(side, marks=() if side.kind in ("prototype", "infonce") else pytest.mark.slow, id=side.kind) for side in SIDES]
)
def test_every_loss_compiles_to_one_graph(side: Any) -> None:
    assert_compiles(build(loss=side()))


@pytest.mark.long
def test_mining_of_hard_pixels_compiles_to_one_graph() -> None:
    assert_compiles(build(output_loss=Ohem()))


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", get_args(Regularizer), ids=lambda regularizer: regularizer.kind)
def test_every_regularizer_compiles_to_one_graph(regularizer: Any) -> None:
    assert_compiles(build(loss="dice", entropy=regularizer(), beta=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Warmup(share=0.5), StopAt(share=0.5)], ids=lambda schedule: schedule.kind)
def test_a_schedule_moves_without_another_compilation(schedule: Any) -> None:
    net = build(schedule=schedule, total_steps=6)
    plain = copy.deepcopy(net)
    counter = graph_counter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    frames, totals = [], []
    for _ in range(6):
        ours, theirs = compiled(*batch()), plain(*batch())
        torch.testing.assert_close(ours.total, theirs.total)
        totals.append(ours.total.item())
        frames.append(counter.frame_count)
    assert len(set(frames[1:])) == 1, frames
    assert len(set(totals)) > 1


@pytest.mark.slow
def test_a_known_model_compiles_to_one_graph() -> None:
    assert_compiles(unet(), 64)


def test_inference_compiles_and_is_the_bare_models() -> None:
    net = build().eval()
    counter = graph_counter()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    with torch.no_grad():
        for seed in range(3):
            torch.testing.assert_close(compiled(nets.images(seed=seed)), net.backbone(nets.images(seed=seed)))
    assert counter.frame_count == 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the graph break that is asked for
@pytest.mark.parametrize("fullgraph", [True, False])
def test_balancing_gradients_under_compile_is_refused(fullgraph: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(build(grad_ratio=0.5), backend="aot_eager", fullgraph=fullgraph)
    with pytest.raises(Exception, match="`grad_ratio` must be None under torch.compile"):
        compiled(*batch())


# ---- autocast -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.kind)
def test_autocast_keeps_the_terms_in_full_precision(side: Any, dtype: torch.dtype) -> None:
    net = build(loss=side(), beta=0.1)
    plain = copy.deepcopy(net)
    half: list[torch.dtype] = []
    net.adapters[0].register_forward_hook(lambda _module, _args, output: half.append(output.dtype))
    with torch.autocast("cpu", dtype):
        ours = net(*batch())
    assert not list(net.adapters[0].parameters()) or half == [dtype]
    ours.total.backward()
    theirs = plain(*batch())
    theirs.total.backward()
    for name, value in {**ours.terms, "total": ours.total, "output": ours.output}.items():
        assert value.dtype == torch.float32, name
    torch.testing.assert_close(ours.total, theirs.total, rtol=0.03, atol=0.03)
    assert gradients(net).keys() == gradients(plain).keys()
    given, expected = (torch.cat([grad.flatten() for grad in gradients(each).values()]) for each in (net, plain))
    assert nn.functional.cosine_similarity(given, expected, dim=0) > 0.98
    assert given.norm().item() == pytest.approx(expected.norm().item(), rel=0.1)


@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.kind)
def test_a_model_in_half_precision_has_terms_in_full(side: Any) -> None:
    net = build(dtype=torch.bfloat16, loss=side())
    images, labels = batch()
    losses = net(images.bfloat16(), labels)
    assert {value.dtype for value in losses.terms.values()} == {torch.float32}
    losses.total.backward()
    assert {grad.dtype for grad in gradients(net).values()} == {torch.bfloat16}
    assert all(bool(torch.isfinite(grad).all()) for grad in gradients(net).values())


def test_a_gradient_scaler_changes_the_gradients_by_rounding_only() -> None:
    net = build()
    plain = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", torch.float16):
        ours, theirs = net(*batch()), plain(*batch())
    scaler.scale(ours.total).backward()
    theirs.total.backward()
    scaler.unscale_(optimizer)
    assert_same_step(ours, theirs, net, plain, rtol=0.02, atol=1e-3)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 1024.0


# ---- gradient accumulation ------------------------------------------------------------------------------------------------------------------


def test_gradients_accumulate_over_forwards() -> None:
    net = build(dtype=torch.float64, loss=["mi_variational", "brier"])
    joined = copy.deepcopy(net)
    images, labels = nets.images(4).double(), nets.labels(4)
    for part in (slice(0, 2), slice(2, 4)):
        (net(images[part], labels[part]).total / 2).backward()
    joined(images, labels).total.backward()
    torch.testing.assert_close(gradients(net), gradients(joined), rtol=1e-9, atol=1e-12)
    assert (net.num_steps, joined.num_steps) == (2, 1)


def test_two_forwards_may_come_before_their_backwards() -> None:
    net = build(loss="infonce")
    apart = copy.deepcopy(net)
    first, second = net(*batch()), net(*batch())
    (second.total + first.total).backward()
    for _ in range(2):
        apart(*batch()).total.backward()
    torch.testing.assert_close(gradients(net), gradients(apart))


# ---- activation checkpointing ---------------------------------------------------------------------------------------------------------------


def checkpointed(model: nn.Module, part: str, reentrant: bool) -> nn.Module:
    module = model.get_submodule(part)
    module.forward = partial(checkpoint, module.forward, use_reentrant=reentrant)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("when", ["before wrapping", "after wrapping"])
@pytest.mark.parametrize(("reentrant", "layers"), [(False, ("stage1", "stage2", "stage2.0")), (True, ("stage1", "stage2"))])
def test_checkpointing_gives_the_plain_gradients(reentrant: bool, layers: tuple[str, ...], when: str) -> None:
    standard = ExplicitStandard(layers=layers)
    plain = build(standard=standard)
    model = nets.Encoder()
    net = build(checkpointed(model, "stage2", reentrant) if when.startswith("before") else model, standard=standard)
    net.backbone.load_state_dict(plain.backbone.state_dict())
    if when.startswith("after"):
        checkpointed(net.backbone, "stage2", reentrant)
    for _ in range(2):
        ours, theirs = net(*batch()), plain(*batch())
        assert set(ours.side) == set(layers)
        ours.total.backward()
        theirs.total.backward()
        assert_same_step(ours, theirs, net, plain)
    assert net.misses == {}


def test_a_tap_inside_of_a_reentrant_checkpoint_is_refused() -> None:
    standard = ExplicitStandard(layers=("stage1", "stage2.0"))
    with pytest.raises(ValueError, match=r"'stage2.0' is a module, but no candidate .*without a gradient"):
        build(checkpointed(nets.Encoder(), "stage2", True), standard=standard)
    net = build(standard=standard)
    checkpointed(net.backbone, "stage2", True)
    with pytest.raises(
        RuntimeError, match=r"tap 'stage2.0' must require a gradient.* reentrant activation checkpointing \(pass use_reentrant=False\)"
    ):
        net(*batch())


def test_what_runs_outside_of_a_step_is_not_caught() -> None:
    net = build(checkpointed(nets.Encoder(), "stage2", False), standard=ExplicitStandard(layers=("stage1", "stage2.0")))
    calls = []
    net.backbone.stage2[0].register_forward_hook(lambda *_: calls.append(1))
    assert net._recorder is not None
    net(nets.images())
    assert net._recorder._caught == {}
    losses = net(*batch())
    assert len(calls) == 2
    losses.total.backward()
    assert len(calls) == 3  # stage2 is computed again
    assert net._recorder._caught == {}


# ---- memory format --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [build, unet])
def test_channels_last_gives_the_same_step(make: Callable[[], IMacHSR]) -> None:
    plain = make().double()
    net = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    images, labels = batch(64)
    ours = net(images.double().contiguous(memory_format=torch.channels_last), labels)
    theirs = plain(images.double(), labels)
    assert ours.prediction.is_contiguous(memory_format=torch.channels_last)
    ours.total.backward()
    theirs.total.backward()
    assert_same_step(ours, theirs, net, plain, rtol=1e-6, atol=1e-9)


# ---- copies ---------------------------------------------------------------------------------------------------------------------------------


def test_an_average_of_the_weights_is_a_net_of_its_own() -> None:
    net = build(loss="infonce")
    average = AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    expected: dict[str, Tensor] = {}
    for _ in range(3):
        optimizer.zero_grad()
        net(*batch()).total.backward()
        optimizer.step()
        average.update_parameters(net)
        now = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        expected = {name: 0.9 * expected[name] + 0.1 * value for name, value in now.items()} if expected else now
    torch.testing.assert_close(dict(average.module.named_parameters()), expected)
    assert any(name.startswith("adapters.") for name in expected)
    twin = build(loss="infonce")
    twin.load_state_dict({**net.state_dict(), **expected, "_extra_state": average.module.get_extra_state()})
    torch.testing.assert_close(average(*batch()).total, twin(*batch()).total)
    assert not torch.equal(average(nets.images()), net(nets.images()))
    assert net.num_steps == 3


@pytest.mark.parametrize("knobs", [{}, {"grad_ratio": 0.5}], ids=["plain", "balanced"])
def test_a_state_dict_holds_tensors_alone_as_what_averages_or_stores_one_takes_for_granted(knobs: dict[str, Any], tmp_path: Path) -> None:
    net = build(**knobs)
    net(*batch()).total.backward()
    average = ModelEmaV3(net, decay=0.5)
    net(*batch()).total.backward()
    average.update(net)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    twin = build(**knobs)
    twin.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert twin.num_steps == net.num_steps == 2
    assert torch.equal(average.module(nets.images()), net(nets.images()))
    torch.testing.assert_close(twin(*batch()).total, net(*batch()).total)


def saved(net: IMacHSR) -> IMacHSR:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert isinstance(loaded, IMacHSR)
    return loaded


COPIES: dict[str, Callable[[IMacHSR], IMacHSR]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES.keys())
@pytest.mark.parametrize("knobs", [{"loss": "infonce"}, {"loss": ["dice", "prototype"], "grad_ratio": 0.5}], ids=["plain", "balanced"])
def test_a_copy_goes_on_as_the_original_would_and_apart_from_it(make: Callable[[IMacHSR], IMacHSR], knobs: dict[str, Any]) -> None:
    net = build(**knobs)
    net(*batch()).total.backward()
    if net.balance is not None:
        net.balance._norms.clear()  # what the last backward showed is the one thing that a copy does not take along
    twin = make(net)
    assert not {id(parameter) for parameter in twin.parameters()} & {id(parameter) for parameter in net.parameters()}
    for each in (twin, net):
        each.zero_grad(set_to_none=True)
    for _ in range(2):
        ours, theirs = twin(*batch()), net(*batch())
        ours.total.backward()
        theirs.total.backward()
        assert_same_step(ours, theirs, twin, net, rtol=0, atol=0)
    assert twin.num_steps == net.num_steps == 3
    before = twin(*batch()).side
    with torch.no_grad():
        for parameter in net.backbone.parameters():
            parameter.zero_()
    twin._steps -= 1
    assert all(torch.equal(value, before[name]) for name, value in twin(*batch()).side.items())


# ---- export ---------------------------------------------------------------------------------------------------------------------------------


def trained(net: IMacHSR, size: int) -> tuple[IMacHSR, nn.Module, Tensor]:
    """A net after a step, in eval mode, and a bare model with the same weights."""
    bare = copy.deepcopy(net.backbone)
    for module in bare.modules():
        module._forward_hooks.clear()
    net(*batch(size)).total.backward()
    bare.load_state_dict(net.backbone.state_dict())
    return net.eval(), bare.eval(), nets.images(2, size, size)


SIZES = {"small": (build, 32), "unet": (unet, 64)}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
def test_the_exported_backbone_is_the_bare_models_graph(name: str, is_training: bool) -> None:
    make, size = SIZES[name]
    net, bare, images = trained(make(), size)
    net.train(is_training)
    bare.train(is_training)
    ours, theirs = torch.export.export(net.backbone, (images,)), torch.export.export(bare, (images,))
    assert [(node.op, str(node.target)) for node in ours.graph.nodes] == [(node.op, str(node.target)) for node in theirs.graph.nodes]
    assert ours.state_dict.keys() == theirs.state_dict.keys()
    assert torch.equal(ours.module()(images), bare(images))


def test_the_exported_net_is_its_backbone() -> None:
    net, bare, images = trained(build(), 32)
    exported = torch.export.export(net, (images,))
    assert torch.equal(exported.module()(images), bare(images))
    assert not any("adapters" in str(node.target) for node in exported.graph.nodes if node.users)


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "unet" else ()) for name in SIZES])
def test_the_onnx_model_of_the_backbone_is_the_bare_models(name: str) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    make, size = SIZES[name]
    net, bare, images = trained(make(), size)
    ours, theirs = (torch.onnx.export(model, (images,), dynamo=True, verbose=False).model_proto for model in (net.backbone, bare))  # type: ignore[union-attr]
    onnx.checker.check_model(ours, full_check=True)
    assert [(node.op_type, list(node.input), list(node.output)) for node in ours.graph.node] == [
        (node.op_type, list(node.input), list(node.output)) for node in theirs.graph.node
    ]
    assert {each.name for each in ours.graph.initializer} == {each.name for each in theirs.graph.initializer}
    session = onnxruntime.InferenceSession(ours.SerializeToString())
    given = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    torch.testing.assert_close(given, net(images).detach(), rtol=1e-3, atol=1e-4)


# ---- two processes --------------------------------------------------------------------------------------------------------------------------

NUM_PROCESSES = 2
MODELS: dict[str, Callable[[], nn.Module]] = {
    "pspnet": partial(smp.PSPNet, "resnet18", encoder_weights=None, classes=3),
    "dpt": partial(smp.DPT, "tu-test_vit", encoder_weights=None, classes=3),
}


def spawn(work: Callable[[int], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    mp.spawn(_begin, args=(work, str(folder)), nprocs=NUM_PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(NUM_PROCESSES)]


def _begin(rank: int, work: Callable[[int], dict[str, Any]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=NUM_PROCESSES)
    torch.save(work(rank), Path(folder) / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found; they are begun once for all tests."""
    return spawn(work_all, tmp_path_factory.mktemp("ranks"))


def work_all(rank: int) -> dict[str, Any]:
    return {"sharded": work_sharded(rank), "static": work_static(rank), "refused": work_refused(), "pspnet": work_with_unused(rank, "pspnet")}


def to_shard() -> IMacHSR:
    return build(dtype=torch.float64, loss=["mi_variational", "prototype"], alpha=0.6, beta=0.2)


def sharded(net: IMacHSR, *, whole: bool) -> IMacHSR:
    mesh = init_device_mesh("cpu", (NUM_PROCESSES,))
    for part in ("stem", "stage1", "stage2"):
        fully_shard(net.backbone.get_submodule(part), mesh=mesh)
    fully_shard(net if whole else net.backbone, mesh=mesh)
    return net


def full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()
    return whole


def two_steps(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Gradients and their norm, the parameters after each step, and the output."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    found: dict[str, Any] = {}
    for step in range(2):
        optimizer.zero_grad()
        losses = net(images, labels)
        losses.total.backward()
        found[f"gradients {step}"] = {name: full(parameter.grad) for name, parameter in net.named_parameters()}
        found[f"norm {step}"] = full(nn.utils.clip_grad_norm_(getattr(net, "module", net).backbone.parameters(), 0.1))
        optimizer.step()
        found[f"parameters {step}"] = {name: full(parameter.detach()) for name, parameter in net.named_parameters()}
    found["output"] = net.eval()(nets.images().double()).detach()
    return found


def work_sharded(rank: int) -> dict[str, Any]:
    net = sharded(to_shard(), whole=True)
    assert all(hasattr(parameter, "full_tensor") for parameter in net.parameters())
    images, labels = batch(count=4)
    return two_steps(net, images[rank::NUM_PROCESSES].double(), labels[rank::NUM_PROCESSES])


@pytest.mark.long
def test_two_shards_learn_what_one_process_learns(ranks: list[dict[str, Any]]) -> None:
    images, labels = batch(count=4)
    assert (labels == 255).flatten(1).sum(1).unique().numel() > 1  # void pixels, and not as many in each shard
    alone = two_steps(to_shard(), images.double(), labels)
    assert any(name.startswith("adapters.") for name in alone["gradients 0"])
    assert all(bool(grad.any()) for grad in alone["gradients 0"].values())
    for found in ranks:
        torch.testing.assert_close(found["sharded"], alone, rtol=1e-9, atol=1e-12)


def work_static(rank: int) -> dict[str, Any]:
    net = DistributedDataParallel(to_shard(), static_graph=True)
    images, labels = batch(count=4)
    found = two_steps(net, images[rank::NUM_PROCESSES].double(), labels[rank::NUM_PROCESSES])
    bare = {key: {name.removeprefix("module."): value for name, value in each.items()} for key, each in found.items() if isinstance(each, dict)}
    return {**found, **bare}


@pytest.mark.long
def test_two_ranks_of_a_static_graph_learn_what_one_process_learns(ranks: list[dict[str, Any]]) -> None:
    images, labels = batch(count=4)
    alone = two_steps(to_shard(), images.double(), labels)
    for found in ranks:
        torch.testing.assert_close(found["static"], alone, rtol=1e-9, atol=1e-12)


def work_refused() -> dict[str, Any]:
    net = sharded(to_shard(), whole=False)
    images, labels = batch()
    told: dict[str, Any] = {}
    with pytest.raises(RuntimeError) as at_step:
        net(images.double(), labels)
    told["step"] = str(at_step.value)
    for name, model in {"sharded": net.backbone, "ddp": nn.Sequential(DistributedDataParallel(nets.Encoder()))}.items():
        with pytest.raises(ValueError, match="data-parallel") as at_wrapping:
            build(model, torch.float64)
        told[name] = str(at_wrapping.value)
    told["inference"] = net(images.double()).shape == (2, 3, 32, 32)
    told["without adapters"] = len(IMacHSR(net.backbone, example=images.double(), num_classes=3, alpha=0.0, beta=0.0).adapters)
    return told


def test_adapters_that_the_ranks_would_not_share_are_refused(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        told = found["refused"]
        assert told["step"].startswith("the whole net must be data-parallel, but only its backbone is a FSDPModule, so that each rank would train")
        assert told["sharded"].startswith("`model` must be wrapped before it is made data-parallel, but 'it' is a FSDPModule already, which would")
        assert told["ddp"].startswith("`model` must be wrapped before it is made data-parallel, but '0' is a DistributedDataParallel already")
        assert told["inference"] is True
        assert told["without adapters"] == 0


def with_unused(name: str) -> IMacHSR:
    torch.manual_seed(0)
    return IMacHSR(MODELS[name](), example=nets.images(2, 64, 64), num_classes=3, loss="brier")


def a_ranks_step(net: nn.Module, rank: int) -> dict[str, Any]:
    torch.manual_seed(rank)  # of dropout
    part = slice(2 * rank, 2 * rank + 2)
    net(nets.images(4, 64, 64)[part], nets.labels(4, 64, 64)[part]).total.backward()
    return {key.removeprefix("module."): parameter.grad for key, parameter in net.named_parameters()}


def work_with_unused(rank: int, name: str) -> dict[str, Any]:
    net = DistributedDataParallel(with_unused(name), find_unused_parameters=True)
    a_ranks_step(net, rank)
    net.zero_grad(set_to_none=True)
    return a_ranks_step(net, rank)  # the second step is where DDP complains of the first


def assert_mean_of_the_ranks(name: str, found: list[dict[str, Any]]) -> None:
    alone = [a_ranks_step(with_unused(name), rank) for rank in range(NUM_PROCESSES)]
    unused = {key for key, grad in alone[0].items() if grad is None}
    assert unused
    assert all(key.startswith("backbone.") for key in unused)
    for key in alone[0].keys() - unused:
        mean = (alone[0][key] + alone[1][key]) / 2
        for grads in found:
            assert (grads[key] - mean).norm() <= 1e-3 * mean.norm() + 1e-6, key
    assert {key for grads in found for key in unused if grads[key] is not None} == set()


def test_a_model_that_leaves_parameters_without_gradient_trains_under_ddp(ranks: list[dict[str, Any]]) -> None:
    assert_mean_of_the_ranks("pspnet", [found["pspnet"] for found in ranks])


@pytest.mark.slow
def test_another_model_that_leaves_parameters_without_gradient_trains_under_ddp(tmp_path: Path) -> None:
    assert_mean_of_the_ranks("dpt", spawn(partial(work_with_unused, name="dpt"), tmp_path))


# ---- clipping -------------------------------------------------------------------------------------------------------------------------------


def test_clipping_the_backbone_does_not_see_the_adapters() -> None:
    net = build(alpha=5.0)
    net(*batch()).total.backward()
    before = gradients(net)
    own = torch.cat([grad.flatten() for name, grad in before.items() if name.startswith("backbone.")]).norm()
    limit = 0.5 * own.item()
    total = nn.utils.clip_grad_norm_(net.backbone.parameters(), limit)
    torch.testing.assert_close(total, own)
    for name, grad in gradients(net).items():
        torch.testing.assert_close(grad, before[name] * (0.5 if name.startswith("backbone.") else 1.0), rtol=1e-4, atol=1e-8)
    assert any(name.startswith("adapters.") for name in before)
